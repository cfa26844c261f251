"""DINOv2's vision transformer without registers, sizes S, B and L (Oquab et al. 2024), for its class token."""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from guided_diffusion_jax.evaluation.features.extractor import rgb
from guided_diffusion_jax.evaluation.features.resize import bicubic_8bit
from guided_diffusion_jax.models.attention import attention

SIZE = 224
"""Pixels of a side, of the network's input."""

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
"""ImageNet's, of pixels in [0, 1]."""

HEAD_WIDTH = 64
"""Channels of a head in all sizes, so that the weights' shapes tell the number of heads."""

NAMES = {(384, 12): "S", (768, 12): "B", (1024, 24): "L"}
"""The published sizes by width and depth."""


class Shape(NamedTuple):
    """What the weights' shapes say of the network.

    Attributes:
        width: of the tokens.
        depth: number of blocks.
        hidden: width of the perceptrons' hidden layers.
        patch: pixels of a patch's side.
    """

    width: int
    depth: int
    hidden: int
    patch: int


class VisionTransformer(nn.Module):
    """Patches and a class token through pre-norm blocks with layer scale; for inference, float32.

    Attributes:
        shape: sizes of its parts.
    """

    shape: Shape

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b {self.shape.width}"]:
        """The class token after the last norm, for images from `preprocess`."""
        width, depth, hidden, patch = self.shape
        patches = nn.Conv(width, (patch, patch), (patch, patch), "VALID", name="patches")(x).reshape(len(x), -1, width)
        start = self.param("start", nn.initializers.zeros, (1, 1, width))
        h = jnp.concatenate([jnp.broadcast_to(start, (len(x), 1, width)), patches], axis=1)
        h += self.param("positions", nn.initializers.zeros, (1, h.shape[1], width))
        for i in range(depth):
            h = _Block(hidden, name=f"block_{i}")(h)
        return _norm("norm")(h[:, 0])


class _Block(nn.Module):
    hidden: int

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        width = x.shape[-1]
        qkv = nn.Dense(3 * width, name="qkv")(_norm("norm_1")(x))
        mixed = nn.Dense(width, name="project")(attention(qkv, width // HEAD_WIDTH))
        x += mixed * self.param("scale_1", nn.initializers.ones, (width,))
        h = nn.gelu(nn.Dense(self.hidden, name="hidden")(_norm("norm_2")(x)), approximate=False)
        return x + nn.Dense(width, name="out")(h) * self.param("scale_2", nn.initializers.ones, (width,))


def _norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-6, name=name)


def preprocess(images: UInt8[Array, "b h w c"]) -> Float[Array, "b 224 224 3"]:
    """Input images of the network: resized as by Pillow's bicubic filter, then normalised by ImageNet's numbers.

    The whole image is used, whatever its proportions, as in the comparison of metrics by Stein et al. 2023.
    """
    return (bicubic_8bit(rgb(images), SIZE) / 255 - MEAN) / STD
