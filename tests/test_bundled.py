"""The model that comes with the package, and runs with their weights alone, as it is one."""

import json
import shutil
from pathlib import Path

import numpy as np
import optax
import pytest
import test_api

import guided_diffusion_jax as gd
from guided_diffusion_jax import bundled
from guided_diffusion_jax.commands import cli
from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.experiment import runs
from guided_diffusion_jax.training import compact

FOLDER = Path(bundled.FOLDER) / "digits"
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def digits():
    return gd.load("digits")


def test_it_is_small_and_in_the_wheel():
    files = [file for file in FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 10**6
    listed = next(line for line in (ROOT / "setup.cfg").read_text().splitlines() if "py.typed" in line)
    patterns = [word.strip() for word in listed.partition("=")[2].split(",")]
    for file in files:
        relative = file.relative_to(ROOT / "guided_diffusion_jax")
        assert any(relative.match(pattern) for pattern in patterns), relative


def test_it_is_loaded_by_its_name_and_steers(digits):
    assert digits.info.class_names == tuple("0123456789") and digits.null_trained and digits.step == 2000
    assert len(digits.classifier("label").class_names) == 10
    images = digits(labels=list(range(10)), count=50, steps=5, weight=2.0)
    assert images.shape == (50, 8, 8, 1)
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    real = load_digits()
    judge = LogisticRegression(max_iter=2000, C=0.1).fit(real.data / 8 - 1, real.target)
    right = judge.score(images.reshape(50, -1) / 127.5 - 1, np.resize(np.arange(10), 50))
    assert right >= 0.8, right


def test_a_folder_of_the_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert bundled.find("digits") == bundled.FOLDER / "digits"
    (tmp_path / "digits").mkdir()
    assert str(bundled.find("digits")) == "digits"
    with pytest.raises(InputError, match=r"holds no run\.json"):
        gd.load("digits")
    with pytest.raises(InputError, match=r"comes with the package \(digits\); did you mean 'digits'\?"):
        gd.load("digit")


def test_commands_take_it_by_name_where_they_only_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for mode in ("sample", "serve"):
        given, config = cli.parse(["main.py", "--workdir=digits", f"--mode={mode}"])
        assert Path(given.workdir) == FOLDER and config.sample.steps == 20
    with pytest.raises(InputError, match=r"--workdir=digits holds no config.json; give --config="):
        cli.parse(["main.py", "--workdir=digits"])
    assert str(runs.samples_folder(bundled.find("digits"))) == "digits_samples"


def test_damage_is_found(tmp_path):
    copied = tmp_path / "copy"
    shutil.copytree(FOLDER, copied)
    assert gd.load(copied).step == 2000
    weights = bytearray((copied / compact.FILE).read_bytes())
    weights[-5] ^= 1
    (copied / compact.FILE).write_bytes(weights)
    with pytest.raises(InputError, match=r"weights\.safetensors has changed; restore it"):
        gd.load(copied)
    with pytest.raises(InputError, match="one average of one step alone"):
        gd.load(FOLDER, step=5)


def test_a_run_is_exported_with_its_weights_alone(tmp_path, monkeypatch):
    """Parameters are those of the run to half a unit of float16's last bit; the settings are all there."""
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "given"
    assert cli.main(["main.py", f"--workdir={FOLDER}", "--mode=export", f"--export_path={out}"]) == 0
    for name in ("run.json", compact.FILE, "classifier/run.json", f"classifier/{compact.FILE}"):
        assert (out / name).read_bytes() == (FOLDER / name).read_bytes(), name
    images = np.round(np.random.default_rng(0).uniform(0, 255, (20, 8, 8, 1))).astype(np.uint8)
    model = gd.models.UNet(width=8, **test_api.SMALL, num_classes=2, out_channels=1)
    data = gd.data.from_arrays(images, np.arange(20) % 2)
    process = gd.Process(gd.schedules.cosine(10))
    gd.Trainer(model, process, data, optimizer=optax.adam(1e-3), workdir="run").fit(steps=1, batch_size=4)
    assert cli.main(["main.py", "--workdir=run", "--mode=export", "--export_path=small"]) == 0
    for mine, half in zip(*map(leaves_of, ("run", "small")), strict=True):
        np.testing.assert_allclose(half, mine, rtol=2**-11, atol=1e-7)
    assert json.loads((tmp_path / "small" / "run.json").read_text())["compact"] == {"dtype": "float16", "step": 1}
    assert cli.main(["main.py", "--workdir=run", "--mode=export", "--export_path=run"]) == 2  # it would replace the run


def leaves_of(folder):
    import jax

    return list(map(np.asarray, jax.tree.leaves(gd.load(folder).params)))
