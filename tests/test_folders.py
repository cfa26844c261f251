"""Folders as strangers have them: read as they are meant, refused where that is doubtful, and what was understood."""

import functools
import os
import socket
import subprocess
import sys
import unicodedata
from pathlib import Path

import fuzz_folders
import numpy as np
import pytest
from PIL import Image, ImageDraw
from test_commands import TINY

from guided_diffusion_jax.commands.cli import main
from guided_diffusion_jax.data import folder, from_arrays, images, load
from guided_diffusion_jax.data.images import class_ids, decode, decode_map, read_header
from guided_diffusion_jax.errors import InputError

open_folder = functools.partial(folder, image_size=4)


def put(root, *files, value=100, mode="RGB", size=(6, 4)):
    for file in files:
        path = Path(root) / file
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", size, (value, 0, 0)).convert(mode)
        image.save(path, Image.registered_extensions()[path.suffix.lower()])


def counts(data):
    labels = data.read(np.arange(len(data)))["label"]
    assert data.class_names or not labels.any()
    return {name: int((labels == number).sum()) for number, name in enumerate(data.class_names)}


def refused(root, message, **options):
    with pytest.raises(InputError, match=message) as error:
        open_folder(root, **options)
    assert "\n" not in str(error.value)


# Splits


@pytest.mark.parametrize(
    ("train", "other", "asked"),
    [
        ("train", "valid", "validation"),
        ("Train", "VAL", "val"),
        ("training", "dev", "valid"),
        ("TRAINING", "testing", "test"),
        ("train", "eval", "test"),
        ("train", "Validation", "dev"),
    ],
)
def test_splits_have_many_names(tmp_path, train, other, asked):
    put(tmp_path, f"{train}/cats/1.png", f"{train}/dogs/1.png", f"{train}/dogs/2.png", f"{other}/dogs/1.png")
    assert counts(open_folder(tmp_path)) == {"cats": 1, "dogs": 2}
    assert counts(open_folder(tmp_path, split=asked)) == {"cats": 0, "dogs": 1}
    assert f"splits    {train} (3), {other} (1); this is train" in open_folder(tmp_path).describe()


@pytest.mark.parametrize("inner", ["cats/1.png", "1.png"])
@pytest.mark.parametrize("name", ["train", "Training"])
def test_train_alone_is_a_split(tmp_path, name, inner):
    put(tmp_path, f"{name}/{inner}")
    assert counts(open_folder(tmp_path)) == ({"cats": 1} if "/" in inner else {})
    refused(tmp_path, rf"no split 'test'; it has {name}: use one of these \(evaluate.split=train\)", split="test")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("fit/a/1.png", "fit/b/1.png", "check/a/1.png", "check/b/1.png"), "same folders inside; rename them to train"),
        (("entrenar/a/1.png", "entrenar/b/1.png", "prueba/a/1.png"), "same folders inside; rename them to train"),
        (
            ("train/a/1.png", "test/a/1.png", "holdout/a/1.png"),
            "has holdout with the same folders inside as test, train",
        ),
        (("train/a/1.png", "holdout/a/1.png"), "has holdout with the same folders inside as train; rename it"),
        (("train2017/1.png", "val2017/1.png"), "has train2017, val2017, which look like splits; rename them"),
        (("train/a/1.png", "bus/1.png"), "has train beside bus: a split or a class"),
        (
            ("train/1.png", "test/1.png", "1.png"),
            r"1 images beside its folders of splits \(test, train\), the first 1.png",
        ),
        (("train/1.png", "1.png"), "1 images beside its folders of splits"),
        (("train/1.png", "training/1.png"), "has train and training, which all mean train; make them one folder"),
        (("train/a/1.png", "dev/a/1.png", "valid/a/1.png"), "has dev and valid, which all mean validation"),
        (("pets/train/a/1.png", "pets/test/a/1.png"), "pets has the splits test, train; set data.data_dir=.*pets"),
        (("val/a/1.png", "test/a/1.png"), "no split 'train'; it has val, test"),
    ],
)
def test_what_may_be_a_split_or_not_is_refused(tmp_path, files, message):
    put(tmp_path, *files)
    refused(tmp_path, message)


def test_classes_may_have_names_of_splits_and_folders_alike_may_hold_the_images(tmp_path):
    put(tmp_path / "a", "bus/1.png", "train/1.png", "train/2.png")
    assert counts(open_folder(tmp_path / "a")) == {"bus": 1, "train": 2}
    put(tmp_path / "b", "n01/images/1.png", "n02/images/1.png")  # as Tiny ImageNet has them
    assert counts(open_folder(tmp_path / "b")) == {"n01": 1, "n02": 1}
    put(tmp_path / "c", "train/1.png", "test/1.png", "novel/1.png")
    assert len(open_folder(tmp_path / "c", split="novel")) == 1
    assert "left out  1: 1 in novel/, which is no split" in open_folder(tmp_path / "c").describe()


# Classes


@pytest.mark.parametrize("names", [range(12), ["01", "2", "10"], ["-1", "0", "3"]])
def test_numeric_folders_are_ordered_as_numbers(tmp_path, names):
    names = [str(name) for name in names]
    put(tmp_path, *(f"{name}/1.png" for name in names))
    assert open_folder(tmp_path).class_names == tuple(names)


def test_other_names_stay_in_alphabetical_order(tmp_path):
    put(tmp_path, "a10/1.png", "a9/1.png", "3/1.png")
    assert open_folder(tmp_path).class_names == ("3", "a10", "a9")


def test_the_meaning_of_labels_is_part_of_what_a_resume_compares(tmp_path):
    put(tmp_path, "a/1.png", "b/1.png")
    before = open_folder(tmp_path)
    (tmp_path / "b").rename(tmp_path / "c")
    after = open_folder(tmp_path)
    assert before.info != after.info and before.fingerprint() != after.fingerprint()


@pytest.mark.parametrize(
    ("files", "empty", "message"),
    [
        (("cats/1.png", "dogs/1.png"), "birds/.gitkeep", "birds holds no images; put images"),
        (("cats/1.png",), "birds/1.heic", "birds holds no images, only 1 .heic; put images"),
        (("cats/1.png", "dogs/1.png"), "birds/deep/notes.txt", "birds holds no images, only 1 .txt"),
        (("train/cats/1.png", "test/cats/1.png"), "train/birds/x", "train/birds holds no images"),
    ],
)
def test_an_empty_class_is_refused(tmp_path, files, empty, message):
    put(tmp_path, *files)
    (tmp_path / empty).parent.mkdir(parents=True)
    (tmp_path / empty).touch()
    refused(tmp_path, message)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("cats/1.png", "animals/dogs/1.png"), "at different depths: cats holds images, animals only folders .dogs."),
        (("1.png", "cats/1.png"), "1 images beside its folders of classes"),
        (("train/cats/1.png", "test/cats/1.png", "test/emus/1.png"), "test has a class emus that .*train lacks"),
        (("train/cats/1.png", "test/1.png"), "test has no classes, and .*train has cats; lay out both alike"),
    ],
)
def test_doubtful_classes_are_refused(tmp_path, files, message):
    put(tmp_path, *files)
    refused(tmp_path, message, split="test" if "test" in message else "train")


def test_a_table_beside_folders_of_classes_must_say_the_same_or_be_asked_for(tmp_path):
    put(tmp_path, "cats/1.png", "dogs/1.png")
    table = tmp_path / "labels.csv"
    table.write_text("cats/1.png,cats\ndogs/1.png,dogs\n")
    assert counts(open_folder(tmp_path)) == {"cats": 1, "dogs": 1}
    table.write_text("cats/1.png,red\ndogs/1.png,blue\n")
    refused(tmp_path, "has both labels.csv and folders that may be classes .*data.labels='label' takes the table")
    assert counts(open_folder(tmp_path, labels="label")) == {"blue": 1, "red": 1}
    assert counts(open_folder(tmp_path, labels="folder")) == {"cats": 1, "dogs": 1}
    table.write_text("cats/1.png,cats\n")
    refused(tmp_path, "has both labels.csv and folders")


def test_one_class_alone_is_said(tmp_path):
    put(tmp_path / "a", "cats/1.png")
    assert "note      one class alone" in str(open_folder(tmp_path / "a"))
    put(tmp_path / "b", "photos/cats/1.png", "photos/dogs/1.png")
    assert f"if cats, dogs are the classes, set data.data_dir={tmp_path / 'b/photos'}" in str(
        open_folder(tmp_path / "b")
    )


def test_names_of_files_may_hold_the_class(tmp_path):
    put(tmp_path, "cat_01.jpg", "cat_02.jpg", "dog_01.jpg", "dog_x_2.png")
    hint = 'note      no classes, but all names begin with cat_, dog_: data.labels="filename" makes classes of them'
    assert hint in str(open_folder(tmp_path))
    data = open_folder(tmp_path, labels="filename")
    assert counts(data) == {"cat": 2, "dog": 2} and "from the files' names before the first _" in str(data)
    put(tmp_path, "emu.png")
    refused(tmp_path, "which 1 of the 5 images in .* lack, the first emu.png", labels="filename")


@pytest.mark.parametrize("names", [("IMG_1.png", "IMG_2.png"), ("a_1.png", "b.png"), ("1.png", "2.png")])
def test_no_hint_where_names_hold_no_class(tmp_path, names):
    put(tmp_path, *names)
    assert "note" not in str(open_folder(tmp_path))


# Files


@pytest.mark.parametrize("ending", ["jfif", "tif", "TIFF", "jp2", "avif", "tga", "ppm", "Jpe", "dib", "ico", "apng"])
def test_what_pillow_reads_is_read(tmp_path, ending):
    put(tmp_path, "cats/1.jpg", f"dogs/1.{ending}", size=(16, 16))
    assert counts(open_folder(tmp_path)) == {"cats": 1, "dogs": 1}


def test_files_that_are_left_out_are_counted_by_their_ending(tmp_path):
    put(tmp_path, "cats/1.jpg")
    for name in ("1.heic", "2.HEIC", "a.svg", "b.txt", "noending", "paper.pdf", "film.mp4", ".DS_Store", "x.eps"):
        (tmp_path / "cats" / name).touch()
    (tmp_path / "__MACOSX/cats").mkdir(parents=True)
    left_out = open_folder(tmp_path).understood.left_out
    assert left_out == {
        ".heic": 2, ".svg": 1, ".txt": 1, "without a usual ending": 1, ".pdf": 1, ".mp4": 1, ".eps": 1, "hidden": 2,
    }  # fmt: skip


def test_a_document_with_the_ending_of_an_image_is_not_run(tmp_path):
    (tmp_path / "1.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    refused(tmp_path, "1.png is not an image in any format")


def test_links_lead_to_each_folder_once_and_special_files_are_never_opened(tmp_path):
    root, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    put(root, "cats/1.png", "cats/2.png")
    put(elsewhere, "dogs/1.png")
    (root / "cats/circle").symlink_to(root)
    (root / "cats/up").symlink_to(tmp_path)
    (root / "cats/self").symlink_to("self")
    (root / "again").symlink_to(root / "cats")
    (root / "dogs").symlink_to(elsewhere / "dogs")
    (root / "hounds").symlink_to(elsewhere / "dogs")
    (root / "cats/3.png").symlink_to(elsewhere / "dogs/1.png")
    (root / "cats/gone.png").symlink_to("nowhere.png")
    (root / "cats/zero.png").symlink_to("/dev/zero")
    os.mkfifo(root / "cats/pipe.png")
    socket.socket(socket.AF_UNIX).bind(os.path.relpath(root / "cats/socket.png"))
    data = open_folder(root)
    assert counts(data) == {"cats": 3, "dogs": 1}
    assert data.understood.left_out == {
        "links to folders that are read already": 4, "broken links": 2, "pipes or devices": 3,
    }  # fmt: skip


def test_a_pipe_is_no_table_and_no_control_image(tmp_path):
    put(tmp_path, "1.png")
    for name in ("labels.csv", "captions.jsonl", "metadata.jsonl"):
        os.mkfifo(tmp_path / name)
    assert len(open_folder(tmp_path)) == 1
    (tmp_path / "edges").mkdir()
    os.mkfifo(tmp_path / "edges/1.png")
    refused(tmp_path, "lacks the control images of 1 images", control_image=str(tmp_path / "edges"))


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    put(tmp_path, "cats/1.png", "dogs/1.png")
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("dogs"):
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    refused(tmp_path, "dogs cannot be listed: Permission denied")


@pytest.mark.parametrize(
    "content", [b"", b"<!doctype html><html>404</html>", b"\xff\xd8\xff", b"\0" * 1000, b"RIFF1234WEBP"]
)
def test_a_file_that_is_no_image_is_named_when_the_folder_is_opened(tmp_path, content):
    put(tmp_path, "1.png", "3.png")
    (tmp_path / "2.jpg").write_bytes(content)
    refused(tmp_path, "2.jpg (is not an|cannot be read as an) image", memory_limit=0)


def test_an_image_of_too_many_pixels_is_one_line(tmp_path, monkeypatch):
    put(tmp_path, "1.png", size=(30, 20))
    for limit, message in ((500, "1.png has 600 pixels; at most 500 are read"), (100, "1.png cannot be read .*bomb")):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        refused(tmp_path, message, memory_limit=0)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert len(open_folder(tmp_path)) == 1


@pytest.mark.parametrize("size", [(3000, 10), (10, 3000), (1, 1), (2, 6000)])
def test_extreme_shapes_are_read(tmp_path, size):
    put(tmp_path, "1.png", size=size)
    assert (open_folder(tmp_path).read(np.array([0]))["image"][0, :, :, 0] == 100).all()


# Channels


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 1), ("L", 3), ("RGB", 3), ("L", 1), ("RGB", 0), ("RGBA", 1)])
def test_channels_are_converted(tmp_path, mode, channels):
    put(tmp_path, "1.png", mode=mode)
    wanted = channels or (1 if mode == "L" else 3)
    data = open_folder(tmp_path, channels=channels)
    batch = data.read(np.array([0]))["image"]
    assert data.image_shape == (4, 4, wanted) and batch.shape == (1, 4, 4, wanted) and batch.dtype == np.uint8
    pixel = Image.open(tmp_path / "1.png").convert("L" if wanted == 1 else "RGB").getpixel((0, 0))
    assert batch[0, 0, 0].tolist() == list(np.atleast_1d(pixel))
    assert f"{'grey' if wanted == 1 else 'RGB'}" in data.describe()


def test_channels_of_other_data_sets_are_converted_too(tmp_path):
    data = load("digits", image_size=8, data_dir=str(tmp_path), channels=3)
    assert data.image_shape == (8, 8, 3) and "RGB (made of grey, data.channels=3)" in str(data)
    pixels = data.read(np.arange(5))["image"]
    assert (pixels == pixels[..., :1]).all()
    arrays = from_arrays(pixels, reference_image=pixels).with_channels(1).read(np.arange(2))
    assert arrays["image"].shape == arrays["reference_image"].shape == (2, 8, 8, 1)
    with pytest.raises(InputError, match=r"data.channels=4 must be 1 \(grey\), 3"):
        from_arrays(pixels).with_channels(4)


# Tables


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_labels_csv_in_every_spelling(tmp_path, encoding, separator, end):
    put(tmp_path, "in/1.png", "in/naïve, 2.png")
    for header in ("file,label", "filename,class", "Image,Label", ""):
        rows = [header.replace(",", separator)] * bool(header)
        rows += [f"in\\1.png{separator}größe", f'"./in/naïve, 2.png"{separator} "a, b; c"', ""]
        (tmp_path / "labels.csv").write_bytes(end.join(rows).encode(encoding))
        assert counts(open_folder(tmp_path)) == {"a, b; c": 1, "größe": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1.png,größe\n".encode("latin-1"), "labels.csv line 1 is no CSV text in UTF-8: .*; save it as UTF-8"),
        ("1.png,cat\n1.png,b\xe4r".encode("latin-1"), "labels.csv line 2 is no CSV text in UTF-8"),
        ("1.png,cat".encode("utf-16-le"), "characters of code 0; save it as UTF-8"),
        (b'1.png,"cat', "labels.csv line 1 is no CSV text: unexpected end of data"),
        (b"file,label\n1.png;cat", "labels.csv line 2 is '1.png;cat'; it must be file,label"),
        (b"file;label\n1.png;cat;x", "labels.csv line 2 is '1.png;cat;x'; it must be file;label"),
    ],
)
def test_an_unreadable_table_is_named_with_its_line(tmp_path, content, message):
    put(tmp_path, "1.png")
    (tmp_path / "labels.csv").write_bytes(content)
    refused(tmp_path, message.replace("file;label", "file,label"))


@pytest.mark.parametrize(("on_disk", "in_table"), [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_names_that_differ_in_unicode_composition_are_the_same(tmp_path, on_disk, in_table):
    file, label = "Träume/né.png", "größe"
    put(tmp_path, unicodedata.normalize(on_disk, file))
    listed = unicodedata.normalize(in_table, file)
    (tmp_path / "labels.csv").write_text(f"{listed},{unicodedata.normalize(in_table, label)}\n")
    (tmp_path / "captions.jsonl").write_text(f'{{"file": "{listed}", "caption": "x"}}\n')
    put(tmp_path / "edges", unicodedata.normalize(in_table, file))
    data = open_folder(tmp_path, text="caption", control_image=str(tmp_path / "edges"))
    assert data.class_names == (label,) and len(data) == 1 and data.control_channels == 3


def test_folders_of_one_class_in_two_compositions_are_one_class(tmp_path):
    put(tmp_path, unicodedata.normalize("NFC", "train/Träume/1.png"), unicodedata.normalize("NFD", "test/Träume/1.png"))
    assert counts(open_folder(tmp_path, split="test")) == {"Träume": 1}


HF_1, HF_2 = '{"file_name": "1.png", "text": "one", "id": 7}', '{"file_name": "2.png", "text": "two"}'


@pytest.mark.parametrize(
    ("table", "content", "column"),
    [
        ("metadata.jsonl", f"{HF_1}\n{HF_2}", "caption"),
        ("metadata.jsonl", f"{HF_2}\n{HF_1}", "text"),
        ("metadata.jsonl", f"{HF_2}\n{HF_1}".replace("text", "any name"), "any name"),
        ("metadata.jsonl", f"{HF_2}\n{HF_1}".replace("text", "caption"), "caption"),
        ("metadata.csv", "file_name,text\n1.png,one\n2.png,two", "text"),
        ("metadata.csv", "text;file_name;id\none;1.png;7\ntwo;2.png;8", "caption"),
        ("captions.jsonl", f"{HF_1}\n{HF_2}".replace("file_name", "file").replace("text", "caption"), "caption"),
    ],
)
def test_captions_come_from_any_column_of_any_table(tmp_path, table, content, column):
    put(tmp_path, "1.png", "2.png")
    (tmp_path / table).write_text(content)
    data = open_folder(tmp_path, text=column)
    assert data.read(np.arange(2))["text"].tolist() == ["one", "two"] and "captions" in data.describe()
    assert f"note      {table} has the columns" in open_folder(tmp_path).describe()


def test_a_column_of_labels_gives_classes(tmp_path):
    put(tmp_path, "1.png", "2.png", "3.png")
    lines = ['{"file_name": "1.png", "label": "cat", "kind": 4, "text": "x"}']
    lines += ['{"file_name": "2.png", "label": "dog", "kind": 11, "text": "y"}']
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    data = open_folder(tmp_path, text="text")
    assert counts(data) == {"cat": 1, "dog": 1} and data.understood.left_out == {"not in metadata.jsonl": 1}
    assert data.read(np.arange(2))["text"].tolist() == ["x", "y"]
    assert open_folder(tmp_path, labels="kind").num_classes == 12
    refused(tmp_path, "data.labels='kin' is no column of metadata.jsonl .*did you mean 'kind'", labels="kin")
    refused(tmp_path, "data.text='txt' is no column of metadata.jsonl .*did you mean 'text'", text="txt")
    (tmp_path / "labels.csv").write_text("1.png,a")
    refused(tmp_path, "labels.csv and .*metadata.jsonl both have a column 'label'; remove it from one")


# Control images


def class_map(size):
    image = Image.new("L", size)
    draw = ImageDraw.Draw(image)
    for number in range(1, 9):
        draw.ellipse((8 * number, 3 * number, 8 * number + 30, 3 * number + 40), fill=2 * number + 1)
    return image


@pytest.mark.parametrize("kind", ["ids", "palette", "colours", "sixteen bits", "void"])
def test_maps_of_class_ids_keep_their_values(tmp_path, kind):
    image = class_map((96, 80))
    if kind in ("palette", "colours"):
        image = image.convert("P")
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    if kind == "sixteen bits":
        image = Image.fromarray(np.asarray(image).astype(np.uint16))
    if kind == "void":
        image.paste(255, (0, 0, 20, 20))
    (image.convert("RGB") if kind == "colours" else image).save(tmp_path / "1.png")
    channels = 3 if kind in ("palette", "colours") else 1
    data = (tmp_path / "1.png").read_bytes()
    small = decode_map(data, name="x", size=20, channels=channels)
    plain = np.asarray(image.convert("RGB" if channels == 3 else "L")) if kind != "sixteen bits" else np.asarray(image)
    known = set(map(tuple, plain.reshape(-1, channels)))
    assert set(map(tuple, small.reshape(-1, channels).tolist())) <= known
    if kind != "sixteen bits":
        assert not set(map(tuple, decode(data, name="x", size=20, channels=channels).reshape(-1, channels))) <= known


def test_edges_and_photographs_are_resized_smoothly():
    edges = Image.new("L", (64, 64))
    ImageDraw.Draw(edges).line((0, 0, 63, 40), fill=255)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8))
    ramp = Image.linear_gradient("L")
    tiny = Image.fromarray(np.array([[10, 20], [30, 40]], np.uint8))
    assert [class_ids(image) for image in (edges, noise, ramp, tiny)] == [0] * 4
    assert class_ids(class_map((96, 80))) == 9


def test_how_control_images_are_resized_is_said(tmp_path):
    put(tmp_path / "data", "a/1.png", "b/2.jpg", size=(96, 80))
    for name in ("a/1", "b/2"):
        (tmp_path / "maps" / name).parent.mkdir(parents=True)
        class_map((96, 80)).save(tmp_path / f"maps/{name}.png")
    data = open_folder(tmp_path / "data", control_image=str(tmp_path / "maps"))
    assert "maps of class ids (up to 9 values), resized by nearest neighbour, grey" in data.describe()
    for name in ("a/1", "b/2"):
        Image.linear_gradient("L").resize((96, 80)).save(tmp_path / f"maps/{name}.png")
    assert "maps, resized with a bicubic filter, grey" in str(
        open_folder(tmp_path / "data", control_image=str(tmp_path / "maps"))
    )
    class_map((80, 80)).save(tmp_path / "maps/b/2.png")
    refused(tmp_path / "data", r"2.png has 80x80 pixels and its image 96x80", control_image=str(tmp_path / "maps"))


def test_control_images_may_lie_inside_the_folder_and_beside_any_name_of_a_split(tmp_path):
    put(tmp_path, "a/1.png", "b/1.png", "edges/a/1.png", "edges/b/1.png")
    assert counts(open_folder(tmp_path, control_image=str(tmp_path / "edges"))) == {"a": 1, "b": 1}
    put(tmp_path / "s", "train/a/1.png", "valid/a/1.png", "edges/train/a/1.png", "edges/val/a/1.png")
    for split in ("train", "validation"):
        data = open_folder(tmp_path / "s", control_image=str(tmp_path / "s/edges"), split=split)
        assert len(data) == 1 and data.control_channels == 3


def test_headers_are_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for ending in ("jpg", "png", "webp"):
        Image.new("RGB", (30, 20)).save(tmp_path / f"1.{ending}", exif=exif)
        with (tmp_path / f"1.{ending}").open("rb") as file:
            assert read_header(file, "x") == images.Header((20, 30), False)


# What is printed


def test_the_block_of_every_kind_of_data_set(tmp_path):
    digits = str(load("digits", image_size=8, data_dir=str(tmp_path)))
    assert "splits    train (1500), test (297); this is train" in digits
    assert "classes   10: 0 (149), 1 (152)" in digits and "images    8x8, grey" in digits
    pixels = np.zeros((2, 8, 8, 3), np.uint8)
    controlled = str(from_arrays(pixels, reference_image=pixels, control_image=pixels[..., :1]))
    assert "classes   none" in controlled and "control   with each image, grey" in controlled
    assert "reference an image of the same style with each" in controlled
    many = from_arrays(np.zeros((1000, 2, 2, 3), np.uint8), np.arange(1000), name="many\nnames")
    first, second = str(many).splitlines()[:2]
    assert first == "data      many\\nnames: 1000 images"
    assert second == "classes   1000: 0 (1), 1 (1), 2 (1), 3 (1), ... 996 more, of 1 to 1 images"


def test_commands_print_the_block_and_refuse_in_one_line(tmp_path, capsys):
    put(tmp_path / "data", "train/cats/1.png", "train/dogs/1.png", "valid/dogs/1.png", size=(12, 12))
    (tmp_path / "data/train/notes.txt").touch()
    flags = ["main.py", "--config=default", *TINY, f"--workdir={tmp_path / 'w'}"]
    flags += [f"--config.data.data_dir={tmp_path / 'data'}"]
    # The batch is refused after the data set was opened and before anything is compiled.
    assert main([*flags, "--config.train.batch_size=3", "--config.train.accumulate=2"]) == 2
    out, err = capsys.readouterr()
    assert "classes   2: cats (1), dogs (1), from the folders' names" in out and "left out  1: 1 .txt" in out
    assert "12x12, cropped to the centre and scaled to 32x32, the smaller ones enlarged; RGB" in out
    assert len(err.splitlines()) == 1
    (tmp_path / "data/train/cats/2.jpg").write_text("<html>")
    assert main(flags) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and "2.jpg is not an image" in err


def test_a_bomb_leaves_one_line_on_the_terminal(tmp_path):
    Image.new("1", (12_000, 9_000)).save(tmp_path / "1.png")
    code = f"import guided_diffusion_jax as gd; gd.data.folder({str(tmp_path)!r}, image_size=8)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].endswith("make it smaller") and "Warning" not in done.stderr


# Anything


def test_random_folders_are_read_as_stated_or_refused():
    outcomes = fuzz_folders.run(25, seed=7)
    assert min(outcomes["read"], outcomes["refused"]) >= 4


@pytest.mark.slow
def test_many_random_folders_are_read_as_stated_or_refused():
    assert sum(fuzz_folders.run(300, seed=100).values()) == 300
