"""What is said of training steps: averages of metrics, and of a step that is bad."""

import numpy as np

from guided_diffusion_jax.training.settings import TrainSettings
from guided_diffusion_jax.training.step import Metrics


def describe(metrics: Metrics) -> str:
    """Loss and norms of a step."""
    return f"loss {metrics.loss:.4g}, gradient norm {metrics.grad_norm:.4g}, parameter norm {metrics.param_norm:.4g}"


def bad_step_message(step: int, metrics: Metrics, in_a_row: int, latest: int | None, settings: TrainSettings) -> str:
    """Error message for a step whose loss or gradient is not finite or a spike, with the remedy."""
    part = settings.part
    checkpoint = "there is no checkpoint yet" if latest is None else f"the last good checkpoint is step {latest}"
    finite = np.isfinite([metrics.loss, metrics.grad_norm, metrics.param_norm]).all()
    what = f"a spike of more than {part}.grad_spike times the usual norm" if finite else "not finite"
    skip = "" if settings.bad_step == "skip" else f", or leave such steps out: {part}.bad_step=skip"
    return (
        f"step {step}: {describe(metrics)}: {what}{f', for {in_a_row} steps in a row' * (in_a_row > 1)}; {checkpoint}. "
        f"Lower {part}.learning_rate, or lower {part}.grad_clip (0 is none){skip}."
    )


def averages(window: list[Metrics], batch_size: int, seconds: float, data_wait: float) -> dict[str, float]:
    """Averages over the steps since the last call; `loss_q1` is the loss in the least noisy quarter of 0 .. T-1.

    `seconds` is the time they took, and `data_wait` how much of it the loop waited for batches.
    """
    speed = {"images_per_second": len(window) * batch_size / seconds, "data_wait": data_wait / len(window)}
    good = [metrics for metrics in window if not metrics.bad]
    if len(good) < len(window):
        speed["bad_steps"] = float(len(window) - len(good))
    if not good:
        return speed
    count = np.sum([m.quarter_count for m in good], axis=0)
    values = {"loss": float(np.mean([m.loss for m in good]))}
    for name in good[0].quarter_sums:
        total = np.sum([m.quarter_sums[name] for m in good], axis=0)
        by_quarter = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
        names = [f"{name}_q{i + 1}" for i in range(len(total))] if len(total) > 1 else [name]
        values |= dict(zip(names, by_quarter.tolist(), strict=True))
    norms = {"grad_norm": float(np.mean([m.grad_norm for m in good])), "param_norm": float(good[-1].param_norm)}
    return values | norms | speed
