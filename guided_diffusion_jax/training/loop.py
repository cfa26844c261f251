"""The training loop: what happens from one step to the next, and who waits for whom."""

import collections
import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8

from guided_diffusion_jax import sharding
from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.objectives.partition import network
from guided_diffusion_jax.runtime.disk import tolerate_full
from guided_diffusion_jax.runtime.notices import compiling
from guided_diffusion_jax.runtime.preemption import Stopped, requests
from guided_diffusion_jax.training.checkpoint import Checkpoints
from guided_diffusion_jax.training.metrics import Silent, Writer
from guided_diffusion_jax.training.settings import TrainSettings
from guided_diffusion_jax.training.state import TrainState
from guided_diffusion_jax.training.step import Metrics
from guided_diffusion_jax.training.summaries import averages, bad_step_message, describe
from guided_diffusion_jax.typing import Params

MAX_SKIPPED = 100
"""So many skipped steps in a row end a run that skips bad steps."""

IN_FLIGHT = 8
"""Steps that may be queued on the devices. Enough to hide the host; many more deadlock simulated CPU devices."""

QUEUED_SECONDS = 1.0
"""Work that may be queued behind the step under way, so that a run of slow steps stops soon when it is asked to."""

ANSWER = "stopping after the step under way, saving; Ctrl-C again ends without saving"
"""What the first Ctrl-C is answered with."""

Images = Mapping[str, UInt8[np.ndarray, "h w 3"]]
Callback = Callable[[int, Params], Images | None]
"""`callback(step, params)`, with the averaged parameters of the whole network; images that it returns are logged."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What a run does when, in steps.

    Attributes:
        steps: the last step, counted from the beginning of the run.
        log_every: steps between two lines of metrics.
        save_every: steps between two checkpoints; 0 saves at the end alone.
        callback: called every `callback_every` steps.
        callback_every: 0 is never.
    """

    steps: int
    log_every: int = 100
    save_every: int = 1000
    callback: Callback | None = None
    callback_every: int = 0


class StepQueue:
    """Steps that were dispatched and may not have finished: few of them where they are slow.

    Args:
        finished: called once for each step that is known to have finished.
    """

    def __init__(self, finished: Callable[[], None]):
        self._finished = finished
        self._waiting: collections.deque[tuple[Any, float]] = collections.deque()  # an array of it, and since when
        self._seconds, self._newest = float("inf"), 0.0  # of a step; when the newest finished one was seen

    @property
    def limit(self) -> int:
        """Steps that may wait on the devices; none before the first has shown how long it takes."""
        return min(IN_FLIGHT, int(QUEUED_SECONDS / self._seconds))

    def add(self, result: Any) -> None:
        """One more step was dispatched, which gives this array; waits until no more than `limit` are left."""
        self._waiting.append((result, time.monotonic()))
        self._wait_for(len(self._waiting) - self.limit)

    def drain(self) -> None:
        """Waits for all steps."""
        self._wait_for(len(self._waiting))

    def _wait_for(self, count: int) -> None:
        """Waits for the oldest `count` steps, and counts those that have finished beside them."""
        if count > 0:
            jax.block_until_ready(self._waiting[count - 1][0])
        begun = max(self._newest, self._waiting[0][1]) if self._waiting else 0.0
        done = 0
        while self._waiting and self._waiting[0][0].is_ready():
            self._waiting.popleft()
            self._finished()
            done += 1
        if done:
            self._newest = time.monotonic()
            self._seconds = (self._newest - begun) / done


class Loop:
    """Steps of a training, with what is logged, saved and shown between them.

    Args:
        step_function: jitted `(state, batch) -> (state, metrics)`, which gives up the state that it gets.
        state: to begin with.
        iterator: of this process's batches.
        mesh: the devices.
        schedule: what happens when.
        settings: of the trainer.
        checkpoints: where the state is saved; None is nowhere.
        writer: where metrics go.
        folder: the run's, which messages name.
        snapshots: where power-function averages are saved, with each checkpoint; None is nowhere.
        keep: takes the state after each step, for the one before is gone.
    """

    def __init__(
        self,
        step_function: Callable[[TrainState, Any], tuple[TrainState, Metrics]],
        state: TrainState,
        iterator: Any,
        mesh: jax.sharding.Mesh,
        *,
        schedule: Schedule,
        settings: TrainSettings,
        checkpoints: Checkpoints | None,
        writer: Writer | Silent,
        folder: epath.Path,
        keep: Callable[[TrainState], None],
        snapshots: Checkpoints | None = None,
    ):
        self._step_function, self._iterator, self._mesh, self._keep = step_function, iterator, mesh, keep
        self._schedule, self._settings, self._folder = schedule, settings, folder
        self._checkpoints, self._snapshots, self._writer = checkpoints, snapshots, writer
        self._state, self._step, self._first = state, int(state.step), True
        self._queue = StepQueue(writer.advance)
        self._pending: list[Metrics] = []  # of the steps since the last fetch, on the devices
        self._window: list[Metrics] = []  # of the steps since the last log, on the host
        self._batch_size, self._bad_in_a_row = 0, 0
        self._since, self._data_wait = time.monotonic(), 0.0  # the last log, and seconds of waiting for data since

    def run(self) -> Iterator[dict[str, float]]:
        """Takes the steps, and yields the metrics of every `log_every` of them, with their "step".

        Raises:
            InputError: a step whose loss is not finite.
            Stopped: by Ctrl-C or SIGTERM, after saving.
        """
        s = self._schedule
        with requests(ANSWER if self._checkpoints else "stopping after the step under way") as stop_requested:
            while self._step < s.steps:
                self._advance()
                stop = stop_requested(self._step)
                last = self._step == s.steps or stop is not None
                if last or self._due(s.log_every):
                    yield {"step": self._step, **self._log()}
                if last or self._due(s.save_every):
                    self._save(last)
                if stop is not None:
                    self._stop(stop)
                if s.callback is not None and (self._due(s.callback_every) or (s.callback_every and last)):
                    self._call_back(s.callback)
        if self._checkpoints is not None:
            self._checkpoints.wait()

    def _due(self, every: int) -> bool:
        return every > 0 and self._step % every == 0

    def _advance(self) -> None:
        """One more step is on its way."""
        asked = time.monotonic()
        batch = next(self._iterator)
        self._data_wait += time.monotonic() - asked
        batch = sharding.put_batch(batch, self._mesh)
        self._batch_size = len(batch["image"])
        with compiling("the training step", self._state, batch) if self._first else contextlib.nullcontext():
            self._state, metrics = self._step_function(self._state, batch)
        self._keep(self._state)
        self._step += 1
        self._pending.append(metrics)
        if self._first:
            self._first = False
            self._restart_clocks()
        self._queue.add(metrics.loss)

    def _restart_clocks(self) -> None:
        """Leaves what was done since the last step out of the speed: compiling, a callback."""
        self._since, self._data_wait = time.monotonic(), 0.0
        self._writer.restart_clock()

    def _fetch(self) -> None:
        """Waits for the metrics of all steps so far, and stops at a bad one."""
        self._queue.drain()
        fetched = jax.device_get(self._pending)
        self._pending = []
        settings = self._settings
        for number, metrics in enumerate(fetched, self._step - len(fetched) + 1):
            self._bad_in_a_row = self._bad_in_a_row + 1 if metrics.bad else 0
            if metrics.bad and settings.bad_step == "skip" and self._bad_in_a_row < MAX_SKIPPED:
                self._writer.line(f"step {number}: {describe(metrics)}; skipped")
            elif metrics.bad:
                latest = None
                if self._checkpoints is not None:
                    self._checkpoints.wait()
                    latest = self._checkpoints.latest
                raise InputError(bad_step_message(number, metrics, self._bad_in_a_row, latest, settings))
        self._window.extend(fetched)

    def _log(self) -> dict[str, float]:
        self._fetch()
        now = time.monotonic()
        values = averages(self._window, self._batch_size, now - self._since, self._data_wait)
        with tolerate_full(self._settings.on_full_disk, self._folder):
            self._writer.scalars(self._step, values)
        self._window, self._since, self._data_wait = [], now, 0.0
        return values

    def _save(self, last: bool) -> None:
        if self._checkpoints is None:
            return
        self._fetch()
        policy = self._settings.on_full_disk
        with tolerate_full(policy, self._folder):
            self._checkpoints.wait()
        with tolerate_full("stop" if last else policy, self._folder):
            if self._snapshots is not None:  # before the checkpoint: none that a run goes on from lacks its snapshot
                averages = {name: network(params) for name, params in self._state.power_ema.items()}
                self._snapshots.save_tree(self._step, averages)
            self._checkpoints.save(self._step, self._state, self._iterator)

    def _stop(self, number: int) -> None:
        saved = ""
        if self._checkpoints is not None:
            self._checkpoints.wait()
            saved = ", saved"
        raise Stopped(f"stopped by {signal.Signals(number).name} at step {self._step}{saved}", number)

    def _call_back(self, callback: Callback) -> None:
        self._fetch()
        with tolerate_full(self._settings.on_full_disk, self._folder):
            for name, image in (callback(self._step, self._state.network()) or {}).items():
                self._writer.image(self._step, name, image)
        self._restart_clocks()
