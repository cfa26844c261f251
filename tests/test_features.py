"""Feature extractors give the numbers of torch-fidelity and transformers, and say which weights they have."""

import hashlib
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import torch_files
from conftest import relative_error
from golden.features import formula

from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.evaluation.features import dinov2_weights, inception_weights, pretrained, resize, weights
from guided_diffusion_jax.evaluation.features import inception as v3
from guided_diffusion_jax.interop import files
from guided_diffusion_jax.interop.pickled import LazyTensor

BLOCKS = {"64": "MaxPool_1", "192": "MaxPool_2", "768": "Mixed_6e"}


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch_files.write(path, formula.state_dict(inception_weights.shapes()))
    return path


@pytest.fixture
def dinov2_file(tmp_path, golden):
    path = tmp_path / "model.safetensors"
    files.write(path, formula.state_dict(golden("features/dinov2").config["shapes"]))
    return path


@pytest.fixture
def dinov2(dinov2_file):
    return pretrained.dinov2(dinov2_file)


# Resizing


def tf1(image, size):
    """TensorFlow 1's rule, pixel by pixel in float64; image [h w]."""
    h, w = image.shape
    out = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            y, x = i * h / size, j * w / size
            y0, x0 = int(np.floor(y)), int(np.floor(x))
            y1, x1, dy, dx = min(y0 + 1, h - 1), min(x0 + 1, w - 1), y - y0, x - x0
            top = image[y0, x0] * (1 - dx) + image[y0, x1] * dx
            out[i, j] = top * (1 - dy) + (image[y1, x0] * (1 - dx) + image[y1, x1] * dx) * dy
    return out


@pytest.mark.parametrize(("h", "w"), [(8, 13), (32, 32), (64, 48)])
def test_bilinear_resizing_is_tensorflow_1s_formula_and_torch_fidelitys(golden, h, w):
    images = formula.pictures("resize", 1, h, w, 1)
    ours = resize.bilinear_tf1(jnp.asarray(images, jnp.float32), 47)
    np.testing.assert_allclose(ours, golden("features/inception")[f"resize/{h}x{w}"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(ours[0, ..., 0], tf1(images[0, ..., 0].astype(np.float64), 47), rtol=0, atol=1e-3)


def test_bilinear_resizing_to_the_same_size_changes_nothing():
    images = jnp.asarray(formula.pictures("same", 1, 47, 47), jnp.float32)
    np.testing.assert_array_equal(resize.bilinear_tf1(images, 47), images)


def test_inceptions_input_is_between_minus_one_and_one():
    images = np.stack([np.zeros((5, 5, 3), np.uint8), np.full((5, 5, 3), 255, np.uint8)])
    seen = v3.preprocess(jnp.asarray(images))
    assert seen.shape == (2, 299, 299, 3)
    np.testing.assert_array_equal(seen[0], -1)
    np.testing.assert_array_equal(seen[1], 127 / 128)


@pytest.mark.parametrize(("h", "w"), [(32, 32), (300, 260), (224, 50)])
def test_bicubic_resizing_is_pillows(h, w):
    (image,) = formula.pictures("bicubic", 1, h, w)
    theirs = PIL.Image.fromarray(image)
    for size in ((224, h), (224, 224)):  # one call a direction: which one comes first depends on Pillow's version
        theirs = theirs.resize(size, PIL.Image.Resampling.BICUBIC)
    difference = np.abs(
        np.asarray(resize.bicubic_8bit(jnp.asarray(image[None], jnp.float32), 224)[0]) - np.asarray(theirs, np.int32)
    )
    # Pillow's weights have 22 bits, so that a half may fall to either side.
    assert difference.max() <= 1 and np.mean(difference > 0) < 2e-3


@pytest.mark.parametrize("size", [5, 16, 37, 50])
def test_the_bicubic_matrix_keeps_what_is_constant_or_symmetric(size):
    matrix = resize.bicubic_grid(37, size)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-12)
    if size == 37:
        np.testing.assert_allclose(matrix, np.eye(37), atol=1e-12)


# InceptionV3


def blocks(path, size):
    """The outputs that torch-fidelity has, by its names."""
    images = jnp.asarray(formula.pictures("inception", 2, 150, 171))
    params = inception_weights.load(path).params
    out = jax.jit(lambda params, x: v3.InceptionV3().apply({"params": params}, x))(params, v3.preprocess(images, size))
    means = {theirs: out.maps[ours].mean((1, 2)) for theirs, ours in BLOCKS.items()}
    return {**means, "2048": out.pool, "spatial": out.spatial} | {
        name: getattr(out, name) for name in ("logits", "logits_unbiased")
    }


def errors_of(ours, data, size):
    flat = {name: data[f"{size}/{name}"].reshape(2, -1) for name in ours}
    return {name: relative_error(array, flat[name]) for name, array in ours.items()}


def test_every_block_of_inception_gives_torch_fidelitys_numbers(golden, inception_file):
    errors = errors_of(blocks(inception_file, 139), golden("features/inception"), 139)
    assert len(errors) == 7 and max(errors.values()) <= 1e-4, errors


@pytest.mark.slow
def test_the_inception_extractor_gives_torch_fidelitys_features_at_the_standards_size(golden, inception_file):
    data, images = golden("features/inception"), jnp.asarray(formula.pictures("inception", 2, 150, 171))
    for bias, logits in ((False, "logits_unbiased"), (True, "logits")):
        out = pretrained.inception(inception_file, bias=bias).apply(images)
        errors = errors_of({"2048": out.pool, "spatial": out.spatial, logits: out.logits}, data, 299)
        assert out.spatial.shape == (2, 2023) and max(errors.values()) <= 1e-4, errors
    errors = errors_of(blocks(inception_file, 299), data, 299)
    assert max(errors.values()) <= 1e-4, errors


def test_the_name_tells_whether_the_weights_are_the_standards(inception_file, monkeypatch):
    begins = hashlib.sha256(inception_file.read_bytes()).hexdigest()[:8]
    name = pretrained.inception(inception_file).name
    assert name == f"InceptionV3, weights {begins} (NOT the FID standard's 6726825d)"
    monkeypatch.setattr(inception_weights, "STANDARD", begins)
    assert pretrained.inception(inception_file).name == f"InceptionV3, weights {begins} (the FID standard)"


def test_the_first_wrong_tensor_is_named_with_both_digests(tmp_path):
    first, second, *_ = inception_weights.shapes()
    path = tmp_path / "weights.pth"
    torch_files.write(path, {first: np.zeros((32, 3, 3, 3), np.float32)})
    begins = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    with pytest.raises(InputError, match=f"{second} is missing; .* begins with 6726825d, .* begins with {begins}"):
        pretrained.inception(path)
    torch_files.write(path, {first: np.zeros((32, 3, 5, 5), np.float32)})
    with pytest.raises(
        InputError, match=r"1a_3x3.conv.weight has the shape \(32, 3, 5, 5\) instead of \(32, 3, 3, 3\)"
    ):
        pretrained.inception(path)


def test_tensors_that_the_network_has_not_are_refused_except_counters():
    def given(*names):
        return {name: LazyTensor((2,), lambda: np.zeros(2)) for name in names}

    def check(*names):
        weights.check("w.pth", given(*names), {"a": (2,)}, unused=r".*\.num_batches_tracked", advice="take another")

    check("a")
    check("a", "b.num_batches_tracked")
    with pytest.raises(InputError, match=r"w.pth: tensor AuxLogits.fc.weight is not known; take another"):
        check("a", "AuxLogits.fc.weight")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    for build in (pretrained.inception, pretrained.dinov2):
        with pytest.raises(InputError, match=r"nothing.pth is no file"):
            build(tmp_path / "nothing.pth")


# DINOv2


def test_dinov2_gives_transformers_class_token(golden, dinov2):
    out = dinov2.apply(jnp.asarray(formula.pictures("dinov2", 2, 224, 224)))
    assert relative_error(out.pool, golden("features/dinov2")["class_token"]) <= 1e-4
    assert out.spatial is None and out.logits is None


def test_dinov2s_sizes_are_those_of_the_weights(dinov2_file):
    shape, loaded = dinov2_weights.load(dinov2_file)
    assert shape == (128, 2, 512, 14)
    digest = hashlib.sha256(dinov2_file.read_bytes()).hexdigest()[:8]
    assert loaded.standard is None
    assert pretrained.dinov2(dinov2_file).name == f"DINOv2 ViT-128x2/14, weights {digest}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embeddings.register_tokens": np.zeros((1, 4, 128))}, "register_tokens is not known"),
        ({"encoder.layer.1.norm2.bias": None}, "encoder.layer.1.norm2.bias is missing"),
        ({"encoder.layer.0.mlp.fc1.weight": None}, "encoder.layer.0.mlp.fc1.weight is missing"),
        ({"embeddings.cls_token": np.zeros((1, 1, 100))}, "100 channels, no multiple of 64"),
        ({"encoder.layer.1.mlp.fc2.bias": np.zeros(64)}, r"fc2.bias has the shape \(64,\) instead of \(128,\)"),
        ({"embeddings.position_embeddings": np.zeros((1, 12, 128))}, r"\(1, 12, 128\) instead of \(1, 10, 128\)"),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path, golden, change, message):
    tensors = formula.state_dict(golden("features/dinov2").config["shapes"]) | change
    path = tmp_path / "model.safetensors"
    files.write(path, {name: array for name, array in tensors.items() if array is not None})
    with pytest.raises(InputError, match=message):
        dinov2_weights.load(path)


# All extractors


def test_grey_images_are_three_equal_channels(dinov2):
    grey = formula.pictures("grey", 1, 20, 20, 1)
    np.testing.assert_array_equal(
        dinov2.apply(jnp.asarray(grey)).pool, dinov2.apply(jnp.asarray(np.repeat(grey, 3, axis=-1))).pool
    )


def test_an_extractor_works_inside_jit_and_treats_each_image_alone(dinov2):
    images = jnp.asarray(formula.pictures("alone", 3, 20, 20))
    together = jax.jit(lambda apply, images: apply(images))(dinov2.apply, images)
    alone = dinov2.apply(images[1:2])
    assert relative_error(together.pool[1:2], alone.pool) <= 1e-5


@pytest.mark.parametrize(
    ("images", "message"),
    [(np.zeros((1, 8, 8, 2), np.uint8), "2 channels"), (np.zeros((1, 8, 8, 4), np.uint8), "4 channels")],
)
def test_images_that_are_neither_grey_nor_rgb_are_refused(dinov2, images, message):
    with pytest.raises(InputError, match=message):
        dinov2.apply(jnp.asarray(images))


SHARDED = """
import sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from golden.features import formula
from guided_diffusion_jax.evaluation.features import pretrained
apply = pretrained.dinov2(sys.argv[1]).apply
images = formula.pictures("sharded", 4, 20, 20)
over = NamedSharding(Mesh(np.array(jax.devices()), ("b",)), P("b"))
spread = apply(jax.device_put(images, over)).pool
assert len(jax.devices()) == 4 and spread.sharding.is_equivalent_to(over, 2), spread.sharding
np.testing.assert_allclose(spread, apply(jax.device_put(images, jax.devices()[0])).pool, rtol=0, atol=1e-5)
"""


@pytest.mark.slow
def test_a_sharded_batch_gives_sharded_features(dinov2_file):
    here = os.path.dirname(__file__)
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "PYTHONPATH": here}
    command = [sys.executable, "-c", SHARDED, str(dinov2_file)]
    done = subprocess.run(command, cwd=os.path.dirname(here), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
