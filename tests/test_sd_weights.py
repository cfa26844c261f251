"""Files of Stable Diffusion's weights: every tensor has its place, in every layout, and what does not fit is named."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.interop import stable_diffusion
from guided_diffusion_jax.interop.stable_diffusion import convert, folder, names, settings

GOLDEN = Path(__file__).parent / "golden_sd"
NAMES = json.loads((GOLDEN / "names.json").read_text())
PARTS = {"unet": settings.unet, "vae": settings.autoencoder, "text_encoder": settings.text_encoder}
VAE, TEXT = GOLDEN / "sd1/vae", GOLDEN / "sd1/text_encoder"


def plain(shape):
    return tuple(shape[:2]) if list(shape[2:]) == [1, 1] else tuple(shape)


def equal(params, others):
    assert jax.tree.structure(params) == jax.tree.structure(others)
    return jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, others))


@pytest.mark.parametrize("file", [name for name in NAMES if "single" not in name])
def test_the_tables_have_every_tensor_of_diffusers_folders(file):
    part = Path(file).parent
    module = PARTS[part.name.removesuffix("_2")](folder.read_json(folder.epath.Path(GOLDEN / part / "config.json")))
    ours = convert.tensor_shapes(*names.table(module, "diffusers"))
    theirs = {folder.current_name(name): plain(shape) for name, shape in NAMES[file].items()}
    assert {name: plain(shape) for name, shape in ours.items()} == theirs


def test_a_folder_its_copy_and_a_single_file_are_the_same_networks(tmp_path):
    """sd1's single file is rebuilt with the original names of its tensors from the folder's parameters."""
    parts = stable_diffusion.load(GOLDEN / "sd1")
    stable_diffusion.save(tmp_path / "copy", parts)
    copy = stable_diffusion.load(tmp_path / "copy")
    assert copy._replace(unet=None, autoencoder=None, text_encoders=None) == parts._replace(
        unet=None, autoencoder=None, text_encoders=None
    )
    for part, other in zip(
        (copy.unet, copy.autoencoder, *copy.text_encoders),
        (parts.unet, parts.autoencoder, *parts.text_encoders),
        strict=True,
    ):
        assert part.model == other.model and equal(part.params, other.params)
    tensors = {"betas": np.zeros(1000, np.float32), "model_ema.decay": np.float32(0)[None]}
    prefixes = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.")
    for prefix, part in zip(prefixes, (parts.unet, parts.autoencoder, *parts.text_encoders), strict=True):
        theirs = stable_diffusion.tensors_from_params(part.model, part.params, "original", linear=False)
        tensors |= {prefix + name: np.array(value, order="C") for name, value in theirs.items()}
    known = NAMES["sd1_single.safetensors"]
    assert {name: list(value.shape) for name, value in tensors.items() if name in known and name.count(".") > 1} == {
        name: shape for name, shape in known.items() if name.count(".") > 1 and not name.endswith("position_ids")
    }
    file = tmp_path / "sd1.safetensors"
    save_file(tensors, file)
    again = stable_diffusion.load(file, config=GOLDEN / "sd1")
    assert again.unet.model == parts.unet.model and equal(again.unet.params, parts.unet.params)
    assert equal(again.autoencoder.params, parts.autoencoder.params)
    assert equal(again.text_encoders[0].params, parts.text_encoders[0].params)
    assert again.scheduler == parts.scheduler and again.tokenizers == parts.tokenizers
    assert all(leaf.dtype == jnp.float16 for leaf in jax.tree.leaves(again.unet.params))  # as in the file

    save_file(tensors | {"v_pred": np.zeros(0), "ztsnr": np.zeros(0)}, file)
    told = stable_diffusion.load(file, config=GOLDEN / "sd1").scheduler
    assert (told["prediction_type"], told["rescale_betas_zero_snr"]) == ("v_prediction", True)
    with pytest.raises(
        InputError, match="no published Stable Diffusion has a U-Net with 4 input channels and a context"
    ):
        stable_diffusion.load(file)
    save_file(tensors | {"cond_stage_model.other": np.zeros(1)}, file)
    with pytest.raises(InputError, match=r"1 tensors of no known part \(cond_stage_model.other\)"):
        stable_diffusion.load(file, config=GOLDEN / "sd1")


@pytest.mark.parametrize(
    ("part", "module_of", "prefix"),
    [(VAE, settings.autoencoder, "first_stage_model."), (GOLDEN / "controlnet", settings.controlnet, "control_model.")],
)
def test_a_network_in_a_file_of_its_own_has_either_names(part, module_of, prefix, tmp_path):
    model, params = stable_diffusion.load_part(part, module_of)
    for naming, before, more in (
        ("original", prefix, {"model.diffusion_model.out.2.bias": np.zeros(4)}),
        ("original", "", {"loss.logvar": np.zeros(1)}),
        ("diffusers", "", {}),
    ):
        tensors = stable_diffusion.tensors_from_params(model, params, naming)
        tensors = {before + name: np.array(value, order="C") for name, value in tensors.items()}
        save_file({**tensors, **more}, tmp_path / "part.safetensors")
        found = stable_diffusion.single.load_part(tmp_path / "part.safetensors", model)
        assert found.model == model and equal(found.params, params)


@pytest.fixture
def vae(tmp_path):
    """A folder of sd1's autoencoder, and its tensors."""
    shutil.copy(VAE / "config.json", tmp_path)
    return tmp_path, load_file(VAE / "diffusion_pytorch_model.safetensors")


def load_vae(path, **options):
    return stable_diffusion.load_part(path, settings.autoencoder, **options).params


def test_shards_and_old_names_and_bfloat16_are_read(vae):
    path, tensors = vae
    whole = load_vae(VAE)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, value in tensors.items():
        layer = next((new for new in old if f".{new}." in name), None)
        renamed[name.replace(f".{layer}.", f".{old[layer]}.") if layer else name] = value
    shards = {f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors": list(renamed)[i::2] for i in range(2)}
    for shard, held in shards.items():
        save_file({name: renamed[name] for name in held}, path / shard)
    index = path / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: shard for shard, held in shards.items() for name in held}}))
    assert equal(load_vae(path), whole)
    half = load_vae(path, dtype=jnp.bfloat16)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(half))

    index.rename(path / "diffusion_pytorch_model.safetensors.index.fp16.json")
    assert equal(load_vae(path), whole)
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    with pytest.raises(InputError, match="has no weight_map of tensors to files beside it"):
        load_vae(path)


def test_tensors_that_do_not_fit_are_named(vae):
    path, tensors = vae
    file = path / "diffusion_pytorch_model.safetensors"
    changed = dict(tensors)
    changed["encoder.conv_in.weight"] = np.zeros((16, 1, 3, 3), np.float16)
    changed["extra.weight"] = changed.pop("decoder.conv_out.bias")
    save_file(changed, file)
    with pytest.raises(InputError) as error:
        load_vae(path)
    for words in (
        "1 missing (decoder.conv_out.bias)", "1 unknown (extra.weight)",
        "encoder.conv_in.weight (16, 1, 3, 3) instead of (16, 3, 3, 3)",
    ):  # fmt: skip
        assert words in str(error.value)
    save_file(tensors | {"quant_conv.bias": np.full(8, np.inf, np.float16)}, file)
    with pytest.raises(InputError, match=r"quant_conv\.bias holds numbers that are not finite"):
        load_vae(path)


def test_what_is_written_is_what_was_read():
    for part, module_of, name in (
        (VAE, settings.autoencoder, "diffusion_pytorch_model"),
        (TEXT, settings.text_encoder, "model"),
    ):
        tensors = load_file(part / f"{name}.safetensors")
        model, params = stable_diffusion.load_part(part, module_of)
        written = stable_diffusion.tensors_from_params(model, params, "diffusers")
        tensors = {q: value for q, value in tensors.items() if not q.endswith("position_ids")}
        assert set(written) == set(tensors)
        for q, value in tensors.items():
            np.testing.assert_array_equal(written[q], value)


def test_each_tensor_is_read_once_and_only_when_it_is_its_turn():
    """So that no more than the parameters and one tensor are in memory."""
    model = settings.text_encoder(folder.read_json(folder.epath.Path(TEXT / "config.json")))
    reads = []

    class Counted:
        def __init__(self, name, array):
            self.name, self.array, self.shape = name, array, array.shape

        def __array__(self, dtype=None, copy=None):
            reads.append(self.name)
            return np.array(self.array)

    tensors = load_file(TEXT / "model.safetensors")
    lazy = {name: Counted(name, array) for name, array in tensors.items() if not name.endswith("position_ids")}
    params = stable_diffusion.params_from_tensors(model, lazy, "diffusers")
    assert sorted(reads) == sorted(lazy)
    assert sum(leaf.nbytes for leaf in flatten_dict(params).values()) == sum(t.array.nbytes for t in lazy.values())


@pytest.mark.parametrize(
    ("module_of", "change", "message"),
    [
        (settings.unet, {"addition_embed_type": "image"}, "addition_embed_type='image' is not one of text_time"),
        (settings.unet, {"class_embed_type": "timestep"}, "class_embed_type=timestep is not supported"),
        (settings.unet, {"down_block_types": ["DownBlock2D"] * 3}, "one the other's mirror"),
        (settings.unet, {"attention_head_dim": [2, 4]}, "or one for each of the 3 levels"),
        (settings.unet, {"block_out_channels": "24"}, "must be a list of whole numbers"),
        (settings.unet, {"in_channels": 8}, "in_channels=8 is not supported; 4"),  # InstructPix2Pix
    ],
)
def test_settings_of_other_networks_are_refused(module_of, change, message):
    config = folder.read_json(folder.epath.Path(GOLDEN / "sd1/unet/config.json"))
    with pytest.raises(InputError, match=message):
        module_of(config | change)


def test_folders_of_other_models_are_refused(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(
        InputError, match="holds FluxPipeline, which is not supported; Stable Diffusion 1, 2 and XL are"
    ):
        stable_diffusion.load(tmp_path)
    (tmp_path / "model_index.json").write_text(
        '{"_class_name": "StableDiffusionPipeline", "text_encoder": [null, null]}'
    )
    with pytest.raises(InputError, match="names no text_encoder"):
        stable_diffusion.load(tmp_path)
    (tmp_path / "model_index.json").write_text(
        '{"_class_name": "StableDiffusionXLPipeline", "text_encoder": [null, null], "text_encoder_2": ["a", "b"]}'
    )
    with pytest.raises(InputError, match="as its refiner, which is not supported"):
        stable_diffusion.load(tmp_path)
