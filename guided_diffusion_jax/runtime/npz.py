"""Image sets as `.npz`, written while they are generated: no more than a batch of them is in memory."""

import contextlib
import zipfile
from collections.abc import Callable, Iterator

import numpy as np
from etils import epath
from jaxtyping import Int, UInt8

from guided_diffusion_jax.runtime.files import atomic_write


@contextlib.contextmanager
def stream(
    path: epath.PathLike, shape: tuple[int, int, int, int], labels: Int[np.ndarray, " n"]
) -> Iterator[Callable[[UInt8[np.ndarray, "b h w c"]], None]]:
    """An `.npz` as OpenAI's evaluator and `np.savez` have it, written as a whole or not at all.

    Args:
        path: its place.
        shape: [n h w c] of all images, which become `arr_0`, uint8.
        labels: which become `arr_1`.

    Yields:
        A function that takes the next images, `[b h w c]`.

    Raises:
        ValueError: images of another shape, or another number of them when the block ends.
        DiskFull: there is no room.
    """
    written = 0
    with atomic_write(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(member, header)

            def append(images: UInt8[np.ndarray, "b h w c"]) -> None:
                nonlocal written
                if images.shape[1:] != tuple(shape[1:]):
                    raise ValueError(f"{path}: images of shape {images.shape[1:]} among those of {tuple(shape[1:])}")
                member.write(np.ascontiguousarray(images).data)
                written += len(images)

            yield append
            if written != shape[0]:
                raise ValueError(f"{path}: {written} images came, where {shape[0]} were expected")
        with archive.open("arr_1.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array(member, np.asarray(labels), allow_pickle=False)


def write(path: epath.PathLike, images: UInt8[np.ndarray, "n h w c"], labels: Int[np.ndarray, " n"]) -> None:
    """The same for images that are all there."""
    n, h, w, c = images.shape
    with stream(path, (n, h, w, c), labels) as append:
        append(images)
