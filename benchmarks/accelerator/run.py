"""A run of the command: its clock, its record on disk, and what several parts share."""

import argparse
import contextlib
import functools
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import guided_diffusion_jax as gd
from benchmarks.accelerator import packed
from guided_diffusion_jax import sharding
from guided_diffusion_jax.data.dataset import Dataset, as_inputs
from guided_diffusion_jax.experiment import build, trainers
from guided_diffusion_jax.experiment.config import preset
from guided_diffusion_jax.generation import as_data
from guided_diffusion_jax.training import state

SHORT_RUN = {"learning_rate": 2e-4, "warmup_steps": 200}
"""Settings of a training of minutes; those of the configuration are for hours."""
SMALL = {
    "width": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (8,), "head_width": 16,
    "dropout": 0.0, "dtype": "float32",
}  # fmt: skip
"""Settings of the small network of the checks."""
TINY = SMALL | {"channel_mult": (1,)}
"""Settings of the small network in a rehearsal."""
SMALL_SIZE, TINY_SIZE = 16, 8
"""Height and width of their images."""
SMALL_BATCH = 8
PAIR = (0, 1)
"""Labels of the samples that several checks compare."""
REHEARSAL = TINY | {"attention_resolutions": (), "dtype": "bfloat16"}
"""Settings of the configuration's network in a rehearsal."""


class Run:
    """The command's options, its clock and its record, which is on disk after every change.

    Args:
        options: of the command line.
        command: the command line.

    Attributes:
        config: of the network that is measured and trained: CIFAR-10's.
        small_config: of the network of the checks.
    """

    def __init__(self, options: argparse.Namespace, command: str):
        self.options, self.out = options, Path(options.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.begin, self.lock = time.monotonic(), threading.Lock()
        self.found: dict[str, Any] = {
            "command": command,
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "finished": False,
            "running": None,
            "parts": {},
        }
        self.config = preset("cifar10")
        self.config.train.update(SHORT_RUN)
        self.small_config = self.config.copy_and_resolve_references()
        settings, size = (TINY, TINY_SIZE) if options.rehearse else (SMALL, SMALL_SIZE)
        self.small_config.data.image_size = size
        self.small_config.model.update(settings)
        self.small_config.classifier.model.update(settings)
        if options.rehearse:
            self.config.model.update(REHEARSAL)
            self.config.train.batch_size = 4
        if options.width:
            self.config.model.width = options.width
        self.sample_steps, self.sample_batch = (3, 4) if options.rehearse else (50, 100)
        self.budget = 0.5 if options.rehearse else 4.0  # seconds for each timing

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.begin

    @property
    def left(self) -> float:
        """Seconds until the time is up."""
        return self.options.seconds - self.elapsed

    def write(self) -> None:
        """Writes the record as JSON, complete or not at all."""
        with self.lock:
            beside = self.out / "accelerator.json.tmp"
            beside.write_text(json.dumps(self.found | {"seconds": self.elapsed}, indent=1, default=str) + "\n")
            beside.replace(self.out / "accelerator.json")

    def part(self, name: str, function: "Part", until: float) -> None:
        """Runs one part and records its result or its error; skips it once the share `until` of the time has passed."""
        parts = self.found["parts"]
        if self.left < (1 - until) * self.options.seconds:
            parts[name] = {"ok": None, "skipped": f"{self.left:.0f} s were left"}
            return self.write()
        start, self.found["running"] = time.monotonic(), name
        self.write()
        try:
            parts[name] = {"ok": True, "result": function(self)}
        except Exception as error:  # whatever it is, the other parts run
            text = traceback.format_exc()
            print(text, file=sys.stderr, flush=True)
            parts[name] = parts.get(name, {}) | {"ok": False, "error": f"{type(error).__name__}: {error}"[:2000]}
            parts[name]["traceback"] = text[-4000:]
        parts[name]["seconds"] = time.monotonic() - start
        self.found["running"] = None
        self.write()
        print(
            f"{name}: {json.dumps({k: v for k, v in parts[name].items() if k != 'traceback'}, default=str)[:600]}",
            file=sys.stderr,
            flush=True,
        )

    def progress(self, name: str, result: dict[str, Any]) -> None:
        """Records what a part that still runs has found so far."""
        self.found["parts"][name] = {"ok": None, "result": result}
        self.write()

    def give_up(self) -> None:
        """Ends the process when a part outlasts all time: a compilation cannot be interrupted."""
        self.found["gave_up_in"] = self.found["running"]
        self.write()
        os._exit(3)

    # What several parts share is made once.

    @functools.cached_property
    def small(self) -> gd.Pipeline:
        """Pipeline of the small network in float32, with parameters of which none is zero."""
        pipe = pipeline(self.small_config)
        return pipe.with_params(noisy(pipe.params))

    @functools.cached_property
    def small_images(self) -> np.ndarray:
        """Samples of the small network for the labels `PAIR`, by DDIM with 10 steps and no guidance."""
        return sampler(self.small)(self.small.request(labels=PAIR, weight=0.0, steps=10).prune_branches())

    def small_data(self, count: int = SMALL_BATCH, **conditions: Any) -> Dataset:
        """Drawn images for the small network."""
        return packed.drawn(count).dataset(self.small_config.data.image_size, **conditions)

    @functools.cache  # noqa: B019  there is one run
    def large(self, dtype: str) -> gd.Pipeline:
        """Pipeline of the configuration's network that computes in `dtype`; its fresh parameters are float32."""
        params = None if dtype == self.config.model.dtype else self.large(self.config.model.dtype).params
        return pipeline(with_dtype(self.config, dtype), params)

    @functools.cache  # noqa: B019
    def large_training(self, dtype: str) -> "Training":
        """Training of that network on drawn images, its step compiled."""
        data = packed.drawn(self.config.train.batch_size).dataset()
        return training(trainers.trainer(with_dtype(self.config, dtype), None, data), self.large(dtype).params)

    @functools.cache  # noqa: B019
    def large_request(self, weight: float, count: int) -> gd.Request:
        """Request for `count` images of all classes in turn, by DDIM; with CFG unless the weight is 0."""
        labels = np.resize(np.arange(packed.CLASSES), count)
        wishes = {"labels": labels, "weight": weight, "steps": self.sample_steps, "seed": 1}
        return self.large(self.config.model.dtype).request(**wishes).prune_branches()


Part = Callable[[Run], dict[str, Any]]
"""A check or a measurement: its result, or an error."""


class Program(NamedTuple):
    """A compiled function, and the seconds that tracing and compiling took."""

    call: jax.stages.Compiled
    seconds: float


class Training(NamedTuple):
    """A trainer's step, compiled, what it begins with, and a batch."""

    trainer: gd.Trainer
    params: Any
    step: Program
    batch: Any

    def start(self) -> gd.TrainState:
        """State before the first update."""
        return start(self.trainer, self.params)


def training(trainer: gd.Trainer, params: Any, options: dict[str, Any] | None = None) -> Training:
    """Training that begins with these parameters, on a batch of all images; `options` are XLA's."""
    data = trainer.data
    batch = sharding.put_batch(as_inputs(data.read(np.arange(len(data)))), trainer.mesh)
    step = compiled(trainer.compiled_step, start(trainer, params), batch, options=options)
    return Training(trainer, params, step, batch)


def start(trainer: gd.Trainer, params: Any) -> gd.TrainState:
    """State before the first update; a step donates it, so each use needs another."""
    fresh = state.create(jax.tree.map(jnp.copy, params), trainer.optimizer, jax.random.key(0))
    return jax.device_put(fresh, sharding.replicated(trainer.mesh))


def pipeline(config: ConfigDict, params: Any = None) -> gd.Pipeline:
    """Pipeline of a configuration for ten classes, with fresh parameters unless they are given."""
    info = packed.drawn(1).dataset(config.data.image_size).info
    model = build.model(config, info)
    params = fresh(model, info.image_shape) if params is None else params
    return gd.Pipeline(model, params, build.process(config), info=info)


def fresh(model: Any, image_shape: tuple[int, int, int]) -> Any:
    """Fresh parameters of a network."""
    key = jax.random.key(0, impl="unsafe_rbg")  # compiles several times faster than threefry
    return jax.jit(lambda key: gd.models.init_params(model, key, image_shape))(key)


def with_dtype(config: ConfigDict, dtype: str) -> ConfigDict:
    """Configuration of the same network that computes in `dtype`."""
    changed = config.copy_and_resolve_references()
    changed.model.dtype = dtype
    return changed


def sampler(pipe: gd.Pipeline) -> Callable[..., np.ndarray]:
    """Function of a request, and of other parameters than the pipeline's: finite images, not rounded to 8 bits.

    It computes in full float32.
    """
    images = jax.jit(gd.Generator(pipe.apply, pipe.process, pipe.codec).images)

    def sample(request: gd.Request, params: Any = None) -> np.ndarray:
        with exact():
            made = np.asarray(images(pipe.params if params is None else params, as_data(request)))
        require(bool(np.isfinite(made).all()), "images are not finite")
        return made

    return sample


def trained(config: ConfigDict, data: Dataset, steps: int, **options: Any) -> tuple[gd.Trainer, list[float]]:
    """Trainer after `steps` steps of all images of a data set, in full float32, and the losses."""
    trainer = trainers.trainer(config, None, data, **options)
    with exact():
        losses = [metrics["loss"] for metrics in trainer.steps(steps, len(data), log_every=1)]
    require(bool(np.all(np.isfinite(losses))), f"losses {losses}")
    return trainer, losses


def compiled(jitted: Any, *arguments: Any, options: dict[str, Any] | None = None) -> Program:
    """Lowers and compiles, timed; `options` are XLA's."""
    begin = time.perf_counter()
    program = jitted.lower(*arguments).compile(options)
    return Program(program, time.perf_counter() - begin)


def noisy(params: Any, scale: float = 0.05) -> Any:
    """Parameters plus noise: at initialisation the last layers are zero, and any network would do."""
    draw = np.random.default_rng(0).standard_normal
    return jax.tree.map(lambda p: p + jnp.asarray(scale * draw(p.shape), p.dtype), params)


def require(condition: bool, message: str) -> None:
    """Raises `RuntimeError` with the message unless the condition holds."""
    if not condition:
        raise RuntimeError(message)


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Matrix products in full float32; a GPU's default may be TF32, whose errors depend on the size of the batch."""
    with jax.default_matmul_precision("highest"):
        yield
