"""Images given at sampling: what belongs together has one shape, and masks are black and white."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from guided_diffusion_jax.data.images import decode_map
from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.inputs import check_same_part, image_rows, mask_rows


def save(path, size, orientation=1, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size, (9, 99, 199)).save(path, exif=exif, **options)
    return str(path)


@pytest.mark.parametrize(
    ("photo", "mask", "orientation", "message"),
    [
        ((64, 32), (32, 32), 1, r"has 32x32 pixels and image=.*photo.jpg has 64x32"),
        ((64, 32), (32, 64), 1, r"has 32x64 pixels and image=.*photo.jpg has 64x32"),
        ((64, 32), (64, 32), 6, r"has 64x32 pixels and image=.*photo.jpg has 32x64"),
        ((1000, 667), (500, 375), 1, r"has 500x375 pixels and image=.*photo.jpg has 1000x667"),
        ((64, 32), (32, 64), 8, None),
        ((64, 32), (64, 32), 3, None),
        ((1000, 667), (500, 333), 1, None),
        ((64, 32), (16, 8), 1, None),
    ],
)
@pytest.mark.parametrize("name", ["inpaint_mask", "control_image", "regions[1]"])
def test_files_that_belong_together_have_one_aspect_ratio(tmp_path, photo, mask, orientation, message, name):
    given = {"image": save(tmp_path / "photo.jpg", photo, orientation), name: save(tmp_path / "mask.png", mask)}
    if message is None:
        check_same_part(given)
        return
    with pytest.raises(InputError, match=message) as error:
        check_same_part(given)
    assert str(error.value).startswith(name) and "same aspect ratio" in str(error.value)
    check_same_part({**given, "image": np.zeros((8, 8, 3))})  # arrays have the model's shape


@pytest.mark.parametrize("quality", [10, 50, 75, 95])
@pytest.mark.parametrize("size", [(16, 16), (32, 32), (40, 20)])
def test_masks_of_jpeg_are_black_and_white(tmp_path, capsys, quality, size):
    pixels = np.zeros((size[1], size[0]), np.uint8)
    pixels[:, size[0] // 2 :] = 255
    pixels[:5, :5] = 255  # an edge inside the blocks of 8 that JPEG has
    Image.fromarray(pixels).save(tmp_path / "mask.jpg", quality=quality)
    hard = mask_rows("inpaint_mask", str(tmp_path / "mask.jpg"), (16, 16, 3), 2, soft=False)
    printed = capsys.readouterr().out
    assert set(np.unique(hard)) == {0, 1} and hard.shape == (2, 16, 16, 1)
    assert "of its pixels that were grey are made black or white" in printed and "soft_mask=True" in printed
    soft = mask_rows("inpaint_mask", str(tmp_path / "mask.jpg"), (16, 16, 3), 2, soft=True)
    assert ((soft > 0) & (soft < 1)).any() and np.abs(soft - hard).max() <= 0.5
    assert "grey" not in capsys.readouterr().out


def test_masks_that_are_black_and_white_or_numbers_stay_as_they_are(tmp_path, capsys):
    pixels = (np.arange(256).reshape(16, 16) % 3 == 0) * np.uint8(255)
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    expected = pixels[None, ..., None] / np.float32(255)
    for mask in (str(tmp_path / "mask.png"), tmp_path / "mask.png", pixels, pixels > 0, pixels / 255):
        np.testing.assert_allclose(mask_rows("m", mask, (16, 16, 3), 1, soft=False), expected, atol=1e-6)
    assert "grey" not in capsys.readouterr().out
    gradient = np.linspace(0, 1, 256).reshape(16, 16)
    np.testing.assert_allclose(mask_rows("m", gradient, (16, 16, 3), 1, soft=False)[0, ..., 0], gradient, atol=1e-6)
    assert set(np.unique(mask_rows("m", np.uint8(gradient * 255), (16, 16, 3), 1, soft=False))) == {0, 1}


def test_a_photograph_is_measured_upright(tmp_path, capsys):
    image_rows("image", save(tmp_path / "1.jpg", (64, 32), 6), (16, 16, 3), 1)
    assert "32x64 pixels, made 16x16" in capsys.readouterr().out


def test_a_map_of_class_ids_is_resized_as_in_training(tmp_path):
    ids = np.kron(np.arange(16).reshape(4, 4), np.ones((9, 9))).astype(np.uint8)
    Image.fromarray(ids).save(tmp_path / "map.png")
    rows = image_rows("control_image", str(tmp_path / "map.png"), (10, 10, 1), 1, exact=True, decoder=decode_map)
    assert set(np.round((rows + 1) * 127.5).astype(int).ravel()) <= set(range(16))


@pytest.mark.parametrize("kind", ["pipe", "folder", "broken link", "device"])
def test_what_is_no_file_is_refused_without_waiting(tmp_path, kind):
    path = tmp_path / "photo.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"device": "/dev/zero"}.get(kind, "nowhere"))
    for use in (lambda: image_rows("image", path, (8, 8, 3), 1), lambda: check_same_part({"image": Path(path)})):
        with pytest.raises(InputError, match=r"photo\.png is no file"):
            use()
