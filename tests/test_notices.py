"""Signs of life: what takes long says so, once in a log, and again and again in a terminal."""

import io
import json
import time
from contextlib import redirect_stderr

import jax
import numpy as np
import pytest

from guided_diffusion_jax.runtime import compilation_cache, notices
from guided_diffusion_jax.training import loop
from guided_diffusion_jax.training.loop import IN_FLIGHT, StepQueue


class Screen(io.StringIO):
    """A terminal that remembers when something was written."""

    def __init__(self):
        super().__init__()
        self.times = []

    def isatty(self):
        return True

    def write(self, text):
        self.times.append(time.monotonic())
        return super().write(text)


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(notices, "DELAY_S", 0.05)
    monkeypatch.setattr(notices, "BEAT_S", 0.05)


@pytest.fixture
def cache_dir(monkeypatch, tmp_path):
    """Where programs are kept: `cache_dir(None)` is nowhere."""
    before = jax.config.jax_compilation_cache_dir

    def set_to(where):
        jax.config.update("jax_compilation_cache_dir", where and str(where))

    set_to(tmp_path)
    yield set_to
    set_to(before)


def test_the_defaults_leave_no_silence_of_ten_seconds():
    assert notices.DELAY_S + notices.BEAT_S < 10


def test_a_slow_compile_is_announced_once_in_a_log(soon, cache_dir, capsys):
    with notices.compiling("the training step", np.zeros(3)):
        time.sleep(0.3)
    assert capsys.readouterr().err == "compiling the training step (cached for next time)\n"


def test_in_a_terminal_the_seconds_go_on_while_it_compiles(soon, cache_dir):
    with redirect_stderr(Screen()) as screen, notices.compiling("the sampler", np.zeros(3)):
        begun = time.monotonic()
        time.sleep(0.6)
    shown = [when for when in screen.times if begun < when < begun + 0.6]
    assert len(shown) >= 4 and max(np.diff([begun, *shown])) < 0.4
    assert "compiling the sampler (cached for next time) 00:00" in screen.getvalue()


def test_what_is_quick_says_nothing(cache_dir):
    with redirect_stderr(Screen()) as screen, notices.compiling("the training step"), notices.working("opening"):
        pass
    assert not screen.getvalue()


def test_cached_is_said_only_where_it_is(soon, cache_dir, capsys):
    cache_dir(None)
    with notices.compiling("the training step", np.zeros(3)):
        time.sleep(0.2)
    assert capsys.readouterr().err == "compiling the training step\n"


@pytest.mark.parametrize("what", ["another name", "other shapes", "a compile from the cache", "a damaged file"])
def test_the_usual_duration_is_that_of_the_same_program_compiled_here(what, soon, cache_dir, tmp_path, capsys):
    with notices.compiling("the training step", np.zeros(3)):
        time.sleep(0.2)
    (key,) = json.loads((tmp_path / compilation_cache.SECONDS).read_text())
    compilation_cache.remember(key, 95.2)
    capsys.readouterr()

    def said(name="the training step", shape=3):
        with notices.compiling(name, np.zeros(shape)):
            time.sleep(0.2)
        return capsys.readouterr().err

    if what == "another name":
        assert "usually" not in said(name="the sampler")
    if what == "other shapes":
        assert "usually" not in said(shape=4)
    if what == "a damaged file":
        (tmp_path / compilation_cache.SECONDS).write_text("{")
        assert "usually" not in said()
    if what == "a compile from the cache":
        with notices.compiling("the training step", np.zeros(3)):
            jax.monitoring.record_event("/jax/compilation_cache/cache_hits")
            time.sleep(0.2)
        assert compilation_cache.seconds(key) == 95.2
        assert "compiling the training step (usually 95 s, cached for next time)\n" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["bar", "unknown total", "compile", "work"])
def test_whatever_is_shown_in_a_terminal_goes_on(kind, soon, cache_dir):
    shown = {
        "bar": lambda: notices.progress(10, "sampling", " steps"),
        "unknown total": lambda: notices.progress(None, "features", " images"),
        "compile": lambda: notices.compiling("the features"),
        "work": lambda: notices.working("opening the data set"),
    }[kind]
    with redirect_stderr(Screen()) as screen, shown():
        time.sleep(0.15)
        before = len(screen.times)
        time.sleep(0.4)
        assert len(screen.times) > before + 2


LIMITS = ("jax_compilation_cache_max_size", "jax_persistent_cache_min_compile_time_secs")


def test_a_library_leaves_the_cache_alone_and_the_command_line_uses_the_users_folder(cache_dir, monkeypatch, tmp_path):
    size, shortest = (getattr(jax.config, name) for name in LIMITS)
    chosen = tmp_path / "chosen"
    cache_dir(chosen)
    compilation_cache.enable()
    assert str(compilation_cache.folder()) == str(chosen)  # the user's own choice
    cache_dir(None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update(LIMITS[1], 1.0)  # JAX's default
    try:
        compilation_cache.enable()
        assert str(compilation_cache.folder()) == str(tmp_path / "guided_diffusion_jax" / "compilation")
        assert 0 < jax.config.jax_compilation_cache_max_size <= 2**33
        assert jax.config.jax_persistent_cache_min_compile_time_secs == compilation_cache.MIN_SECONDS
    finally:
        jax.config.update(LIMITS[0], size), jax.config.update(LIMITS[1], shortest)
    cache_dir(None)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    compilation_cache.enable()
    assert compilation_cache.folder() is None  # nothing can be written there


class Clock:
    """Time that passes where a step is waited for."""

    now = 0.0

    def monotonic(self):
        return self.now


class Step:
    """The result of a step on a device that takes one after the other."""

    def __init__(self, clock, ends):
        self.clock, self.ends = clock, ends

    def is_ready(self):
        return self.clock.now >= self.ends

    def block_until_ready(self):
        self.clock.now = max(self.clock.now, self.ends)


@pytest.mark.parametrize(("seconds", "most"), [(17.0, 0), (1.5, 0), (0.3, 3), (0.1, IN_FLIGHT), (0.001, IN_FLIGHT)])
def test_few_slow_steps_are_queued_and_finished_ones_are_counted(seconds, most, monkeypatch):
    clock, finished = Clock(), []
    monkeypatch.setattr(loop, "time", clock)
    queue, free = StepQueue(lambda: finished.append(1)), 0.0
    for number in range(1, 30):
        clock.now += 1e-4  # the host's own work
        free = max(free, clock.now) + seconds
        queue.add(Step(clock, free))
        assert number - len(finished) <= most
        assert free - clock.now <= loop.QUEUED_SECONDS + seconds
    queue.drain()
    assert len(finished) == 29 and clock.now >= free


def test_the_queue_adapts_when_steps_become_slow(monkeypatch):
    clock, finished = Clock(), []
    monkeypatch.setattr(loop, "time", clock)
    queue, free = StepQueue(lambda: finished.append(1)), 0.0
    for seconds in [0.01] * 20 + [5.0] * 20:
        free = max(free, clock.now) + seconds
        queue.add(Step(clock, free))
    assert queue.limit == 0 and len(finished) == 40


def test_in_a_log_only_compilations_are_announced(soon, cache_dir, capsys):
    """An error stays one line, however long it took to find."""
    with notices.working("opening the data set"), notices.progress(10, "sampling", " steps"):
        time.sleep(0.2)
    assert not capsys.readouterr().err
