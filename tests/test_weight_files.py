"""Hostile and foreign files of weights; prefixes; the null row; the order of clipping. `fuzz_weights.py` has more."""

import os
import time

import hostile_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hostile_weights import FOREIGN, NAMES, PT, SAFETENSORS, SPECIAL
from jax.tree_util import Partial

import guided_diffusion_jax as gd
from guided_diffusion_jax import codecs, sharding
from guided_diffusion_jax.errors import InputError, one_line, report
from guided_diffusion_jax.generation import Generator, Guide, Request
from guided_diffusion_jax.guidance import WeightSchedule
from guided_diffusion_jax.interop import adm, files, infer

SIZE = 8
UNET = gd.models.UNet(
    width=32, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(), head_width=32, num_classes=4
)
GIVEN = {"image_size": SIZE, "head_width": 32}


def refusal(path):
    """The one line with which a file is refused, which begins with its name."""
    start = time.thread_time()  # of this thread: another may still be writing a checkpoint
    with pytest.raises(InputError) as error:
        adm.load(path, **GIVEN)
    said = str(error.value)
    assert said.startswith(str(path)[:40]) and said.isprintable() and len(said) <= 293
    assert time.thread_time() - start < 5
    return said


SMALL = [
    "number of 4 MB, LONG4", "number of 4000 digits, INT", "shape that is a list of lists", "strides that are a text",
    "billion laughs", "billion laughs as shape", "billion laughs as key", "tuples 300,000 deep",
    "tuples 300,000 deep as key", "a dict in itself", "marks 2 million", "memo index 2^29", "text that claims 2^63",
    "a name of control characters", "calls os.system", "calls os.system, protocol 4", "a pickle after the pickle",
    "a name that comes twice", "strides of 2^62", "stride 0 and 10^12 numbers", "a shape of 0 x 2^62",
    "complex numbers", "ADM's names, one shared number", "ADM's names, scalars", "ADM's names, empty shapes",
    "block number 999999999", "block number of 4000 digits", "100 blocks", "integers as weights",
    "an entry that comes twice", "an entry that claims 4 GB", "an entry at another's place", "an encrypted entry",
    "a directory of 2^60 bytes, zip64", "bytes before the archive", "an empty file",
]  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_a_hostile_torch_file_is_refused_in_one_line(tmp_path, name):
    PT[name](tmp_path / "a.pt")
    refusal(tmp_path / "a.pt")


@pytest.mark.parametrize("name", [name for name in SAFETENSORS if "MB" not in name])
def test_a_hostile_safetensors_file_is_refused_in_one_line(tmp_path, name):
    SAFETENSORS[name](tmp_path / "a.safetensors")
    refusal(tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", SPECIAL)
def test_what_cannot_be_read_to_its_end_is_no_file(tmp_path, name):
    SPECIAL[name](tmp_path / "a.pt")
    assert "is no file" in refusal(tmp_path / "a.pt")


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_file_is_recognized(tmp_path, name):
    ending, expected, write = FOREIGN[name]
    write(tmp_path / f"a{ending}")
    assert expected in refusal(tmp_path / f"a{ending}")


def weights(unet=UNET, seed=0):
    """ADM's tensors of a network with random numbers."""
    shapes = jax.eval_shape(lambda: gd.models.init_params(unet, jax.random.key(0), (SIZE, SIZE, 3)))
    draw = np.random.default_rng(seed)
    params = jax.tree.map(lambda leaf: 0.1 * draw.normal(size=leaf.shape).astype(np.float32), shapes)
    return adm.state_dict_from_params(unet, params, image_size=SIZE, attention_order="legacy")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "a.safetensors"
    files.write(path, weights())
    return path


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_numbers_that_are_not_finite_are_named(tmp_path, bad):
    changed = weights()
    changed["out.2.bias"] = np.array([0, bad, 0])
    files.write(tmp_path / "a.safetensors", changed)
    assert "out.2.bias holds numbers that are not finite" in refusal(tmp_path / "a.safetensors")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "ema_model.module.", "any/thing: "])
def test_any_prefix_of_all_names_is_stripped_and_said(tmp_path, prefix):
    files.write(tmp_path / "a.safetensors", {prefix + name: array for name, array in weights().items()})
    with pytest.warns(UserWarning, match="all names of tensors begin with"):
        assert adm.load(tmp_path / "a.safetensors", **GIVEN).model == UNET


@pytest.mark.parametrize("other", ["module.control_model.", "model.diffusion_model.", "lora_unet."])
def test_a_prefix_that_belongs_to_another_network_is_not_stripped(tmp_path, other):
    files.write(tmp_path / "a.safetensors", {other + name: array for name, array in weights().items()})
    assert "it seems to be" in refusal(tmp_path / "a.safetensors")


@pytest.mark.parametrize("shape", [(), (3,), (0, 0), (2**40, 2**40, 3, 3)])
def test_shapes_of_any_kind_tell_something_or_nothing(shape):
    for names in (NAMES, NAMES[:4], ["input_blocks.", "middle_block.", "out.3.weight"]):
        for kind in ("unet", "classifier"):
            assert infer.published(dict.fromkeys(names, shape), kind) is None


# --- the null row


def test_a_row_of_the_class_embedding_is_the_null_class_there_and_back(file, tmp_path):
    loaded = adm.load(file, **GIVEN, null_label=1)
    assert loaded.model == UNET.clone(num_classes=3)
    rows = loaded.params["embedding"]["label"]["rows"]["embedding"]
    np.testing.assert_array_equal(rows, weights()["label_emb.weight"][[0, 2, 3, 1]])
    adm.save(tmp_path / "b.safetensors", loaded.model, loaded.params, image_size=SIZE, null_label=1)
    with files.opened(tmp_path / "b.safetensors") as tensors:
        for name, array in weights().items():
            np.testing.assert_array_equal(np.asarray(tensors[name]), array)


@pytest.mark.parametrize("null_label", [4, -1, 2**70, True])
def test_what_is_no_row_is_refused(file, null_label):
    with pytest.raises(InputError, match=r"is no row of the class embedding, which has 4; use 0 to 3"):
        adm.load(file, **GIVEN, null_label=null_label)


def test_a_network_without_classes_has_no_null_row(tmp_path):
    files.write(tmp_path / "a.safetensors", weights(UNET.clone(num_classes=0)))
    with pytest.raises(InputError, match=r"null_label=0 is no row of the class embedding, which has 0; leave it out"):
        adm.load(tmp_path / "a.safetensors", **GIVEN, null_label=0)


@pytest.fixture(scope="module")
def plain(file):
    """The network with four classes and no trained null."""
    return gd.load(file, head_width=32, image_size=SIZE, mesh=sharding.mesh(1))


def test_guidance_away_from_a_trained_null_row_is_exact(file, plain):
    how = {"steps": 2, "seed": 5}
    with_null = gd.load(file, head_width=32, image_size=SIZE, null_label=1, mesh=sharding.mesh(1))
    images = with_null(labels=[0, 1, 2], weight=2.0, **how)
    by_hand = plain.request(labels=[0, 2, 3], weight=0.0, **how)
    labels, null = np.array([0, 2, 3], np.int32), np.full(3, 1, np.int32)
    by_hand = by_hand._replace(branches=({"label": labels},), null={"label": null}, weights=(2.0,))
    np.testing.assert_array_equal(images, plain.generate(by_hand))


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"labels": [1], "weight": 2.0}, "weight=2.0 needs a null class"),
        ({"labels": [1], "weight": -1.0}, "weight=-1.0 needs a null class"),
        ({"labels": [1], "guidance_scale": 3.0}, "needs a null class"),
        ({"labels": [1], "weight": WeightSchedule(np.array([0.0, 9.0]), np.array([0.0, 1.0]))}, "needs a null class"),
        ({"labels": [1], "weights": {"label": 2.0}}, "needs a null class"),
        ({"labels": [1], "weight": 0.0, "guidance": "cfg", "weights": {"label": 1.0}}, "needs a null class"),
        ({"count": 2}, "labels is missing: an image without conditions needs a null class"),
    ],
)
def test_guidance_away_from_an_untrained_null_is_refused(plain, wishes, message):
    with pytest.raises(InputError, match=message):
        plain.request(**wishes)


def test_a_request_whose_weight_is_changed_is_refused_too(plain):
    request = plain.request(labels=[1])
    assert request.weights == (0.0,)
    with pytest.raises(InputError, match="needs a null class"):
        plain.generate(request.with_weight(1.0))


# --- the order of clipping


@pytest.mark.parametrize("clip", [True, "last", "before_classifier", False])
def test_the_predicted_image_is_clipped_after_or_before_the_classifiers_shift(clip):
    """With eps = 0 and a constant gradient g the last step gives x / alpha + w sigma^2 / alpha g, clipped where."""
    process, gradient = gd.Process(gd.schedules.cosine(100)), 3.0

    def log_prob(label, x, level):
        return gradient * jnp.sum(x, axis=(1, 2, 3))

    levels = jax.tree.map(lambda column: jnp.asarray(column)[jnp.array([1, 2])], process.trajectory(2, "linspace"))
    request = Request(
        key=jax.random.key(0), indices=jnp.arange(2), branches=(), null={}, weights=(),
        interval=jnp.array([-jnp.inf, jnp.inf]), levels=levels,
        guides=(Guide(Partial(log_prob), jnp.zeros(2, jnp.int32), 0.5),),
    )  # fmt: skip
    generator = Generator(lambda params, x, time, conditions: 0 * x, process, codecs.pixels((4, 4, 1)), clip)
    start = Generator(lambda params, x, time, conditions: 0 * x, process, codecs.pixels((4, 4, 1)), False)
    alpha, sigma = levels.alpha[0], levels.sigma[0]
    shift = 0.5 * sigma**2 / alpha * gradient
    x0 = start.latents({}, request) - shift
    expected = {
        "last": jnp.clip(x0 + shift, -1, 1),
        "before_classifier": jnp.clip(x0, -1, 1) + shift,
        False: x0 + shift,
    }["last" if clip is True else clip]
    np.testing.assert_allclose(generator.latents({}, request), expected, atol=1e-5)


def test_another_order_is_refused():
    generator = Generator(lambda *_: None, gd.Process(gd.schedules.cosine(10)), codecs.pixels((4, 4, 1)), "first")
    with pytest.raises(InputError, match=r"clip='first' is not one of last, before_classifier"):
        generator.latents({}, Request(None, jnp.arange(1), (), {}, (), jnp.zeros(2), None))


# --- messages


@pytest.mark.parametrize(
    "text",
    ["x" * 50_000_000, "\x00\x1b[31m\x07" * 99, "a\r\nb\tc\u2028d", "\udcff\u202e\ufeff" * 50, "猫 кот é", "one"],
)
def test_every_error_is_one_line_of_300_printable_characters(text, capsys):
    said = str(InputError(text))
    assert said.isprintable() and len(said) <= 293 and report(InputError(text)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable() and len(line) <= 300 and line.startswith("error: ")


def test_a_long_message_keeps_its_beginning_and_its_end():
    said = one_line(f"the value {'x' * 1000}; the remedy")
    assert said.startswith("the value xxx") and said.endswith("xxx; the remedy") and " ... " in said
    assert one_line("short") == "short" and one_line("猫\x07") == "猫\\x07"


def test_nothing_of_a_hostile_file_was_run():
    assert not os.path.exists("/tmp/hostile_weights_ran") and hostile_weights.Evil
