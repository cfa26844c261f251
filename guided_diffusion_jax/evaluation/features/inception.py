"""InceptionV3 as FID, sFID and the inception score mean it: TensorFlow's graph of 2015-12-05.

It differs from Szegedy et al. 2016 and from other libraries' InceptionV3: 1008 logits, averages that do not count the
padding, a maximum instead of an average in the last block, and TensorFlow 1's resizing. Layers have the names of the
weights' file, which are torchvision's. TensorFlow's are `mixed` for Mixed_5b, `mixed_1` for Mixed_5c, and so on.

sFID's features (Nash et al. 2021) are in OpenAI's evaluator the first 7 channels of `mixed_6/conv:0`, that is 17 * 17
* 7 = 2023 numbers. `mixed_6` is Mixed_6d (not Mixed_6e), and `mixed_6/conv` its 1x1 branch after ReLU, with which the
block's output begins: so they are `Mixed_6d[..., :7]`.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from guided_diffusion_jax.evaluation.features.extractor import rgb
from guided_diffusion_jax.evaluation.features.resize import bilinear_tf1

SIZE = 299
"""Pixels of a side, of the network's input."""


@dataclass(frozen=True)
class Conv:
    """A convolution, with its batch normalisation folded in, and ReLU."""

    name: str
    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 {self.features}"]:
        return nn.relu(nn.Conv(self.features, self.kernel, self.stride, self.padding, name=self.name)(x))


@dataclass(frozen=True)
class Pool:
    """The mean or the maximum of 3x3 pixels; at an edge the mean is of those that exist."""

    name: str
    kind: Literal["mean", "max"]
    stride: int = 1
    padding: str = "SAME"

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        window = (3, 3), (self.stride, self.stride), self.padding
        return nn.max_pool(x, *window) if self.kind == "max" else nn.avg_pool(x, *window, count_include_pad=False)


Step = Conv | Pool | tuple[Conv, Conv]
"""Part of a branch; of two convolutions both read the same, and their channels are joined."""


@dataclass(frozen=True)
class Mixed:
    """Branches that read the same; their channels are joined in this order."""

    name: str
    branches: tuple[tuple[Step, ...], ...]

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        return _Block(self.branches, name=self.name)(x)


class _Block(nn.Module):
    branches: tuple[tuple[Step, ...], ...]

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        ends = []
        for branch in self.branches:
            h = x
            for step in branch:
                h = jnp.concatenate([conv(h) for conv in step], -1) if isinstance(step, tuple) else step(h)
            ends.append(h)
        return jnp.concatenate(ends, -1)


# --- the table: torchvision's InceptionA, B, C, D and E

MEAN = Pool("pool", "mean")
SHRINK = (Pool("pool", "max", 2, "VALID"),)
ACROSS, DOWN = (1, 7), (7, 1)


def _a(name: str, pooled: int) -> Mixed:
    single = (Conv("branch1x1", 64),)
    five = (Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5)))
    three = (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3)))
    return Mixed(name, (single, five, three, (MEAN, Conv("branch_pool", pooled))))


def _b(name: str) -> Mixed:
    one = (Conv("branch3x3", 384, (3, 3), 2, "VALID"),)
    two = (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)))
    return Mixed(name, (one, (*two, Conv("branch3x3dbl_3", 96, (3, 3), 2, "VALID")), SHRINK))


def _c(name: str, width: int) -> Mixed:
    seven = (Conv("branch7x7_1", width), Conv("branch7x7_2", width, ACROSS), Conv("branch7x7_3", 192, DOWN))
    kernels = {2: DOWN, 3: ACROSS, 4: DOWN}
    double = (
        Conv("branch7x7dbl_1", width),
        *(Conv(f"branch7x7dbl_{i}", width, kernel) for i, kernel in kernels.items()),
        Conv("branch7x7dbl_5", 192, ACROSS),
    )
    return Mixed(name, ((Conv("branch1x1", 192),), seven, double, (MEAN, Conv("branch_pool", 192))))


def _d(name: str) -> Mixed:
    three = (Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, (3, 3), 2, "VALID"))
    seven = (
        Conv("branch7x7x3_1", 192),
        Conv("branch7x7x3_2", 192, ACROSS),
        Conv("branch7x7x3_3", 192, DOWN),
        Conv("branch7x7x3_4", 192, (3, 3), 2, "VALID"),
    )
    return Mixed(name, (three, seven, SHRINK))


def _e(name: str, kind: Literal["mean", "max"]) -> Mixed:
    def fork(prefix: str) -> tuple[Conv, Conv]:
        return Conv(f"{prefix}a", 384, (1, 3)), Conv(f"{prefix}b", 384, (3, 1))

    three = (Conv("branch3x3_1", 384), fork("branch3x3_2"))
    double = (Conv("branch3x3dbl_1", 448), Conv("branch3x3dbl_2", 384, (3, 3)), fork("branch3x3dbl_3"))
    return Mixed(name, ((Conv("branch1x1", 320),), three, double, (Pool("pool", kind), Conv("branch_pool", 192))))


LAYERS = (
    Conv("Conv2d_1a_3x3", 32, (3, 3), 2, "VALID"),
    Conv("Conv2d_2a_3x3", 32, (3, 3), 1, "VALID"),
    Conv("Conv2d_2b_3x3", 64, (3, 3)),
    Pool("MaxPool_1", "max", 2, "VALID"),
    Conv("Conv2d_3b_1x1", 80),
    Conv("Conv2d_4a_3x3", 192, (3, 3), 1, "VALID"),
    Pool("MaxPool_2", "max", 2, "VALID"),
    _a("Mixed_5b", 32),
    _a("Mixed_5c", 64),
    _a("Mixed_5d", 64),
    _b("Mixed_6a"),
    _c("Mixed_6b", 128),
    _c("Mixed_6c", 160),
    _c("Mixed_6d", 160),
    _c("Mixed_6e", 192),
    _d("Mixed_7a"),
    _e("Mixed_7b", "mean"),
    _e("Mixed_7c", "max"),
)
"""The network up to its last average."""


class Outputs(NamedTuple):
    """All that the network computes.

    Attributes:
        maps: each layer's output `[b h w c]` by its name.
        pool: TensorFlow's `pool_3`, `[b 2048]`.
        spatial: sFID's 17 * 17 * 7 numbers, for images of 299 pixels.
        logits_unbiased: `pool` times the last layer's weights, `[b 1008]`: what the inception score's softmax is of, in
            OpenAI's evaluator and in torch-fidelity.
        logits: with the bias, `[b 1008]`.
    """

    maps: dict[str, Array]
    pool: Float[Array, "b 2048"]
    spatial: Float[Array, "b s"]
    logits_unbiased: Float[Array, "b 1008"]
    logits: Float[Array, "b 1008"]


class InceptionV3(nn.Module):
    """The network without its resizing, for inference; float32."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"]) -> Outputs:
        """Images as (pixel - 128) / 128, of 299 pixels in the standard; any from 75 on will do."""
        maps = {}
        for layer in LAYERS:
            x = maps[layer.name] = layer(x)
        pool = jnp.mean(x, axis=(1, 2))
        spatial = maps["Mixed_6d"][..., :7].reshape(len(x), -1)
        logits_unbiased = nn.Dense(1008, use_bias=False, name="fc")(pool)
        bias = self.param("fc_bias", nn.initializers.zeros, (1008,))
        return Outputs(maps, pool, spatial, logits_unbiased, logits_unbiased + bias)


def preprocess(images: UInt8[Array, "b h w c"], size: int = SIZE) -> Float[Array, "b {size} {size} 3"]:
    """Input images of the network, in [-1, 127/128]."""
    return (bilinear_tf1(rgb(images), size) - 128) / 128
