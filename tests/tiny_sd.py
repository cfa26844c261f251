"""A small pipeline of Stable Diffusion 1's kind that compiles fast: golden_sd's text encoder and autoencoder."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from golden_sd_arrays import GOLDEN

import guided_diffusion_jax as gd
from guided_diffusion_jax.interop import stable_diffusion
from guided_diffusion_jax.stable_diffusion import StableDiffusion

CAPTIONS = ("a red fox", "a cat on a mat", "a dog")


@functools.cache
def pipeline(name="sd1"):
    """Pipeline for images of 64 pixels, whose U-Net has random parameters."""
    single, folder = GOLDEN / f"{name}_single.safetensors", GOLDEN / name
    options = {"config": folder} if single.exists() else {}
    parts = stable_diffusion.load(single if single.exists() else folder, dtype=jnp.float32, **options)
    texts = tuple(
        part._replace(model=part.model.clone(depth=2), params=first(part.params)) for part in parts.text_encoders
    )
    added = parts.unet.model.text_time
    unet = parts.unet.model.clone(
        width=16, channel_mult=(1,), num_res_blocks=1, num_heads=2, transformer_depth=(1,), middle_depth=1,
        text_time=added and added.clone(features=4 * 16),
    )  # fmt: skip
    shapes = jax.eval_shape(lambda: gd.models.init_params(unet, jax.random.key(0), (8, 8, 4)))
    leaves, structure = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    params = structure.unflatten([0.2 * rng.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves])
    return StableDiffusion(parts._replace(unet=parts.unet._replace(model=unet, params=params), text_encoders=texts))


def first(params):
    """A text encoder's parameters without its layers after the second."""
    return {
        name: value for name, value in params.items() if not name.startswith("layer_") or name in ("layer_0", "layer_1")
    }


def data(count=3, **more):
    """Images of noise with captions."""
    images = np.random.default_rng(1).integers(0, 256, (count, 64, 64, 3)).astype(np.uint8)
    return gd.data.from_arrays(images, **{"text": [CAPTIONS[i % 3] for i in range(count)], **more})
