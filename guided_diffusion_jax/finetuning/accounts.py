"""Memory and work of fine-tuning and of sampling with the published models, before anything is read or allocated.

`python main.py --config=stable_diffusion --dry_run` prints both (see `commands.dry_run`).
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jax.sharding import AbstractMesh

from guided_diffusion_jax import profiling, sharding
from guided_diffusion_jax.errors import choose
from guided_diffusion_jax.finetuning import methods
from guided_diffusion_jax.finetuning.methods import Kind
from guided_diffusion_jax.finetuning.objective import objective
from guided_diffusion_jax.finetuning.tuner import adamw, initial
from guided_diffusion_jax.interop import schedulers
from guided_diffusion_jax.interop.stable_diffusion import PRESETS, Loaded, Part, Preset
from guided_diffusion_jax.interop.stable_diffusion.names import table
from guided_diffusion_jax.models.registry import DTYPES
from guided_diffusion_jax.objectives import split
from guided_diffusion_jax.stable_diffusion import ENCODERS
from guided_diffusion_jax.training.state import create
from guided_diffusion_jax.training.step import StepSettings, train_step


def _word(parts: Loaded, *arguments: Any) -> Kind:
    nets: dict[str, Any] = {name: part.model for name, part in zip(ENCODERS, parts.text_encoders, strict=False)}
    rows = {name: np.zeros((1, net.width), np.float32) for name, net in nets.items()}
    return methods.textual_inversion(parts, *arguments, token="a word", rows=rows)


KINDS: dict[str, Callable[..., Kind]] = {
    "full": methods.full, "lora": methods.lora, "controlnet": methods.controlnet, "textual_inversion": _word,
}  # fmt: skip
"""Kinds of fine-tuning by name, each a function `(parts, dtype, remat, **options)`."""


def account(
    preset: str | Preset,
    kind: str = "lora",
    *,
    batch_size: int = 1,
    image_size: int = 0,
    dtype: str = "bfloat16",
    remat: bool = True,
    devices: int = 1,
    parallel: str = "data_parallel",
    **options: Any,
) -> profiling.Profile:
    """Cost of a training step on each of so many devices; latents are computed before, and captions where they can be.

    Args:
        preset: a key of `interop.stable_diffusion.PRESETS`, or modules.
        kind: a key of `KINDS`.
        batch_size: images per step on all devices.
        image_size: height and width in pixels; 0 is what the U-Net was trained on.
        dtype: of convolutions and matmuls, a key of `models.registry.DTYPES`.
        remat: compute blocks again in the backward pass.
        devices: that share the batch.
        parallel: a key of `sharding.STRATEGIES`.
        **options: of the kind, such as `rank`.

    Raises:
        InputError: there is no such model or kind.
    """
    found = choose(PRESETS, preset, "preset") if isinstance(preset, str) else preset
    parts = _parts(found)
    made = choose(KINDS, kind, "kind")(parts, choose(DTYPES, dtype, "dtype"), remat, **options)
    autoencoder: Any = found.autoencoder
    pixels = image_size or found.sample_size * autoencoder.factor
    moments = (pixels // autoencoder.factor,) * 2 + (2 * autoencoder.latent_channels,)
    process, optimizer = schedulers.process(found.scheduler), adamw(1e-4)
    given = _text_shapes(found, bool(made.networks.encoders))
    null = {name: np.zeros((1, *shape), kind_of) for name, (shape, kind_of) in given.items() if name != "sizes"}
    trained = objective(made.networks, process, initial(made), null, scaling_factor=autoencoder.scaling_factor)

    def batch(images: int) -> dict[str, jax.ShapeDtypeStruct]:
        shapes = {"image": (moments, jnp.float32), "label": ((), jnp.int32)}
        shapes |= {"control_image": ((pixels, pixels, 3), jnp.float32)} if kind == "controlnet" else {}
        return {name: jax.ShapeDtypeStruct((images, *shape), of) for name, (shape, of) in (shapes | given).items()}

    def begin() -> Any:
        params, frozen = split(trained.init(jax.random.key(0)), made.trainable)
        return create(params, optimizer, jax.random.key(0), None, frozen)

    def loss(params: Any, batch: Any) -> jax.Array:
        keys = jax.random.split(jax.random.key(0), len(batch["image"]))
        return jnp.mean(trained.loss(params, params, {}, keys, batch).loss)

    state = jax.eval_shape(begin)
    shards = sharding.shards(parallel, 0, devices)
    settings = StepSettings(process.num_steps)
    return profiling.profile(
        functools.partial(train_step, objective=trained, optimizer=optimizer, settings=settings),
        loss,
        state,
        batch,
        sharded=sharding.abstract_with_sharding(state, AbstractMesh((devices // shards, shards), sharding.AXES)),
        devices=devices,
        batch_size=batch_size,
    )


def sampling(
    preset: str | Preset, *, batch_size: int = 1, image_size: int = 0, dtype: str = "bfloat16"
) -> Iterator[str]:
    """Lines with memory and work of guided sampling: parameters as they are computed with, and what a step needs.

    Args:
        preset: a key of `PRESETS`, or modules.
        batch_size: images made at once.
        image_size: height and width in pixels; 0 is what the U-Net was trained on.
        dtype: of convolutions and matmuls.
    """
    found = choose(PRESETS, preset, "preset") if isinstance(preset, str) else preset
    autoencoder: Any = found.autoencoder
    parts, kind_of = _parts(found), choose(DTYPES, dtype, "dtype")
    pixels = image_size or found.sample_size * autoencoder.factor
    side = pixels // autoencoder.factor
    latents = jax.ShapeDtypeStruct((batch_size, side, side, autoencoder.latent_channels), jnp.float32)
    # Two branches of guidance; SDXL's autoencoder stays in float32.
    two = jax.ShapeDtypeStruct((2 * batch_size, *latents.shape[1:]), jnp.float32)
    given = {
        name: jax.ShapeDtypeStruct((2 * batch_size, *shape), of)
        for name, (shape, of) in _text_shapes(found, False).items()
    }
    coder = autoencoder.clone(dtype=jnp.float32 if len(found.text_encoders) > 1 else kind_of)
    unet: Any = found.unet.clone(dtype=kind_of)

    def step(params: Any, x: Any, conditions: Any) -> Any:
        return unet.apply({"params": params}, x, jnp.zeros(len(x)), conditions)

    def decode(params: Any, z: Any) -> Any:
        return coder.apply({"params": params}, z, method="decode")

    networks = (parts.unet, parts.autoencoder, *parts.text_encoders)
    held = sum(profiling.count(part.params) for part in networks) * jnp.dtype(kind_of).itemsize
    for name, run, arguments in (
        ("a step", step, (parts.unet.params, two, given)), ("decoding", decode, (parts.autoencoder.params, latents)),
    ):  # fmt: skip
        work, alive = profiling.flops(run, *arguments), profiling.live_bytes(run, *arguments)
        yield (
            f"{name} of {batch_size} image(s) of {pixels} pixels: {work / 1e12:.3f} TFLOP, {held / 1e9:.2f} GB of "
            f"parameters in {dtype} and at most {alive / 1e9:.2f} GB beside them"
        )


def _parts(preset: Preset) -> Loaded:
    """The networks of a preset with the shapes of their parameters."""

    def part(module: Any) -> Part:
        return Part(module, unflatten_dict(table(module, "diffusers")[1]))

    return Loaded(
        part(preset.unet), part(preset.autoencoder), tuple(map(part, preset.text_encoders)), (), preset.scheduler,
        preset.sample_size,
    )  # fmt: skip


def _text_shapes(preset: Preset, tokens: bool) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape and type of what a step reads of a caption."""
    text: Any = preset.unet.text
    length, large = preset.text_encoders[0].length, preset.unet.text_time
    if tokens:
        count = len(preset.text_encoders)
        return {"tokens": ((count, length), jnp.int32), **({"sizes": ((6,), jnp.float32)} if large else {})}
    pooled: Any = large
    more = {"text_time": (pooled.input_shape, jnp.float32)} if large else {}
    return {"text": ((length, text.features), jnp.float32), **more}
