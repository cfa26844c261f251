"""The commands in a terminal: signs of life, and Ctrl-C wherever they are."""

import re

import pytest
from terminal import Terminal
from test_commands import TINY

from guided_diffusion_jax.runtime.interrupts import STOPPED, UNSAVED
from guided_diffusion_jax.training.loop import ANSWER

SLOW = ["--config.train.batch_size=2500", "--config.train.steps=900", "--config.train.save_every=0"]
"""Steps of a second or more, of a network that compiles in a few."""


def last_line(terminal):
    assert "Traceback" not in terminal.text, terminal.text[-3000:]
    return re.split(r"[\r\n]+", terminal.text.strip())[-1]


@pytest.mark.parametrize("module", ["absl.flags", "numpy", "jax.numpy"])  # imported after `ends_process` has begun
def test_ctrl_c_while_it_starts_is_one_line(module, tmp_path):
    with Terminal("-X", "importtime", "main.py", "--config=digits", f"--workdir={tmp_path / 'run'}") as terminal:
        terminal.wait_for(f" {module}\r")
        terminal.press()
        code, took = terminal.code()
    said = re.sub("import time: .*\r", "", terminal.text)
    assert code == 1 and took < 5 and said.strip() == STOPPED
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """`start(workdir, *flags)`: a training of slow steps."""
    data = tmp_path_factory.mktemp("tfds")
    command = ["main.py", "--config=configs/digits.py", f"--config.data.data_dir={data}", *TINY, *SLOW]
    return lambda workdir, *flags, **variables: Terminal(*command, f"--workdir={workdir}", *flags, **variables)


@pytest.mark.slow  # like all that follow: they time a program, which shares the cores with another test otherwise
def test_ctrl_c_during_a_compilation_is_answered_and_the_second_ends_it(start, tmp_path):
    with start(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false") as terminal:
        terminal.wait_for("compiling the training step 00:")  # and not cached for next time
        terminal.press()
        assert terminal.wait_for(ANSWER) < 1
        terminal.press()
        code, took = terminal.code()
    assert code == 1 and took < 5 and last_line(terminal) == UNSAVED


@pytest.fixture(scope="module")
def saved(start, tmp_path_factory):
    """The folder of a training that one Ctrl-C has ended, and the step that it saved."""
    workdir = tmp_path_factory.mktemp("saved")
    with start(workdir) as terminal:
        terminal.wait_for(" 1/900")
        terminal.press()
        assert terminal.wait_for(ANSWER) < 1
        assert terminal.code()[0] == 1
    (step,) = re.findall(r"stopped by SIGINT at step (\d+), saved; to go on from there: ", last_line(terminal))
    return workdir, int(step)


@pytest.mark.slow
def test_the_first_ctrl_c_waits_for_the_step_under_way_alone(saved):
    workdir, step = saved
    assert step <= 3
    assert [folder.name for folder in (workdir / "checkpoints").glob("[0-9]*")] == [str(step)]


MANY = ["--config.sample.count=3000", "--config.sample.batch_size=3000", "--config.sample.steps=200"]


@pytest.mark.slow
def test_sampling_shows_its_steps_and_ends_at_ctrl_c(saved, tmp_path):
    with Terminal("main.py", f"--workdir={saved[0]}", "--mode=sample", *MANY, f"--out={tmp_path / 'out'}") as terminal:
        terminal.wait_for(" ([2-9]|[1-9][0-9]+)/200")
        terminal.press()
        code, took = terminal.code()
    assert code == 1 and took < 5 and last_line(terminal) == STOPPED
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_continued_run_that_is_ended_keeps_its_checkpoint(start, saved):
    workdir, step = saved
    with start(workdir) as terminal:
        terminal.wait_for(f"from step {step} to 900")
        terminal.wait_for(f" {step + 1}/900")
        terminal.press()
        assert terminal.wait_for(ANSWER) < 1
        terminal.press()
        code, took = terminal.code()
    assert code == 1 and took < 5 and last_line(terminal) == UNSAVED
    with start(workdir, f"--config.train.steps={step}") as terminal:
        assert terminal.code()[0] == 0 and f"from step {step} to {step}" in terminal.text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "classifier", "sample", "evaluate", "report"])
def test_no_mode_is_silent_for_ten_seconds(name, start, saved):
    steps = "--config.train.steps=6", "--config.sample.count=500", "--config.evaluate.count=250"
    flags = "--config.evaluate.metrics=('bpd','scores')", "--config.evaluate.bound_steps=50"
    with start(saved[0], f"--mode={name}", *steps, *flags) as terminal:
        assert terminal.code(500)[0] == 0, terminal.text[-3000:]
    assert terminal.longest_silence < 10


@pytest.mark.slow
@pytest.mark.parametrize("shown", ["bits/dim", "training the features", "features: "])
def test_evaluation_ends_at_ctrl_c(shown, saved, tmp_path):
    flags = ["--config.evaluate.metrics=('bpd','scores')", "--config.evaluate.bound_steps=50"]
    flags.append(f"--config.data.data_dir={tmp_path}")  # without features of an earlier call
    with Terminal("main.py", f"--workdir={saved[0]}", "--mode=evaluate", *flags) as terminal:
        terminal.wait_for(shown, 400)
        terminal.press()
        code, took = terminal.code()
    assert code == 1 and took < 5 and last_line(terminal) == STOPPED
