"""Images of several aspect ratios: which shape each gets, what of it is cut, and that a batch has one shape."""

import itertools
import json

import numpy as np
import pytest
import tiny_sd
from PIL import Image

import guided_diffusion_jax as gd
from guided_diffusion_jax import finetuning
from guided_diffusion_jax.data import buckets
from guided_diffusion_jax.data.dataset import grouped
from guided_diffusion_jax.data.pipeline import batches

SIZES = [(100, 100), (130, 100), (90, 80), (200, 70), (70, 200), (64, 64)]  # width and height


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures whose red grows from left to right, and green from top to bottom, over all of them."""
    place = tmp_path_factory.mktemp("pictures")
    lines = []
    for i, (width, height) in enumerate(SIZES):
        down, across = np.mgrid[:height, :width]
        image = np.stack([255 * across / (width - 1), 255 * down / (height - 1), np.full((height, width), 40 * i)], -1)
        Image.fromarray(image.round().astype(np.uint8)).save(place / f"{i}.png")
        lines.append(json.dumps({"file": f"{i}.png", "caption": f"number {i}"}))
    (place / "captions.jsonl").write_text("\n".join(lines))
    return place


@pytest.mark.parametrize(("size", "step"), [(512, 64), (1024, 64), (64, 16), (768, 128)])
def test_shapes_are_multiples_of_the_step_at_most_as_large_as_the_square(size, step):
    found = buckets.shapes(size, step)
    assert (size, size) in found and {(w, h) for h, w in found} == set(found)
    for h, w in found:
        assert h % step == w % step == 0 and h * w <= size**2 and max(h, w) <= 4 * min(h, w)
        assert (max(h, w) + step) * min(h, w) > size**2 or max(h, w) + step > 4 * min(h, w)
    with pytest.raises(gd.InputError, match="is no multiple of buckets=48"):
        buckets.shapes(512, 48)


def test_an_image_is_cut_to_the_ratio_of_its_shape_and_no_further(folder):
    data = gd.data.folder(folder, image_size=64, buckets=16, text="caption")
    assert len(data) == len(SIZES) and "images of 4 shapes" in data.describe()
    for part in data.parts:
        batch = part.read(np.arange(len(part)))
        h, w = part.image_shape[:2]
        for image, caption in zip(batch["image"], batch["text"], strict=True):
            width, height = SIZES[int(caption.split()[1])]
            others = [abs(np.log(width / height) - np.log(b / a)) for a, b in buckets.shapes(64, 16)]
            assert abs(np.log(width / height) - np.log(w / h)) == pytest.approx(min(others))
            red, green = (np.ptp(image[..., c].astype(float)) / 255 for c in (0, 1))
            ratio = (width / height) / (w / h)
            np.testing.assert_allclose([red, green], [min(1, 1 / ratio), min(1, ratio)], atol=0.06)
    with pytest.raises(gd.InputError, match="images of 2 shapes are no batch"):
        data.read(np.array([0, len(data) - 1]))
    Image.new("RGB", (300, 50)).save(folder / "long.png")
    with pytest.raises(gd.InputError, match=r"long.png has 300x50 pixels, longer than 4 to 1"):
        gd.data.folder(folder, image_size=64, buckets=16)
    (folder / "long.png").unlink()


def test_a_fixed_shape_that_is_no_square(folder):
    data = gd.data.folder(folder, image_size=(32, 64))
    assert data.image_shape == (32, 64, 3)
    image = data.read(np.array([0]))["image"][0].astype(float)
    np.testing.assert_allclose([np.ptp(image[..., 0]) / 255, np.ptp(image[..., 1]) / 255], [1, 0.5], atol=0.06)


def test_a_batch_has_one_shape_and_an_epoch_has_every_example(folder):
    data = gd.data.folder(folder, image_size=64, buckets=16, text="caption")
    parts = sum(-(-len(part) // 2) for part in data.parts)
    found = list(itertools.islice(batches(data, batch_size=2, seed=3), 2 * parts))
    for epoch in (found[:parts], found[parts:]):
        assert {caption for batch in epoch for caption in batch["text"]} == {f"number {i}" for i in range(len(SIZES))}
    assert [batch["image"].shape for batch in found[:parts]] != [batch["image"].shape for batch in found[parts:]]
    halves = [iter(batches(data, batch_size=1, seed=3, process_index=i, process_count=2)) for i in (0, 1)]
    for batch in found[:4]:
        pair = [next(half)["text"][0] for half in halves]
        assert pair == list(batch["text"])


def test_each_shape_is_one_compilation_of_the_step(folder):
    data = grouped(gd.data.folder(folder, image_size=64, buckets=32, text="caption").parts[:2])
    tuner = finetuning.lora(tiny_sd.pipeline(), data, rank=2)
    tuner.fit(steps=6, batch_size=1)  # an epoch has 5
    assert tuner.compiled_step._cache_size() == len({part.image_shape for part in data.parts}) == 2
    assert tuner.data.fingerprint()["digest"] != tiny_sd.data(3).fingerprint()["digest"]
