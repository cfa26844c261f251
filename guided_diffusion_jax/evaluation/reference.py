"""Files of images to judge and to compare with: samples as `--mode=sample` writes them, OpenAI's reference batches.

Both are `.npz`: `arr_0` uint8 `[n h w c]` and perhaps labels, `arr_1`. A reference batch (`VIRTUAL_*.npz`) may hold
statistics of Inception's features as well, or alone: `mu` and `sigma` of the pooled ones, `mu_s` and `sigma_s` of the
spatial ones. 50,000 images of 256 pixels are 10 GB, so that images are read in blocks from the compressed stream.
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
from guided_diffusion_jax.evaluation.moments import Gaussian

DAMAGE = (ValueError, OSError, EOFError, KeyError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What `zipfile` and `numpy.lib.format` raise for a file that is none of theirs, or cut off."""


class Samples(NamedTuple):
    """A file's images, checked but not read yet.

    Attributes:
        path: of the file.
        shape: (n, height, width, channels).
        labels: of each image, where the file has them.
    """

    path: epath.Path
    shape: tuple[int, int, int, int]
    labels: Int[np.ndarray, " n"] | None


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
    """The images of an `.npz`, of which only the header and the labels are read.

    Args:
        path: of the file.
        expected_shape: (height, width, channels) that the images must have.

    Raises:
        InputError: the file is missing, empty, damaged, no `.npz`, or holds no such images.
    """
    path = epath.Path(path)
    with _archive(path) as archive:
        members = _members(archive)
        require(
            "arr_0" in members,
            f"{path} holds no arr_0 (uint8 [n h w c]) but {', '.join(members) or 'nothing'}; "
            "save images by np.savez_compressed(path, images)",
        )
        return _samples(path, archive, expected_shape)


def reference(path: epath.PathLike, expected_shape: tuple[int, int, int] | None = None) -> Reference:
    """What a reference batch, or any file of samples, holds.

    Raises:
        InputError: as `samples` does; or there are neither images nor statistics, or statistics of unfit shapes.
    """
    path = epath.Path(path)
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
    require(path.is_file(), f"{path} is no file")
    require(path.stat().length > 0, f"{path} is empty (0 bytes); make the file again")
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            yield archive
    except InputError:
        raise
    except DAMAGE as error:
        raise InputError(f"{path} is no .npz of plain arrays, or a damaged one: {error}") from None


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
        f"{path}: arr_0 has shape {shape}; it must be [n h w c] with the 1 or 3 channels last",
    )
    require(math.prod(shape) > 0, f"{path}: arr_0 has shape {shape}, no images; it must hold 1 at least")
    require(not fortran, f"{path}: arr_0 is in Fortran's order; save np.ascontiguousarray of it")
    require(
        expected_shape is None or shape[1:] == tuple(expected_shape),
        f"{path}: images are {shape[1:]} (height, width, channels), but {expected_shape} is expected; "
        "use files of one size",
    )
    labels = _array(archive, "arr_1") if "arr_1" in _members(archive) else None
    require(
        labels is None or (labels.shape == shape[:1] and np.issubdtype(labels.dtype, np.integer)),
        f"{path}: arr_1 is {getattr(labels, 'dtype', '')} {getattr(labels, 'shape', '')}; it must be whole numbers, "
        f"one for each of {shape[0]} images, or left out",
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
