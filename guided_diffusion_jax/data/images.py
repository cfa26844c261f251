"""Image preprocessing: decoding, cropping, scaling to [-1, 1] and back, PNG files."""

import warnings
from collections.abc import Callable
from io import BytesIO
from typing import IO, NamedTuple, TypeVar

import numpy as np
from etils import epath
from jaxtyping import Float, Float32, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from guided_diffusion_jax.errors import InputError, require
from guided_diffusion_jax.runtime import files

T = TypeVar("T")

GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N", "F")


NO_IMAGES = ("PDF", "EPS", "WMF", "MPEG", "FLI", "HDF5", "GRIB", "BUFR", "IPTC", "MCIDAS", "SPIDER", "IMT", "XVTHUMB")
"""Formats in Pillow's registry that are documents (one of which starts Ghostscript), videos or science data."""

COMMON = "png, jpg, jpeg, webp, bmp, gif"
"""What messages name of the endings in `extensions`."""

CLASS_MAP_VALUES = 64
"""Distinct values up to which a control image counts as a map of class ids."""

MAX_ASPECT = 64
"""Width over height, or height over width, beyond which an image is cropped before it is scaled."""

# What is wrong with a file is said in one line by `open_image`; Pillow's warnings would only say it a second time.
warnings.filterwarnings("ignore", module=r"PIL\.")


def formats() -> tuple[str, ...]:
    """Names of the formats that are read: Pillow's with its plugins (`pillow_heif` and others), without `NO_IMAGES`."""
    Image.preinit()  # the usual formats come first
    Image.init()
    return tuple(name for name in Image.ID if name not in NO_IMAGES)


def extensions() -> frozenset[str]:
    """Endings of files that are read as images, in lower case: ".png", ".jfif", ".tif", ".avif", ...

    >>> {".jpg", ".jfif", ".tif", ".jp2", ".mpo"} <= extensions(), ".pdf" in extensions()
    (True, False)
    """
    readable = {*formats(), "MPO"}  # several images in a JPEG file, which Pillow opens as JPEG
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in readable)


class Header(NamedTuple):
    """What the first bytes of an image file tell.

    Attributes:
        size: width and height in pixels, upright.
        grey: whether it has grey values alone.
    """

    size: tuple[int, int]
    grey: bool


def read_header(file: IO[bytes] | BytesIO, name: str) -> Header:
    """Size and colour of an image, without decoding it.

    Raises:
        InputError: it is no image, or one with more pixels than Pillow's limit.
    """

    def header(image: Image.Image) -> Header:
        # A PNG file may have its orientation behind its pixels, which would have to be decoded.
        turned = (image.format != "PNG" or "exif" in image.info) and image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
        return Header((image.height, image.width) if turned else image.size, image.mode in GREY_MODES)

    return open_image(file, name, header)


ORIENTATION = 0x0112
"""Number of the orientation among the tags of EXIF."""


Size = int | tuple[int, int]
"""Pixels of a square's side, or height and width."""


def height_and_width(size: Size) -> tuple[int, int]:
    """Both sides.

    >>> height_and_width(64), height_and_width((64, 96))
    ((64, 64), (64, 96))
    """
    return (size, size) if isinstance(size, int) else size


def decode(data: bytes, *, name: str, size: Size, channels: int) -> UInt8[np.ndarray, "h w {channels}"]:
    """Decodes a file to an image: upright, on white where transparent, cropped by `centre_crop`.

    Args:
        data: an image in any format that Pillow reads; of an animation the first frame is used.
        name: the file's path or the record's name, for the error.
        size: of the result.
        channels: 1 for grey, 3 for RGB.

    Raises:
        InputError: the bytes are not an image, or a damaged one.
    """
    plain = open_image(BytesIO(data), name, lambda image: to_mode(upright(image), channels))
    return np.asarray(centre_crop(plain, size)).reshape(*height_and_width(size), channels)


def decode_map(data: bytes, *, name: str, size: Size, channels: int) -> UInt8[np.ndarray, "h w {channels}"]:
    """Decodes a control image like `decode`, save that a map of class ids (`class_ids`) keeps its values.

    It is resized by nearest neighbour: between the classes 3 and 5 there is no class 4. Ids of 16 bits are not scaled.
    Arguments and errors are those of `decode`.
    """

    def to_map(image: Image.Image) -> Image.Image:
        image = upright(image)
        if image.mode.startswith("I"):
            values = np.asarray(image)
            if values.min() >= 0 and values.max() <= 255:
                image = Image.fromarray(values.astype(np.uint8))
        return to_mode(image, channels)

    plain = open_image(BytesIO(data), name, to_map)
    resize = nearest_crop if class_ids(plain) else centre_crop
    return np.asarray(resize(plain, size)).reshape(*height_and_width(size), channels)


def class_ids(image: Image.Image) -> int:
    """Number of distinct values of a map of class ids; 0 for any other image.

    A map of class ids has few values, at most `CLASS_MAP_VALUES` and a sixteenth of its pixels. Black and white alone
    (edges, a silhouette) is none: its values stand for how much of a pixel is covered.
    """
    colours = image.getcolors(min(CLASS_MAP_VALUES, image.width * image.height // 16)) or []
    values = {colour for _, colour in colours}
    ends = {0, 255} if image.mode == "L" else {(0, 0, 0), (255, 255, 255)}
    return 0 if values <= ends else len(values)


def upright(image: Image.Image) -> Image.Image:
    """A decoded image, turned as its EXIF data say; of an animation the first frame."""
    image.load()
    return ImageOps.exif_transpose(image)


def open_image(file: IO[bytes] | BytesIO, name: str, use: Callable[[Image.Image], T]) -> T:
    """What `use` makes of an image file that was opened, its pixels not yet decoded.

    Args:
        file: the file.
        name: its name, for errors.
        use: a function of the image.

    Raises:
        InputError: it is no image, a damaged one, or has more pixels than Pillow's limit.
    """
    try:
        with Image.open(file, formats=formats()) as image:
            pixels, limit = image.width * image.height, Image.MAX_IMAGE_PIXELS
            require(
                limit is None or pixels <= limit,
                f"{name} has {pixels} pixels; at most {limit} are read (PIL.Image.MAX_IMAGE_PIXELS); make it smaller",
            )
            return use(image)
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(f"{name} is not an image in any format that Pillow reads") from error
    except Exception as error:  # damaged files make Pillow's decoders raise nearly anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{name} cannot be read as an image: {reason}") from error


def same_aspect(a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Whether two images, width and height of each, have the same aspect ratio to half a pixel.

    >>> same_aspect((1000, 667), (500, 333)), same_aspect((1000, 667), (500, 500))
    (True, False)
    """
    return 2 * abs(a[0] * b[1] - a[1] * b[0]) <= max(*a, *b)


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


def centre_crop(image: Image.Image, size: Size) -> Image.Image:
    """Scales an image so that it just covers `size` and crops its central part to it (ADM's preprocessing).

    A large image is first halved with a box filter while both sides are at least twice those of `size`; a bicubic
    filter does the rest. An image of this size is returned unchanged.

    Source: `image_datasets.center_crop_arr` of OpenAI's guided-diffusion.
    """
    height, width = height_and_width(size)
    if image.size == (width, height):
        return image
    image = _central(image)
    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    return _scale_and_crop(image, size, Image.Resampling.BICUBIC)


def nearest_crop(image: Image.Image, size: Size) -> Image.Image:
    """The same part of an image as `centre_crop`, of its own values alone: scaled by nearest neighbour."""
    if image.size == height_and_width(size)[::-1]:
        return image
    return _scale_and_crop(_central(image), size, Image.Resampling.NEAREST)


def _central(image: Image.Image) -> Image.Image:
    """The central part of an image so long that scaling all of it would take gigabytes."""
    width, height = (min(length, MAX_ASPECT * min(image.size)) for length in image.size)
    if (width, height) == image.size:
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _scale_and_crop(image: Image.Image, size: Size, resampling: Image.Resampling) -> Image.Image:
    height, width = height_and_width(size)
    scale = max(width / image.width, height / image.height)
    image = image.resize((round(image.width * scale), round(image.height * scale)), resampling)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


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
