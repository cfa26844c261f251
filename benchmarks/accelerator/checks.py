"""Does every path that a GPU could break work there?"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator import adapter, packed
from benchmarks.accelerator.run import PAIR, Part, Run, exact, noisy, require, to_uint8

GOLDEN = Path(__file__).parents[2] / "tests" / "golden"


def all_checks() -> dict[str, Part]:
    """By name, the most important one first."""
    return {
        "bfloat16_training": bfloat16_training,
        "fsdp_on_one_device": fsdp_on_one_device,
        **{f"sampler_{name}": sampler(name) for name in adapter.sampler_names()},
        "classifier_guidance": classifier_guidance,
        "control_branch": control_branch,
        "adm_import": adm_import,
        "exact_resume": exact_resume,
        "inception_features": inception_features,
    }


def bfloat16_training(run: Run) -> dict[str, Any]:
    """Training steps of the configuration's network in bfloat16."""
    large = run.large("bfloat16")
    state, losses, bad = large.start(large.params), [], False
    for _ in range(2 if run.options.rehearse else 20):
        state, metrics = large.step.call(state, large.batch)
        losses.append(float(metrics.loss))
        bad |= bool(metrics.bad)
    require(bool(np.all(np.isfinite(losses))) and not bad, f"losses {losses}")
    require({leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}, "params are not float32")
    moved = apart(state.params, large.params)
    require(moved > 0, "no parameter has changed")
    count = sum(leaf.size for leaf in jax.tree.leaves(large.params))
    return {"parameters": count, "compile_seconds": large.step.seconds, "losses": losses, "largest_change": moved}


def fsdp_on_one_device(run: Run) -> dict[str, Any]:
    """FSDP on one device takes the steps of data parallelism."""
    unet, params = run.small
    start, program, batch, _ = run.small_training
    with exact():
        _, sharded = adapter.make_training(unet, run.config, adapter.FSDP)
        losses: dict[str, list[float]] = {}
        for name, step in {"data parallel": program.call, "fsdp": sharded}.items():
            state, losses[name] = start(params), []
            for _ in range(5):
                state, metrics = step(state, batch)
                losses[name].append(float(metrics.loss))
    first, second = (np.array(values) for values in losses.values())
    difference = float(np.max(np.abs(first - second) / first))
    require(difference <= 1e-4, f"losses differ by {difference:.2g}: {losses}")
    return {"losses": losses, "largest_relative_difference": difference}


def sampler(name: str) -> Part:
    """A check of one sampler with CFG: a sample's image is the same alone as in a batch."""

    def check(run: Run) -> dict[str, Any]:
        unet, params = run.small
        with exact():
            sample = adapter.make_sampler(unet, run.small_size, name)
            together = np.asarray(sample(params, adapter.make_request([0, 1, 2, 3], 10, 1.0)))
            alone = np.asarray(sample(params, adapter.make_request([2], 10, 1.0, numbers=[2])))
        to_uint8(together)  # for its check
        require(float(together.std()) > 0.01, "images are flat")
        difference = apart(together[2:3], alone)
        require(difference <= 1e-3, f"alone and in a batch differ by {difference:.2g}")
        return {"largest_difference": difference, "std": float(together.std())}

    return check


def classifier_guidance(run: Run) -> dict[str, Any]:
    """A classifier's gradient changes the images; at weight 0 it does not."""
    unet, params = run.small
    classifier = adapter.make_classifier(run.config, **run.small_settings)
    weights = noisy(adapter.init_params(classifier, run.small_size))
    with exact():
        sample = adapter.make_sampler(unet, run.small_size, "ddim", classifier)
        off, on = (
            sample(params, adapter.make_request(PAIR, 10, guide=(weights, jnp.float32(weight)))) for weight in (0, 5)
        )
    to_uint8(on)  # for its check
    difference, effect = apart(run.small_images, off), apart(on, off)
    require(difference <= 1e-3, f"weight 0 changes the images by {difference:.2g}")
    require(effect > 1e-3, "weight 5 changes nothing")
    return {"difference_at_weight_0": difference, "effect_of_weight_5": effect}


def control_branch(run: Run) -> dict[str, Any]:
    """A fresh branch adds nothing, training changes the branch alone, and then the control image counts."""
    unet, base = run.small
    network, branch = adapter.make_control(unet, base, run.small_size)
    image = np.random.default_rng(3).uniform(-1, 1, (2, run.small_size, run.small_size, 1)).astype(np.float32)
    with exact():
        sample = adapter.make_sampler(network, run.small_size, "ddim")
        request = adapter.make_request(PAIR, 10, control=jnp.asarray(image))
        fresh = sample(adapter.control_params(base, branch), request)
        frozen = adapter.control_params(base, {})
        start, step = adapter.make_training(network, run.config, adapter.DATA_PARALLEL, frozen)
        state, losses = start(branch), []
        batch = adapter.put_batch(run.small_batch(2) | {"control_image": image})
        for _ in range(5):
            state, metrics = step(state, batch)
            losses.append(float(metrics.loss))
        trained = sample(adapter.control_params(base, state.params), request)
    difference, effect = apart(run.small_images, fresh), apart(trained, fresh)
    require(bool(np.all(np.isfinite(losses))), f"losses {losses}")
    require(difference <= 1e-3, f"a fresh branch changes the images by {difference:.2g}")
    require(effect > 0, "a trained branch changes nothing")
    require(same_bits(state.frozen, frozen), "the base has changed")
    return {"losses": losses, "difference_of_a_fresh_branch": difference, "effect_of_training": effect}


def adm_import(run: Run) -> dict[str, Any]:
    """A checkpoint as guided-diffusion names it gives that code's outputs, in full float32 and about so by default."""
    found = {}
    for name in ("net1_unet_uncond", "net2_unet_cond_legacy"):
        data = np.load(GOLDEN / f"{name}.npz", allow_pickle=False)
        args = json.loads(str(data["config"]))["args"]
        weights = {key.removeprefix("params/"): data[key] for key in data.files if key.startswith("params/")}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"
            write_safetensors(path, weights)
            network, params = adapter.load_adm(path, args)
        label = jnp.asarray(data["y"], jnp.int32) if args["num_classes"] else None
        x, expected = np.moveaxis(data["x"], 1, -1), np.moveaxis(data["out"], 1, -1)
        inputs = params, jnp.asarray(x), jnp.asarray(data["timesteps"], jnp.float32), label
        for precision in ("highest",) if run.options.rehearse else ("highest", "default"):
            with jax.default_matmul_precision(precision):
                out = jax.jit(lambda *inputs, network=network: adapter.forward(network, *inputs))(*inputs)
            found[f"{name}, {precision} precision"] = apart(out, expected) / float(np.abs(expected).max())
    worst = max(error for case, error in found.items() if "highest" in case)
    require(worst <= 5e-4, f"relative errors {found}")
    return {"relative_errors": found}


def exact_resume(run: Run) -> dict[str, Any]:
    """A state comes back from disk bit for bit, and so does the step after it where the device repeats a step at all.

    XLA is asked for deterministic operations; without them a GPU's sums may come in any order.
    """
    start, program, batch, deterministic = run.small_training
    state = start(run.small[1])
    for _ in range(3):
        state, _ = program.call(state, batch)
    with tempfile.TemporaryDirectory() as folder:
        restored = adapter.save_and_restore(Path(folder) / "checkpoints", state)
    require(same_bits(restored, state), "the restored state differs")
    again, resumed, following = (program.call(jax.tree.map(jnp.copy, s), batch)[0] for s in (state, restored, state))
    repeats, equal = same_bits(again, following), same_bits(resumed, following)
    require(equal or not repeats, "the step after the restored state differs")
    require(apart(resumed.params, following.params) <= 1e-4, "the step after the restored state is far off")
    return {"deterministic_operations": deterministic, "a_step_repeats": repeats, "next_step_equal_bit_for_bit": equal}


def inception_features(run: Run) -> dict[str, Any]:
    """FID's network with random weights gives finite features, those of the CPU where there is another device."""
    network, see = adapter.make_inception()
    size = 96 if run.options.rehearse else 299
    images = packed.drawn(4).images
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))["params"]
    draw = np.random.default_rng(0).standard_normal
    params = jax.tree.map(lambda p: np.float32(draw(p.shape) * np.sqrt(2 / max(1, np.prod(p.shape[:-1])))), shapes)

    def features(params, images):
        return network.apply({"params": params}, see(images, size)).pool

    with exact():
        found = np.asarray(jax.jit(features)(params, images))
        require(bool(np.isfinite(found).all()), "features are not finite")
        result = {"mean": float(found.mean()), "std": float(found.std())}
        if jax.default_backend() != "cpu" and not os.environ.get("JAX_PLATFORMS"):
            with jax.default_device(jax.devices("cpu")[0]):
                reference = np.asarray(jax.jit(features)(params, images))
            result["relative_difference_to_cpu"] = apart(found, reference) / float(np.abs(reference).max())
            require(result["relative_difference_to_cpu"] <= 1e-3, f"other features than on the CPU: {result}")
    return result


def write_safetensors(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """The format by hand: the header's length, the header, the numbers; float32 alone."""
    header, end, parts = {}, 0, []
    for name, array in arrays.items():
        parts.append(np.ascontiguousarray(array, np.float32).tobytes())
        begin, end = end, end + len(parts[-1])
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))


def apart(a: Any, b: Any) -> float:
    """The largest absolute difference of two trees."""
    return max(
        float(np.max(np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64))))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def same_bits(a: Any, b: Any) -> bool:
    """Whether two trees are equal bit for bit, random keys included."""

    def plain(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(plain(x).tobytes() == plain(y).tobytes() for x, y in pairs)
