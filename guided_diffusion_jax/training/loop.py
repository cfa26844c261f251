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

from guided_diffusion_jax.errors import InputError, choose, require
from guided_diffusion_jax.runtime.disk import POLICIES, tolerate_full
from guided_diffusion_jax.runtime.preemption import Stopped, requests
from guided_diffusion_jax.sharding import put_batch
from guided_diffusion_jax.training.checkpoint import Checkpoints
from guided_diffusion_jax.training.metrics import Writer
from guided_diffusion_jax.training.state import TrainState
from guided_diffusion_jax.training.step import Metrics

BAD_IN_A_ROW = 100
"""So many skipped steps, one after the other, end a run that skips bad steps."""

IN_FLIGHT = 8
"""Steps that may be queued on the devices. Enough to hide the host; many more deadlock simulated CPU devices."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long to train, and what to do every so many steps; 0 is never, except that the end is always saved."""

    steps: int
    log_every: int
    save_every: int
    sample_every: int
    bad_step: str = "stop"  # or "skip"
    on_full_disk: str = "stop"  # or "go_on"; the last save must find room
    part: str = "train"  # of the config, for what is said of a value that cannot be

    def __post_init__(self) -> None:
        for key in ("steps", "log_every"):
            value = getattr(self, key)
            require(value >= 1, f"{self.part}.{key}={value} must be at least 1")
        for key in ("save_every", "sample_every"):
            value = getattr(self, key)
            require(value >= 0, f"{self.part}.{key}={value} must not be negative; 0 is never")
        choose(dict.fromkeys(("stop", "skip")), self.bad_step, f"{self.part}.bad_step")
        choose(dict.fromkeys(POLICIES), self.on_full_disk, f"{self.part}.on_full_disk")
        require(
            self.on_full_disk == "stop" or jax.process_count() == 1,
            f"{self.part}.on_full_disk='go_on' is for one process; with {jax.process_count()} use 'stop'",
        )


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
        InputError: a loss, gradient or parameter is not finite, or a gradient is a spike; the step is named, and no
            state after it was saved. Or so were `BAD_IN_A_ROW` steps that should be skipped.
        Stopped: by Ctrl-C or SIGTERM, after saving.
        DiskFull: there was no room for a checkpoint, figures or pictures.
    """
    step, folder = int(state.step), checkpoints.folder.parent
    pending: collections.deque[Metrics] = collections.deque()
    since = time.monotonic()

    window: list[Metrics] = []  # of the steps since the last log
    in_a_row = 0  # bad steps that were the last ones

    def fetch() -> None:
        nonlocal in_a_row
        fetched = jax.device_get(list(pending))
        pending.clear()
        for number, metrics in enumerate(fetched, step - len(fetched) + 1):
            in_a_row = in_a_row + 1 if metrics.bad else 0
            if metrics.bad and plan.bad_step == "skip" and in_a_row < BAD_IN_A_ROW:
                writer.line(f"step {number}: {_figures(metrics)}; skipped")
            elif metrics.bad:
                raise InputError(_bad(number, metrics, in_a_row, checkpoints, plan))
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

            stop = asked(step)
            last = step == plan.steps or stop is not None
            if last or _due(step, plan.log_every):
                fetch()
                now = time.monotonic()
                with tolerate_full(plan.on_full_disk, folder):
                    writer.scalars(step, _averages(window, len(batch["image"]), now - since))
                window.clear()
                since = now
            if last or _due(step, plan.save_every):
                fetch()
                with tolerate_full(plan.on_full_disk, folder):
                    checkpoints.wait()
                with tolerate_full("stop" if last else plan.on_full_disk, folder):
                    checkpoints.save(step, state, iterator, order)
            if stop is not None:
                checkpoints.wait()
                raise Stopped(f"stopped by {signal.Signals(stop).name} at step {step}, saved", stop)
            if _due(step, plan.sample_every):
                with tolerate_full(plan.on_full_disk, folder):
                    draw(step, state)
                since = time.monotonic()
    checkpoints.wait()
    return state


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _figures(metrics: Metrics) -> str:
    return f"loss {metrics.loss:.4g}, gradient norm {metrics.grad_norm:.4g}, parameter norm {metrics.param_norm:.4g}"


def _bad(step: int, metrics: Metrics, in_a_row: int, checkpoints: Checkpoints, plan: Plan) -> str:
    checkpoints.wait()
    latest = checkpoints.latest
    kept = "there is no checkpoint yet" if latest is None else f"the last good checkpoint is step {latest}"
    finite = np.isfinite([metrics.loss, metrics.grad_norm, metrics.param_norm]).all()
    what = f"a spike of more than {plan.part}.spike times the usual norm" if finite else "not finite"
    skip = "" if plan.bad_step == "skip" else f", or leave such steps out: {plan.part}.bad_step=skip"
    return (
        f"step {step}: {_figures(metrics)}: {what}{f', for {in_a_row} steps in a row' * (in_a_row > 1)}; {kept}. Lower "
        f"{plan.part}.learning_rate, or lower {plan.part}.grad_clip (0 is none){skip}."
    )


def _averages(window: list[Metrics], batch_size: int, seconds: float) -> dict[str, float]:
    """Over the steps since the last call; a figure's q1 is that of the least noisy quarter of 0 .. T-1."""
    speed = {"images_per_second": len(window) * batch_size / seconds}
    good = [metrics for metrics in window if not metrics.bad]
    if len(good) < len(window):
        speed["bad_steps"] = float(len(window) - len(good))
    if not good:
        return speed
    count = np.sum([m.quarter_count for m in good], axis=0)
    averages = {"loss": float(np.mean([m.loss for m in good]))}
    for name in good[0].quarter_sums:
        total = np.sum([m.quarter_sums[name] for m in good], axis=0)
        by_quarter = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
        averages |= {f"{name}_q{i + 1}": float(value) for i, value in enumerate(by_quarter)}
    return (
        averages
        | {
            "grad_norm": float(np.mean([m.grad_norm for m in good])),
            "param_norm": float(good[-1].param_norm),
        }
        | speed
    )
