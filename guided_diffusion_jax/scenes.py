"""From what a user gives as image, mask, latents and control images to where a trajectory begins and what it keeps."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from guided_diffusion_jax import checks
from guided_diffusion_jax.codecs import Codec
from guided_diffusion_jax.conditions import ConditionSpec
from guided_diffusion_jax.errors import require
from guided_diffusion_jax.generation import Blend, Inpaint, Start
from guided_diffusion_jax.inputs import ImageLike, array_rows, each_row, image_rows, mask_rows
from guided_diffusion_jax.models.controlnet import guess_scales
from guided_diffusion_jax.typing import Level


class Scene(NamedTuple):
    """What is given of the images.

    Attributes:
        start: where the trajectory begins.
        inpaint: what stays as it is.
        given: conditions that guidance steers towards.
        always: conditions of all branches.
    """

    start: Start
    inpaint: Inpaint | Blend | None = None
    given: Mapping[str, np.ndarray] = {}
    always: Mapping[str, np.ndarray] = {}


def scene(
    codec: Codec,
    specs: Mapping[str, ConditionSpec],
    rows: int,
    first: Level,
    *,
    image: ImageLike | None,
    inpaint_mask: ImageLike | None,
    soft_mask: bool,
    latents: Any,
    strength: float | int | None,
    noise_scale: np.float32 | None,
) -> Scene:
    """Scene of a request; `Pipeline.__call__` documents the arguments.

    Args:
        codec: of the model.
        specs: conditions that the model takes.
        rows: number of samples.
        first: the level where the trajectory begins.
        image: see there.
        inpaint_mask: see there.
        soft_mask: see there.
        latents: see there.
        strength: see there.
        noise_scale: of a trajectory that begins with noise.
    """
    pixels = None if image is None or _is_latents(codec, image) else image_rows("image", image, _shape(codec), rows)
    clean = None if image is None else _encoded(codec, pixels) if pixels is not None else _latents(codec, image, rows)
    start = _start(codec, rows, first, clean, latents, strength, noise_scale)
    if inpaint_mask is None:
        return Scene(start)
    assert clean is not None
    white = mask_rows("inpaint_mask", inpaint_mask, _mask_shape(codec, inpaint_mask), rows, soft=soft_mask)
    known = each_row(lambda white: 1 - white, white)
    if codec.image_shape is None:
        given = {"masked_image": each_row(_masked, clean, known)} if "masked_image" in specs else {}
        return Scene(start, Inpaint(clean, known), given)
    drawn = each_row(functools.partial(_reduced, size=codec.shape[:2]), white)
    if _sees_masked_latents(codec, specs):
        require(
            pixels is not None and white.shape[1:3] == codec.image_shape[:2],
            "this network sees the masked image: give image and inpaint_mask in pixels",
        )
        masked = _encoded(codec, each_row(_masked, pixels, known))
        beside = each_row(lambda drawn, masked: np.concatenate([drawn, masked], axis=-1), drawn, masked)
        return Scene(start, None, {}, {"control_image": beside})
    return Scene(start, Blend(clean, each_row(lambda drawn: 1 - drawn, drawn)))


def check(image: Any, inpaint_mask: Any, latents: Any, strength: Any) -> None:
    """Raises `InputError` for keywords of a scene that do not belong together, before any file is read."""
    require(
        inpaint_mask is None or image is not None,
        "image and inpaint_mask belong together: an image, and a mask that is white where it is drawn anew",
    )
    require(
        image is None or inpaint_mask is not None or strength is not None,
        "image is given without inpaint_mask and strength: give inpaint_mask to have a part of it drawn anew, or "
        "strength, in (0, 1], to begin with all of it",
    )
    require(
        strength is None or image is not None or latents is not None,
        f"strength={checks.shown(strength)} is for a trajectory that begins with an image; give image",
    )


def _start(
    codec: Codec,
    rows: int,
    first: Level,
    clean: np.ndarray | None,
    latents: Any,
    strength: float | int | None,
    noise_scale: np.float32 | None,
) -> Start:
    noise = None if latents is None else _latents(codec, latents, rows, "latents")
    if strength is None:
        return Start(noise, None, noise_scale)
    if clean is None:
        return Start(noise, None, np.float32(1))
    if noise is not None:  # they are noisy already
        require(float(first.sigma) > 0, "latents: the trajectory begins without noise")
        noise = ((noise - first.alpha * clean) / first.sigma).astype(np.float32)
    return Start(noise, clean)


def _shape(codec: Codec) -> tuple[int, int, int]:
    return codec.image_shape or codec.shape


def _is_latents(codec: Codec, image: Any) -> bool:
    return codec.image_shape is not None and np.shape(image)[-3:] == codec.shape


def _latents(codec: Codec, values: Any, rows: int, name: str = "image") -> Float[np.ndarray, "n h w c"]:
    found = array_rows(name, values, ConditionSpec(codec.shape, np.float32), rows)
    require(bool(np.isfinite(found).all()), f"{name} holds numbers that are not finite")
    return found


def _encoded(codec: Codec, pixels: np.ndarray) -> Float[np.ndarray, "n h w c"]:
    """Images in the model's space; one at a time, so that their number compiles nothing."""
    if codec.image_shape is None:
        return pixels

    def encode(images: np.ndarray) -> np.ndarray:
        return np.concatenate([np.asarray(_apply(codec.encode, image[None])) for image in images])

    return each_row(encode, pixels)


@jax.jit
def _apply(function, images):
    return function(images)


def _masked(images: np.ndarray, known: np.ndarray) -> np.ndarray:
    return np.where(known > 0.5, images, 0).astype(np.float32)


def _mask_shape(codec: Codec, mask: Any) -> tuple[int, ...]:
    """A mask of latents may be as small as they are."""
    small = (*codec.shape[:2], 1)
    return small if np.shape(mask)[-3:] == small or np.shape(mask)[-2:] == small[:2] else _shape(codec)


def _reduced(white: np.ndarray, *, size: tuple[int, int]) -> np.ndarray:
    """The mask at each latent: its first pixel's."""
    (height, width), (h, w) = white.shape[1:3], size
    return white[:, :: height // h, :: width // w]


def _sees_masked_latents(codec: Codec, specs: Mapping[str, ConditionSpec]) -> bool:
    """Whether the network sees, beside the latents, a mask and the latents of the masked image."""
    return "control_image" in specs and specs["control_image"].shape[-1] == codec.shape[-1] + 1


def control_rows(
    spec: ConditionSpec,
    summands: int,
    rows: int,
    times: Float[np.ndarray, " n"],
    *,
    control_image: ImageLike | Sequence[ImageLike] | None,
    control_scale: float | Sequence[float],
    control_window: Any,
    guess_mode: bool,
) -> dict[str, np.ndarray]:
    """The conditions of a U-Net with ControlNets; `Pipeline.__call__` documents the arguments.

    Args:
        spec: of "control_hints".
        summands: of one ControlNet.
        rows: number of samples.
        times: of the steps, from noise to data.
        control_image: see there.
        control_scale: see there.
        control_window: see there.
        guess_mode: see there.
    """
    count, *shape = spec.shape
    images = list(control_image) if isinstance(control_image, list | tuple) else [control_image]
    require(
        len(images) == count and control_image is not None,
        f"control_image is missing or has {len(images)} images for {count} ControlNets; give one for each",
    )
    scales = _each("control_scale", control_scale, count)
    windows = control_window if np.ndim(control_window) == 2 else [control_window] * count
    require(
        len(windows) == count, f"control_window has {len(windows)} pairs for {count} ControlNets; give one for each"
    )
    hints = [_hint(image, tuple(shape), rows) for image in images]
    of_each = [
        np.asarray(guess_scales(summands, scale)) if guess_mode else np.full(summands, scale) for scale in scales
    ]
    values = {
        "control_scales": np.array(of_each, np.float32),
        "control_times": np.array([_times(window, times) for window in windows], np.float32),
    }
    stacked = each_row(lambda *hints: np.stack(hints, axis=1), *hints)
    return {"control_hints": stacked} | {
        name: np.broadcast_to(value, (rows, *value.shape)) for name, value in values.items()
    }


def _each(name: str, values: Any, count: int) -> list[float]:
    several = values if isinstance(values, list | tuple) else [values] * count
    require(
        len(several) == count, f"{name} has {len(several)} numbers for {count} ControlNets; give one, or one for each"
    )
    return [checks.real(name, value) for value in several]


def _hint(image: Any, shape: tuple[int, ...], rows: int) -> np.ndarray:
    """Control image in [0, 1]; arrays of floats are so already."""
    floats = isinstance(image, np.ndarray | jax.Array) and np.issubdtype(np.asarray(image).dtype, np.floating)
    if floats:
        low, high = float(np.min(image)), float(np.max(image))
        require(low >= 0 and high <= 1, f"control_image goes from {low:g} to {high:g}; floats must lie in [0, 1]")
        image = np.asarray(image, np.float32) * 2 - 1
    return each_row(lambda pixels: (pixels + 1) / 2, image_rows("control_image", image, shape, rows, exact=False))


def _times(window: Any, times: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """First and last time of the steps that lie within two shares of the trajectory."""
    require(np.shape(window) == (2,), f"control_window={checks.shown(window)} must be two shares, (0, 1) for all steps")
    begin, end = (checks.real("control_window", share, 0, 1) for share in window)
    i, n = np.arange(len(times)), len(times)
    inside = times[(i / n >= begin) & ((i + 1) / n <= end)]
    return (float(inside.min()), float(inside.max())) if len(inside) else (np.inf, -np.inf)
