"""Random values for random keys of the configuration, as the command line takes them: done, or refused in one line.

No network is compiled: what a value passes is all that comes before, reading, checking and building.
`FUZZ=200 python -m pytest tests/test_fuzz_keys.py` tries 200 values.
"""

import os
import random

import pytest

from guided_diffusion_jax.commands import train
from guided_diffusion_jax.commands.cli import main
from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.experiment import build, runs, trainers
from guided_diffusion_jax.experiment.default import KEYS
from guided_diffusion_jax.pipeline import Pipeline

VALUES = (
    "nan", "inf", "-inf", "-1", "0", "1", "2.5", "1e400", str(10**30), str(-(10**30)), str(2**63), "9" * 5000, "",
    " ",     "None", "True", "false", "[]", "()", "[1, 2]", "(1, (2, (3,)))", "((1, 2), (3, 4))", "(" * 300, "('a',)",
    "nan,1", "1,nan", "1,inf", "a,b", "кот", "猫,犬", "\N{GRINNING FACE}", "/no/such/path", "../..", "x" * 100_000,
    "a/" * 3000, "label", "cfg", "all", "0x10", "1_000", "1or 2", "'", '"', "\\", "--", "=", "a=b", "%s",
    "\u202e", "1j", "{'a': 1}",
)  # fmt: skip


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    config = train.configs.preset("digits")
    config.data.data_dir = str(tmp_path_factory.mktemp("digits"))
    return build.dataset(config)


def rehearse(data):
    """All that a training and its requests do before anything is compiled, with a data set that is open already."""

    def run(config, workdir):
        network, process = build.model(config, data.info), build.process(config)
        trainers.trainer(config, None, data)
        build.classifier_model(config, data.num_classes, data.image_shape)
        build.settings(config.classifier.train, "classifier.train")
        trainers.optimizer(config.classifier.train, "classifier.train")
        runs.request(config, Pipeline(network, {}, process, info=data.info, place=False))

    return run


def test_any_value_of_any_key_is_taken_or_refused_in_one_line(digits, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train, "run", rehearse(digits))
    draw, codes = random.Random(int(os.environ.get("SEED", "0"))), []
    for _ in range(int(os.environ.get("FUZZ", "60"))):
        key, value = draw.choice(list(KEYS)), draw.choice(VALUES)
        code = main(["main.py", "--config=digits", f"--workdir={tmp_path}", f"--config.{key}={value}"])
        errors = capsys.readouterr().err.splitlines()
        assert code in (0, 2), (key, value, errors)
        assert len(errors) == (code == 2) and all(line.startswith("error: ") for line in errors), (key, value, errors)
        codes.append(code)
    print(f"{codes.count(0)} taken, {codes.count(2)} refused")
    assert 0 < codes.count(0) < len(codes)


NUMERIC = [name for name, key in KEYS.items() if type(key.default) in (int, float)]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e400", str(10**300), str(-(10**300)), "True", "", "None"])
def test_no_numeric_key_takes_what_is_no_number_of_64_bits(value):
    """Every numeric key, those of keys to come included."""
    assert len(NUMERIC) > 60
    for name in NUMERIC:
        with pytest.raises(InputError, match=f"^{name}="):
            KEYS[name].read(name, value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**300, True, None, "1", (1,), 1j])
def test_no_numeric_key_of_a_configuration_holds_what_is_no_number(value):
    """As a preset or an edited `config.json` may have it."""
    for name in NUMERIC:
        with pytest.raises(InputError, match=f"^{name}="):
            KEYS[name].check(name, value)
