"""`--help`, the forms of flags, and what is said to those who type something wrong or nothing."""

import subprocess
import sys
from pathlib import Path

import pytest
from etils import epath

from guided_diffusion_jax.commands.cli import MODES, main, parse
from guided_diffusion_jax.commands.evaluate import EVALUATIONS
from guided_diffusion_jax.experiment import config as configs
from guided_diffusion_jax.experiment.default import GROUPS, KEYS
from guided_diffusion_jax.training import run_files

ROOT = Path(__file__).parent.parent


def printed(capsys, *arguments):
    assert main(["main.py", *arguments]) == 0
    return capsys.readouterr().out


def test_every_key_of_every_preset_has_a_meaning_and_values_and_a_group():
    assert all(key.meaning and key.values.words for key in KEYS.values())
    assert {name.partition(".")[0] if "." in name else "" for name in KEYS} == set(GROUPS)
    for name in configs.presets():
        configs.check(configs.preset(name))
    metrics = KEYS["evaluate.metrics"]
    assert all(name in metrics.values.words and name in metrics.meaning for name in EVALUATIONS)


@pytest.mark.parametrize("flag", ["--help", "-h", "--helpfull", "-help"])
def test_help_has_every_flag_mode_group_and_key(flag, capsys):
    page = printed(capsys, flag)
    for word in (*MODES, "--workdir", "--dry_run", "--version", "digits", *(f"--config.{name}=" for name in KEYS)):
        assert word in page, word
    assert "--config.train.learning_rate=0.0002  after the warm-up (number, at least 0)" in page
    assert "(one of adamw, radam, lion, sgd)" in page and max(map(len, page.splitlines())) <= 110


@pytest.mark.parametrize("words", [["--help", "sample"], ["--help=sample"], ["-h", "sample"], ["--mode=sample", "-h"]])
def test_help_of_a_group(words, capsys):
    page = printed(capsys, *words)
    assert page.startswith("Keys sample: generating images") and "--config.sample.labels=all" in page
    assert "--config.train." not in page and "--workdir" not in page


def test_help_shows_the_values_of_a_preset_or_a_run(tmp_path, capsys):
    assert "--config.data.image_size=8 " in printed(capsys, "--help=data", "--config=digits")
    configs.save(configs.preset("shapes_text"), epath.Path(tmp_path))
    assert "--config.data.name=shapes/16 " in printed(capsys, "--help=data", "--workdir", str(tmp_path))
    assert "--config.data.image_size=32 " in printed(capsys, "--help=data", f"--workdir={tmp_path / 'new'}")


@pytest.mark.parametrize(
    ("classes", "names", "expected"),
    [
        (2, ["cats", "dogs"], "for --config.sample.labels: 0 cats, 1 dogs\n"),
        (10, list("0123456789"), "for --config.sample.labels: 0 to 9\n"),
        (3, ["3", "5", "7"], "for --config.sample.labels: 0 3, 1 5, 2 7\n"),
        (0, ["cats", "dogs"], ": this run has no classes\n"),
    ],
)
def test_help_of_sampling_lists_the_classes_of_the_run(classes, names, expected, tmp_path, capsys):
    model = {"name": "unet", "width": 8, "channel_mult": [1], "attention_resolutions": [], "num_classes": classes}
    run_files.write(epath.Path(tmp_path), {"model": model, "process": {}, "data": {"class_names": names}})
    page = printed(capsys, "--mode=sample", f"--workdir={tmp_path}", "--help")
    assert expected.strip() in " ".join(page.split())
    assert "--config.sample.count=100" in page


def test_without_arguments_there_is_a_short_usage(capsys):
    usage = printed(capsys)
    assert "--config=small" in usage and "--mode=sample" in usage and "--help" in usage
    assert len(usage.splitlines()) < 15


FORMS = {
    "joined": ["--config=digits", "--workdir=W", "--mode=sample", "--config.sample.count=5",
               "--config.sample.clip=False"],
    "apart": ["--config", "digits", "--workdir", "W", "--mode", "sample", "--config.sample.count", "5",
              "--config.sample.clip", "False"],
    "mixed": ["--config.sample.count", "5", "--config.sample.clip=false", "--mode=sample", "--workdir", "W",
              "--config=digits"],
    "one dash": ["-config", "digits", "-workdir=W", "-mode", "sample", "-config.sample.count=5",
                 "-config.sample.clip", "0"],
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_flags_and_keys_are_written_joined_or_apart(form):
    given, config = parse(["main.py", *FORMS[form]])
    assert (given.workdir, given.mode, config.data.name) == ("W", "sample", "digits")
    assert (config.sample.count, config.sample.clip) == (5, False)


@pytest.mark.parametrize(
    ("words", "dry_run", "devices"),
    [
        (["--dry_run", "--devices", "8"], "brief", "8"),
        (["--devices=8", "--dry_run"], "brief", "8"),
        (["--dry_run=full"], "full", ""),
        (["--dry_run", "full", "--config.model.remat"], "full", ""),
        (["--dry_run=False"], "", ""),
        (["--dry_run", "--config.sample.guidance.weight", "-1"], "brief", ""),
    ],
)
def test_a_dry_run_stands_alone_or_has_a_value(words, dry_run, devices):
    given, config = parse(["main.py", "--config=digits", *words])
    assert (given.dry_run, given.devices) == (dry_run, devices)
    assert config.model.remat == ("--config.model.remat" in words)


@pytest.mark.parametrize(
    ("key", "words", "value"),
    [
        ("sample.labels", "dogs", ("dogs",)),
        ("sample.labels", "cats,dogs", ("cats", "dogs")),
        ("sample.labels", "golden retriever, 3", ("golden retriever", "3")),
        ("sample.labels", "('cats', 3)", ("cats", 3)),
        ("model.channel_mult", "1,2,2", (1, 2, 2)),
        ("model.channel_mult", "(1,)", (1,)),
        ("model.attention_resolutions", "", ()),
        ("model.attention_resolutions", "[16, 8]", (16, 8)),
        ("data.attributes", "colour,size", ("colour", "size")),
        ("sample.attributes", "(('colour','red'),)", (("colour", "red"),)),
        ("sample.guidance.interval", "100,700", (100, 700)),
        ("sample.guidance.guidance_scale", "7.5", 7.5),
        ("sample.guidance.guidance_scale", "None", None),
        ("evaluate.sweep.weight", "0,0.5,1", (0, 0.5, 1)),
        ("sample.prompt", "-- a cat, (red) = 'x'", "-- a cat, (red) = 'x'"),
        ("train.learning_rate", "1e-3", 1e-3),
    ],
)
def test_values_are_written_as_people_write_them(key, words, value):
    _, config = parse(["main.py", "--config=digits", f"--config.{key}={words}"])
    assert dict(configs.flatten(config))[key] == value


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--mdoe=sample"], "--mdoe is no flag; did you mean '--mode'?"),
        (["--worgdir", "x"], "--worgdir is no flag; did you mean '--workdir'?"),
        (["--dryrun", "--config=digits"], "--dryrun is no flag; did you mean '--dry_run'?"),
        (
            ["--config=digits", "--config.sample.cuont", "5"],
            "sample.cuont is no key of the config; did you mean",
        ),
        (["--config=digits", "--config.smaple.count=5"], "did you mean 'sample.count'?"),
        (["--help=sampel"], "--help='sampel' is not one of data, model"),
        (["--config=digits", "--workdir=w", "--mode=evalaute"], "did you mean 'evaluate'?"),
        (["--config=digits", "--workdir"], "--workdir needs a value"),
        (["--config=digits", "--config.train.steps", "--mode=train"], "--config.train.steps needs a value"),
        (["--config=digits", "--processes=nan"], "--processes=nan must be: whole number"),
        (["--config=digits", "--heartbeat=-1"], "--heartbeat=-1 must be at least 1"),
    ],
)
def test_what_is_misspelled_gets_one_line_with_the_nearest_name(words, expected, capsys):
    assert main(["main.py", *words]) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert message.startswith("error: ") and expected in message


@pytest.mark.parametrize("words", ["--help", "--help=train", "--help --config=imagenet64"])
def test_a_reader_that_leaves_early_sees_no_traceback(words):
    command = f"{sys.executable} main.py {words} | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.count("\n") == 1 and done.stderr == ""


@pytest.mark.parametrize("words", [[], ["--help"], ["--config=digits", "--workdir=x"], ["--version"]])
def test_outside_its_environment_the_program_says_how_to_activate_it(words):
    """-S: without the environment's packages."""
    done = subprocess.run([sys.executable, "-S", "main.py", *words], cwd=ROOT, capture_output=True, text=True)
    (message,) = done.stderr.splitlines()
    assert done.returncode == 2 and done.stdout == ""
    assert message.startswith("error: ") and "source .venv/bin/activate" in message and "pip install -e ." in message


def test_an_error_in_a_file_of_ones_own_names_its_line(tmp_path, capsys):
    for text, expected in (
        ("def get_config():\n    return undefined", "line 2: NameError"),
        ("from configs.digits import get_config as f\ndef get_config():\n    f().seed = 'x'\n", "line 3: TypeError"),
        ("def get_config(:\n    pass", "line 1: SyntaxError"),
        ("get_config = lambda: 3", "get_config() gives no configuration"),
    ):  # fmt: skip
        (tmp_path / "mine.py").write_text(text)
        assert main(["main.py", f"--config={tmp_path / 'mine.py'}", "--workdir=w"]) == 2
        (message,) = capsys.readouterr().err.splitlines()
        assert message.startswith(f"error: --config={tmp_path / 'mine.py'}") and expected in message


@pytest.mark.parametrize("words", [["--help"], ["--help=sample"], []])
def test_the_pages_in_the_documents_are_what_the_program_prints(words, capsys):
    page, text = printed(capsys, *words), (ROOT / "docs" / "commands.md").read_text()
    assert f"```\n$ {' '.join(['python main.py', *words])}\n{page}```\n" in text, "run: python -m tests.write_pages"
