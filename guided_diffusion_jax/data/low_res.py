"""Small images that a super-resolution model enlarges: a file like our own `samples.npz`."""

import zipfile

import numpy as np
from etils import epath
from jaxtyping import Int, UInt8

from guided_diffusion_jax.errors import InputError, require


def read_low_res(
    path: epath.PathLike, shape: tuple[int, ...], count: int, classes: int, key: str = "sample.low_res"
) -> tuple[UInt8[np.ndarray, "n h w c"], Int[np.ndarray, " n"] | None]:
    """The first `count` images of an .npz (`arr_0`), and their labels (`arr_1`) if the model has classes.

    Args:
        path: of the file.
        shape: (h, w, c) of the images that the model enlarges.
        count: number of images that are wanted.
        classes: of the model; 0 ignores labels.
        key: name of the setting in errors.

    Raises:
        InputError: the file is missing, damaged, or does not fit the model.
    """
    file = epath.Path(path).expanduser()
    require(file.is_file(), f"{key}={path} is no file")
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
    except (ValueError, OSError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(f"{key}={path} is no .npz of plain arrays, or a damaged one: {error}") from None
    name = f"{key}={path}"
    require("arr_0" in arrays, f"{name} holds no arr_0 (uint8 [n h w c]) but {', '.join(arrays) or 'nothing'}")
    images = arrays["arr_0"]
    require(images.dtype == np.uint8, f"{name}: arr_0 is {images.dtype}; it must be uint8 in 0 .. 255")
    require(
        images.ndim == 4 and images.shape[1:] == tuple(shape),
        f"{name}: arr_0 has shape {images.shape}; the model enlarges (n, {', '.join(map(str, shape))})",
    )
    n = len(images)
    require(1 <= count <= n, f"sample.count={count}, but {path} holds {n} images; use 1 to {n}")
    if not classes:
        return images[:count], None
    require("arr_1" in arrays, f"{name} holds no arr_1, the labels (int [n]) that this model needs")
    labels = arrays["arr_1"]
    require(
        labels.shape == (n,) and np.issubdtype(labels.dtype, np.integer),
        f"{name}: arr_1 is {labels.dtype} {labels.shape}; it must be whole numbers, one for each of {n} images",
    )
    low, high = int(labels.min(initial=0)), int(labels.max(initial=0))
    require(
        low >= 0 and high < classes,
        f"{name}: the labels in arr_1 go from {low} to {high}; the model's go from 0 to {classes - 1}",
    )
    return images[:count], labels[:count].astype(np.int32)
