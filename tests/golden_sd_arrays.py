"""Reference arrays of diffusers and transformers, and their order of axes."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from guided_diffusion_jax.interop.stable_diffusion import names

GOLDEN = Path(__file__).parent / "golden_sd"


def arrays(name):
    return np.load(GOLDEN / f"{name}.npz", allow_pickle=False)


def nhwc(images):
    return jnp.asarray(np.moveaxis(images, 1, -1))


def nchw(images):
    return np.moveaxis(np.asarray(images), -1, 1)


def stage_outputs(net, stages, found):
    """What Flax captured of the stages of a network's half, by diffusers' names of its modules; of a block the last."""
    known, theirs = {}, names._diffusers_names(net)
    for stage in stages:
        layer, attention = theirs[stage.name]
        output = found[stage.name]["__call__"][0]
        if stage.kind == "block":
            known |= {layer: found[stage.name]["res"]["__call__"][0], attention: output}
        known[re.split(r"\.(?:resnets|downsamplers|upsamplers)", layer)[0]] = output
    return known
