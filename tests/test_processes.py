"""Several processes train as one: they start, stop, die and go on together."""

import contextlib
import json
import re
import shutil
import signal
import socket
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from processes import Team
from test_commands import TINY

from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.runtime import distributed

LONG = 100_000
"""Steps of runs that are to be ended before."""


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts `main.py` in several processes.

    They share no compilation cache: only process 0 would find its programs there, and on CPUs JAX lets it wait for the
    others for 30 s in the first sum over all devices, and no more.
    """
    data = tmp_path_factory.mktemp("tfds")
    environment = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}

    def run(workdir, steps, *flags, count=2, numbers=None, flags_of=None):
        given = [
            "--config=configs/digits.py", f"--config.data.data_dir={data}", f"--workdir={workdir}", *TINY,
            f"--config.train.steps={steps}", "--config.train.save_every=0", "--config.train.log_every=1",
            "--config.train.sample_every=0", "--startup_timeout=200", "--heartbeat=10", *flags,
        ]  # fmt: skip
        numbers = numbers or range(count)
        return Team(numbers, workdir / "told", given, count=count, environment=environment, flags_of=flags_of)

    return run


def final(workdir, step):
    """All arrays of a step, and the losses of all steps."""
    folder, reader = workdir / "checkpoints" / str(step) / "state", ocp.PyTreeCheckpointer()
    leaves = reader.metadata(folder).item_metadata.tree
    on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), leaves)
    return jax.tree.leaves(reader.restore(folder, restore_args=on_host)), losses(workdir)


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


def place(workdir, step):
    return json.loads((workdir / "checkpoints" / str(step) / "iterator_state" / "metadata").read_text())


@pytest.fixture(scope="module")
def stopped(start, tmp_path_factory):
    """A run of two processes of which one was asked to stop, and the step that it stopped at."""
    workdir = tmp_path_factory.mktemp("stopped")
    with start(workdir, LONG) as team:
        team.wait_for("step 5/")
        team.send(1, signal.SIGTERM)
        assert team.codes() == {0: 0, 1: 0}, team.told()
        assert team.out(0).startswith("2 processes\n") and not team.out(1)
        said = [re.search(rf"process {n} \(.*stopped by SIGTERM at step (\d+), saved", team.err(n)) for n in (0, 1)]
        assert said[0][1] == said[1][1]
    return workdir, int(said[0][1])


@pytest.fixture(scope="module")
def straight(start, stopped, tmp_path_factory):
    """A run of two processes up to ten steps after that one, and its last step."""
    workdir, steps = tmp_path_factory.mktemp("straight"), stopped[1] + 10
    with start(workdir, steps) as team:
        assert team.codes() == {0: 0, 1: 0}, team.told()
    return workdir, steps


def test_of_two_processes_one_is_asked_to_stop_and_both_save_the_same_step(stopped):
    workdir, step = stopped
    assert step >= 5
    assert [int(folder.name) for folder in (workdir / "checkpoints").glob("[0-9]*")] == [step]
    assert [number for number, _ in losses(workdir)] == list(range(1, step + 1))
    folder = workdir / "checkpoints" / str(step)
    listed = json.loads((folder / "checksums.json").read_text())["files"]
    for number in (0, 1):
        assert any(name.startswith(f"state/ocdbt.process_{number}/") for name in listed)
    assert not list(folder.glob("checksums.process_*"))


@pytest.mark.slow  # test_resume.py goes on exactly with one process, test_parallel.py is one run in all layouts
def test_stopped_processes_go_on_as_if_they_had_not(start, stopped, straight, tmp_path):
    workdir = shutil.copytree(stopped[0], tmp_path / "run")
    go_on_to_equal(straight, start, workdir, stopped[1])


@pytest.mark.slow
def test_when_one_process_dies_the_other_ends_and_both_go_on(start, stopped, straight, tmp_path):
    workdir = shutil.copytree(stopped[0], tmp_path / "run")
    with start(workdir, LONG) as team:
        team.wait_for(f"step {stopped[1] + 3}/")
        team.send(1, signal.SIGKILL)
        since = time.monotonic()
        codes = team.codes()
        assert codes[1] == -signal.SIGKILL and codes[0] not in (0, 2), team.told()
        assert time.monotonic() - since < 60  # heartbeats stop for 10 s; the rest is a busy machine
        assert re.search(r"unhealthy \(stopped sending heartbeats\):\n1|process 1 \(host .*\) did not", team.err(0))
    go_on_to_equal(straight, start, workdir, stopped[1])


def go_on_to_equal(straight, start, workdir, step):
    undisturbed, steps = straight
    with start(workdir, steps) as team:
        assert team.codes() == {0: 0, 1: 0}, team.told()
        assert f"from step {step} to {steps}" in team.out(0)
    for mine, theirs in zip(final(workdir, steps), final(undisturbed, steps), strict=True):
        assert len(mine) == len(theirs)
        assert all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.slow  # the same, and test_data.py: the order of the data, whoever reads it
def test_one_process_goes_on_with_what_two_began(start, stopped, straight, tmp_path):
    workdir, steps = shutil.copytree(stopped[0], tmp_path / "run"), straight[1]
    with start(workdir, steps, count=1) as team:
        assert team.codes() == {0: 0}, team.told()
        assert f"from step {stopped[1]} to {steps}" in team.out(0)
    assert [step for step, _ in losses(workdir)] == list(range(1, steps + 1))
    assert place(workdir, steps) == place(straight[0], steps)
    np.testing.assert_allclose(losses(workdir), losses(straight[0]), rtol=1e-3)  # the same pictures with the same noise


def test_wrong_input_ends_all_with_the_same_code(start, tmp_path):
    with start(tmp_path, 1, "--config.train.batch_size=9") as team:
        assert team.codes() == {0: 2, 1: 2}, team.told()
        for number in (0, 1):
            assert re.search(rf"error: process {number} \(host .*\): train.batch_size=9 is not", team.err(number))


@pytest.mark.slow  # wrong input that all see, and a process that does not come, are below and above
def test_what_fails_in_one_process_ends_all(start, tmp_path):
    with start(tmp_path, LONG, flags_of={1: ["--config.data.name=folder", "--config.data.data_dir=nowhere"]}) as team:
        codes = team.codes()
        assert codes[1] == 2 and codes[0] not in (0, 2), team.told()
        assert re.search(r"error: process 1 \(host .*\): data.data_dir=nowhere is not a folder", team.err(1))
        assert re.search(r"unhealthy \(stopped sending heartbeats\):\n1", team.err(0))


def test_a_process_that_does_not_come_is_named(start, tmp_path):
    with start(tmp_path, 1, "--startup_timeout=8", count=3, numbers=(0, 1)) as team:
        assert team.codes() == {0: 1, 1: 1}, team.told()
        for number in (0, 1):
            assert "error: 2 of 3 processes joined within 8 s; missing: process 2\n" in team.err(number)


def test_a_port_that_is_taken_is_named(start, tmp_path):
    with start(tmp_path, 1, numbers=(0,)) as team, socket.create_server(("", team.port)):
        assert team.codes() == {0: 2}, team.told()
        assert f"cannot listen at {team.address}" in team.err(0)


@pytest.fixture
def joined(monkeypatch):
    """What `start` passes to `jax.distributed.initialize`, given the environment; None if it is not called."""
    for name in (*distributed.COUNTS, "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    calls = []

    def initialize(*arguments, **options):
        calls.append((*arguments, options["cluster_detection_method"]))
        raise StopIteration

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)

    def of(environment, **flags):
        calls.clear()
        with monkeypatch.context() as patch, contextlib.suppress(StopIteration):
            for key, value in environment.items():
                patch.setenv(key, value)
            distributed.start(**flags)
        return calls[0] if calls else None

    return of


def test_several_processes_are_detected_and_a_single_one_is_not(joined):
    assert joined({}) is None
    assert joined({"SLURM_STEP_NUM_TASKS": "1"}) is None
    assert joined({"SLURM_STEP_NUM_TASKS": "4"}, distributed="off") is None
    for several in ({"SLURM_STEP_NUM_TASKS": "4"}, {"OMPI_COMM_WORLD_SIZE": "2"}, {"TPU_WORKER_HOSTNAMES": "a,b"}):
        assert joined(several) == (None, None, None, None)
    assert joined({}, distributed="on") == (None, None, None, None)
    assert joined({}, coordinator="a:1", processes=3, process=2) == ("a:1", 3, 2, "deactivate")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"distributed": "yes"}, "--distributed='yes' is not one of auto, on, off"),
        ({"distributed": "on"}, "give --coordinator=HOST:PORT"),
        ({"distributed": "off", "coordinator": "a:1"}, "--distributed=off, but"),
        ({"coordinator": "a:1"}, "belong together; give all"),
        ({"coordinator": "a", "processes": 2, "process": 0}, "--coordinator=a must be HOST:PORT"),
        ({"coordinator": "a:1", "processes": 2, "process": 2}, "--process=2 must be a number, 0 to 1"),
        ({"coordinator": "a:1", "processes": 0, "process": 0}, "--processes=0 must be at least 1"),
    ],
)
def test_flags_that_cannot_be(flags, told, monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    with pytest.raises(InputError, match=re.escape(told)):
        distributed.start(**flags)
