"""A pipeline that compiles in a moment: a network of one convolution that sees the time and its conditions."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import guided_diffusion_jax as gd
from guided_diffusion_jax.data.dataset import DatasetInfo
from guided_diffusion_jax.data.text import ByteTextEncoder

NAMES = ("cat", "dog", "fish")
INFO = DatasetInfo(name="arrays", length=0, image_shape=(4, 4, 1), class_names=NAMES)


class Network(nn.Module):
    """Mixes the pixels of a sample, and nothing between samples.

    Attributes:
        num_classes: of the condition "label"; 0 for none.
        text: an encoder with `input_shape` and `input_dtype`, of the condition "text"; None for none.
    """

    num_classes: int = 0
    text: Any = None

    @nn.compact
    def __call__(self, x, time, conditions, train=False):
        said = nn.Dense(8, name="of_time")(time[:, None] / 20)
        if self.num_classes:
            said += nn.Embed(self.num_classes + 1, 8, name="of_label")(conditions["label"])
        if self.text:
            said += nn.Dense(8, name="of_text")(conditions["text"].astype(jnp.float32) / 64)
        return nn.Conv(1, (3, 3), name="out")(jnp.tanh(nn.Conv(8, (1, 1), name="in")(x) + said[:, None, None]))


def pipeline(model=None, **how):
    """Pipeline of a network with random parameters, by default one that knows three classes."""
    model = Network(num_classes=3) if model is None else model
    specs = gd.conditions.condition_specs(model, INFO.image_shape)
    conditions = gd.conditions.nulls(specs, 1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4, 4, 1)), jnp.zeros(1), conditions)
    leaves, structure = jax.tree.flatten(shapes["params"])
    keys = jax.random.split(jax.random.key(1), len(leaves))
    params = structure.unflatten([0.5 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)])
    how.setdefault("text_encoder", ByteTextEncoder(8) if getattr(model, "text", None) else None)
    return gd.Pipeline(model, params, gd.Process(gd.schedules.cosine(20)), info=INFO, **how)
