"""Several processes train as one: they start, stop, die and go on together."""

import contextlib
import json
import re
import shutil
import signal
import socket
import threading
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from processes import Team, free_port
from test_commands import TINY

from guided_diffusion_jax.errors import InputError, Missing
from guided_diffusion_jax.runtime import distributed, rollcall

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
            "--config.train.sample_every=0", "--patience=200", "--heartbeat=10", *flags,
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
    return json.loads((workdir / "checkpoints" / str(step) / "place" / "metadata").read_text())


@pytest.fixture(scope="module")
def stopped(start, tmp_path_factory):
    """A run of two processes of which one was asked to stop, and the step that it stopped at."""
    workdir = tmp_path_factory.mktemp("stopped")
    with start(workdir, LONG) as team:
        team.wait_for("step 5/")
        team.send(1, signal.SIGTERM)
        assert team.codes() == {0: 0, 1: 0}, team.told()
        assert re.match("2 processes: 0 on .*, 1 on ", team.out(0)) and not team.out(1)
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


def test_what_fails_in_one_process_ends_all(start, tmp_path):
    with start(tmp_path, LONG, flags_of={1: ["--config.train.ema_decay=2"]}) as team:
        assert team.codes() == {0: 1, 1: 2}, team.told()
        assert re.search(r"process 0 \(host .*\): ends, because process 1 \(host .*\) failed", team.err(0))


def test_a_process_that_does_not_come_is_named(start, tmp_path):
    with start(tmp_path, 1, "--patience=8", count=3, numbers=(0, 1)) as team:
        assert team.codes() == {0: 1, 1: 1}, team.told()
        for number in (0, 1):
            assert f"error: process 2 of 3 did not come to {team.address} within 8 s\n" in team.err(number)


def answers(address, numbers, count, patience_s=20.0):
    """What `rollcall.call` gives in each of these processes, which here are threads, or the error."""
    found = {}

    def call(number):
        try:
            found[number] = rollcall.call(address, count, number, patience_s)
        except (Missing, InputError) as error:
            found[number] = str(error)

    threads = [threading.Thread(target=call, args=(number,)) for number in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_a_roll_call_tells_everybody_the_hosts_whoever_comes_first():
    address, host = f"127.0.0.1:{free_port()}", socket.gethostname()
    for order in ((0, 1, 2), (2, 1, 0)):  # twice: the port is free again at once
        assert answers(address, order, 3) == {number: (host,) * 3 for number in range(3)}


def test_a_roll_call_names_all_who_are_missing():
    address = f"127.0.0.1:{free_port()}"
    told = f"process 1, 3 of 4 did not come to {address} within 1.5 s"
    assert answers(address, (0, 2), 4, 1.5) == {0: told, 2: told}


def test_without_process_0_a_roll_call_names_the_address():
    address = f"127.0.0.1:{free_port()}"
    assert answers(address, (1,), 2, 1.0) == {1: f"process 0 did not answer at {address} within 1 s"}


def test_strangers_do_not_disturb_a_roll_call():
    address = f"127.0.0.1:{free_port()}"
    stranger = threading.Thread(target=knock, args=(address, b"GET / HTTP/1.1\r\n\r\n"))
    stranger.start()
    found = answers(address, (0,), 2, 1.5) | answers(address, (0, 1), 2)
    stranger.join()
    assert found == {0: (socket.gethostname(),) * 2, 1: (socket.gethostname(),) * 2}


def knock(address, words):
    host, port = address.split(":")
    for _ in range(100):
        try:
            with socket.create_connection((host, int(port)), timeout=1) as connection:
                connection.sendall(words)
                connection.recv(1)
                return
        except OSError:
            time.sleep(0.02)


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=f"cannot listen at port {port}: .*; choose another"):
            rollcall.call(f"127.0.0.1:{port}", 2, 0, 1.0)


SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[3-4]", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"}


@pytest.fixture
def joined(monkeypatch):
    """Whom `start` would join, given the environment."""
    asked = []

    def call(*given):
        asked.append(given)
        raise StopIteration

    monkeypatch.setattr(rollcall, "call", call)

    def of(environment, **flags):
        asked.clear()
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        with contextlib.suppress(StopIteration):
            distributed.start(**flags)
        return asked[0] if asked else None

    return of


def test_tasks_of_slurm_are_found_and_a_single_one_stays_alone(joined):
    assert joined({}) is None
    assert joined(SLURM | {"SLURM_NTASKS": "1"}) is None
    assert joined(SLURM | {"SLURM_NTASKS": "4"}, distributed="off") is None
    port = 7 % 2**12 + 65535 - 2**12 + 1
    assert joined(SLURM | {"SLURM_NTASKS": "4"}, patience="9") == (f"node3:{port}", 4, 1, 9)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"distributed": "yes"}, "--distributed='yes' is not one of auto, on, off"),
        ({"distributed": "on"}, "there is no cluster that JAX knows; give --coordinator"),
        ({"distributed": "off", "coordinator": "a:1"}, "--distributed=off, but"),
        ({"coordinator": "a:1"}, "belong together; give all three"),
        ({"coordinator": "a", "processes": "2", "process": "0"}, "--coordinator=a must be HOST:PORT"),
        ({"coordinator": "a:1", "processes": "2", "process": "2"}, "--process=2 must be a number, 0 to 1"),
        ({"patience": "soon"}, "--patience=soon must be a number, 1 or more"),
    ],
)
def test_flags_that_cannot_be(flags, told, monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(InputError, match=re.escape(told)):
        distributed.start(**flags)
