"""Image preprocessing: decoding, cropping, scaling to [-1, 1] and back, PNG files."""

from io import BytesIO
from typing import IO

import numpy as np
from etils import epath
from jaxtyping import Float, Float32, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.runtime import files

GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N", "F")


def decode(data: bytes, *, name: str, size: int, channels: int) -> UInt8[np.ndarray, "{size} {size} {channels}"]:
    """Decodes a file to a square image: upright, on white where transparent, cropped by `centre_crop`.

    Args:
        data: an image in any format that Pillow reads; of an animation the first frame is used.
        name: the file's path or the record's name, for the error.
        size: height and width of the result in pixels.
        channels: 1 for grey, 3 for RGB.

    Raises:
        InputError: the bytes are not an image, or a damaged one.
    """
    try:
        with Image.open(BytesIO(data)) as image:
            image.load()
            plain = to_mode(ImageOps.exif_transpose(image), channels)
    except UnidentifiedImageError as error:
        raise InputError(f"{name} is not an image in any format that Pillow reads") from error
    except Exception as error:  # damaged files make Pillow's decoders raise nearly anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{name} cannot be read as an image: {reason}") from error
    return np.asarray(centre_crop(plain, size)).reshape(size, size, channels)


def is_grey(file: IO[bytes]) -> bool:
    """Whether an open file holds a grey image, from its header alone; False where it is unreadable."""
    try:
        with Image.open(file) as image:
            return image.mode in GREY_MODES
    except Exception:  # `decode` is where an unreadable file is reported
        return False


def to_mode(image: Image.Image, channels: int) -> Image.Image:
    """Converts an image to 8-bit grey ("L", `channels` 1) or RGB (3), blending transparent parts with white."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scales grey of more than 8 bits a pixel, where Pillow's own conversion clips at 255."""
    values = np.asarray(image).astype(np.float64)
    scale = 65535 / 255 if image.mode != "F" or values.max() > 255 else 1
    return Image.fromarray(np.clip(np.round(values / scale), 0, 255).astype(np.uint8))


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """Scales an image so that its shorter side is `size` pixels and crops the central square (ADM's preprocessing).

    A large image is first halved with a box filter while its shorter side is at least `2 * size`; a bicubic filter
    takes the shorter side to `size`. An image of `size` x `size` is returned unchanged.

    Source: `image_datasets.center_crop_arr` of OpenAI's guided-diffusion.
    """
    if image.size == (size, size):
        return image
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def to_float(images: UInt8[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
    """Pixels of 0 .. 255 to [-1, 1]: `x / 127.5 - 1`."""
    scaled = np.divide(images, np.float32(127.5), dtype=np.float32)
    return np.subtract(scaled, np.float32(1), out=scaled)


def to_uint8(images: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """The inverse of `to_float`, rounded to the nearest pixel value; values outside [-1, 1] are clipped.

    Raises:
        ValueError: a value is NaN.
    """
    if np.isnan(images).any():
        raise ValueError(f"{np.isnan(images).sum()} of the {images.size} pixel values are NaN")
    pixels = np.asarray(images, np.float32) * np.float32(127.5) + np.float32(127.5)
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


def write_png(path: epath.Path, image: UInt8[np.ndarray, "h w c"]) -> None:
    """Writes an image of 1 or 3 channels as a PNG file, atomically; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic_write(path) as file:
        file.write(to_png(image))


def to_png(image: UInt8[np.ndarray, "h w c"]) -> bytes:
    """Encodes an image of 1 or 3 channels as PNG."""
    buffer = BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[-1] == 1 else image).save(buffer, "PNG")
    return buffer.getvalue()
