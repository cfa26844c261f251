"""The training loop: feed steps, fetch figures late, save, draw samples, stop when asked."""

import collections
import dataclasses
import signal
import time
from collections.abc import Callable
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from guided_diffusion_jax.errors import InputError, require
from guided_diffusion_jax.training.checkpoint import Checkpoints
from guided_diffusion_jax.training.metrics import Writer
from guided_diffusion_jax.training.parallel import put_batch
from guided_diffusion_jax.training.state import TrainState
from guided_diffusion_jax.training.step import Metrics
from guided_diffusion_jax.training.stop import Stopped, requests

IN_FLIGHT = 8
"""Steps that may be queued on the devices. Enough to hide the host; many more deadlock simulated CPU devices."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long to train, and what to do every so many steps; 0 is never, except that the end is always saved."""

    steps: int
    log_every: int
    save_every: int
    sample_every: int
    part: str = "train"  # of the config, for what is said of a value that cannot be

    def __post_init__(self) -> None:
        for key in ("steps", "log_every"):
            value = getattr(self, key)
            require(value >= 1, f"{self.part}.{key}={value} must be at least 1")
        for key in ("save_every", "sample_every"):
            value = getattr(self, key)
            require(value >= 0, f"{self.part}.{key}={value} must not be negative; 0 is never")


def train(
    step_function: Callable[[TrainState, Any], tuple[TrainState, Metrics]],
    state: TrainState,
    iterator: grain.DatasetIterator,
    *,
    plan: Plan,
    mesh: Mesh,
    checkpoints: Checkpoints,
    order: dict[str, Any],
    writer: Writer,
    draw: Callable[[int, TrainState], None],
) -> TrainState:
    """From the state's step to the last one.

    Args:
        step_function: compiled; gives up the state that it gets.
        state: to start from.
        iterator: at the place that belongs to it.
        plan: when to do what.
        mesh: the devices.
        checkpoints: where to save.
        order: see `Checkpoints.save`.
        writer: where the figures go.
        draw: makes sample pictures of a state.

    Raises:
        InputError: a loss, gradient or parameter is not finite; the step is named, and no state after it was saved.
        Stopped: by Ctrl-C or SIGTERM, after saving.
    """
    step = int(state.step)
    pending: collections.deque[Metrics] = collections.deque()
    since = time.monotonic()

    window: list[Metrics] = []  # of the steps since the last log

    def fetch() -> None:
        fetched = jax.device_get(list(pending))
        pending.clear()
        for number, metrics in enumerate(fetched, step - len(fetched) + 1):
            _check_finite(number, metrics, checkpoints, plan.part)
        window.extend(fetched)

    with requests() as asked:
        while step < plan.steps:
            batch = put_batch(next(iterator), mesh)
            state, metrics = step_function(state, batch)
            step += 1
            writer.advance()
            pending.append(metrics)
            if len(pending) > IN_FLIGHT:
                jax.block_until_ready(pending[-1 - IN_FLIGHT].loss)

            stop = asked()
            last = step == plan.steps or stop is not None
            if last or _due(step, plan.log_every):
                fetch()
                now = time.monotonic()
                writer.scalars(step, _averages(window, len(batch["image"]), now - since))
                window.clear()
                since = now
            if last or _due(step, plan.save_every):
                fetch()
                checkpoints.save(step, state, iterator, order)
            if stop is not None:
                checkpoints.wait()
                raise Stopped(f"stopped by {signal.Signals(stop).name} at step {step}, saved", stop)
            if _due(step, plan.sample_every):
                draw(step, state)
                since = time.monotonic()
    checkpoints.wait()
    return state


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _check_finite(step: int, metrics: Metrics, checkpoints: Checkpoints, part: str) -> None:
    watched = {"loss": metrics.loss, "gradient norm": metrics.grad_norm, "parameter norm": metrics.param_norm}
    bad = [f"{name} {value}" for name, value in watched.items() if not np.isfinite(value)]
    if not bad:
        return
    checkpoints.wait()
    latest = checkpoints.latest
    kept = "there is no checkpoint yet" if latest is None else f"the last good checkpoint is step {latest}"
    raise InputError(
        f"step {step}: {', '.join(bad)}; {kept}. Lower {part}.learning_rate, or lower {part}.grad_clip (0 is none)."
    )


def _averages(window: list[Metrics], batch_size: int, seconds: float) -> dict[str, float]:
    """Over the steps since the last call; a figure's q1 is that of the least noisy quarter of 0 .. T-1."""
    count = np.sum([m.quarter_count for m in window], axis=0)
    averages = {"loss": float(np.mean([m.loss for m in window]))}
    for name in window[0].quarter_sums:
        total = np.sum([m.quarter_sums[name] for m in window], axis=0)
        by_quarter = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
        averages |= {f"{name}_q{i + 1}": float(value) for i, value in enumerate(by_quarter)}
    return averages | {
        "grad_norm": float(np.mean([m.grad_norm for m in window])),
        "param_norm": float(window[-1].param_norm),
        "images_per_second": len(window) * batch_size / seconds,
    }
