"""Checks of every path that a GPU could break."""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import guided_diffusion_jax as gd
from benchmarks.accelerator import packed
from benchmarks.accelerator.run import (
    PAIR,
    SMALL_BATCH,
    Part,
    Run,
    Training,
    exact,
    fresh,
    noisy,
    require,
    sampler,
    trained,
    training,
)
from guided_diffusion_jax import sharding
from guided_diffusion_jax.data.images import to_float
from guided_diffusion_jax.data.pipeline import batches
from guided_diffusion_jax.evaluation.features import inception
from guided_diffusion_jax.experiment import build, trainers
from guided_diffusion_jax.guides import guiding_classifier
from guided_diffusion_jax.objectives import merge
from guided_diffusion_jax.training.checkpoint import Checkpoints

GOLDEN = Path(__file__).parents[2] / "tests" / "golden"


def all_checks() -> dict[str, Part]:
    """Checks by name, the most important one first."""
    return {
        "bfloat16_training": bfloat16_training,
        "fsdp_on_one_device": fsdp_on_one_device,
        **{f"sampler_{name}": sampling(name) for name in gd.samplers.SAMPLERS},
        "classifier_guidance": classifier_guidance,
        "control_branch": control_branch,
        "adm_import": adm_import,
        "exact_resume": exact_resume,
        "inception_features": inception_features,
    }


def bfloat16_training(run: Run) -> dict[str, Any]:
    """Training steps of the configuration's network in bfloat16."""
    made = run.large_training("bfloat16")
    state, losses, bad = made.start(), [], False
    for _ in range(2 if run.options.rehearse else 20):
        state, metrics = made.step.call(state, made.batch)
        losses.append(float(metrics.loss))
        bad |= bool(metrics.bad)
    require(bool(np.all(np.isfinite(losses))) and not bad, f"losses {losses}")
    require({leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}, "params are not float32")
    moved = apart(state.params, made.params)
    require(moved > 0, "no parameter has changed")
    count = sum(leaf.size for leaf in jax.tree.leaves(made.params))
    return {"parameters": count, "compile_seconds": made.step.seconds, "losses": losses, "largest_change": moved}


def fsdp_on_one_device(run: Run) -> dict[str, Any]:
    """FSDP makes the steps of data parallelism."""
    losses = {}
    for parallel in sharding.STRATEGIES:
        config = run.small_config.copy_and_resolve_references()
        config.train.parallel = parallel
        _, losses[parallel] = trained(config, run.small_data(), 5, pretrained=run.small.params)
    first, second = (np.array(values) for values in losses.values())
    difference = float(np.max(np.abs(first - second) / first))
    require(difference <= 1e-4, f"losses differ by {difference:.2g}: {losses}")
    return {"losses": losses, "largest_relative_difference": difference}


def sampling(name: str) -> Part:
    """Check of one sampler with CFG: a sample's image is the same alone as in a batch."""

    def check(run: Run) -> dict[str, Any]:
        request = run.small.request(labels=[0, 1, 2, 3], weight=1.0, sampler=name, steps=10, seed=1)
        sample = sampler(run.small)
        together, alone = sample(request), sample(request.rows(np.array([2])))
        require(float(together.std()) > 0.01, "images are flat")
        difference = apart(together[2:3], alone)
        require(difference <= 1e-3, f"alone and in a batch differ by {difference:.2g}")
        return {"largest_difference": difference, "std": float(together.std())}

    return check


def classifier_guidance(run: Run) -> dict[str, Any]:
    """A classifier's gradient changes the images; at weight 0 it does not."""
    small = run.small
    model = build.classifier_model(run.small_config, packed.CLASSES, small.codec.shape)
    guide = guiding_classifier(model, noisy(fresh(model, small.codec.shape)), small.info.class_names)
    pipe = gd.Pipeline(small.model, small.params, small.process, info=small.info, load_classifier=lambda name: guide)
    sample = sampler(pipe)
    off, on = (
        sample(pipe.request(labels=PAIR, weight=0.0, classifier_weight=np.full(2, weight), steps=10).prune_branches())
        for weight in (0, 5)
    )
    difference, effect = apart(run.small_images, off), apart(on, off)
    require(difference <= 1e-3, f"weight 0 changes the images by {difference:.2g}")
    require(effect > 1e-3, "weight 5 changes nothing")
    return {"difference_at_weight_0": difference, "effect_of_weight_5": effect}


def control_branch(run: Run) -> dict[str, Any]:
    """A fresh branch adds nothing, training changes the branch alone, and then the control image counts."""
    small, (size, _, _) = run.small, run.small.codec.shape
    network = gd.models.ControlNet(small.model, control_channels=1)
    base = {"unet": small.params, "controlnet": {"encoder": small.params["encoder"]}}
    params = merge(fresh(network, small.codec.shape), base)
    control = np.random.default_rng(3).integers(0, 256, (SMALL_BATCH, size, size, 1), np.uint8)
    pipe = gd.Pipeline(network, params, small.process, info=small.info)
    request = pipe.request(labels=PAIR, conditions={"control_image": to_float(control[:2])}, weight=0.0, steps=10)
    request, sample = request.prune_branches(), sampler(pipe)
    untrained = sample(request)
    data = run.small_data(control_image=control)
    trainer, losses = trained(run.small_config, data, 5, network=network, pretrained=params)
    after = sample(request, trainer.state.network(averaged=False))
    difference, effect = apart(run.small_images, untrained), apart(after, untrained)
    require(difference <= 1e-3, f"a fresh branch changes the images by {difference:.2g}")
    require(effect > 0, "a trained branch changes nothing")
    require(same_bits(trainer.state.frozen["unet"], small.params), "the base has changed")
    return {"losses": losses, "difference_of_a_fresh_branch": difference, "effect_of_training": effect}


def adm_import(run: Run) -> dict[str, Any]:
    """A checkpoint as guided-diffusion names it gives that code's outputs, in full float32 and about so by default."""
    from guided_diffusion_jax.interop import files  # here, so that without safetensors this part alone fails

    found = {}
    for name in ("net1_unet_uncond", "net2_unet_cond_legacy"):
        data = np.load(GOLDEN / f"{name}.npz", allow_pickle=False)
        args = json.loads(str(data["config"]))["args"]
        heads = args["num_head_channels"]
        settings = {"num_heads": args["num_heads"]} if heads == -1 else {"head_width": heads}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"
            files.write(path, {key.removeprefix("params/"): data[key] for key in data.files if "params/" in key})
            pipe = gd.load(path, image_size=args["image_size"], **settings)
        given = {"label": jnp.asarray(data["y"], jnp.int32)} if args["num_classes"] else {}
        x, expected = np.moveaxis(data["x"], 1, -1), np.moveaxis(data["out"], 1, -1)
        inputs = pipe.params, jnp.asarray(x), jnp.asarray(data["timesteps"], jnp.float32), given
        for precision in ("highest",) if run.options.rehearse else ("highest", "default"):
            with jax.default_matmul_precision(precision):
                out = jax.jit(pipe.apply)(*inputs)
            found[f"{name}, {precision} precision"] = apart(out, expected) / float(np.abs(expected).max())
    worst = max(error for case, error in found.items() if "highest" in case)
    require(worst <= 5e-4, f"relative errors {found}")
    return {"relative_errors": found}


def exact_resume(run: Run) -> dict[str, Any]:
    """A state comes back from disk bit for bit, and so does the step after it where the device repeats a step at all.

    XLA is asked for deterministic operations; without them a GPU's sums may come in any order.
    """
    made, deterministic = deterministic_training(run)
    state, iterator = made.start(), iter(batches(made.trainer.data, batch_size=SMALL_BATCH, seed=0))
    for _ in range(3):
        next(iterator)
        state, _ = made.step.call(state, made.batch)
    like = sharding.abstract_with_sharding(jax.eval_shape(made.start), made.trainer.mesh)
    with tempfile.TemporaryDirectory() as folder:
        with Checkpoints(folder) as checkpoints:
            checkpoints.save(3, state, iterator)
        again = iter(batches(made.trainer.data, batch_size=SMALL_BATCH, seed=0))
        with Checkpoints(folder) as checkpoints:
            restored = checkpoints.restore(like, again)
    require(same_bits(restored, state), "the restored state differs")
    require(again.get_state() == iterator.get_state(), "the position in the data differs")
    repeated, resumed, following = (
        made.step.call(jax.tree.map(jnp.copy, each), made.batch)[0] for each in (state, restored, state)
    )
    repeats, equal = same_bits(repeated, following), same_bits(resumed, following)
    require(equal or not repeats, "the step after the restored state differs")
    require(apart(resumed.params, following.params) <= 1e-4, "the step after the restored state is far off")
    return {"deterministic_operations": deterministic, "a_step_repeats": repeats, "next_step_equal_bit_for_bit": equal}


def deterministic_training(run: Run) -> tuple[Training, bool]:
    """Training of the small network, and whether its step is of deterministic operations."""
    trainer = trainers.trainer(run.small_config, None, run.small_data())
    with exact():
        if jax.default_backend() != "gpu":
            return training(trainer, run.small.params), True
        try:
            return training(trainer, run.small.params, {"xla_gpu_deterministic_ops": True}), True
        except Exception as error:  # whatever this XLA has against it
            print(f"no deterministic operations: {error}", file=sys.stderr, flush=True)
            return training(trainer, run.small.params), False


def inception_features(run: Run) -> dict[str, Any]:
    """FID's network with random weights gives finite features, those of the CPU where there is another device."""
    network, size = inception.InceptionV3(), 96 if run.options.rehearse else inception.SIZE
    images = packed.drawn(4).images
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))["params"]
    draw = np.random.default_rng(0).standard_normal
    params = jax.tree.map(lambda p: np.float32(draw(p.shape) * np.sqrt(2 / max(1, np.prod(p.shape[:-1])))), shapes)

    def features(params, images):
        return network.apply({"params": params}, inception.preprocess(images, size)).pool

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
