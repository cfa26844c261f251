"""A first training leads somewhere: lines, grids, a warning for runs of days, and the next command."""

import functools
import json
import shlex

import numpy as np
import pytest
from PIL import Image

from guided_diffusion_jax.commands import arguments, cli
from guided_diffusion_jax.commands.cli import main
from guided_diffusion_jax.experiment import build
from guided_diffusion_jax.experiment import config as configs
from guided_diffusion_jax.runtime.preemption import Stopped
from guided_diffusion_jax.training import metrics
from guided_diffusion_jax.training import pace as pacing


@pytest.mark.parametrize(("steps", "asked"), [(200_000, 100), (2000, 500), (50, 100), (11, 100), (10, 3), (4, 100)])
def test_a_run_of_any_length_logs_ten_lines_and_shows_two_grids(steps, asked):
    lines = {step for step in range(1, steps + 1) if step % pacing.log_every(asked, steps) == 0 or step == steps}
    grids = {step for step in range(1, steps + 1) if step % pacing.sample_every(asked, steps) == 0 or step == steps}
    assert len(lines) >= min(steps, 10) and len(grids) >= min(steps, 2) and steps in grids
    assert pacing.log_every(asked, steps) <= asked and pacing.sample_every(0, steps) == 0


def pace(seconds_a_step, steps, start=0, first=100.0):
    """What is said of a run whose steps take so long, the first of them longer for it compiles."""
    times = iter(first + seconds_a_step * i for i in range(10_000))
    made = pacing.Pace(start, start + steps, clock=lambda: now[0])
    now, said = [next(times)], []
    for _ in range(min(steps, 500)):
        said.append(made.advance())
        now[0] = next(times)
    return [words for words in said if words]


@pytest.mark.parametrize(
    ("seconds", "steps", "expected"),
    [
        (16.85, 200_000, "the 200,000 steps take 39 days"),
        (0.5, 1_000_000, "(2.0 steps a second) the 1,000,000 steps take 5.8 days"),
        (3.0, 50_000, "(3.0 seconds a step) the 50,000 steps take 1.7 days"),
        (40.0, 3000, "take 33 hours"),
    ],
)
def test_a_run_of_more_than_a_day_is_told_once_how_long_it_takes(seconds, steps, expected):
    (warning,) = pace(seconds, steps)
    assert warning.startswith("warning: at this speed") and expected in warning and "--config=small" in warning


@pytest.mark.parametrize(("seconds", "steps"), [(1.0, 80_000), (0.01, 200_000), (30.0, 2), (100.0, 500)])
def test_a_run_of_less_than_a_day_is_left_alone(seconds, steps):
    assert pace(seconds, steps) == []


def test_steps_that_are_done_already_are_not_counted():
    made = pacing.Pace(199_000, 200_000, clock=iter(range(0, 10_000, 17)).__next__)
    assert not any(made.advance() for _ in range(300))


def test_the_writer_of_a_run_passes_the_warning_on(tmp_path, monkeypatch, capsys):
    ticks = iter(range(0, 10_000, 17))
    monkeypatch.setattr(metrics, "Pace", functools.partial(pacing.Pace, clock=ticks.__next__))
    with metrics.Writer(tmp_path, 0, 200_000) as writer:
        for _ in range(8):
            writer.advance()
    assert capsys.readouterr().out.count("warning: at this speed") == 1


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (folder / name).mkdir()
        for i in range(6):
            Image.fromarray(draw.integers(0, 255, (9, 12, 3), np.uint8)).save(folder / name / f"{i}.jpg")
    return folder


TINY = [
    f"--config.{key}={value}"
    for key, value in {
        "data.image_size": 8, "model.width": 8, "model.channel_mult": 1, "model.attention_resolutions": "",
        "model.head_width": 8, "train.batch_size": 4, "train.steps": 12, "sample.steps": 2, "sample.frames": 0,
    }.items()
]  # fmt: skip


def test_a_folder_of_photographs_leads_to_images_and_the_next_command(photos, tmp_path, capsys):
    """README's commands with a smaller network, in a folder whose name needs quotes."""
    run = tmp_path / "my pets"
    given = ["--config=small", f"--config.data.data_dir={photos}", f"--workdir={run}", *TINY]
    assert main(["main.py", *given]) == 0
    printed = capsys.readouterr().out
    assert sorted(path.name for path in (run / "samples").iterdir()) == ["step_0000006.png", "step_0000012.png"]
    lines = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines == list(range(1, 13))
    last = printed.strip().splitlines()[-1]
    assert last.startswith(
        f"{run}: step 12; grids of samples in {run / 'samples'}, checkpoints in {run / 'checkpoints'}"
    )
    program, command = last.rsplit("next: ", 1)[1].split(" main.py ")
    assert program == "python" and shlex.split(command) == [f"--workdir={run}", "--mode=sample"]
    asked = ["--config.sample.labels=dogs,0", "--config.sample.count", "4", f"--out={tmp_path / 'out'}"]
    assert main(["main.py", *shlex.split(command), *asked]) == 0
    with np.load(tmp_path / "out" / "samples.npz") as arrays:
        assert arrays["arr_1"].tolist() == [1, 0, 1, 0]
    capsys.readouterr()
    assert main(["main.py", *shlex.split(command), "--config.sample.labels=dgos"]) == 2
    message = capsys.readouterr().err
    assert "sample.labels: dgos is no class; use 0 to 1 or a name: 0 cats, 1 dogs; did you mean 'dogs'?" in message
    assert main(["main.py", "--mode=sample", f"--workdir={run}", "--help"]) == 0
    assert "0 cats, 1 dogs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("called", "program"),
    [
        ("main.py", "python main.py"),
        ("./main.py", "python main.py"),
        ("/x/bin/guided-diffusion-jax", "guided-diffusion-jax"),
    ],
)
def test_an_interrupted_run_prints_the_command_that_goes_on(called, program, monkeypatch, capsys):
    def stop(config):
        raise Stopped("stopped by SIGINT at step 3, saved", 2)

    monkeypatch.setattr(cli, "chosen", lambda given: stop)
    words = ["--config=small", "--workdir=runs/my pets", "--config.data.attributes=('a',)"]
    assert main([called, *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"stopped by SIGINT at step 3, saved; to go on from there: {program} ")
    assert shlex.split(line.split(f": {program} ")[1]) == words
    assert arguments.program(called) == program


def test_the_small_preset_is_small():
    config = configs.preset("small")
    configs.check(config)
    assert config.data.name == "folder" and config.data.image_size == 32
    assert config.train.batch_size * config.train.steps <= 100_000
    assert build.process(config).prediction == "v"
