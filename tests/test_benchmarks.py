"""The benchmark beside diffusers: what it needs, what it refuses, its two processes, and, slowly, all of it."""

import json
import sys
import venv

import jax
import numpy as np
import pytest

from benchmarks import run
from benchmarks.cases import case
from benchmarks.peers import quality, suite
from benchmarks.peers.worker import Worker, WorkerError
from benchmarks.timing import rounds
from guided_diffusion_jax import models
from guided_diffusion_jax.commands.cli import main
from guided_diffusion_jax.errors import InputError

ECHO = """
from benchmarks.peers.worker import Built, Prepared, serve
def build(fine):
    print("a library's line")
    assert fine, "not fine"
    calls = []
    programs = {"count": lambda: Prepared(lambda: calls.append(0), {"compile_seconds": 1.5})}
    return Built({"parameters": 7}, programs, lambda _: None, lambda: {"calls": len(calls)})
serve(build)
"""


@pytest.fixture
def echo():
    worker = Worker([sys.executable, "-c", ECHO])
    yield worker
    worker.close()


def test_without_torch_one_line_says_what_to_install(tmp_path, capsys):
    venv.create(tmp_path, with_pip=False)
    for python in (tmp_path / "bin" / "python", tmp_path / "none"):
        assert run.main(["--suite=peers", "--quick", f"--python={python}"]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "make peers" in said and "torch==" in said and "diffusers==" in said


def test_a_size_that_is_not_there_is_refused(capsys):
    assert run.main(["--suite=peers", f"--python={sys.executable}", "--sizes=digit"]) == 2
    assert "did you mean 'digits'" in capsys.readouterr().err


def test_a_worker_answers_and_what_it_prints_is_no_answer(echo):
    assert echo.ask("build", fine=True) == {"parameters": 7}
    assert echo.ask("prepare", program="count")["compile_seconds"] == 1.5
    assert echo.ask("run", program="count", calls=3) > 0
    seconds = suite.timed({"one": (echo, "count", 1), "ten": (echo, "count", 10)}, budget=0)
    assert {name: len(values) for name, values in seconds.items()} == {"one": 3, "ten": 3}
    described = echo.ask("describe")
    assert described["calls"] == 1 + 3 + 3 * 11 and described["host_peak_bytes"] > 2**20


def test_an_error_of_a_worker_is_told_and_it_goes_on(echo):
    with pytest.raises(WorkerError, match="AssertionError: not fine"):
        echo.ask("build", fine=False)
    assert echo.ask("build", fine=True) == {"parameters": 7}


def test_a_worker_that_ends_is_an_error():
    with pytest.raises(WorkerError, match="ended with 3"):
        Worker([sys.executable, "-c", "raise SystemExit(3)"])


def test_networks_that_differ_by_more_than_a_hundredth_are_refused():
    ours = {"parameters": 1000, "classifier_parameters": 500}
    suite.require_same_size("digits", ours, {"parameters": 1010, "classifier_parameters": 495})
    for part, count in (("parameters", 1011), ("classifier_parameters", 494)):
        with pytest.raises(InputError, match=f"digits: ours has .* {part} .* 1% apart"):
            suite.require_same_size("digits", ours, ours | {part: count})


def test_ratios_are_of_neighbours():
    clock = iter([1.0, 2.0, 10.0, 20.0, 100.0, 200.0])  # a machine that slows down
    seconds = rounds({"ours": lambda: next(clock), "theirs": lambda: next(clock)}, budget=0)
    found = {"ratios": []}
    suite.add_ratio(found, "digits", "theirs / ours", seconds["theirs"] / seconds["ours"])
    np.testing.assert_array_equal(seconds["ours"], [1, 10, 100])
    assert found["ratios"] == [
        {"case": "digits", "name": "theirs / ours", "median": 2.0, "min": 2.0, "max": 2.0, "rounds": 3}
    ]


@pytest.mark.slow
def test_ours_and_diffusers_are_measured_on_the_same_work(tmp_path, capsys):
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    out = tmp_path / "peers.json"
    assert run.main(["--suite=peers", "--quick", f"--python={sys.executable}", f"--out={out}", "--budget=0.1"]) == 0
    printed = capsys.readouterr().out
    found = json.loads(out.read_text())
    (case,) = found["cases"]
    ours, theirs = case["sides"]["ours"], case["sides"]["diffusers"]
    assert ours["parameters"] == theirs["parameters"]
    # XLA counts what is elementwise, too, and leaves out products with the zeros around images.
    assert ours["flops_per_image"]["forward"] == pytest.approx(theirs["flops_per_image"]["forward"], rel=0.15)
    programs = {row["program"] for row in found["measurements"] if row["side"] == "diffusers"}
    assert programs == set(suite.PROGRAMS)
    assert {(row["side"], row["caches"]) for row in found["starts"]} == {
        (side, caches) for side in ("ours", "diffusers") for caches in ("empty", "full")
    }
    assert all(r["min"] <= r["median"] <= r["max"] and r["rounds"] >= 3 for r in found["ratios"])
    assert f"| digits | {suite.TRAINING}: diffusers / ours" in " ".join(printed.split())
    assert run.main([f"--show={out}"]) == 0
    assert capsys.readouterr().out.strip() in printed


@pytest.mark.slow
@pytest.mark.parametrize("size", suite.SIZES)
def test_every_size_is_the_same_network_in_diffusers(size):
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    from benchmarks.peers import ours, theirs

    network = suite.SIZES[size]
    made = case(network.size, network.changes)
    shapes = jax.eval_shape(lambda: models.init_params(ours.classifier(made), jax.random.key(0), made.data.image_shape))
    about = ours.sizes(made, network.images, jax.eval_shape(made.trainer().init).params, shapes)
    with torch.device("meta"):
        model, judge = theirs.network(about["work"]), theirs.Classifier(about["work"])
    counts = {"parameters": model, "classifier_parameters": judge}
    suite.require_same_size(size, about, {key: theirs.count_parameters(value) for key, value in counts.items()})


TINY_LATENTS = """
from guided_diffusion_jax.experiment.config import preset

def get_config():
    c = preset("cifar10_latent")
    c.data.update(name="digits", image_size=8, flip=False)
    c.autoencoder.model.update(width=8, channel_mult=(1, 2))
    c.autoencoder.train.update(steps=2, batch_size=8)
    c.model.update(width=8, channel_mult=(1,), attention_resolutions=(4,), head_width=8)
    c.train.update(batch_size=8, steps=100_000)
    return c
"""


@pytest.mark.slow
def test_both_sides_train_for_the_same_minutes(tmp_path, capsys):
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    config, workdir, out = tmp_path / "tiny.py", tmp_path / "run", tmp_path / "quality.json"
    config.write_text(TINY_LATENTS)
    assert main(["main.py", f"--config={config}", f"--workdir={workdir}", "--mode=autoencoder"]) == 0
    arguments = [f"--config={config}", f"--workdir={workdir}", "--minutes=0.02,0.6", "--count=20", f"--out={out}"]
    capsys.readouterr()
    assert quality.main([*arguments, f"--python={sys.executable}", "--sampling_steps=2"]) == 0
    found = json.loads(out.read_text())["rows"]
    assert {(row["side"], row["minutes"]) for row in found} == {
        (s, m) for s in ("ours", "diffusers") for m in (0.02, 0.6)
    }
    for side in ("ours", "diffusers"):
        steps = [row["step"] for row in found if row["side"] == side]
        assert 0 < steps[0] < steps[1]
    assert capsys.readouterr().out.count("| diffusers |") == 2
    sampled = [f"--workdir={workdir}", "--mode=sample", "--config.sample.steps=2", "--config.sample.count=2"]
    assert main(["main.py", *sampled]) == 0
