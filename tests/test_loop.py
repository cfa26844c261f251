"""The training loop around a step that is only pretended: its clock, its bar and how it stops."""

import json
import signal
import threading
import time
from contextlib import redirect_stderr
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from test_notices import Screen

from guided_diffusion_jax import sharding
from guided_diffusion_jax.runtime.preemption import Stopped
from guided_diffusion_jax.training import loop
from guided_diffusion_jax.training.loop import ANSWER, Loop, Schedule
from guided_diffusion_jax.training.metrics import Silent, Writer
from guided_diffusion_jax.training.settings import TrainSettings
from guided_diffusion_jax.training.state import TrainState
from guided_diffusion_jax.training.step import Metrics

BATCH = {"image": np.zeros((4, 2, 2, 1), np.uint8)}
METRICS = Metrics(*(jnp.float32(1),) * 3, jnp.bool_(False), {"loss": jnp.ones(4)}, jnp.ones(4))


def loop_of(writer, folder, schedule, compile_seconds=0.0, at_step=lambda step: None, batches=(BATCH,) * 100):
    """A loop whose first step takes so long to compile; `at_step` is called within each."""
    state, taken = mock.Mock(spec=TrainState, step=0), []

    def step(state, batch):
        taken.append(1)
        if len(taken) == 1:
            time.sleep(compile_seconds)
        at_step(len(taken))
        return state, METRICS

    return Loop(
        step, state, iter(batches), sharding.mesh(), schedule=schedule, settings=TrainSettings(),
        checkpoints=None, writer=writer, folder=epath.Path(folder), keep=lambda state: None,
    )  # fmt: skip


def test_the_speed_and_the_bar_leave_compiling_out(tmp_path):
    with redirect_stderr(Screen()) as screen, Writer(tmp_path, 0, 6) as writer:
        slow = lambda step: time.sleep(0.02)  # noqa: E731
        list(loop_of(writer, tmp_path, Schedule(6, log_every=2), 1.5, slow).run())
        assert writer._bar.n == 6
        assert writer._bar.format_dict["elapsed"] < 1
    assert "compiling the training step" in screen.getvalue()
    speeds = [json.loads(line)["images_per_second"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(speeds) == 3 and min(speeds) > 8 / 1.5


class Clock:
    """A clock that only `sleep` moves, but for the microsecond that it takes to read it."""

    seconds = 0.0

    def sleep(self, seconds):
        self.seconds += seconds

    def monotonic(self):
        self.sleep(1e-6)
        return self.seconds


def test_the_wait_for_batches_is_logged_without_any_other_time(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    batches = (clock.sleep(wait) or BATCH for wait in (2.0, 0.1, 0.3, 0.1, 0.0, 0.0))
    schedule = Schedule(6, log_every=2)
    lines = loop_of(Silent(), tmp_path, schedule, at_step=lambda step: clock.sleep(0.4), batches=batches).run()
    # the first batch belongs to the start, as compiling does
    assert [line["data_wait"] for line in lines] == pytest.approx([0.05, 0.2, 0.0], abs=1e-3)


@pytest.mark.parametrize("pressed", [1, 3, 5])
def test_a_request_to_stop_ends_after_the_step_under_way(pressed, tmp_path, capsys):
    press = lambda step: signal.raise_signal(signal.SIGINT) if step == pressed else None  # noqa: E731
    with pytest.raises(Stopped, match=f"stopped by SIGINT at step {pressed}$"):
        list(loop_of(Silent(), tmp_path, Schedule(6), at_step=press).run())
    assert ANSWER.split(",")[0] in capsys.readouterr().err


def test_a_request_after_the_last_step_is_not_lost(tmp_path):
    late = mock.Mock(side_effect=lambda: signal.raise_signal(signal.SIGINT))
    training = loop_of(Silent(), tmp_path, Schedule(2, log_every=2))
    with pytest.raises(KeyboardInterrupt):
        for _ in training.run():
            late()  # the metrics of the last step are there
    assert late.call_count == 1


def test_outside_the_main_thread_nothing_is_installed(tmp_path):
    before, done = signal.getsignal(signal.SIGINT), []
    run = lambda: done.extend(loop_of(Silent(), tmp_path, Schedule(3, log_every=1)).run())  # noqa: E731
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert len(done) == 3 and signal.getsignal(signal.SIGINT) is before
