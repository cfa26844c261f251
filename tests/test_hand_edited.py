"""JSON files of a run that somebody has edited: one line with the file, the line of it and the remedy."""

import json
import shutil

import numpy as np
import pytest
from etils import epath
from PIL import Image

import guided_diffusion_jax as gd
from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.experiment import config as configs
from guided_diffusion_jax.runtime.files import keys, parse_json, read_json
from guided_diffusion_jax.training import run_files

CONFIG = """{
  "seed": 0,
  "train": {
    "steps": 10,
    "learning_rate": 0.0001
  },
  "classifier": {"train": {"steps": 5}}
}
"""


@pytest.fixture
def refusal(tmp_path):
    """`refusal(content)`: the line with which a config.json of these bytes is refused, after the file's name."""

    def read(content):
        file = tmp_path / "config.json"
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(InputError) as error:
            configs.stored(epath.Path(tmp_path))
        said = str(error.value)
        assert said.startswith(str(file)) and len(said) <= 293 and said.isprintable()
        return said.removeprefix(str(file))

    return read


def test_a_byte_order_mark_is_accepted(tmp_path):
    for content in (CONFIG.encode(), CONFIG.encode("utf-8-sig")):
        (tmp_path / "config.json").write_bytes(content)
        config = configs.stored(epath.Path(tmp_path))
        assert config.train.learning_rate == 1e-4 and config.classifier.train.steps == 5


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("0.0001", "0.0001,", 5, "it is no JSON: the last comma is one too many"),
        ('"steps": 10,', '"steps": 10', 5, "it is no JSON: Expecting ',' delimiter"),
        (
            "0.0001",
            '"1e-4"',
            5,
            "train.learning_rate='1e-4' is a text; 'learning_rate' must be a number, such as 0.0002",
        ),
        ("0.0001", "null", 5, "train.learning_rate=None is null; 'learning_rate' must be a number"),
        ("0.0001", "true", 5, "is true or false; 'learning_rate' must be a number"),
        ("0.0001", "NaN", 5, "must be finite"),
        ("0.0001", "1e999", 5, "must be finite"),
        ('"seed": 0', '"seed": -Infinity', 2, "must be finite"),
        ('"steps": 10', '"steps": 10.5', 4, "train.steps=10.5 is a number; 'steps' must be a whole number"),
        ('"steps": 5', '"steps": [5]', 7, "classifier.train.steps=[5] is a list; 'steps' must be a whole number"),
        ("learning_rate", "lerning_rate", 5, "is no key of a configuration; did you mean 'train.learning_rate'?"),
        ('"learning_rate": 0', '"steps": 0', 5, "'steps' comes twice"),
        ('"classifier"', '"train"', 7, "'train' comes twice"),
        ("10", "9" * 5000, 1, "it is no JSON: Exceeds the limit"),
    ],
)
def test_a_mistake_is_named_with_its_line(refusal, old, new, line, message):
    said = refusal(CONFIG.replace(old, new, 1))
    assert said.startswith(f", line {line}: ") and message in said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1: it is no JSON: empty"),
        (" \n", "it is no JSON: empty"),
        ("[]", "holds no configuration"),
        ("3", "holds no configuration"),
        (CONFIG[:60], "it is no JSON"),
        (CONFIG.encode("utf-16"), "line 1: it is no JSON in UTF-8; save it as UTF-8"),
        (b'{\n"data": {"name": "f\xfcr"}}', "line 2: it is no JSON in UTF-8"),
        ("[" * 100_000, "it is nested too deeply"),
        ('{"a\x00": 1}', "it is no JSON"),
        ('{"' + "x" * 100_000 + '": 1}', "is no key of a configuration"),
    ],
)
def test_what_is_no_configuration_is_refused(refusal, content, message):
    assert message in refusal(content)


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(InputError, match=r"config\.json is no file"):
        configs.stored(epath.Path(tmp_path))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda run: run.pop("model"), "it has no model"),
        (lambda run: run.update(data=[]), "it has no data"),
        (lambda run: run.update(version=1), "has version 1"),
        (lambda run: run.pop("version"), "it describes no run"),
    ],
)
def test_an_edited_description_of_a_run_is_refused(tmp_path, edit, message):
    run_files.write(epath.Path(tmp_path), {"model": {}, "process": {}, "data": {}})
    run = json.loads((tmp_path / "run.json").read_text())
    edit(run)
    (tmp_path / "run.json").write_text(json.dumps(run))
    with pytest.raises(InputError, match=message):
        run_files.read(tmp_path)


def test_what_a_description_lacks_is_named_with_the_file(tmp_path):
    for fault in (KeyError("name"), TypeError("no such field"), InputError("model='x' is not one of unet")):
        with (
            pytest.raises(InputError, match=r"run\.json is damaged: .*(name|field|unet)"),
            run_files.named_errors(tmp_path),
        ):
            raise fault


def test_lines_of_keys_are_found_in_any_layout():
    text = '{"a":{"b":[{"c":1},\n"d: {"],\n"e\\"":2}\n,"b":3}'
    assert list(keys(text)) == [("a", 1), ("a.b", 1), ("a.b.c", 1), ('a.e"', 3), ("b", 4)]
    assert parse_json(text.encode(), "x")["b"] == 3


def test_a_large_file_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("guided_diffusion_jax.runtime.files.LARGEST_JSON", 10)
    (tmp_path / "a.json").write_text("[1, 2, 3, 4]")
    with pytest.raises(InputError, match="has more than 10 bytes"):
        read_json(tmp_path / "a.json")
    shutil.rmtree(tmp_path)


def test_a_run_goes_on_where_its_data_have_moved_and_not_where_they_changed(tmp_path):
    photos = tmp_path / "photos"
    for i in range(3):
        photos.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(photos / f"{i}.png")

    def description():
        data = gd.data.folder(photos, image_size=8)
        return {"model": {}, "process": {}, "data": data.info.to_dict(), "data_fingerprint": data.fingerprint()}

    run_files.write(epath.Path(tmp_path / "run"), description())
    photos = photos.rename(tmp_path / "moved")
    assert run_files.check_same(epath.Path(tmp_path / "run"), description())
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(photos / "2.png")
    with pytest.raises(InputError, match=r"is another one: data_fingerprint\.digest="):
        run_files.check_same(epath.Path(tmp_path / "run"), description())
