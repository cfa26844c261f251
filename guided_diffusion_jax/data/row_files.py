"""Rows of numbers of a data set that are computed once: a NumPy file, written in order, read where rows are needed."""

import os
from collections.abc import Iterator

import numpy as np
from etils import epath
from jaxtyping import Float16, Shaped

from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.runtime import files


def write(path: epath.Path, count: int, parts: Iterator[Shaped[np.ndarray, "b ..."]]) -> None:
    """Writes `count` rows as float16, part by part, atomically; any file system will do.

    Several processes may write the file at once: the last to finish wins, with the same content.

    Raises:
        InputError: the folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.atomic_write(path) as file:
            for number, rows in enumerate(parts):
                if number == 0:
                    shape = (count, *rows.shape[1:])
                    np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": shape})
                file.write(rows.astype("<f2").tobytes())
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path} cannot be written: {reason}; it needs a folder with space that is yours") from error


def read(path: epath.Path) -> Float16[np.ndarray, "n ..."]:
    """The rows, memory-mapped where the file is local.

    Raises:
        InputError: the file is damaged.
    """
    try:
        if "://" not in os.fspath(path):
            return np.load(path, mmap_mode="r")
        with path.open("rb") as file:
            return np.load(file)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}; remove it, and it is made again") from error
