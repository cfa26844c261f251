"""The parts of a U-Net: normalisation, convolutions, resampling and the residual block. Everything is `[b h w c]`."""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from guided_diffusion_jax.errors import choose

KERNEL_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""Uniform within 1 / sqrt(fan_in) of zero: what torch, and so ADM, starts its layers with."""


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He 2018) over 32 groups, or gcd(32, c) where c is no multiple of 32.

    Input of any precision, statistics and output in float32; `[b h w c]` or `[b n c]`.

    Attributes:
        groups: other than 32.
        eps: added to the variance.
    """

    groups: int = 32
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "b *positions c"]) -> Float[Array, "b *positions c"]:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        return group_norm(x, scale, bias, math.gcd(self.groups, channels), self.eps)


@functools.partial(jax.jit, static_argnums=(3, 4))
def group_norm(
    x: Float[Array, "b *positions c"], scale: Float[Array, " c"], bias: Float[Array, " c"], groups: int, eps: float
) -> Float[Array, "b *positions c"]:
    """Group normalisation over `groups` groups of channels. A program holds it and its gradient once for each shape."""
    positions = tuple(range(1, x.ndim - 1))

    # Reducing positions first and channels after leaves the long loop contiguous: 2 to 5 times faster on a CPU than
    # reducing both at once over a `[b positions groups c/groups]` view.
    def group_mean(values: Array) -> Array:
        grouped = values.mean(positions, keepdims=True)
        grouped = grouped.reshape(*grouped.shape[:-1], groups, -1).mean(-1, keepdims=True)
        return jnp.repeat(grouped[..., 0], x.shape[-1] // groups, axis=-1)

    x = x.astype(jnp.float32)
    centred = x - group_mean(x)
    # E[x^2] - E[x]^2 would cancel where contrast is low against the mean.
    variance = group_mean(jnp.square(centred))
    return centred * (jax.lax.rsqrt(variance + eps) * scale) + bias


def layer_norm(*, name: str) -> nn.LayerNorm:
    """Layer normalisation (Ba et al. 2016) with torch's eps, 1e-5, statistics and output in float32."""
    return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name=name)


def dense(
    features: int,
    *,
    dtype: DTypeLike,
    name: str | None = None,
    kernel_init: Callable = KERNEL_INIT,
    use_bias: bool = True,
) -> nn.Dense:
    """A matrix and a bias over the last axis; on images it is a 1x1 convolution."""
    return nn.Dense(
        features, use_bias=use_bias, dtype=dtype, kernel_init=kernel_init, name=name, dot_general=dot_by_rows
    )


def dot_by_rows(
    x: Float[Array, "*rows i"],
    kernel: Float[Array, "i o"],
    dimension_numbers: Any,
    precision: Any = None,
    **kwargs: Any,
) -> Float[Array, "*rows o"]:
    """`jax.lax.dot_general` of a dense layer as a product of two matrices.

    Of an input of more than two axes XLA's gradient by the kernel first transposes all of it, which on a CPU takes 1.4
    to 2.3 times as long (`benchmarks.convolutions`).
    """
    rows = x.reshape(-1, x.shape[-1])
    out = jax.lax.dot_general(rows, kernel, (((1,), (0,)), ((), ())), precision, **kwargs)
    return out.reshape(*x.shape[:-1], -1)


def nearest_double(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
    """Every pixel becomes a square of 2x2."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def mean_halve(x: Float[Array, "b h w c"]) -> Float[Array, "b h//2 w//2 c"]:
    """Every square of 2x2 becomes its mean."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


def same_size(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """No resampling."""
    return x


RESIZE: dict[str, Callable[[Array], Array]] = {"same": same_size, "up": nearest_double, "down": mean_halve}
"""What a residual block does to the size of its input."""


def convolve_doubled(
    x: Float[Array, "b h w i"], kernel: Float[Array, "3 3 i o"], strides: Any, padding: Any, **options: Any
) -> Float[Array, "b 2*h 2*w o"]:
    """`jax.lax.conv_general_dilated` of `nearest_double(x)`, stride 1 and one zero around, by 4/9 of the operations.

    Of the three rows of doubled pixels that an output's row sees, two are one row of x, so their weights are added: the
    even rows see the row before and their own, the odd ones their own and the next. The columns likewise.
    """
    b, h, w, _ = x.shape
    rows = []
    for odd_row in (0, 1):
        half = added_weights(kernel, odd_row, axis=0)
        columns = []
        for odd_column in (0, 1):
            around = ((1 - odd_row, odd_row), (1 - odd_column, odd_column))
            quarter = added_weights(half, odd_column, axis=1)
            columns.append(jax.lax.conv_general_dilated(x, quarter, (1, 1), around, **options))
        rows.append(jnp.stack(columns, 3))
    return jnp.stack(rows, 2).reshape(b, 2 * h, 2 * w, -1)


def added_weights(kernel: Float[Array, "r s i o"], odd: int, axis: int) -> Float[Array, "r2 s2 i o"]:
    """Two weights instead of three along an axis: the last two meet one pixel; where it is odd, the first two do."""
    first, middle, last = jnp.split(kernel, 3, axis)
    return jnp.concatenate([first + middle, last] if odd else [first, middle + last], axis)


def convolve_halved(x: Float[Array, "b h w i"], *arguments: Any, **options: Any) -> Float[Array, "b h//2 w//2 o"]:
    """`jax.lax.conv_general_dilated` of `mean_halve(x)`."""
    return jax.lax.conv_general_dilated(mean_halve(x), *arguments, **options)


CONVOLUTIONS: dict[str, Callable[..., Array]] = {
    "same": jax.lax.conv_general_dilated,
    "up": convolve_doubled,
    "down": convolve_halved,
}
"""A convolution of what `RESIZE` returns."""


def conv3x3(
    channels: int,
    *,
    dtype: DTypeLike,
    name: str,
    direction: str = "same",
    stride: int = 1,
    padding: tuple[int, int] = (1, 1),
    kernel_init: Callable = KERNEL_INIT,
) -> nn.Conv:
    """A 3x3 convolution with zeros before and after the rows and the columns: one pixel, also where it strides.

    Its input is resized first, `direction` being a key of `RESIZE`.
    """
    return nn.Conv(
        channels,
        (3, 3),
        strides=stride,
        padding=(padding,) * 2,
        dtype=dtype,
        kernel_init=kernel_init,
        conv_general_dilated=CONVOLUTIONS[direction],
        name=name,
    )


class ScaleShift(nn.Module):
    """Adaptive group normalisation: GroupNorm(h) (1 + scale) + shift (Dhariwal & Nichol 2021, section 3)."""

    norm: Callable[..., nn.Module] = GroupNorm
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, h: Float[Array, "b h w c"], emb: Float[Array, "b e"]) -> Float[Array, "b h w c"]:
        projected = dense(2 * h.shape[-1], dtype=self.dtype, name="project")(nn.silu(emb))
        scale, shift = jnp.split(projected[:, None, None, :], 2, axis=-1)
        return self.norm(name="norm")(h) * (1 + scale) + shift


class AddShift(nn.Module):
    """The embedding as a shift of every channel before the norm: GroupNorm(h + shift) (Ho et al. 2020).

    The norm alone in a network that has no embedding.
    """

    norm: Callable[..., nn.Module] = GroupNorm
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, h: Float[Array, "b h w c"], emb: Float[Array, "b e"] | None) -> Float[Array, "b h w c"]:
        if emb is not None:
            h = h + dense(h.shape[-1], dtype=self.dtype, name="project")(nn.silu(emb))[:, None, None, :]
        return self.norm(name="norm")(h)


TIME_INJECTIONS: dict[str, type[nn.Module]] = {"scale_shift": ScaleShift, "add": AddShift}
"""Choices of `model.time_injection`."""


class ResBlock(nn.Module):
    """A residual block that takes the embedding; its last convolution is zero at first, so it begins as its skip path.

    h = conv(resize(silu(norm(x)))), h = conv(dropout(silu(time_injection(h, emb)))), out = resize(x) + h, where a 1x1
    projection joins the skip path if the number of channels changes (Dhariwal & Nichol 2021).

    Attributes:
        channels: of the output.
        direction: "same", "up" (twice the size) or "down" (half).
        time_injection: how `emb` enters, a key of `TIME_INJECTIONS`.
        dropout: share of activations dropped in training; needs the random stream "dropout" then.
        norm: of its input and of the time injection.
        dtype: of convolutions and matmuls.
    """

    channels: int
    direction: str = "same"
    time_injection: str = "scale_shift"
    dropout: float = 0.0
    norm: Callable[..., nn.Module] = GroupNorm
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], emb: Float[Array, "b e"] | None, *, train: bool
    ) -> Float[Array, "b h2 w2 {self.channels}"]:
        resize = RESIZE[self.direction]
        inject = choose(TIME_INJECTIONS, self.time_injection, "model.time_injection")(
            norm=self.norm, dtype=self.dtype, name="injection"
        )
        h = nn.silu(self.norm(name="norm_in")(x))
        h = conv3x3(self.channels, direction=self.direction, dtype=self.dtype, name="conv_in")(h)
        h = nn.silu(inject(h, emb))
        h = nn.Dropout(self.dropout)(h, deterministic=not train)
        h = conv3x3(self.channels, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="conv_out")(h)
        skip = resize(x)
        if skip.shape[-1] != self.channels:
            skip = dense(self.channels, dtype=self.dtype, name="skip")(skip)
        return skip + h


class ConvResampler(nn.Module):
    """Half the size by a convolution of stride 2, or twice the size by nearest neighbours and a convolution.

    It has the signature of a `ResBlock`; `emb` is not used.

    Attributes:
        padding: zeros before and after the rows and the columns, where it halves.
    """

    channels: int
    direction: str
    padding: tuple[int, int] = (1, 1)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], emb: Float[Array, "b e"] | None, *, train: bool
    ) -> Float[Array, "b h2 w2 {self.channels}"]:
        if self.direction == "up":
            return conv3x3(self.channels, direction="up", dtype=self.dtype, name="conv")(x)
        return conv3x3(self.channels, dtype=self.dtype, stride=2, padding=self.padding, name="conv")(x)
