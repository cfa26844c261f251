"""Averages of the parameters of any length, from the snapshots that a run has kept (`power_ema`)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from etils import epath

from guided_diffusion_jax.errors import require
from guided_diffusion_jax.training import power_ema
from guided_diffusion_jax.training.checkpoint import Checkpoints
from guided_diffusion_jax.typing import Params


def reconstruct(run: epath.Path, lengths: Sequence[float], wanted: float, step: int, like: Params) -> Params:
    """Parameters of a run averaged with any length at a step, from its snapshots until then.

    Args:
        run: the run's folder.
        lengths: that it tracked, `train.power_ema`.
        wanted: sigma_rel.
        step: at which the average ends.
        like: arrays of the same shapes, placed as the result shall be.

    Raises:
        InputError: a length that cannot be, or a run without snapshots.
    """
    power_ema.check([wanted], "ema")
    require(
        bool(lengths) and (run / power_ema.FOLDER).exists(),
        f"ema={wanted}: {run} tracked no power-function averages; train with --config.train.power_ema=0.05,0.1",
    )
    with Checkpoints(run / power_ema.FOLDER, read_only=True) as snapshots:
        steps = [saved for saved in snapshots.steps if saved <= step]
        require(bool(steps), f"ema={wanted}: {run / power_ema.FOLDER} holds no snapshot of step {step} or before")
        factors = power_ema.coefficients([(saved, length) for saved in steps for length in lengths], (step, wanted))
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), like)
        with jax.enable_x64(True):
            total = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, jnp.float64), like)
        for saved, row in zip(steps, factors.reshape(len(steps), -1), strict=True):
            averages = snapshots.restore_tree(saved, {f"profile_{i}": shapes for i in range(len(lengths))})
            with jax.enable_x64(True):
                for factor, average in zip(row, averages.values(), strict=True):
                    total = jax.tree.map(lambda a, b, factor=factor: a + factor * b.astype(jnp.float64), total, average)
    with jax.enable_x64(True):
        return jax.tree.map(lambda a, leaf: a.astype(leaf.dtype), total, like)
