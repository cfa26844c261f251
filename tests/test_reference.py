"""Files of samples and reference batches: what is read, in how little memory, and what is refused."""

import io
import tracemalloc
import zipfile

import numpy as np
import pytest

from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.evaluation.fid import frechet_distance
from guided_diffusion_jax.evaluation.moments import gaussian, moments
from guided_diffusion_jax.evaluation.reference import blocks, reference, samples

PICTURES = np.random.default_rng(0).integers(0, 256, (11, 4, 5, 3), np.uint8)
FLOATS = PICTURES.astype(np.float32) / 255


@pytest.fixture
def saved(tmp_path):
    def save(*arrays, writer=np.savez_compressed, **named):
        writer(tmp_path / "file.npz", *arrays, **named)
        return tmp_path / "file.npz"

    return save


@pytest.mark.parametrize("writer", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("size", [1, 4, 11, 256])
def test_blocks_are_the_images_in_their_order(saved, writer, size):
    found = samples(saved(PICTURES, np.arange(11), writer=writer), expected_shape=(4, 5, 3))
    parts = list(blocks(found, size))
    assert {len(part) for part in parts[:-1]} <= {size}
    np.testing.assert_array_equal(np.concatenate(parts), PICTURES)
    assert found.shape == (11, 4, 5, 3) and found.labels.tolist() == list(range(11))


def test_no_more_than_a_block_is_in_memory(saved):
    path = saved(np.zeros((1000, 32, 32, 3), np.uint8))
    tracemalloc.start()
    assert sum(len(block) for block in blocks(samples(path), 10)) == 1000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1000 * 32 * 32 * 3 / 4


def test_a_reference_batch_may_hold_images_statistics_or_both(saved):
    random = np.random.default_rng(1)
    pooled, spatial = (gaussian(moments(random.normal(size=(20, d)))) for d in (6, 3))
    of_pooled = {"mu": pooled.mean, "sigma": pooled.covariance.astype(np.float32)}
    of_spatial = {"mu_s": spatial.mean, "sigma_s": spatial.covariance}

    alone = reference(saved(**of_pooled))
    assert alone.samples is None and alone.spatial is None
    assert frechet_distance(alone.pooled, pooled) == pytest.approx(0, abs=1e-6)

    both = reference(saved(PICTURES, **of_pooled, **of_spatial))
    assert both.samples.shape == PICTURES.shape and both.samples.labels is None
    np.testing.assert_array_equal(both.spatial.covariance, spatial.covariance)

    pictures = reference(saved(PICTURES))
    assert pictures.pooled is None and next(blocks(pictures.samples, 2)).shape == (2, 4, 5, 3)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": PICTURES}, r"holds no arr_0 \(uint8 \[n h w c\]\) but x; save images"),
        ({"arr_0": FLOATS}, r"arr_0 is float32; it must be uint8 in 0 .. 255: of floats in \[-1, 1\] save"),
        ({"arr_0": PICTURES.astype(np.int64)}, "arr_0 is int64"),
        ({"arr_0": np.array([None, 1])}, "arr_0 is object"),
        ({"arr_0": PICTURES.transpose(0, 3, 1, 2).copy()}, r"\(11, 3, 4, 5\); it must be \[n h w c\] with the 1 or 3"),
        ({"arr_0": np.zeros((5, 4, 4, 4), np.uint8)}, "1 or 3 channels last"),
        ({"arr_0": PICTURES[0]}, r"shape \(4, 5, 3\); it must be \[n h w c\]"),
        ({"arr_0": PICTURES[:0]}, r"\(0, 4, 5, 3\), no images; it must hold 1"),
        ({"arr_0": PICTURES[:, :3]}, r"images are \(3, 5, 3\) .* but \(4, 5, 3\) is expected"),
        ({"arr_0": np.asfortranarray(PICTURES)}, "Fortran's order; save np.ascontiguousarray"),
        ({"arr_0": PICTURES, "arr_1": np.zeros(10, int)}, r"arr_1 is int64 \(10,\); .* each of 11 images"),
        ({"arr_0": PICTURES, "arr_1": np.zeros(11)}, r"arr_1 is float64 \(11,\)"),
    ],
)
def test_images_that_cannot_be_used_are_refused(saved, arrays, message):
    path = saved(**arrays)
    with pytest.raises(InputError, match=message) as caught:
        samples(path, expected_shape=(4, 5, 3))
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": PICTURES}, "holds neither images .* but x; use a reference batch"),
        ({"mu": np.zeros(3)}, "holds mu but no sigma; both"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"mu has shape \(3,\) and sigma \(4, 4\)"),
        ({"mu_s": np.zeros(2), "sigma_s": np.full((2, 2), np.inf)}, "mu_s and sigma_s are .* all finite"),
    ],
)
def test_statistics_that_cannot_be_used_are_refused(saved, arrays, message):
    with pytest.raises(InputError, match=message):
        reference(saved(**arrays))


def buffer(**arrays):
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def zipped(**members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"no archive", "is no .npz of plain arrays, or a damaged one"),
        (npy(PICTURES), "is no .npz"),
        (buffer(arr_0=PICTURES)[:-200], "is no .npz"),
        (zipped(arr_0=b"no array"), "is no .npz"),
        (zipped(arr_0=b""), "is no .npz"),
        (zipped(), "holds no arr_0 .* but nothing"),
        (zipped(arr_0=npy(PICTURES)[:-100]), "arr_0 ends within images 8 .. 10 of 11; make the file again"),
        (buffer(arr_0=PICTURES).replace(PICTURES[5].tobytes(), PICTURES[6].tobytes()), "is no .npz .* CRC"),
    ],
)
def test_damaged_files_are_refused(tmp_path, content, message):
    path = tmp_path / "file.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(blocks(samples(path), 4))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.npz is no file"):
        samples(tmp_path / "nothing.npz")
