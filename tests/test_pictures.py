"""Pages of images and their letters, sets of images on disk, and what a large one takes of memory."""

import json
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from PIL import Image

from guided_diffusion_jax import Pipeline, Process, grids, lettering, models, schedules
from guided_diffusion_jax.data.dataset import DatasetInfo
from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.experiment import config as configs
from guided_diffusion_jax.experiment import sample_sets, sheets
from guided_diffusion_jax.guidance.weights import weight_text
from guided_diffusion_jax.runtime import npz


class Still(models.UNet):
    """A network of no work, which takes the conditions of a U-Net."""

    def __call__(self, x, time, conditions=None, **_):
        return jnp.zeros_like(x)


def still(size=16, **settings):
    info = DatasetInfo("drawn", 100, (size, size, 3), class_names=("cat", "dog"), attributes=())
    return Pipeline(Still(out_channels=3, **settings), {}, Process(schedules.cosine(1000)), info=info)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def colours(canvas):
    return {tuple(pixel) for pixel in canvas.reshape(-1, 3).tolist()}


# --- pages


@pytest.mark.parametrize(("pixels", "channels", "factor"), [(8, 1, 8), (16, 3, 4), (28, 1, 3), (32, 3, 2), (64, 3, 1)])
def test_small_images_are_enlarged_by_whole_factors_without_smoothing(pixels, channels, factor):
    image = noise(1, pixels, pixels, channels)
    canvas = grids.grid([image])
    enlarged = np.broadcast_to(image[0], (pixels, pixels, 3)).repeat(factor, 0).repeat(factor, 1)
    found = canvas[grids.GAP :, grids.GAP :][: len(enlarged), : len(enlarged)]
    np.testing.assert_array_equal(found, enlarged)


@pytest.fixture
def laid_out(monkeypatch):
    """What `sheet` gives `grid`: numbers of images, names and captions of the rows, and the title."""
    seen = []

    def grid(rows, names, title, captions):
        seen.append(([len(row) for row in rows], list(names), [list(row) for row in captions], title))
        return np.zeros((1, 1, 3), np.uint8)

    monkeypatch.setattr(grids, "grid", grid)
    return lambda *arguments, **more: (grids.sheet(*arguments, **more), seen[-1])[1]


@pytest.mark.parametrize(("count", "total", "shown"), [(3, None, 3), (57, 57, 57), (200, 200, 200), (200, 5000, 200)])
def test_a_page_shows_all_images_that_fit_and_says_how_many_there_are(count, total, shown, laid_out):
    lengths, _, _, title = laid_out(noise(count, 8, 8, 1), title="w = 2", total=total)
    assert sum(lengths) == shown and max(lengths) <= grids.COLUMNS
    assert title == ("w = 2" if shown == (total or count) else f"w = 2, first {shown} of {total}")


def test_rows_are_named_by_class(laid_out):
    lengths, names, _, _ = laid_out(noise(24, 8, 8, 1), ["dog", "cat", "cat"] * 8)
    assert lengths == [8, 10, 6] and names == ["dog", "cat", "cat"]


def test_more_classes_than_rows_stand_below_the_images(laid_out):
    lengths, names, captions, _ = laid_out(noise(200, 8, 8, 1), [f"c{i % 70}" for i in range(200)])
    assert lengths == [10] * 20 and not any(names) and captions[7][:2] == ["c0", "c1"]


def test_captions_stand_below_the_images_and_one_for_all_in_the_title(laid_out):
    _, _, captions, _ = laid_out(noise(3, 8, 8, 3), captions=["a cat", "a dog", "a fox"])
    assert captions == [["a cat", "a dog", "a fox"]]
    _, _, captions, title = laid_out(noise(3, 8, 8, 3), captions=["a cat"] * 3, title="w = 2")
    assert captions == [[]] and title == '"a cat", w = 2'


def test_maps_stand_above_their_images_and_one_for_all_once(laid_out):
    maps = {"control": noise(12, 8, 8, 1), "photo": np.repeat(noise(1, 8, 8, 3), 12, 0)}
    lengths, names, captions, _ = laid_out(noise(12, 8, 8, 3), given=maps)
    assert names == ["given", "control", "generated", "control", "generated"]
    assert lengths == [1, 10, 10, 2, 2] and captions[0] == ["photo"]


def test_a_page_of_large_images_has_fewer_rows(laid_out):
    lengths, _, _, title = laid_out(np.zeros((200, 1024, 1024, 1), np.uint8))
    assert lengths == [10] * 3 and title == "first 30 of 200"


def test_nothing_is_written_over_anything_else():
    """Long names and captions make their row wider or longer, and are cut; nothing but white is between the images."""
    images = np.zeros((4, 8, 8, 3), np.uint8)
    long = "a very long caption of a large red striped circle, top left, " * 4
    plain = grids.grid([images], ["x"])
    canvas = grids.grid([images], [long], long, [[long] * 4])
    assert canvas.shape[0] <= plain.shape[0] + 8 * lettering.LINE + 2 * grids.GAP and canvas.shape[1] < 800
    # All four black squares are whole: no text lies on one of them.
    assert (canvas == 0).all(-1).sum() >= 4 * 64 * 64


# --- letters


@pytest.mark.parametrize(
    ("name", "drawn"),
    [
        ("кот", "кот"), ("naïve", "naïve"), ("50% & <b>", "50% & <b>"), ("猫", "class 0"), ("naïve 🐕", "class 0"),
        ("a\tb\nc", "a b c"), ("\u200b", "class 0"), ("e\u0301t\u00e9", "été"), ("हिन्दी", "class 0"),
    ],
)  # fmt: skip
def test_a_class_whose_letters_the_font_lacks_is_shown_by_its_number(name, drawn):
    assert grids.class_name(0, (name,)) == drawn


def test_no_drawn_name_has_a_box_for_a_letter():
    box = bytes(lettering.font().getmask("\U0001f415"))
    for letter in "кïéαעع":
        assert lettering.drawable(letter) and bytes(lettering.font().getmask(letter)) != box


def test_the_font_is_found_without_matplotlib(tmp_path):
    import subprocess
    import sys

    code = (
        "import sys; from guided_diffusion_jax import grids; grids.class_name(0, ('кот',));"
        "assert 'matplotlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("pixels", [20, 64, 120, 400])
def test_text_is_broken_into_lines_that_fit(pixels):
    text = "one mid-sized orange diamond on gray, Donaudampfschifffahrtsgesellschaft"
    whole, cut = lettering.wrap(text, pixels, 99), lettering.wrap(text, pixels, 2)
    assert all(lettering.width(line) <= pixels for line in whole + cut)
    assert "".join("".join(whole).split()) == "".join(text.split())
    assert len(cut) <= 2 and (cut[-1].endswith("…") or cut == whole)


def test_different_weights_have_different_labels():
    weights = (2.0, 0.5, 0.1, 0.1234567, 0.1234568, 1.0000001, 1.0, -1, 1e-9)
    assert len({weight_text(w) for w in weights}) == len(weights)
    assert [weight_text(w) for w in weights[:3]] == ["2", "0.5", "0.1"]


# --- what a request gives


def test_a_page_says_what_the_model_was_given():
    pipe = still(num_classes=2, control_channels=1)
    edges = np.where(np.arange(16)[:, None] < 8, 255, 0).astype(np.uint8) * np.ones((16, 16), np.uint8)
    request = pipe.request(
        labels=["dog"], count=3, control_image=edges[..., None], image=noise(16, 16, 3), inpaint_mask=edges
    )
    given = sheets.given_images(pipe, request)
    assert list(given) == ["control", "photo", "mask"] and sheets.class_names(pipe, request) == ["dog"] * 3
    np.testing.assert_array_equal(given["control"][2][..., 0], edges)
    np.testing.assert_array_equal(given["mask"][0][..., 0], edges)
    assert not sheets.given_images(pipe, pipe.request(labels=[0], count=3))


@pytest.mark.parametrize(
    ("keys", "title"),
    [
        ({}, "w = 1, ddim 50 steps"),
        ({"guidance.guidance_scale": 3.5}, "w = 2.5, ddim 50 steps"),
        ({"guidance.weight_schedule": ((0, 0.0), (999, 4.0))}, "w = 0 to 4, ddim 50 steps"),
        ({"guidance.weights": (("label", 2.0),)}, "label w = 2, ddim 50 steps"),
        ({"sections": (10, 5), "sampler": "ddpm"}, "w = 1, ddpm 15 steps"),
    ],
)
def test_the_title_says_the_weights_and_the_sampler(keys, title):
    c = configs.get_config()
    c.sample.update_from_flattened_dict(keys)
    pipe = still(num_classes=2)
    own = dict(c.sample.guidance.weights)
    assert sheets.title(c, pipe, pipe.request(labels=[0], weights=own)) == title
    assert sheets.title(c, pipe, pipe.request()).startswith("unconditional, ")


# --- sets on disk


def record(**sample):
    return {"checkpoint_step": 4, "sample": sample, "run": "runs/x"}


def write_set(folder, exactly=False, names=(), **sample):
    with sample_sets.new_set(folder, record(**sample), 3, exactly=exactly) as made:
        (made / "samples.npz").write_text(json.dumps(sample))
        for name in names:
            (made / "images").mkdir(exist_ok=True)
            (made / "images" / name).write_text("")


def test_a_set_never_takes_the_place_of_another(tmp_path, capsys):
    folder = epath.Path(tmp_path) / "samples"
    folder.mkdir()
    (folder / "step_0000004.png").write_text("a preview of the training")
    for weight in (1, 2, 1, 3, 2):
        write_set(folder, weight=weight)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].removeprefix(f"{tmp_path}/") for line in lines] == [
        "samples", "samples_2", "samples", "samples_3", "samples_2"
    ]  # fmt: skip
    assert "same settings" in lines[2] and "samples holds a set of other settings" in lines[1]
    assert json.loads((tmp_path / "samples_2" / "samples.npz").read_text()) == {"weight": 2}
    assert {path.name for path in folder.iterdir()} == {"step_0000004.png", "samples.npz", "samples.json"}


def test_files_that_are_no_set_are_never_replaced(tmp_path):
    for name in ("samples.npz", "images", "trajectory.png"):
        folder = epath.Path(tmp_path) / name / "samples"
        (folder / name).mkdir(parents=True)
        write_set(folder, weight=1)
        assert (tmp_path / name / "samples_2" / "samples.json").exists() and len(list(folder.iterdir())) == 1
        with pytest.raises(InputError, match="give another folder"):
            sample_sets.check_out(folder)


def test_a_set_in_a_given_folder_is_replaced_whole_and_said_so(tmp_path, capsys):
    folder = epath.Path(tmp_path) / "out"
    write_set(folder, True, ["00000_cat.png", "00001_dog.png"], weight=1)
    (folder / "images" / "mine.png").write_text("")
    (folder / "notes.txt").write_text("")
    write_set(folder, True, ["00000_cat.png"], weight=2)
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("from step 4") and second.endswith("in the place of a set of other settings")
    assert {path.name for path in (folder / "images").iterdir()} == {"00000_cat.png", "mine.png"}
    assert (folder / "notes.txt").exists()
    (folder / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        sample_sets.check_out(folder / "file")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, ValueError])
def test_a_set_that_is_interrupted_leaves_the_one_before(tmp_path, error):
    folder = epath.Path(tmp_path) / "out"
    for attempt in range(2):
        with pytest.raises(error), sample_sets.new_set(folder, record(weight=2), 3, exactly=True) as made:
            (made / "samples.npz").write_text("half")
            raise error
        assert folder.exists() == bool(attempt)
        write_set(folder, True, weight=1)
    assert {path.name for path in folder.iterdir()} == {"samples.npz", "samples.json"}
    assert json.loads((folder / "samples.npz").read_text()) == {"weight": 1}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("cat", "dog"), ["00000_cat.png", "00001_dog.png", "00002.png"]),
        (("a/b", "..\\c:*?"), ["00000_a-b.png", "00001_c.png", "00002.png"]),
        (("a/b", "a:b"), ["00000_a-b-0.png", "00001_a-b-1.png", "00002.png"]),
        (("猫", "🐕"), ["00000_猫.png", "00001_class1.png", "00002.png"]),
        (("", "x" * 300), ["00000_class0.png", f"00001_{'x' * 100}.png", "00002.png"]),
        ((), ["00000.png", "00001.png", "00002.png"]),
    ],
)
def test_single_files_are_named_by_number_and_class(names, expected, tmp_path):
    assert sample_sets.file_names([0, 1, 2], names) == expected
    for name in expected:
        (tmp_path / name).write_text("")
    assert len(list(tmp_path.iterdir())) == 3
    assert all(sample_sets.NUMBERED.fullmatch(name) for name in expected)


def test_file_names_are_ordered_as_their_numbers_are():
    names = sample_sets.file_names([0] * 100_001, ["cat"])
    assert names[-1] == "100000_cat.png" and names == sorted(names)


# --- more images than fit into memory


def test_a_stream_is_the_file_that_savez_writes(tmp_path):
    images, labels = noise(7, 4, 5, 3), np.arange(7, dtype=np.int32)
    with npz.stream(tmp_path / "streamed.npz", images.shape, labels) as append:
        for start in (0, 3, 6):
            append(images[start : start + 3])
    np.savez(tmp_path / "saved.npz", images, labels)
    with np.load(tmp_path / "streamed.npz") as streamed, np.load(tmp_path / "saved.npz") as saved:
        assert streamed.files == saved.files == ["arr_0", "arr_1"]
        for key in saved.files:
            np.testing.assert_array_equal(streamed[key], saved[key], strict=True)
    np.testing.assert_array_equal(np.load(tmp_path / "streamed.npz", mmap_mode="r")["arr_0"], images)


@pytest.mark.parametrize("shapes", [[(3, 4, 4, 1)], [(3, 4, 4, 1), (3, 4, 4, 1)], [(5, 4, 4, 3)], []])
def test_a_stream_that_ends_early_or_late_leaves_no_file(shapes, tmp_path):
    with (
        pytest.raises(ValueError, match="images"),
        npz.stream(tmp_path / "x.npz", (5, 4, 4, 1), np.zeros(5, np.int32)) as append,
    ):
        for shape in shapes:
            append(np.zeros(shape, np.uint8))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"control_image": noise(16, 16, 3)}, marks=pytest.mark.slow),
        {"image": noise(16, 16, 3), "inpaint_mask": noise(16, 16, 1)},  # two images a sample: the most that is given
    ],
)
def test_a_large_set_is_written_in_the_memory_of_a_batch(given, tmp_path):
    count, batch = 12_000, 300
    pipe = still(num_classes=2, control_channels=3)
    list(pipe.batches(pipe.request(count=batch, labels=[0, 1], steps=1, **given), batch_size=batch))  # compiles
    tracemalloc.start()
    request = pipe.request(count=count, labels=[0, 1], steps=1, **given)
    with npz.stream(tmp_path / "x.npz", (count, 16, 16, 3), request.labels) as append:
        for images in pipe.batches(request, batch_size=batch):
            append(images)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (tmp_path / "x.npz").stat().st_size > count * 768 > 9_000_000
    assert peak < 16_000_000, peak  # a batch of float32 images is 1.5 MB; one array of all would be 30 or 120 MB


def test_batches_are_the_images_of_generate():
    pipe = still(num_classes=2)
    request = pipe.request(count=7, labels=[0, 1], steps=2)
    batches = list(pipe.batches(request, batch_size=3))
    assert list(map(len, batches)) == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate(batches), pipe.generate(request, batch_size=3))
    np.testing.assert_array_equal(np.concatenate(batches), pipe(count=7, labels=[0, 1], steps=2))


def test_a_page_is_a_picture():
    image = Image.fromarray(grids.sheet(noise(30, 8, 8, 1), ["кот", "猫", "x"] * 10, title="w = 2"))
    assert image.size[0] > 600 and len(colours(np.asarray(image))) > 100
