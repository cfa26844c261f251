"""Images to judge and to compare with: samples as `--mode=sample` writes them, OpenAI's reference batches, folders.

A folder holds image files of one size (`image_folder`). The others are `.npz`: `arr_0` uint8 `[n h w c]` and perhaps
labels, `arr_1`. A reference batch (`VIRTUAL_*.npz`) may hold statistics of Inception's features as well, or alone: `mu`
and `sigma` of the pooled ones, `mu_s` and `sigma_s` of the spatial ones. 50,000 images of 256 pixels are 10 GB, so that
images are read in blocks from the compressed stream.
"""

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Int, UInt8
from numpy.lib import format as npy

from guided_diffusion_jax.errors import InputError, require
from guided_diffusion_jax.evaluation import image_folder
from guided_diffusion_jax.evaluation.features import weights
from guided_diffusion_jax.evaluation.moments import Gaussian

DAMAGE = (ValueError, OSError, EOFError, KeyError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What `zipfile` and `numpy.lib.format` raise for a file that is none of theirs, or cut off."""


class Samples(NamedTuple):
    """The images of an `.npz` or a folder, checked but not read yet.

    Attributes:
        path: of the file or folder.
        shape: (n, height, width, channels).
        labels: of each image, where the file has them.
        files: of the folder's images; empty for an `.npz`.
    """

    path: epath.Path
    shape: tuple[int, int, int, int]
    labels: Int[np.ndarray, " n"] | None
    files: tuple[epath.Path, ...] = ()

    @property
    def name(self) -> str:
        """Of the folder, or of the file without its ending."""
        return self.path.name if self.files else self.path.stem

    @property
    def digest(self) -> str:
        """SHA-256 of everything that there is."""
        return image_folder.digest(self.path, self.files) if self.files else weights.sha256(self.path)

    @property
    def folders(self) -> list[str]:
        """Names of the first folders inside `path` that the images lie in; "" for those in none."""
        return [parts[0] if len(parts) > 1 else "" for parts in (f.relative_to(self.path).parts for f in self.files)]


class Reference(NamedTuple):
    """What a reference batch holds, each where it does.

    Attributes:
        samples: its images.
        pooled: statistics of Inception's pooled features, for FID.
        spatial: of its spatial ones, for sFID.
    """

    samples: Samples | None
    pooled: Gaussian | None
    spatial: Gaussian | None


def samples(path: epath.PathLike, expected_shape: tuple[int, int, int] | None = None) -> Samples:
    """The images of an `.npz`, of which only the header and the labels are read, or of a folder.

    Args:
        path: of the file or folder.
        expected_shape: (height, width, channels) that the images must have; a folder's may be grey or RGB.

    Raises:
        InputError: the file is missing, empty, damaged, no `.npz`, or holds no such images; or the folder's images are
            damaged or differ in size.
    """
    path = _place(path)
    if path.is_dir():
        found = image_folder.listing(path)
        return Samples(path, image_folder.shape(path, found, expected_shape), None, found.images)
    with _archive(path) as archive:
        members = _members(archive)
        require(
            "arr_0" in members,
            f"{path} holds no arr_0 (uint8 [n h w c]) but {', '.join(members) or 'nothing'}; "
            "save images by np.savez_compressed(path, images)",
        )
        return _samples(path, archive, expected_shape)


def reference(path: epath.PathLike, expected_shape: tuple[int, int, int] | None = None) -> Reference:
    """What a reference batch, or any file or folder of images, holds.

    Raises:
        InputError: as `samples` does; or there are neither images nor statistics, or statistics of unfit shapes.
    """
    path = _place(path)
    if path.is_dir():
        return Reference(samples(path, expected_shape), None, None)
    with _archive(path) as archive:
        members = _members(archive)
        require(
            bool({"arr_0", "mu", "mu_s"} & set(members)),
            f"{path} holds neither images (arr_0) nor statistics (mu and sigma, mu_s and sigma_s) but "
            f"{', '.join(members) or 'nothing'}; use a reference batch or a file of samples",
        )
        return Reference(
            _samples(path, archive, expected_shape) if "arr_0" in members else None,
            _statistics(path, archive, "mu", "sigma") if "mu" in members else None,
            _statistics(path, archive, "mu_s", "sigma_s") if "mu_s" in members else None,
        )


def blocks(of: Samples, size: int = 256) -> Iterator[UInt8[np.ndarray, "b h w c"]]:
    """All images in their order, `size` at a time and the rest last; no more than that is in memory.

    Raises:
        InputError: the file is cut off or damaged.
    """
    if of.files:
        yield from image_folder.blocks(of.files, of.shape, size)
        return
    n, *image = of.shape
    with _archive(of.path) as archive, archive.open("arr_0.npy") as stream:
        _header(stream)
        for start in range(0, n, size):
            count = min(size, n - start)
            data = stream.read(count * math.prod(image))
            require(
                len(data) == count * math.prod(image),
                f"{of.path}: arr_0 ends within images {start} .. {start + count - 1} of {n}; make the file again",
            )
            yield np.frombuffer(data, np.uint8).reshape(count, *image)


@contextmanager
def _archive(path: epath.Path) -> Iterator[zipfile.ZipFile]:
    """The opened file; whatever is wrong with it becomes one line."""
    require(path.is_file(), f"{path} is no file and no folder; give an .npz or a folder of images")
    require(path.stat().length > 0, f"{path} is empty (0 bytes); make the file again")
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            yield archive
    except InputError:
        raise
    except DAMAGE as error:
        raise InputError(
            f"{path} is no .npz of plain arrays, or a damaged one: {error}; save images by np.savez_compressed(path, "
            "images), or give a folder of image files"
        ) from None


def _place(path: epath.PathLike) -> epath.Path:
    return epath.Path(path).expanduser()


def _members(archive: zipfile.ZipFile) -> list[str]:
    return [name.removesuffix(".npy") for name in archive.namelist()]


def _header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran's order, and type of the array that the stream goes on with."""
    version = npy.read_magic(stream)
    return npy.read_array_header_1_0(stream) if version == (1, 0) else npy.read_array_header_2_0(stream)


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as stream:
        return npy.read_array(stream, allow_pickle=False)


def _samples(path: epath.Path, archive: zipfile.ZipFile, expected_shape: tuple[int, int, int] | None) -> Samples:
    with archive.open("arr_0.npy") as stream:
        shape, fortran, dtype = _header(stream)
    require(
        dtype == np.uint8,
        f"{path}: arr_0 is {dtype}; it must be uint8 in 0 .. 255: of floats in [-1, 1] save "
        "np.uint8(np.clip((x + 1) * 127.5, 0, 255).round()), of floats in [0, 1] np.uint8((x * 255).round())",
    )
    require(
        len(shape) == 4 and shape[3] in (1, 3),
        f"{path}: arr_0 has shape {shape}; it must be [n h w c] with the 1 or 3 channels last"
        f"{', so leave out the transparency: images[..., :3]' if len(shape) == 4 and shape[3] == 4 else ''}",
    )
    require(math.prod(shape) > 0, f"{path}: arr_0 has shape {shape}, no images; it must hold 1 at least")
    require(not fortran, f"{path}: arr_0 is in Fortran's order; save np.ascontiguousarray of it")
    require(
        expected_shape is None or shape[1:] == tuple(expected_shape),
        f"{path}: images are {shape[1:]} (height, width, channels), but {expected_shape} is expected; "
        "use files of one size, that of data.image_size",
    )
    labels = _array(archive, "arr_1") if "arr_1" in _members(archive) else None
    require(
        labels is None or (labels.shape == shape[:1] and np.issubdtype(labels.dtype, np.integer)),
        f"{path}: arr_1 is {getattr(labels, 'dtype', '')} {getattr(labels, 'shape', '')}; it must be whole numbers, "
        f"one for each of {shape[0]} images (labels.astype(np.int64)), or left out",
    )
    n, height, width, channels = shape
    return Samples(path, (n, height, width, channels), None if labels is None else labels.astype(np.int64))


def _statistics(path: epath.Path, archive: zipfile.ZipFile, mean: str, covariance: str) -> Gaussian:
    require(covariance in _members(archive), f"{path} holds {mean} but no {covariance}; both are needed")
    found = Gaussian(*(_array(archive, name) for name in (mean, covariance)))
    d = found.mean.size
    require(
        found.mean.shape == (d,) and found.covariance.shape == (d, d) and d > 0,
        f"{path}: {mean} has shape {found.mean.shape} and {covariance} {found.covariance.shape}; they must be [d] and "
        "[d d]",
    )
    require(
        all(np.issubdtype(array.dtype, np.floating) and np.isfinite(array).all() for array in found),
        f"{path}: {mean} and {covariance} are {found.mean.dtype} and {found.covariance.dtype}; "
        "they must be floats, all finite",
    )
    return Gaussian(*(array.astype(np.float64) for array in found))
