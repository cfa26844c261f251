"""The small pictures that an upsampler enlarges: a file like our own `samples.npz`."""

import zipfile
from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict

from guided_diffusion_jax.errors import InputError, require


class Small(NamedTuple):
    """What picture i is drawn from.

    Attributes:
        images: the small picture; None for a network that is no upsampler.
        labels: its class; None where the model ignores labels or `sample.labels` says them.
    """

    images: UInt8[np.ndarray, "n h w c"] | None
    labels: Int[np.ndarray, " n"] | None


def load(config: ConfigDict) -> Small:
    """The first `sample.count` of the pictures in `sample.low_res`, with their labels if the model has classes.

    Raises:
        InputError: the file does not fit the upsampler, or is missing, or there is one and no upsampler.
    """
    path, size, classes = config.sample.low_res, config.data.low_res_size, config.model.num_classes
    if not size:
        require(not path, f"sample.low_res={path} is for upsamplers, but data.low_res_size=0; leave it empty")
        return Small(None, None)
    require(
        bool(path),
        f"sample.low_res is missing: an upsampler needs an .npz of pictures of {size} pixels, like samples.npz; "
        "give --config.sample.low_res=FILE.npz",
    )
    arrays = _read(epath.Path(path))
    key = f"sample.low_res={path}"
    require("arr_0" in arrays, f"{key} holds no arr_0 (uint8 [n h w c]) but {', '.join(arrays) or 'nothing'}")
    images, count = arrays["arr_0"], config.sample.count
    wanted = (size, size, config.data.channels)
    require(images.dtype == np.uint8, f"{key}: arr_0 is {images.dtype}; it must be uint8 in 0 .. 255")
    require(
        images.ndim == 4 and images.shape[1:] == wanted,
        f"{key}: arr_0 has shape {images.shape}; the upsampler enlarges {('n', *wanted)}".replace("'", ""),
    )
    n = len(images)
    require(1 <= count <= n, f"sample.count={count}, but {path} holds {n} pictures; use 1 to {n}")
    return Small(images[:count], _labels(arrays, config, key)[:count] if classes else None)


def _read(path: epath.Path) -> dict[str, np.ndarray]:
    require(path.is_file(), f"sample.low_res={path} is no file")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(f"sample.low_res={path} is no .npz of plain arrays, or a damaged one: {error}") from None


def _labels(arrays: dict[str, np.ndarray], config: ConfigDict, key: str) -> Int[np.ndarray, " n"]:
    classes, n = config.model.num_classes, len(arrays["arr_0"])
    require(
        tuple(config.sample.labels) == ("all",),
        f"sample.labels={config.sample.labels} must stay all: the small pictures bring their labels (arr_1)",
    )
    require("arr_1" in arrays, f"{key} holds no arr_1, the labels (int [n]) that this upsampler needs")
    labels = arrays["arr_1"]
    require(
        labels.shape == (n,) and np.issubdtype(labels.dtype, np.integer),
        f"{key}: arr_1 is {labels.dtype} {labels.shape}; it must be whole numbers, one for each of {n} pictures",
    )
    low, high = int(labels.min(initial=0)), int(labels.max(initial=0))
    require(
        low >= 0 and high < classes,
        f"{key}: the labels in arr_1 go from {low} to {high}; the upsampler's go from 0 to {classes - 1}",
    )
    return labels.astype(np.int32)
