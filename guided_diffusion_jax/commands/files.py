"""Pictures that users hand to a command, made to fit the run."""

import numpy as np
from etils import epath
from jaxtyping import Float
from PIL import Image

from guided_diffusion_jax.data.images import decode, is_grey, to_float
from guided_diffusion_jax.errors import require


def picture(key: str, path: str, size: int, channels: int) -> Float[np.ndarray, "1 {size} {size} {channels}"]:
    """A picture in [-1, 1], cropped to the centre and scaled to the run's size, which is said where it happens.

    Args:
        key: of the config that names it.
        path: of the file.
        size: height and width of the run's pictures.
        channels: 1 makes it grey, 3 RGB.

    Raises:
        InputError: there is no such file, or it is no picture.
    """
    file = _existing(key, path)
    pixels = decode(file.read_bytes(), name=f"{key}={path}", size=size, channels=channels)
    with file.open("rb") as opened, Image.open(opened) as image:
        width, height = image.size
    if (width, height) != (size, size):
        print(f"{key}={path}: {width}x{height} pixels, made {size}x{size} by cropping to the centre and scaling")
    return to_float(pixels)[None]


def exact(key: str, path: str, size: int, channels: int) -> Float[np.ndarray, "1 {size} {size} {channels}"]:
    """The same for a picture whose channels have a meaning, so that another number of them is an `InputError`."""
    with _existing(key, path).open("rb") as opened:
        found = 1 if is_grey(opened) else 3
    kind = {1: "grey", 3: "RGB"}
    require(
        found == channels,
        f"{key}={path} has {found} channels ({kind[found]}), the run's maps have {channels} ({kind[channels]}); "
        "convert it",
    )
    return picture(key, path, size, channels)


def _existing(key: str, path: str) -> epath.Path:
    file = epath.Path(path).expanduser()
    require(file.is_file(), f"{key}={path} is no file")
    return file
