"""Data: pixels are exact, epochs are complete, resuming is bit for bit, and wrong input gives one-line errors."""

import collections
import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from guided_diffusion_jax.data import SOURCES, folder, from_arrays, images, load, records
from guided_diffusion_jax.data.augmentation import flip
from guided_diffusion_jax.data.dataset import cached
from guided_diffusion_jax.data.digits import Digits, digits, held_out
from guided_diffusion_jax.data.pipeline import batches, examples
from guided_diffusion_jax.data.sources import open_tfds
from guided_diffusion_jax.errors import InputError

CIFAR10 = Path(__file__).parents[2] / "shared/data/tfds"


def numbered(count, **kwargs):
    """A data set whose example i is known by its label i and its pixel i."""
    pixels = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
    return from_arrays(pixels, np.arange(count), **kwargs)


def take(dataset, count):
    iterator = iter(dataset)
    return [next(iterator) for _ in range(count)]


def labels_of(dataset, count):
    return np.concatenate([batch["label"] for batch in take(dataset, count)]).tolist()


def same(a, b):
    return all(np.array_equal(x[key], y[key]) for x, y in zip(a, b, strict=True) for key in ("image", "label"))


# Digits


@pytest.fixture(scope="module")
def digits_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="module")
def digit_splits(digits_dir):
    return [load("digits", split=split, image_size=8, data_dir=digits_dir) for split in ("train", "test")]


def test_digits_are_scikit_learns_and_their_splits_share_none(digit_splits):
    values, labels = load_digits(return_X_y=True)
    # scikit-learn's 17 grey levels, in integers; none lies on a half but 8, which is even then.
    pixels = ((values.astype(int) * 510 + 16) // 32).astype(np.uint8)
    expected = [(image.tobytes(), int(label)) for image, label in zip(pixels, labels, strict=True)]
    found = []
    for dataset in digit_splits:
        batch = dataset.read(np.arange(len(dataset)))
        assert batch["image"].shape == (len(dataset), 8, 8, 1) and batch["image"].dtype == np.uint8
        found += [(image.tobytes(), int(label)) for image, label in zip(batch["image"], batch["label"], strict=True)]
    assert collections.Counter(found) == collections.Counter(expected)


def test_digit_splits_are_stratified(digit_splits):
    train, test = digit_splits
    assert (len(train), len(test)) == (1500, 297)
    assert train.num_classes == 10 and train.class_names == tuple("0123456789") and train.image_shape == (8, 8, 1)
    shares = []
    for dataset in (train, test):
        counts = np.bincount(dataset.read(np.arange(len(dataset)))["label"], minlength=10)
        shares.append(counts / counts.sum())
    np.testing.assert_allclose(*shares, atol=0.002)


def test_digit_split_does_not_depend_on_the_run():
    _, labels = digits()
    assert np.array_equal(held_out(labels), held_out(labels)) and held_out(labels).sum() == 297


PREPARE = """
import sys
from guided_diffusion_jax.data import load
import guided_diffusion_jax.data.pipeline
assert len(load("digits", image_size=8, data_dir=sys.argv[1])) == 1500
assert "tensorflow" not in sys.modules
"""


def test_two_processes_prepare_digits_at_once_without_tensorflow(tmp_path):
    command = [sys.executable, "-c", PREPARE, str(tmp_path / "new")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert out == ""
    assert [path.name for path in (tmp_path / "new/digits").iterdir()] == ["1.0.0"]


def test_losing_the_race_to_prepare_uses_the_winners_files(tmp_path, digits_dir, monkeypatch):
    def lose(self, **kwargs):
        Digits.__mro__[1].download_and_prepare(self, file_format="array_record")
        raise OSError("Directory not empty")

    monkeypatch.setattr(Digits, "download_and_prepare", lose)
    assert len(load("digits", image_size=8, data_dir=str(tmp_path))) == 1500


# Preprocessing


def test_uint8_round_trip_is_exact():
    values = np.arange(256, dtype=np.uint8)
    scaled = images.to_float(values)
    assert scaled.dtype == np.float32 and scaled[0] == -1 and scaled[255] == 1
    np.testing.assert_allclose(scaled, values.astype(np.float64) / 127.5 - 1, atol=1e-7)
    assert np.array_equal(images.to_uint8(scaled), values)


def test_to_uint8_rounds_clips_and_refuses_nan():
    assert images.to_uint8(np.array([-9.0, -1.0, 0.0039, 0.0041, 1.0, 9.0, np.inf])).tolist() == [
        0, 0, 128, 128, 255, 255, 255,
    ]  # fmt: skip
    assert images.to_uint8(np.array([[0.9949, 0.9941]], np.float32)).tolist() == [[254, 254]]
    with pytest.raises(ValueError, match="1 of the 2"):
        images.to_uint8(np.array([0.0, np.nan]))


def test_image_of_the_right_size_is_untouched():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3)).astype(np.uint8))
    assert images.centre_crop(image, 9) is image


@pytest.mark.parametrize(("width", "height", "size"), [(20, 9, 9), (9, 20, 9), (9, 21, 9), (11, 8, 8), (8, 13, 8)])
def test_crop_without_scaling_takes_the_centre(width, height, size):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    top, left = (height - size) // 2, (width - size) // 2
    cropped = np.asarray(images.centre_crop(Image.fromarray(pixels), size))
    assert np.array_equal(cropped, pixels[top : top + size, left : left + size])


def test_halving_averages_2_by_2_pixels():
    pixels = (4 * np.random.default_rng(0).integers(0, 64, (32, 32))).astype(np.uint8)
    for size, block in ((16, 2), (8, 4)):
        means = pixels.reshape(size, block, size, block).mean((1, 3))
        cropped = np.asarray(images.centre_crop(Image.fromarray(pixels), size))
        # One rounding a halving.
        assert np.abs(cropped - means).max() <= 0.5 * np.log2(block)


@pytest.mark.parametrize(
    ("width", "height", "size"), [(100, 60, 16), (60, 100, 16), (33, 47, 15), (47, 33, 15), (7, 5, 20)]
)
def test_crop_keeps_a_linear_ramp_centred(width, height, size):
    """Filters keep a linear ramp, so each pixel shows the place that it comes from."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    for places, length, other in ((x, width, height), (y, height, width)):
        image = Image.fromarray(np.round(places * 255 / length).astype(np.uint8))
        axis = 0 if places is x else 1
        found = np.asarray(images.centre_crop(image, size)).astype(float).mean(axis) * length / 255
        step = min(length, other) / size
        expected = (length - 1) / 2 + (np.arange(size) - (size - 1) / 2) * step
        inner = slice(2, -2)  # bicubic filters bend a ramp at the image's border
        np.testing.assert_allclose(found[inner], expected[inner], atol=1.01 * step + 0.05)


def test_crop_of_a_symmetric_image_is_symmetric():
    rng = np.random.default_rng(0)
    quarter = rng.integers(0, 256, (48, 24))
    pixels = np.block([[quarter, quarter[:, ::-1]], [quarter[::-1], quarter[::-1, ::-1]]]).astype(np.uint8)
    cropped = np.asarray(images.centre_crop(Image.fromarray(pixels), 16)).astype(int)
    assert cropped.shape == (16, 16)
    assert np.abs(cropped - cropped[::-1]).max() <= 1 and np.abs(cropped - cropped[:, ::-1]).max() <= 1


def encoded(image, tmp_path, name="x.png", **kwargs):
    image.save(tmp_path / name, **kwargs)
    return (tmp_path / name).read_bytes()


def decoded(image, tmp_path, channels=3, **kwargs):
    return images.decode(encoded(image, tmp_path, **kwargs), name="x", size=image.height, channels=channels)


def test_transparency_is_laid_on_white(tmp_path):
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[..., 0], rgba[:2, :, 3] = 200, 255
    pixels = decoded(Image.fromarray(rgba), tmp_path)
    assert (pixels[:2] == [200, 0, 0]).all() and (pixels[2:] == 255).all()
    grey = Image.fromarray(np.full((4, 4, 2), [100, 0], np.uint8), "LA")
    assert decoded(grey, tmp_path, channels=1).tolist() == np.full((4, 4, 1), 255).tolist()


def test_palettes_become_their_colours(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    assert (decoded(image, tmp_path) == [10, 200, 30]).all()
    assert (decoded(image, tmp_path, transparency=1) == 255).all()


def test_sixteen_bit_grey_is_scaled(tmp_path):
    values = np.array([[0, 257], [128 * 257, 65535]], np.uint16)
    assert decoded(Image.fromarray(values), tmp_path, channels=1)[..., 0].tolist() == [[0, 1], [128, 255]]


def test_exif_orientation_is_applied(tmp_path):
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the image's top is stored at its left, so it is turned by 90 degrees clockwise
    upright = decoded(Image.fromarray(pixels), tmp_path, exif=exif)
    assert (upright[:, 8:] == 255).all() and (upright[:, :8] == 0).all()


def test_flip_mirrors_the_chosen():
    x = np.arange(12, dtype=np.uint8).reshape(2, 2, 3, 1)
    flipped = flip(x, np.array([False, True]))
    assert np.array_equal(flipped[0], x[0]) and np.array_equal(flipped[1], x[1][:, ::-1])
    assert x[1, 0, 0, 0] == 6


# Pipeline


@pytest.mark.parametrize("batch_size", [1, 5, 12, 40])
def test_every_epoch_shows_each_example_once_in_a_new_order(batch_size):
    epochs = 4
    labels = labels_of(batches(numbered(12), batch_size=batch_size, seed=3), -(-12 * epochs // batch_size))
    orders = [tuple(labels[12 * k : 12 * (k + 1)]) for k in range(epochs)]
    assert all(sorted(order) == list(range(12)) for order in orders)
    assert len(set(orders)) == epochs


def test_batches_are_floats_with_their_labels():
    batch = next(iter(batches(numbered(12), batch_size=5, seed=0)))
    assert batch["image"].shape == (5, 2, 2, 1) and batch["image"].dtype == np.float32
    assert batch["label"].dtype == np.int32
    np.testing.assert_allclose(batch["image"][:, 0, 0, 0], batch["label"] / 127.5 - 1, atol=1e-6)


def test_seeds_give_different_orders_and_the_same_seed_the_same():
    first, again, other = (labels_of(batches(numbered(50), batch_size=10, seed=s), 5) for s in (0, 0, 1))
    assert first == again and first != other


@pytest.mark.parametrize("count", [12, 13])
def test_processes_share_out_the_batches_of_one(count):
    dataset = from_arrays(
        np.random.default_rng(0).integers(0, 256, (count, 4, 4, 1)).astype(np.uint8), np.arange(count)
    )
    whole = take(batches(dataset, batch_size=6, seed=1, flip=True), 9)
    for index in range(3):
        part = take(batches(dataset, batch_size=2, seed=1, flip=True, process_index=index, process_count=3), 9)
        assert same(part, [{key: np.split(value, 3)[index] for key, value in batch.items()} for batch in whole])


def test_processes_shards_are_disjoint_and_cover_every_epoch():
    shards = [
        labels_of(batches(numbered(12), batch_size=2, seed=1, process_index=index, process_count=3), 4)
        for index in range(3)
    ]
    for epoch in (slice(0, 4), slice(4, 8)):
        assert sorted(label for shard in shards for label in shard[epoch]) == list(range(12))


@pytest.mark.parametrize("after", [0, 3, 11])
def test_resume_is_exact(after):
    dataset = from_arrays(np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3)).astype(np.uint8), np.arange(20))
    iterator = iter(batches(dataset, batch_size=6, seed=1, flip=True))
    for _ in range(after):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = [next(iterator) for _ in range(8)]
    resumed = iter(batches(dataset, batch_size=6, seed=1, flip=True))
    next(resumed)
    resumed.set_state(state)
    assert same([next(resumed) for _ in range(8)], expected)


def test_resume_through_orbax_is_exact(tmp_path):
    iterator = iter(batches(numbered(20), batch_size=6, seed=1))
    for _ in range(5):
        next(iterator)
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        manager.save(5, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(iterator)))
        manager.wait_until_finished()
        resumed = iter(batches(numbered(20), batch_size=6, seed=1))
        manager.restore(5, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(resumed)))
    assert same([next(resumed) for _ in range(4)], [next(iterator) for _ in range(4)])


def test_flips_are_half_of_all_and_follow_the_seed():
    dataset = from_arrays(np.tile(np.array([0, 255], np.uint8)[:, None], (64, 2, 1, 1)), None)
    flipped = [
        np.concatenate([batch["image"][:, 0, 0, 0] > 0 for batch in take(batches(dataset, **kwargs), 40)])
        for kwargs in (
            {"batch_size": 50, "seed": 0, "flip": True},
            {"batch_size": 50, "seed": 0, "flip": True},
            {"batch_size": 50, "seed": 1, "flip": True},
            {"batch_size": 50, "seed": 0},
        )
    ]
    # 2,000 coins: 0.5 +- 4 standard deviations.
    assert abs(flipped[0].mean() - 0.5) < 4 * 0.5 / np.sqrt(2000)
    assert np.array_equal(flipped[0], flipped[1]) and not np.array_equal(flipped[0], flipped[2])
    assert not flipped[3].any()


def test_examples_come_once_and_in_order():
    assert labels_of(examples(numbered(7), batch_size=3), 3) == list(range(7))
    assert len(list(examples(numbered(7), batch_size=3))) == 3
    assert labels_of(examples(numbered(7), batch_size=3, process_index=1, process_count=2), 1) == [1, 3, 5]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, "train.batch_size gives 0 images"),
        ({"seed": -1}, "seed=-1 must lie in"),
        ({"process_index": 2, "process_count": 2}, "process_index=2 must lie in 0 .. 1"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        batches(numbered(4), **{"batch_size": 2, "seed": 0, **wrong})


# Folders


def write_image(path, value=100, mode="RGB", size=(6, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 0, 0)).save(path)


def open_folder(path, **kwargs):
    return folder(path, **{"image_size": 4, **kwargs})


def everything(dataset):
    batch = dataset.read(np.arange(len(dataset)))
    return batch["image"][:, 0, 0, 0].tolist(), batch["label"].tolist()


@pytest.mark.parametrize("memory_limit", [0, 2**20])
def test_folder_a_class(tmp_path, memory_limit):
    write_image(tmp_path / "dog/1.PNG", 10)
    write_image(tmp_path / "cat/deep/er/2.bmp", 20)
    write_image(tmp_path / "cat/1.webp", 255, "L")
    write_image(tmp_path / "dog/.hidden.png", 30)
    write_image(tmp_path / ".cache/x.png", 30)
    (tmp_path / "dog/notes.txt").write_text("not an image")
    dataset = open_folder(tmp_path, memory_limit=memory_limit)
    assert dataset.class_names == ("cat", "dog") and dataset.num_classes == 2 and dataset.image_shape == (4, 4, 3)
    assert everything(dataset) == ([255, 20, 10], [0, 0, 1])
    assert dataset.in_memory == (memory_limit > 0)
    assert dataset.read(np.array([2, 0]))["label"].tolist() == [1, 0]


def test_folder_without_labels(tmp_path):
    for value in (1, 2):
        write_image(tmp_path / f"{value}.png", value)
    dataset = open_folder(tmp_path)
    assert dataset.num_classes == 0 and dataset.class_names == ()
    assert everything(dataset) == ([1, 2], [0, 0])


def test_folder_of_grey_images_has_one_channel(tmp_path):
    for value in (1, 2):
        write_image(tmp_path / f"{value}.png", value, "L")
    assert open_folder(tmp_path).image_shape == (4, 4, 1)
    assert everything(open_folder(tmp_path)) == ([1, 2], [0, 0])
    write_image(tmp_path / "3.png", 3)
    assert open_folder(tmp_path).image_shape == (4, 4, 3)


@pytest.mark.parametrize("header", ["", "file,label\n", "\ufeffFile, Label\r\n"])
def test_labels_csv_with_names(tmp_path, header):
    for value in (1, 2, 3):
        write_image(tmp_path / f"in/{value}.png", value)
    (tmp_path / "labels.csv").write_text(header + 'in/2.png,"fox, red"\n\n./in/1.png, bear\n', encoding="utf-8")
    dataset = open_folder(tmp_path)
    assert dataset.class_names == ("bear", "fox, red")
    assert everything(dataset) == ([2, 1], [1, 0])


def test_labels_csv_with_numbers(tmp_path):
    for value in (1, 2, 3):
        write_image(tmp_path / f"{value}.png", value)
    (tmp_path / "labels.csv").write_text("1.png,10\n2.png,0\n3.png,2\n")
    dataset = open_folder(tmp_path)
    assert dataset.num_classes == 11 and dataset.class_names[10] == "10"
    assert everything(dataset) == ([1, 2, 3], [10, 0, 2])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1.png,a\nmissing.png,b\n", r"labels.csv line 2 names missing.png, which is no image \(png, jpg"),
        ("1.png\n", "line 1 is '1.png'; it must be file,label"),
        ("1.png,\n", "line 1 is '1.png,'; it must be"),
        ("1.png,a\n1.png,b\n", "line 2 names 1.png again"),
        ("file,label\n", "lists no images"),
        ("1.png,-1\n", r"go from -1 to -1; numbers must lie in 0 .. 999999"),
        ("1.png,\xff\n", "no CSV text in UTF-8"),
    ],
)
def test_wrong_labels_csv_is_refused(tmp_path, text, message):
    write_image(tmp_path / "1.png")
    (tmp_path / "labels.csv").write_bytes(text.encode("latin-1"))
    refused(message, tmp_path)


def refused(message, path, **kwargs):
    with pytest.raises(InputError, match=message) as error:
        open_folder(path, **kwargs)
    assert "\n" not in str(error.value)


def test_folder_with_splits(tmp_path):
    write_image(tmp_path / "train/cat/1.png", 1)
    write_image(tmp_path / "train/dog/2.png", 2)
    write_image(tmp_path / "test/dog/3.png", 3)
    assert everything(open_folder(tmp_path)) == ([1, 2], [0, 1])
    test = open_folder(tmp_path, split="test")
    assert test.class_names == ("cat", "dog") and everything(test) == ([3], [1])
    refused("has no split 'val'", tmp_path, split="val")
    write_image(tmp_path / "test/emu/4.png")
    refused("test has a class emu that .*train lacks", tmp_path, split="test")
    (tmp_path / "labels.csv").write_text("train/cat/1.png,x")
    refused("has both labels.csv and folders of splits", tmp_path)


def test_class_named_train_is_a_class(tmp_path):
    for name in ("bus", "train"):
        write_image(tmp_path / f"{name}/1.png")
    assert open_folder(tmp_path).class_names == ("bus", "train")
    refused("has no split 'test'; put its images into folders train and test", tmp_path, split="test")


def test_wrong_folders_are_refused(tmp_path):
    refused("needs data.data_dir", "")
    refused("data.data_dir=.*nowhere is not a folder", tmp_path / "nowhere")
    refused(r"no images \(png, jpg, jpeg, webp, bmp, gif\) in " + re.escape(str(tmp_path)), tmp_path)
    write_image(tmp_path / "1.png")
    refused("data.image_size=0 must be at least 1", tmp_path, image_size=0)
    write_image(tmp_path / "cat/1.png")
    refused("1 images beside its folders of classes, the first 1.png", tmp_path)


@pytest.mark.parametrize("damage", ["text", "empty", "cut"])
def test_unreadable_image_is_named_when_cached(tmp_path, damage):
    write_image(tmp_path / "1.png")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8))
    whole = encoded(noise, tmp_path, "2.png")
    (tmp_path / "2.png").write_bytes({"text": b"hello", "empty": b"", "cut": whole[: len(whole) // 2]}[damage])
    refused("2.png (is not an|cannot be read as an) image", tmp_path)


def test_unreadable_image_in_the_middle_of_training_is_named(tmp_path):
    for number in range(40):
        write_image(tmp_path / f"{number}.png", number)
    dataset = open_folder(tmp_path, memory_limit=0)
    (tmp_path / "7.png").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"7\.png is not an image"):
        take(batches(dataset, batch_size=4, seed=0), 10)
    (tmp_path / "7.png").unlink()
    with pytest.raises(InputError, match=r"7\.png cannot be read: No such file"):
        take(batches(dataset, batch_size=4, seed=0), 10)


def test_lazy_and_cached_batches_are_the_same(tmp_path):
    for number in range(9):
        write_image(tmp_path / f"{number % 2}/{number}.png", number, size=(9, 7))
    lazy, memory = (open_folder(tmp_path, memory_limit=limit) for limit in (0, 2**20))
    kwargs = {"batch_size": 4, "seed": 5, "flip": True}
    assert same(take(batches(lazy, **kwargs), 6), take(batches(memory, **kwargs), 6))


# Arrays and TFDS


def test_labels_outside_the_classes_are_refused():
    with pytest.raises(InputError, match=r"go from 0 to 3; its 2 classes need 0 .. 1"):
        numbered(4, class_names=("a", "b"))
    with pytest.raises(InputError, match="holds no images"):
        from_arrays(np.zeros((0, 2, 2, 1), np.uint8))


def test_cached_leaves_what_exceeds_the_limit(digits_dir):
    lazy = load("digits", image_size=8, data_dir=digits_dir, memory_limit=1500 * 64 - 1)
    assert not lazy.in_memory and cached(lazy, 1500 * 64).in_memory


def test_tfds_slices_and_sizes(digits_dir):
    dataset = load("digits", split="test[:10]", image_size=16, data_dir=digits_dir)
    assert len(dataset) == 10 and dataset.image_shape == (16, 16, 1)


def test_wrong_tfds_names_and_splits_are_refused(digits_dir):
    for name, split, message in (
        ("digits", "tset", "'digits' has no split 'tset' with examples; its splits are .*test"),
        ("digist", "train", r"data.name='digist' is not one of folder, digits, .*did you mean 'digits'\?"),
        ("no good", "train", "is no data set of TFDS"),
    ):
        with pytest.raises(InputError, match=message) as error:
            load(name, split=split, image_size=8, data_dir=digits_dir)
        assert "\n" not in str(error.value)


def test_failure_to_prepare_tells_where_and_why(tmp_path, monkeypatch):
    def fail(self, dl_manager):
        raise ConnectionError("no route to host\nmore")

    monkeypatch.setattr(Digits, "_split_generators", fail)
    with pytest.raises(
        InputError, match=rf"'digits' is not prepared in {tmp_path}/digits.*failed: no route to host"
    ) as error:
        load("digits", image_size=8, data_dir=str(tmp_path))
    assert "\n" not in str(error.value)


class Arrays(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Yields images as arrays, as CIFAR-10's builder does, with a second label and no class for the first."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "coarse": tfds.features.ClassLabel(num_classes=2),
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=["x", "y", "z"]),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(4):
            yield i, {"image": np.full((5, 5, 3), i, np.uint8), "label": 2, "coarse": 1}


def test_builders_that_give_arrays_are_prepared_without_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setitem(SOURCES, "arrays", functools.partial(open_tfds, builder=Arrays))
    dataset = load("arrays", image_size=5, data_dir=str(tmp_path))
    assert dataset.class_names == ("x", "y", "z")
    pixels, labels = everything(dataset)
    assert sorted(pixels) == [0, 1, 2, 3] and labels == [2] * 4


@pytest.mark.skipif(not CIFAR10.is_dir(), reason="no prepared CIFAR-10 in ../shared/data/tfds")
def test_cifar10_is_read_where_it_lies():
    dataset = load("cifar10", image_size=32, data_dir=str(CIFAR10), memory_limit=0)
    assert len(dataset) == 50_000 and dataset.image_shape == (32, 32, 3) and dataset.num_classes == 10
    assert dataset.class_names[0] == "airplane"
    batch = dataset.read(np.array([0, 1, 25_000, 49_999]))
    assert batch["image"].shape == (4, 32, 32, 3) and batch["image"].std() > 10
    assert set(batch["label"].tolist()) <= set(range(10))
    first = next(iter(batches(dataset, batch_size=8, seed=0, flip=True)))
    assert first["image"].shape == (8, 32, 32, 3) and np.abs(first["image"]).max() <= 1


def test_tfrecord_files_are_refused_with_the_remedy(tmp_path):
    info = Path(records.prepared("digits", str(tmp_path), Digits).data_dir) / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(InputError, match="without random access; give another"):
        load("digits", image_size=8, data_dir=str(tmp_path))
