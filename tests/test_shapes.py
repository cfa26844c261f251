"""The data set `shapes`: what it draws and says, and the analysis that reads its images back."""

import itertools

import numpy as np
import pytest
import tensorflow_datasets as tfds
from scipy.ndimage import gaussian_filter

from guided_diffusion_jax.data.images import decode
from guided_diffusion_jax.data.shapes import captions
from guided_diffusion_jax.data.shapes.builder import Shapes, draw_examples
from guided_diffusion_jax.data.shapes.captions import FRAMES, LONGEST, PATTERNS, SHAPES, WORDS, phrase, said
from guided_diffusion_jax.data.shapes.draw import draw
from guided_diffusion_jax.data.shapes.scenes import ATTRIBUTES, BLOCK, SPLITS, Scenes, draw_block, is_novel
from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.evaluation import adherence

ALWAYS = {"count", "colour", "shape"}


def values_of(examples, count=BLOCK):
    """The attributes of a block's first examples, as `adherence.read_attributes` gives them."""
    return {name: np.array(examples["label" if name == "shape" else name][:count]) for name in ATTRIBUTES}


def accuracies(reading, truth):
    return {name: np.mean(reading[name] == truth[name]) for name in ATTRIBUTES}


@pytest.fixture(scope="module")
def block_16():
    return draw_examples("test", 0, 16)


@pytest.fixture(scope="module")
def block_32():
    return draw_examples("test", 0, 32)


# Scenes


def test_a_block_is_determined_by_its_split_and_number():
    first, again = draw_examples("train", 3, 16), draw_examples("train", 3, 16)
    assert first.keys() == again.keys() and all(np.array_equal(first[key], again[key]) for key in first)
    for split, block in (("train", 4), ("test", 3)):
        assert not np.array_equal(first["image"], draw_examples(split, block, 16)["image"])


def test_held_out_pairs_have_each_shape_and_colour_once_and_are_in_novel_only():
    grid = is_novel(np.arange(8)[:, None], np.arange(8))
    assert (grid.sum(0) == 1).all() and (grid.sum(1) == 1).all()
    for split, block in itertools.product(SPLITS, range(5)):
        scenes, references, _ = draw_block(split, block, 3)
        assert (is_novel(scenes.shape, scenes.colour) == (split == "novel")).all()
        assert not is_novel(references.shape, references.colour).any()


@pytest.mark.parametrize("objects", [1, 3])
def test_a_reference_has_the_same_style_and_no_content_in_common(objects):
    scenes, references, _ = draw_block("train", 0, objects)
    for name in ("texture", "background"):
        assert (getattr(scenes, name) == getattr(references, name)).all()
    for name in {"shape", "colour", "size", "place", "count"} - ({"count"} if objects == 1 else set()):
        assert (getattr(scenes, name) != getattr(references, name)).all()


def test_every_value_occurs_about_equally_often():
    blocks = [draw_block("train", block, 3) for block in range(20)]
    for kind, (name, names) in itertools.product((0, 1), ATTRIBUTES.items()):
        values = np.concatenate([getattr(block[kind], name) for block in blocks])
        counts = np.bincount(values, minlength=len(names))
        expected = len(values) / len(names)
        assert len(counts) == len(names) and np.abs(counts - expected).max() < 5 * expected**0.5


# Pictures


def test_pictures_are_the_same_scenes_on_any_number_of_pixels(block_32):
    wide = draw_examples("test", 0, 64)
    assert wide["caption"] == block_32["caption"]
    halved = wide["image"].reshape(BLOCK, 32, 2, 32, 2, 3).mean((2, 4))
    assert np.abs(halved - block_32["image"]).mean() < 2


def test_objects_stay_inside_and_places_are_where_they_say():
    size, place, count, shape, jitter = np.indices((3, 9, 3, 8, 9)).reshape(5, -1)
    nothing = np.zeros(len(size), int)
    scenes = Scenes(shape, nothing, size, place, count, nothing, nothing, jitter)
    coverage = draw(scenes, 32).coverage
    inner = coverage[:, 1:-1, 1:-1]
    assert coverage.any((1, 2)).all() and (coverage.sum((1, 2)) - inner.sum((1, 2)) < 0.1 * coverage.sum((1, 2))).all()
    # Left, middle and right, or top, middle and bottom, are apart whatever the jitter, for objects of one kind.
    position = np.arange(32) - 15.5
    for axis, third in ((1, place % 3), (2, place // 3)):
        middle = (coverage.sum(axis) * position).sum(1) / coverage.sum((1, 2))
        kind = np.ravel_multi_index((size, count, shape), (3, 3, 8))
        for chosen in (kind == index for index in range(72)):
            low, mid, high = (middle[chosen & (third == index)] for index in range(3))
            assert low.max() + 0.8 < mid.min() and mid.max() + 0.8 < high.min()


def test_the_texture_does_not_change_the_silhouette():
    texture = np.arange(4)
    same = np.zeros(4, int)
    drawing = draw(Scenes(same, same, same, same + 4, same, texture, same, same + 4), 16)
    assert (drawing.coverage == drawing.coverage[0]).all()
    assert len(np.unique(drawing.image.reshape(4, -1), axis=0)) == 4


def test_an_edge_is_inside_with_a_neighbour_outside(block_16):
    mask, found = (block_16[key][..., 0] for key in ("segmentation", "edges"))
    for picture in range(0, BLOCK, 25):
        for row, column in itertools.product(range(16), range(16)):
            near = [(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
            outside = any(not (0 <= i < 16 and 0 <= j < 16) or mask[picture, i, j] == 0 for i, j in near)
            assert found[picture, row, column] == (255 if mask[picture, row, column] and outside else 0)


# The builder


def test_small_prepares_with_all_features(tmp_path):
    tfds.disable_progress_bar()
    builder = Shapes(data_dir=str(tmp_path), config="small")
    builder.download_and_prepare(file_format="array_record")
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {
        "train": 2000, "test": 500, "novel": 500,
    }  # fmt: skip
    pictures = {"image": 3, "style": 3, "segmentation": 1, "edges": 1}
    decoders = {key: tfds.decode.SkipDecoding() for key in pictures}
    records = builder.as_data_source(split="novel", decoders=decoders)
    expected = draw_examples("novel", 0, 16)
    rows = {expected["image"][row].tobytes() + expected["style"][row].tobytes(): row for row in range(BLOCK)}
    for record in (records[index] for index in range(0, BLOCK, 50)):
        found = {key: decode(record[key], name=key, size=16, channels=pictures[key]) for key in pictures}
        row = rows[found["image"].tobytes() + found["style"].tobytes()]
        assert all(np.array_equal(found[key], expected[key][row]) for key in pictures)
        assert set(np.unique(found["segmentation"])) == {0, 255}
        assert record["caption"].decode() == expected["caption"][row]
        assert all(record[key] == expected[key][row] for key in ("label", "colour", "place", "background"))


def test_configs_declare_their_sizes():
    assert [config.name for config in Shapes.BUILDER_CONFIGS] == ["16", "32", "64", "small"]
    assert [config.pixels for config in Shapes.BUILDER_CONFIGS] == [16, 32, 64, 16]


# Captions


def test_a_caption_is_short_and_says_only_what_is_true():
    named = []
    for split, block in itertools.product(SPLITS, range(2)):
        scenes, _, random = draw_block(split, block, 3)
        for index, caption in enumerate(captions.captions(scenes, random)):
            found = said(caption)
            named.append(set(found))
            assert set(found) >= ALWAYS and len(caption.encode()) <= LONGEST and caption == caption.lower()
            assert all(getattr(scenes, name)[index] == value for name, value in found.items()), caption
    for name in set(ATTRIBUTES) - ALWAYS:
        assert 0.7 < np.mean([name in names for names in named]) < 0.8


def test_every_wording_is_read_back_to_exactly_what_it_names():
    optional = sorted(set(ATTRIBUTES) - ALWAYS)
    subsets = [set(itertools.compress(optional, flags)) for flags in itertools.product((0, 1), repeat=len(optional))]
    for pattern, named, value, word in itertools.product(PATTERNS, subsets, range(9), range(6)):
        values = {name: value % len(names) for name, names in ATTRIBUTES.items()}
        sentence = phrase(pattern, values, named, [word] * 14)
        assert said(sentence) == {name: values[name] for name in named | ALWAYS}, sentence


def test_the_first_words_make_captions_that_fit():
    words = {name: [options[0] for options in values] for name, values in WORDS.items()}
    words["shape"] = [options[0][1] for options in SHAPES]
    longest = {name: max(range(len(values)), key=lambda i, v=values: len(v[i])) for name, values in words.items()}
    assert all(len(phrase(pattern, longest, set(ATTRIBUTES), [0] * 14)) <= LONGEST for pattern in PATTERNS)
    assert all(len(WORDS.get(name, SHAPES)) == len(names) for name, names in ATTRIBUTES.items())
    assert all(attribute in ATTRIBUTES for attribute, _ in FRAMES.values())


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("two red striped circles, top left", {"count": 1, "colour": 0, "texture": 1, "shape": 0, "place": 0}),
        ("An orange heart on a white background.", {"count": 0, "colour": 1, "shape": 7, "background": 0}),
        ("red circle, big, dotted, on grey", {"colour": 0, "shape": 0, "size": 2, "texture": 2, "background": 1}),
        ("", {}),
        ("nothing of the sort", {}),
    ],
)
def test_captions_of_other_hands_are_read_too(caption, expected):
    assert said(caption) == expected


# Condition adherence


def test_attributes_of_real_images_are_read(block_16, block_32):
    for examples, count in ((block_16, 300), (block_32, 200), (draw_examples("novel", 0, 64), 60)):
        images = examples["image"][:count]
        reading = adherence.read_attributes(images)
        truth = values_of(examples, count)
        assert min(accuracies(reading, truth).values()) > 0.99, accuracies(reading, truth)
        covered = adherence.foreground(images, reading)
        assert adherence.iou(covered, examples["segmentation"][:count, ..., 0] > 0).mean() > 0.99
        assert adherence.matches_caption(examples["caption"][:count], reading).mean() > 0.98


@pytest.mark.parametrize("blur", [0.0, 0.5])
def test_attributes_are_read_under_noise_and_blur(block_16, block_32, blur):
    random = np.random.RandomState(0)
    for examples, count in ((block_16, 200), (block_32, 100)):
        smooth = gaussian_filter(examples["image"][:count].astype(float), (0, blur, blur, 0))
        images = np.clip(np.round(smooth + 12 * random.randn(*smooth.shape)), 0, 255).astype(np.uint8)
        found = accuracies(adherence.read_attributes(images), values_of(examples, count))
        assert min(found.values()) > 0.97, found
        assert adherence.iou(adherence.foreground(images), examples["segmentation"][:count, ..., 0] > 0).mean() > 0.9


def test_attributes_are_read_half_a_pixel_off_the_grid():
    """Generated pictures keep to no grid of jitters."""
    examples = draw_examples("test", 1, 64)
    shifted = np.roll(examples["image"][:100], 1, axis=(1, 2)).reshape(100, 32, 2, 32, 2, 3).mean((2, 4))
    found = accuracies(adherence.read_attributes(np.round(shifted).astype(np.uint8)), values_of(examples, 100))
    # The places of large groups are so near to each other that half a pixel makes a few of them the next.
    assert found.pop("place") > 0.9 and min(found.values()) > 0.97, found


def test_scene_distance_is_small_for_drawings_and_large_for_others(block_16):
    images = block_16["image"][:50]
    assert adherence.scene_distance(images).max() < 0.5
    halves = np.concatenate([images[:, :, :8], images[:, ::-1, 8:]], 2)
    assert np.median(adherence.scene_distance(halves)) > 10
    noisy = np.clip(images + 12 * np.random.RandomState(0).randn(*images.shape), 0, 255).astype(np.uint8)
    assert 10 < adherence.scene_distance(noisy).mean() < 12.5


def test_wrong_attributes_are_found(block_16):
    images, truth = block_16["image"][:100], values_of(block_16, 100)
    mirrored = adherence.read_attributes(images[:, :, ::-1])
    assert np.array_equal(mirrored["place"] % 3, 2 - truth["place"] % 3)
    swapped = adherence.read_attributes(images[..., ::-1])
    assert np.mean(swapped["colour"] == truth["colour"]) < 0.5
    reading = {**adherence.read_attributes(images), "shape": (truth["shape"] + 1) % 8}
    assert not adherence.matches_caption(block_16["caption"][:100], reading).any()


def test_iou_of_known_masks():
    mask = np.zeros((4, 8, 8), bool)
    mask[:, 2:4, 2:6] = True
    other = mask.copy()
    other[1] = np.roll(mask[1], 2, 1)  # half of it remains, 4 of 12
    other[2] = False
    mask[3] = other[3] = False
    np.testing.assert_allclose(adherence.iou(mask, other), [1, 1 / 3, 0, 1])


def test_images_of_a_size_that_cannot_be_analysed_are_refused():
    with pytest.raises(InputError, match="40 pixels cannot be analysed; use 8 to 32, or a multiple of 32"):
        adherence.read_attributes(np.zeros((1, 40, 40, 3), np.uint8))
    assert adherence.read_attributes(np.zeros((0, 16, 16, 3), np.uint8))["shape"].shape == (0,)
