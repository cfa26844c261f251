"""Encoder of reference images."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from guided_diffusion_jax.errors import check_whole
from guided_diffusion_jax.models.embeddings import Encoding
from guided_diffusion_jax.models.layers import GroupNorm, conv3x3, dense
from guided_diffusion_jax.models.text import with_start


class ImageEncoder(nn.Module):
    """An image to one token for each square of 2**depth pixels, after a learned start token, by convolutions.

    The first convolution is at the full size: a texture is a matter of single pixels, which a stride would skip.
    The pooled vector is the start token and the mean of all others. An image of zeros is absent: only the start
    token is left.

    Attributes:
        channels: of the image.
        width: of the tokens.
        depth: convolutions of stride 2 after the first; GroupNorm and SiLU follow each.
        dtype: of the convolutions; norms are float32.
    """

    channels: int = 3
    width: int = 64
    depth: int = 3
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: Float[Array, "b h w {self.channels}"]) -> Encoding:
        """The images' tokens and pooled vectors, float32: `[b n+1 width]`."""
        h = image
        for i in range(self.depth + 1):
            features, stride = (self.width, 2) if i > 1 else (self.width // 2, 1 + i)
            h = conv3x3(features, dtype=self.dtype, stride=stride, name=f"conv_{i}")(h)
            h = nn.silu(GroupNorm(name=f"norm_{i}")(h))
        rows = dense(self.width, dtype=self.dtype, name="project")(h.reshape(len(h), -1, h.shape[-1]))
        tokens = with_start(self, nn.LayerNorm(name="norm")(rows.astype(jnp.float32)))
        present = jnp.any(image != 0, axis=(1, 2, 3))
        mask = jnp.broadcast_to(present[:, None], tokens.shape[:2]).at[:, 0].set(True)
        return Encoding(vector=jnp.mean(tokens, axis=1, where=mask[..., None]), tokens=tokens, mask=mask)

    def check(self, part: str) -> None:
        """Raises `InputError` for settings that cannot work; `part` is the config's that the messages name."""
        for key in ("channels", "width", "depth"):
            check_whole(getattr(self, key), f"{part}_{key}", least=1)
