"""The public API of data sets: arrays with their checks, the table of sources, info, fingerprints, derived labels."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guided_diffusion_jax.data import (
    SOURCES,
    TEXT_ENCODERS,
    ByteTextEncoder,
    DatasetInfo,
    encode_text,
    from_arrays,
    load,
    text_encoder,
)
from guided_diffusion_jax.data.augmentation import random_mask
from guided_diffusion_jax.data.digits import ink
from guided_diffusion_jax.data.pipeline import batches
from guided_diffusion_jax.errors import InputError

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3)).astype(np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])
COLOURS = (("colour", ("red", "blue")), ("size", ("small", "medium", "large")))
CONDITIONS = {
    "attributes": np.array([[0, 1], [1, 2], [2, 3], [0, 0], [1, 0], [2, 1]]),
    "attribute_names": COLOURS,
    "text": ["a", "b", "", "żółw", "half \ud83d a pair", "f"],
    "reference_image": IMAGES[::-1],
    "control_image": IMAGES[..., :2],
}

LIGHT = """
import sys
import guided_diffusion_jax.data as data
data.from_arrays, data.load, data.SOURCES
heavy = {"tensorflow_datasets", "grain", "matplotlib", "torch", "transformers"} & set(sys.modules)
assert not heavy, heavy
"""


def test_importing_data_is_light():
    subprocess.run([sys.executable, "-c", LIGHT], check=True, timeout=60)


def test_arrays_come_back_with_every_condition():
    dataset = from_arrays(IMAGES, LABELS, ("x", "y", "z"), **CONDITIONS, hue=np.linspace(0, 1, 6))
    indices = np.array([5, 0, 2])
    batch = dataset.read(indices)
    for key, values in CONDITIONS.items():
        if key not in ("attribute_names", "text"):
            np.testing.assert_array_equal(batch[key], values[indices])
    np.testing.assert_array_equal(batch["image"], IMAGES[indices])
    np.testing.assert_array_equal(batch["hue"], np.linspace(0, 1, 6)[indices])
    assert batch["text"].tolist() == ["f", "a", ""] and batch["label"].tolist() == [2, 0, 2]
    assert batch["label"].dtype == batch["attributes"].dtype == np.int32
    assert len(dataset) == 6 and dataset.num_classes == 3 and dataset.in_memory
    assert dataset.attributes == COLOURS and dataset.control_channels == 2 and dataset.has_reference
    assert dataset.nbytes == 6 * 64 * (3 + 3 + 2)


def test_jax_arrays_are_arrays_too():
    dataset = from_arrays(jnp.asarray(IMAGES), jnp.asarray(LABELS))
    np.testing.assert_array_equal(dataset.read(np.array([3]))["image"], IMAGES[3:4])
    assert dataset.class_names == ("0", "1", "2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": IMAGES.tolist()}, r"images of arrays are a list, not an array; uint8 \(0 .. 255\) \[n h w c\]"),
        ({"images": IMAGES / 255}, "images of arrays are float64; uint8"),
        ({"images": IMAGES[0]}, r"have the shape \[8, 8, 3\]"),
        ({"images": IMAGES[:, :0]}, r"have the shape \[6, 0, 8, 3\]"),
        ({"images": IMAGES[:0]}, "holds no images"),
        ({"labels": LABELS.tolist()}, r"labels of arrays are a list, not an array; integers \[6\] is needed"),
        ({"labels": LABELS.astype(float)}, "labels of arrays are float64; integers"),
        ({"labels": LABELS[:5]}, r"labels of arrays have the shape \[5\]; integers \[6\]"),
        ({"labels": LABELS[:, None]}, r"labels of arrays have the shape \[6, 1\]"),
        ({"labels": LABELS - 1}, "go from -1 to 1; its 2 classes need 0 .. 1"),
        ({"labels": LABELS, "class_names": ("a", "b")}, "go from 0 to 2; its 2 classes need 0 .. 1"),
        ({"labels": LABELS + 2**33, "class_names": ("a", "b", "c")}, "its 3 classes need 0 .. 2"),
        ({"class_names": ("a",)}, "class_names without labels"),
        ({"attributes": np.ones((6, 1), int)}, r"attributes of arrays have the shape \[6, 1\]; integers \[6 0\]"),
        ({"attribute_names": COLOURS}, "attributes of arrays are a NoneType, not an array"),
        (
            {"attributes": CONDITIONS["attributes"] + 1, "attribute_names": COLOURS},
            "'colour' of arrays goes from 1 to 3; its 2 values need 1 .. 2, or 0",
        ),
        ({"text": "a caption"}, "give a list of 6 strings"),
        ({"text": ["a"] * 5}, "text of arrays has 5 captions; give a list of 6 strings"),
        ({"text": ["a", None] * 3}, "text of arrays has 3 captions"),
        ({"reference_image": IMAGES[..., :1]}, r"reference_image of arrays have the shape .*\[6 8 8 3\] is needed"),
        ({"control_image": IMAGES[:, :4]}, r"control_image of arrays .*\[6 8 8 m\] is needed"),
        ({"control_image": IMAGES / 255}, "control_image of arrays are float64"),
        ({"hue": np.zeros((5, 2))}, r"hue of arrays have the shape \[5, 2\]; \[6 ...\] is needed"),
    ],
)
def test_wrong_arrays_are_refused_in_one_line(arguments, message):
    with pytest.raises(InputError, match=message) as error:
        from_arrays(**{"images": IMAGES, **arguments})
    assert "\n" not in str(error.value)


def test_info_goes_through_json_and_back():
    dataset = from_arrays(IMAGES, LABELS, **CONDITIONS)
    written = dataset.info.to_dict()
    assert json.loads(json.dumps(written)) == written
    assert DatasetInfo.from_dict(written) == dataset.info
    assert dataset.info == DatasetInfo("arrays", 6, (8, 8, 3), ("0", "1", "2"), COLOURS, 2)


def test_fingerprint_tells_data_sets_apart():
    def fingerprint(images=IMAGES, labels=LABELS, **changes):
        return from_arrays(images, labels, **CONDITIONS | changes).fingerprint()

    first = fingerprint()
    assert json.loads(json.dumps(first)) == first == fingerprint(IMAGES.copy())
    brighter = IMAGES.copy()
    brighter[3, 0, 0, 0] ^= 1
    others = [
        fingerprint(brighter),
        fingerprint(labels=LABELS[::-1]),
        fingerprint(labels=None),
        fingerprint(text=["a", "b", "", "żółw", "", "g"]),
        fingerprint(control_image=IMAGES[..., :1]),
        fingerprint(name="mine"),
        fingerprint(attribute_names=(("colour", ("red", "green")), COLOURS[1])),
    ]
    assert len({json.dumps(other) for other in [first, *others]}) == 8


def test_fingerprint_is_of_the_captions_not_of_their_encoding():
    dataset = from_arrays(IMAGES, LABELS, **CONDITIONS)
    assert encode_text(dataset, ByteTextEncoder(4)).fingerprint() == dataset.fingerprint()


def test_a_source_registered_from_outside_is_loaded(monkeypatch):
    asked = {}

    def open_mine(name, **options):
        asked.update(options, name=name)
        return from_arrays(IMAGES, LABELS, text=CONDITIONS["text"])

    monkeypatch.setitem(SOURCES, "mine", open_mine)
    dataset = load("mine/large", image_size=8, split="test", text="caption", text_encoder=ByteTextEncoder(4))
    assert asked.pop("columns").text == "caption"
    assert asked == {"name": "mine/large", "split": "test", "image_size": 8, "data_dir": ""}
    assert dataset.read(np.array([1]))["text"].tolist() == [[98, 0, 0, 0]]
    batch = next(iter(batches(dataset, batch_size=4, seed=0)))
    assert batch["text"].shape == (4, 4) and batch["text"].dtype == np.uint8


def test_a_text_encoder_registered_from_outside_is_found(monkeypatch):
    monkeypatch.setitem(TEXT_ENCODERS, "halves", lambda length: ByteTextEncoder(length // 2))
    assert text_encoder("halves", 8) == ByteTextEncoder(4)
    assert text_encoder("bytes", 8) == ByteTextEncoder(8)


def test_derived_labels_belong_to_the_digits(tmp_path):
    digits = load("digits", image_size=8, data_dir=str(tmp_path))
    every = np.arange(len(digits))
    batch = digits.read(every)
    parity, stroke = digits.with_label("parity"), digits.with_label("ink")
    assert digits.with_label("label") is digits
    assert parity.class_names == ("even", "odd") and stroke.class_names == ("thin", "bold")
    np.testing.assert_array_equal(parity.read(every)["label"], batch["label"] % 2)
    np.testing.assert_array_equal(stroke.read(every)["label"], ink(batch["image"]))
    assert 0.45 < stroke.read(every)["label"].mean() < 0.55
    np.testing.assert_array_equal(parity.read(every)["image"], batch["image"])
    with pytest.raises(InputError, match=r"classifier.attribute='inc' is not one of label, ink, parity; did you mean"):
        digits.with_label("inc")
    with pytest.raises(InputError, match=r"classifier.attribute='ink' is not one of label"):
        from_arrays(IMAGES, LABELS).with_label("ink")


def test_random_mask_zeroes_one_rectangle():
    images = jnp.ones((200, 16, 16, 3))
    keys = jax.random.split(jax.random.key(0), 200)
    masked = np.asarray(random_mask(keys, images))
    np.testing.assert_array_equal(masked, random_mask(keys, images))
    unknown = masked[..., 0] == 0
    assert (masked == np.where(unknown[..., None], 0, 1)).all()
    rows, columns = unknown.any(2), unknown.any(1)
    np.testing.assert_array_equal(unknown, rows[:, :, None] & columns[:, None, :])
    for side in (rows, columns):
        assert (np.abs(np.diff(side.astype(int), axis=1)).sum(1) <= 2).all() and side.sum(1).min() >= 2
    assert len(np.unique(unknown.reshape(200, -1), axis=0)) > 190
