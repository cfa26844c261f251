"""The embedded feature extractor: a small network that learns to tell the classes of the very data set it judges.

It needs no download and fits any size of pictures. Its figures compare with each other on one data set and with nothing
else: they are not FID, which is Inception's, so that its name says what it is and how often it is right.

Where pictures have no classes it learns to tell how they were turned, by 0, 90, 180 or 270 degrees (Gidaris, Singh &
Komodakis 2018), for which it has to know what they show.
"""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Float, UInt8

from guided_diffusion_jax.data.dataset import Dataset as Source
from guided_diffusion_jax.evaluation.features import Extractor, Features
from guided_diffusion_jax.models.layers import GroupNorm, conv3x3, dense
from guided_diffusion_jax.typing import Params

VERSION = 1
"""To be raised with every change of the network or its training: what was trained before is not used any more."""

BATCH = 128
LEARNING_RATE, WARMUP_STEPS, EMA_DECAY = 2e-3, 50, 0.98
"""Of AdamW, and of the average of the parameters, which are used."""

WIDTH, SPATIAL = 64, 4
"""How many numbers `Features.pool` has, and how many of these maps go into `Features.spatial`."""

WORKS_AT, COARSEST = 16, 4
"""Pixels that larger pictures are halved to before anything else, and those of the last maps, at most."""

TURNS = ("0 degrees", "90 degrees", "180 degrees", "270 degrees")


class Small(nn.Module):
    """Convolutions down to a few pixels, two for each halving, and a mean; float32.

    Attributes:
        classes: of the answer.
    """

    classes: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Features:
        """Pictures in [-1, 1]."""
        layers = 0

        def convolved(x: Array, channels: int, stride: int = 1) -> Array:
            nonlocal layers
            layers += 1
            x = conv3x3(channels, dtype=x.dtype, name=f"conv_{layers}", stride=stride)(x)
            return nn.relu(GroupNorm(name=f"norm_{layers}")(x))

        while x.shape[1] > WORKS_AT:
            x = convolved(x, WIDTH // 2, stride=2)
        x = convolved(x, WIDTH // 2)
        while x.shape[1] > COARSEST:
            x = convolved(convolved(x, WIDTH, stride=2), WIDTH)
        if x.shape[-1] != WIDTH:  # pictures of a few pixels
            x = convolved(x, WIDTH)
        pool = x.mean((1, 2))
        logits = dense(self.classes, dtype=x.dtype, name="logits")(pool)
        return Features(pool, x[..., :SPATIAL].reshape(len(x), -1), logits)


def steps(pictures: int) -> int:
    """For how many it is trained: 20 epochs, and between 200 and 2000 steps."""
    return min(max(20 * pictures // BATCH, 200), 2000)


def extractor(name: str, network: Small, params: Params, *, told: bool) -> Extractor:
    """The trained network; `told` is whether it knows classes, so that its logits mean something."""

    @jax.jit
    def see(params: Params, images: UInt8[Array, "b h w c"]) -> Features:
        with jax.default_matmul_precision("highest"):  # accelerators would round, which moves the metrics
            found: Features = network.apply({"params": params}, images.astype("float32") / 127.5 - 1)  # type: ignore
        return found if told else found._replace(logits=None)

    return Extractor(name, jax.tree_util.Partial(see, params))


def turned(data: Source) -> Source:
    """Every picture four times, each time turned further, and labelled by how far; picture i is a turned i // 4."""

    def read(indices: np.ndarray) -> dict[str, np.ndarray]:
        images, turns = data.read(indices // 4)["image"], indices % 4
        found = np.stack([np.rot90(image, turn) for image, turn in zip(images, turns, strict=True)])
        return {"image": found, "label": turns.astype(np.int32)}

    return dataclasses.replace(
        data, length=4 * len(data), class_names=TURNS, read=read, attributes=(), control_channels=0, has_reference=False
    )
