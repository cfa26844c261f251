"""Our side: a network of `cases`, its training, forward pass and sampling, compiled as the commands compile them."""

import functools
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from benchmarks import machine
from benchmarks.cases import CLASSES, Case, case, random_images, small_numbers
from benchmarks.peers.worker import (
    CFG,
    CLASSIFIER,
    DDIM,
    FORWARD,
    LOADING,
    MATMUL,
    SCALE,
    STEPS,
    TRAINING,
    Built,
    Prepared,
    matmul_size,
    serve,
)
from benchmarks.sampling import guided_request
from benchmarks.timing import compiled, matmul_chain
from guided_diffusion_jax import data, models, profiling, sharding
from guided_diffusion_jax.data.pipeline import batches
from guided_diffusion_jax.experiment import build as from_config
from guided_diffusion_jax.generation import Generator
from guided_diffusion_jax.guides import guiding_classifier
from guided_diffusion_jax.pipeline import Pipeline
from guided_diffusion_jax.typing import Params

BATCHES = 16
"""Batches of the data sets that are read."""
NETWORK = (
    "width", "channel_mult", "num_res_blocks", "attention_resolutions", "head_width", "norm_groups", "resample",
    "time_injection", "dtype",
)  # fmt: skip
TRAIN = ("batch_size", "learning_rate", "weight_decay", "grad_clip", "ema_decay", "cfg_dropout")


def build(size: str, changes: dict[str, Any], images: int) -> Built:
    """Builds a size of `cases` with changes.

    Args:
        size: as in `--sizes` of the other benchmarks.
        changes: of its configuration.
        images: of a batch in sampling.
    """
    made = case(size, {key: tuple(value) if isinstance(value, list) else value for key, value in changes.items()})
    trainer = made.trainer()
    mesh = trainer.mesh
    shapes = jax.eval_shape(trainer.init)
    params = jax.device_put(small_numbers(shapes.params), sharding.replicated(mesh))
    batch = made.batch_on(mesh)
    judge = classifier(made)
    judge_shapes = jax.eval_shape(lambda: models.init_params(judge, jax.random.key(0), made.data.image_shape))
    folder = tempfile.TemporaryDirectory()

    def load_classifier(attribute):
        return guiding_classifier(judge, small_numbers(judge_shapes), made.data.info.class_names)

    pipe = Pipeline(
        trainer.model, params, trainer.process, info=made.data.info, mesh=mesh, load_classifier=load_classifier
    )
    generator = Generator(pipe.apply, pipe.process, pipe.codec)
    jit = functools.partial(jax.jit, compiler_options=sharding.compiler_options())
    inputs = batch["image"], jnp.full(made.batch, 500, jnp.int32), batch["label"]

    def forward(params, x, time, label):
        return pipe.apply(params, x, time, {"label": label})

    def training() -> Prepared:
        current = jit(trainer.init, out_shardings=sharding.replicated(mesh))()
        step: Any = trainer.compiled_step
        program = compiled(step, current, batch)

        def call():
            nonlocal current
            current, metrics = program.call(current, batch)
            return metrics

        return Prepared(call, program.about())

    def once() -> Prepared:
        program = compiled(jit(forward), params, *inputs)
        return Prepared(functools.partial(program.call, params, *inputs), program.about())

    def sampling(weight: float, **wishes: Any) -> Prepared:
        request = guided_request(pipe, made.labels[:images], weight, steps=STEPS, **wishes)
        program = compiled(jit(generator.images), params, request)
        return Prepared(functools.partial(program.call, params, request), program.about())

    def many() -> data.Dataset:
        return random_images(BATCHES * made.batch, made.data.image_shape)

    def loading(source: data.Dataset) -> Prepared:
        stream = iter(batches(source, batch_size=made.batch, seed=0, flip=True))
        return Prepared(lambda: next(stream), {})

    def describe() -> dict[str, Any]:
        stats = jax.local_devices()[0].memory_stats() or {}
        network = profiling.flops(forward, params, *inputs) / made.batch
        step = profiling.flops(trainer.step(), shapes, batch) / made.batch
        flops = {FORWARD: network, TRAINING: step, DDIM: STEPS * network, CFG: 2 * STEPS * network}
        return {
            "machine": machine.describe(),
            "flops_per_image": flops,
            "device_peak_bytes": stats.get("peak_bytes_in_use"),
        }

    programs = {
        TRAINING: training,
        FORWARD: once,
        DDIM: lambda: sampling(0.0),
        CFG: lambda: sampling(SCALE),
        MATMUL: lambda: Prepared(matmul_chain(made.config.model.dtype, *matmul_size(jax.default_backend())), {}),
        CLASSIFIER: lambda: sampling(0.0, classifier_weight=SCALE),
        LOADING["memory"]: lambda: loading(many()),
        LOADING["files"]: lambda: loading(on_disk(many(), Path(folder.name))),
    }
    return Built(sizes(made, images, shapes.params, judge_shapes), programs, jax.block_until_ready, describe)


def sizes(made: Case, images: int, params: Params, classifier_params: Params) -> dict[str, Any]:
    """Numbers of parameters, of which the shapes are given, and the work for the other side."""
    config = made.config
    return {
        "parameters": profiling.count(params),
        "classifier_parameters": profiling.count(classifier_params),
        "work": {
            "image_size": config.data.image_size,
            "channels": made.data.image_shape[-1],
            "classes": CLASSES,
            "num_steps": config.diffusion.num_steps,
            "images": images,
            **{name: config.model[name] for name in NETWORK},
            **{name: config.train[name] for name in TRAIN},
        },
    }


def classifier(made: Case) -> models.Classifier:
    """Classifier of the first half of the same network, with the mean over its positions."""
    config = made.config.copy_and_resolve_references()
    config.classifier.model.update({name: config.model[name] for name in NETWORK if name in config.classifier.model})
    config.classifier.model.update(pool="adaptive", dropout=0.0)
    return from_config.classifier_model(config, CLASSES, made.data.image_shape)


def on_disk(source: data.Dataset, folder: Path) -> data.Dataset:
    """The same images as PNG files, in folders by class."""
    batch = source.read(np.arange(len(source)))
    for number, (image, label) in enumerate(zip(batch["image"], batch["label"], strict=True)):
        (folder / str(label)).mkdir(exist_ok=True)
        Image.fromarray(image.squeeze()).save(folder / str(label) / f"{number}.png")
    return data.folder(folder, image_size=source.image_shape[0])


if __name__ == "__main__":
    serve(build)
