"""ADM's noise-aware classifier (Dhariwal & Nichol 2021, section 4): a U-Net's encoder, a pool and logits.

With OpenAI's weights it gives that code's logits and gradients (see `interop.adm`).
"""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from guided_diffusion_jax.errors import choose
from guided_diffusion_jax.models.attention import attention
from guided_diffusion_jax.models.checks import check_backbone, check_whole
from guided_diffusion_jax.models.conditioner import Conditioner
from guided_diffusion_jax.models.encoder import Encoder
from guided_diffusion_jax.models.layers import GroupNorm, dense
from guided_diffusion_jax.models.placement import BlockConditioning
from guided_diffusion_jax.models.plan import Backbone, heads, resolutions, settings_of

HIDDEN = 2048
"""Width of the spatial pools' hidden layer."""


class AdaptivePool(nn.Module):
    """Norm, SiLU, the mean over all positions, a matrix that is zero at first. `[b h w c]` to `[b n]`."""

    num_classes: int

    @nn.compact
    def __call__(self, h: Float[Array, "b h w c"]) -> Float[Array, "b {self.num_classes}"]:
        pooled = nn.silu(GroupNorm(name="norm")(h)).mean((1, 2))
        return dense(self.num_classes, dtype=jnp.float32, kernel_init=nn.initializers.zeros, name="logits")(pooled)


class AttentionPool(nn.Module):
    """Norm, SiLU, and one self-attention of all positions and their mean, whose output is used. `[b h w c]` to `[b n]`.

    As in CLIP (Radford et al. 2021, section 2.4), whose position embedding ties it to one size of images.
    """

    num_classes: int
    heads: int

    @nn.compact
    def __call__(self, h: Float[Array, "b h w c"]) -> Float[Array, "b {self.num_classes}"]:
        b, height, width, c = h.shape
        tokens = nn.silu(GroupNorm(name="norm")(h)).reshape(b, height * width, c)
        tokens = jnp.concatenate([tokens.mean(1, keepdims=True), tokens], axis=1)
        start = nn.initializers.normal(c**-0.5)
        tokens += self.param("position", start, (height * width + 1, c), jnp.float32)
        qkv = dense(3 * c, dtype=jnp.float32, name="qkv")(tokens)
        pooled = attention(qkv, self.heads)[:, 0]
        return dense(self.num_classes, dtype=jnp.float32, name="logits")(pooled)


class SpatialPool(nn.Module):
    """Features `[b f]` through a hidden layer of 2048 to `[b n]`; with `norm`, GroupNorm and SiLU instead of ReLU."""

    num_classes: int
    norm: bool

    @nn.compact
    def __call__(self, features: Float[Array, "b f"]) -> Float[Array, "b {self.num_classes}"]:
        hidden = dense(HIDDEN, dtype=jnp.float32, name="hidden")(features)
        hidden = nn.silu(GroupNorm(name="norm")(hidden)) if self.norm else nn.relu(hidden)
        return dense(self.num_classes, dtype=jnp.float32, name="logits")(hidden)


Maps = tuple[Float[Array, "b _ _ _"], ...]


def _adaptive(classifier: "Classifier", h: Array, skips: Maps) -> Array:
    return AdaptivePool(classifier.num_classes, name="pooling")(h)


def _attention(classifier: "Classifier", h: Array, skips: Maps) -> Array:
    return AttentionPool(classifier.num_classes, heads(classifier, len(classifier.channel_mult) - 1), name="pooling")(h)


def _spatial(norm: bool) -> Callable[["Classifier", Array, Maps], Array]:
    """The means of the maps of every stage, the middle's last, side by side."""

    def pool(classifier: "Classifier", h: Array, skips: Maps) -> Array:
        means = [stage.astype(jnp.float32).mean((1, 2)) for stage in (*skips, h)]
        return SpatialPool(classifier.num_classes, norm, name="pooling")(jnp.concatenate(means, axis=-1))

    return pool


POOLS: dict[str, Callable[["Classifier", Array, Maps], Array]] = {
    "adaptive": _adaptive,
    "attention": _attention,
    "spatial": _spatial(norm=False),
    "spatial_v2": _spatial(norm=True),
}
"""Choices of `classifier.pool`: from the middle's output and the encoder's skips to logits."""


class Classifier(nn.Module, Backbone):
    """log p(y given x_t, t) up to a constant, for every class y.

    The pool computes in float32 whatever `dtype` is, as in guided-diffusion.

    Attributes:
        num_classes: of the output.
        pool: a key of `POOLS`. "attention" fits only one size of images.

    The others are those of `Backbone`.
    """

    num_classes: int = 10
    pool: str = "attention"

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], time: Float[Array, " b"] | Int[Array, " b"], *, train: bool = False
    ) -> Float[Array, "b {self.num_classes}"]:
        """Logits, float32. `train` turns dropout on, which needs the random stream "dropout"."""
        settings = settings_of(self, Backbone)
        emb, _ = Conditioner(settings, name="embedding")(time, {})
        conditioning = dict.fromkeys(resolutions(self, x.shape[1]), BlockConditioning(emb))
        h, skips = Encoder(settings, name="encoder")(x, conditioning, train=train)
        pool = choose(POOLS, self.pool, "classifier.pool")
        return pool(self, h.astype(jnp.float32), skips).astype(jnp.float32)

    @nn.nowrap
    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raises `InputError` for settings that cannot work with images `(h, w, c)`, before any compilation.

        >>> Classifier(width=32, channel_mult=(1, 2), head_width=32, pool="atention").check((16, 16, 3))
        Traceback (most recent call last):
        guided_diffusion_jax.errors.InputError: classifier.pool='atention' is not one of adaptive, attention, spatial,
        spatial_v2; did you mean 'attention'?
        """
        check_whole(self.num_classes, "classifier.num_classes", least=1)
        choose(POOLS, self.pool, "classifier.pool")
        check_backbone(self, image_shape, part="classifier")
