"""How a step is spread over devices: the layouts give one run, the places of arrays, and the loop never waits."""

import collections
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import optax
import parallel_runs
import pytest
import tiny
from etils import epath
from jax._src.array import ArrayImpl
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from guided_diffusion_jax import sharding
from guided_diffusion_jax.data import from_arrays
from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.process import Process
from guided_diffusion_jax.schedules import cosine
from guided_diffusion_jax.training import trainer as trainers
from guided_diffusion_jax.training.metrics import Writer
from guided_diffusion_jax.training.trainer import Trainer, TrainSettings

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """`run_of(layout)`: the folder of a small run, on one device or in a layout on eight, made when it is asked for."""
    folder = epath.Path(tmp_path_factory.mktemp("layouts"))

    def on_eight_devices(layout):
        command = [sys.executable, "-m", "tests.parallel_runs", str(folder), layout]
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]

    def of(layout):
        if not (folder / layout).exists():
            if layout == "one":
                parallel_runs.run(folder, layout)
            else:
                on_eight_devices(layout)
        return folder / layout

    return of


LAYOUTS = [
    "accumulated",  # two groups of devices, each with fsdp over four
    pytest.param("data_parallel", marks=pytest.mark.slow),
    pytest.param("fsdp", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_the_same_run_and_draws_the_same_pictures(run_of, layout):
    def losses(name):
        return [json.loads(line)["loss"] for line in (run_of(name) / "metrics.jsonl").read_text().splitlines()]

    assert len(losses(layout)) == 30
    np.testing.assert_allclose(losses(layout), losses("one"), rtol=1e-5)
    pictures = [np.load(run_of(name) / "images.npy") for name in (layout, "one")]
    assert np.abs(pictures[0].astype(int) - pictures[1].astype(int)).max() <= 1  # of 255, by rounding


@pytest.mark.parametrize("layout", LAYOUTS)
def test_of_fsdp_each_device_holds_its_share_of_the_parameters(run_of, layout):
    found = json.loads((run_of(layout) / "bytes.json").read_text())
    share = {"data_parallel": 1, "accumulated": 1 / 4, "fsdp": 1 / 8}[layout]
    assert found["held"] / found["all"] == pytest.approx(share, rel=0 if share == 1 else 0.15)


@pytest.mark.parametrize(
    ("shape", "place"),
    [
        ((3, 3, 64, 128), P(None, None, None, "fsdp")),
        ((3, 3, 128, 64), P(None, None, "fsdp")),
        ((4096, 3), P("fsdp")),
        ((4095, 7), P()),
        ((512,), P()),
        ((), P()),
    ],
)
def test_the_longest_axis_that_can_be_is_cut(shape, place):
    assert sharding.fsdp_sharding(shape, AbstractMesh((2, 8), sharding.AXES)).spec == place
    assert sharding.fsdp_sharding(shape, AbstractMesh((16, 1), sharding.AXES)).spec == P()


def test_a_batch_must_part_into_devices_and_accumulated_parts():
    sharding.check_batch(12, 4, "train", 1)
    with pytest.raises(InputError, match=r"train.batch_size=14 .* 1 device times train.accumulate=4; use 12 or 16"):
        sharding.check_batch(14, 4, "train", 1)
    with pytest.raises(InputError, match=r"classifier.accumulate=0 must be at least 1"):
        sharding.check_batch(14, 0, "classifier", 1)


def test_the_loop_reads_from_devices_where_it_logs_and_nowhere_else(monkeypatch):
    """Every read of an array's numbers goes through one property; what is not said to be a transfer is refused."""
    data = from_arrays(np.zeros((8, 4, 4, 1), np.uint8))
    settings = TrainSettings(ema_decay=0.9)
    trainer = Trainer(tiny.Network(), Process(cosine(4)), data, optimizer=optax.adam(0.01), settings=settings)
    started: list[int] = []
    writer = mock.Mock(spec=Writer)
    writer.advance.side_effect = lambda: started.append(1)
    monkeypatch.setattr(trainers, "Silent", lambda: writer)
    reads, numbers = [], ArrayImpl._value.fget
    monkeypatch.setattr(ArrayImpl, "_value", property(lambda array: reads.append(len(started)) or numbers(array)))
    collections.deque(trainer.steps(1, 4), maxlen=0)
    started.clear(), reads.clear(), writer.reset_mock()
    with jax.transfer_guard("disallow"):
        collections.deque(trainer.steps(31, 4, log_every=10), maxlen=0)
    assert set(reads) <= {0, 9, 19, 29, 30}, reads  # before the first step, where it logs, and at the end
    assert [call.args[0] for call in writer.scalars.call_args_list] == [10, 20, 30, 31]
