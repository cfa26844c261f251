"""Files of exported samplers: a zip archive that says what it is, with a checksum of each part.

    header.json             inputs, output, class names, how it samples, versions, checksums
    program.bin             StableHLO of `jax.export`, for several platforms and any batch size
    params.safetensors      the parameters, which are arguments of the program

Nothing in it is compressed. The program is `program(params, inputs) -> images`, of dictionaries by name; its inputs
have one row for each image.
"""

import hashlib
import importlib.util
import json
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from guided_diffusion_jax.errors import InputError, one_line, require
from guided_diffusion_jax.runtime import files

FORMAT, VERSION = "guided_diffusion_jax sampler", 1
HEADER, PROGRAM, WEIGHTS = "header.json", "program.bin", "params.safetensors"
LARGEST_HEADER = 16 * 2**20
"""Bytes; ImageNet's class names take 20,000."""

PRNG = "threefry2x32"
"""Kind of the random keys, whose two words are an input of the program."""

Header = dict[str, Any]


def write(path: epath.PathLike, header: Header, contents: Mapping[str, bytes]) -> Header:
    """Writes a file, whole or not at all; returns the header with the checksums."""
    header = {**header, "sha256": {name: digest(content) for name, content in contents.items()}}
    header["checksum"] = checksum(header)
    epath.Path(path).parent.mkdir(parents=True, exist_ok=True)
    with files.atomic_write(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in ((HEADER, json.dumps(header, indent=2).encode()), *contents.items()):
            archive.writestr(zipfile.ZipInfo(name), content)  # of no time: the same sampler is the same file
    return header


def read(path: epath.PathLike, names: Sequence[str] = ()) -> tuple[Header, dict[str, bytes]]:
    """The header and these entries of a file, with their checksums compared.

    Raises:
        InputError: it is no such file, it is cut or changed, or it has a newer version.
    """
    path = epath.Path(path).expanduser()
    require(files.is_regular(path), f"{path} is no file")
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            header = _header(path, archive)
            contents = {name: _entry(path, archive, name) for name in names}
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{path} is no exported sampler, or it is cut or damaged: {one_line(error, 100)}") from None
    for name, content in contents.items():
        require(header["sha256"].get(name) == digest(content), f"{path} is damaged: its {name} has changed")
    return header, contents


def _header(path: epath.Path, archive: zipfile.ZipFile) -> Header:
    foreign = f"{path} is no exported sampler; --mode=export and gd.export write one"
    require(HEADER in archive.namelist(), f"{foreign}: it holds no {HEADER}")
    require(archive.getinfo(HEADER).file_size <= LARGEST_HEADER, f"{foreign}: its {HEADER} is too large")
    header = files.parse_json(_entry(path, archive, HEADER), f"{path}: {HEADER}")
    require(isinstance(header, dict) and header.get("format") == FORMAT, foreign)
    version = header.get("version")
    newer = isinstance(version, int) and version > VERSION
    require(
        not newer,
        f"{path} has version {version} of the format, of guided_diffusion_jax {header.get('package')}; this one reads "
        f"up to {VERSION}: install that version or newer",
    )
    require(header.get("checksum") == checksum(header), f"{path} is damaged: its {HEADER} has changed")
    return header


def _entry(path: epath.Path, archive: zipfile.ZipFile, name: str) -> bytes:
    require(name in archive.namelist(), f"{path} is damaged: its {name} is missing")
    stored = archive.getinfo(name).compress_type == zipfile.ZIP_STORED
    require(stored, f"{path} is damaged: its {name} is compressed, which no exported sampler's is")
    return archive.read(name)


def digest(content: bytes) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def checksum(header: Header) -> str:
    """SHA-256 of a header without its own checksum."""
    return digest(json.dumps({key: header[key] for key in sorted(header) if key != "checksum"}).encode())


def require_flatbuffers() -> None:
    """Raises `InputError` unless the package is there that `jax.export` reads and writes programs with."""
    found = importlib.util.find_spec("flatbuffers") is not None
    require(found, "exported samplers need the package flatbuffers: pip install flatbuffers")
