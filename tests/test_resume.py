"""A run that was killed, even while it saved, becomes bit for bit the run that never was.

Only what is killed or stopped is a process of its own; the others run here.
"""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from test_commands import TINY

from guided_diffusion_jax.commands.cli import main

SAVE_OFTEN = ["--config.train.steps=40", "--config.train.save_every=10", "--config.train.sample_every=0"]


WIDENED = ["--config.model.width=32", "--config.model.head_width=32", "--config.train.log_every=1"]


def command(workdir):
    return ["main.py", "--config=configs/digits.py", *TINY, *WIDENED, *SAVE_OFTEN, f"--workdir={workdir}"]


def start(workdir):
    """Starts `main.py` in a process of its own."""
    arguments = [sys.executable, *command(workdir)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("straight")
    assert main(command(workdir)) == 0
    return workdir


def final(workdir):
    """All arrays of step 40, the place in the data, and every step's loss."""
    state = ocp.PyTreeCheckpointer().restore(workdir / "checkpoints" / "40" / "state")
    is_key = lambda leaf: jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)  # noqa: E731
    leaves = [np.asarray(jax.random.key_data(a) if is_key(a) else a) for a in jax.tree.leaves(state)]
    place = json.loads((workdir / "checkpoints" / "40" / "iterator_state" / "metadata").read_text())
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return leaves, place, [(line["step"], line["loss"]) for line in lines]


def assert_same(one, other):
    for mine, theirs in zip(final(one), final(other), strict=True):
        assert len(mine) == len(theirs)
        assert all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))
    assert final(one)[1] == {"next_index": 40}
    assert [step for step, _ in final(one)[2]] == list(range(1, 41))


def kill_while_saving(process, workdir, step):
    """SIGKILL as soon as the half-written checkpoint of this step appears; tells whether it stayed half-written."""
    folder = workdir / "checkpoints"
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if folder.exists() and any(name.startswith(f"{step}.") for name in os.listdir(folder)):
            process.kill()
            break
    process.wait()
    return any(name.startswith(f"{step}.") for name in os.listdir(folder))


def test_killed_during_a_save_and_restarted_equals_undisturbed(straight, tmp_path, capsys):
    for attempt in range(4):
        workdir = tmp_path / str(attempt)
        if kill_while_saving(start(workdir), workdir, 20):
            break
    else:
        pytest.fail("no kill hit a save")
    assert main(command(workdir)) == 0
    assert "from step 10 to 40" in capsys.readouterr().out
    assert_same(workdir, straight)


@pytest.mark.slow  # above a run goes on exactly; test_processes.py: a run that is asked to stop saves
def test_interrupted_by_a_person_saves_and_goes_on(straight, tmp_path, capsys):
    process = start(tmp_path)
    for line in process.stdout:
        if line.startswith("step 13/"):
            process.send_signal(signal.SIGINT)
            break
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1 and "stopped by SIGINT" in output, output
    assert main(command(tmp_path)) == 0
    assert "from step 1" in capsys.readouterr().out
    assert_same(tmp_path, straight)
