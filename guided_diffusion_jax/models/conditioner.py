"""Encodes the time and the conditions, for any architecture: it knows no resolutions (see `placement` for the U-Net's)."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float, Int

from guided_diffusion_jax.conditions import CONDITIONS
from guided_diffusion_jax.models.embeddings import Encoding, TimeEmbedding
from guided_diffusion_jax.models.layers import dense


class Conditioner(nn.Module):
    """The time's vector, `[b 4*width]`, and the encoding of each condition that has an encoder in `CONDITIONS`.

    Attributes:
        settings: `width`, `dtype` and what the encoders of the conditions ask for, such as `num_classes`.
    """

    settings: Any

    @nn.compact
    def __call__(
        self, time: Float[Array, " b"] | Int[Array, " b"], conditions: Mapping[str, Array]
    ) -> tuple[Float[Array, "b e"], dict[str, Encoding]]:
        """Time and encodings by condition. `conditions` hold what the network takes, see `conditions.fill_nulls`."""
        width, dtype = self.settings.width, self.settings.dtype
        encodings = {}
        for name, value in conditions.items():
            if (encoder := CONDITIONS[name].encoder) is None:
                continue
            encoding = encoder(self.settings).copy(name=name)(value)
            if encoding.tokens is not None and encoding.vector is not None:
                vector = dense(4 * width, dtype=dtype, name=f"pooled_{name}")(encoding.vector)
                encoding = encoding._replace(vector=vector)
            encodings[name] = encoding
        return TimeEmbedding(width, dtype=dtype, name="time")(time), encodings
