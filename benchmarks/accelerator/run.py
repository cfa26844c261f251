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

from benchmarks.accelerator import adapter, packed

SMALL = {
    "width": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (8,), "head_width": 16,
    "dropout": 0.0, "dtype": "float32",
}  # fmt: skip
"""The small network of the checks."""
TINY = SMALL | {"channel_mult": (1,)}
"""The same in a rehearsal."""
SMALL_SIZE, TINY_SIZE = 16, 8
"""Pixels of their images."""
PAIR = (0, 1)
"""Labels of the samples that several checks compare."""
REHEARSAL = TINY | {"attention_resolutions": (), "dtype": "bfloat16"}
"""What the configuration's network becomes in a rehearsal."""


class Run:
    """The command's options, its clock and its record, which is on disk after every change.

    Args:
        options: of the command line.
        command: the command line.
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
        self.config = adapter.cifar10_config()
        self.small_settings, self.small_size = (TINY, TINY_SIZE) if options.rehearse else (SMALL, SMALL_SIZE)
        if options.rehearse:
            self.config.model.update(REHEARSAL)
            self.config.train.batch_size = 4
        if options.width:
            self.config.model.width = options.width
        self.sample_steps, self.sample_batch = (3, 4) if options.rehearse else (50, 100)
        self.budget = 0.5 if options.rehearse else 4.0  # seconds for each timing

    @property
    def elapsed(self) -> float:
        """Seconds."""
        return time.monotonic() - self.begin

    @property
    def left(self) -> float:
        """Seconds."""
        return self.options.seconds - self.elapsed

    def write(self) -> None:
        """The record as JSON, complete or not at all."""
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
        """What a part that still runs has found so far."""
        self.found["parts"][name] = {"ok": None, "result": result}
        self.write()

    def give_up(self) -> None:
        """Ends the process when a part outlasts all time: a compilation cannot be interrupted."""
        self.found["gave_up_in"] = self.found["running"]
        self.write()
        os._exit(3)

    # What several parts share is made once.

    @functools.cached_property
    def small(self) -> tuple[Any, Any]:
        """The small network in float32, and parameters of which none is zero."""
        unet = adapter.make_unet(self.config, **self.small_settings)
        return unet, noisy(adapter.init_params(unet, self.small_size, adapter.conditions()))

    @functools.cached_property
    def small_images(self) -> np.ndarray:
        """What it samples for the labels `PAIR` by DDIM with 10 steps and no guidance."""
        unet, params = self.small
        with exact():
            sample = adapter.make_sampler(unet, self.small_size, "ddim")
            return np.asarray(sample(params, adapter.make_request(PAIR, 10)))

    @functools.cached_property
    def small_training(self) -> tuple[Callable[[Any], Any], "Program", Any, bool]:
        """Its start, its step, a batch, and whether the step is of deterministic operations."""
        unet, params = self.small
        start, step = adapter.make_training(unet, self.config, adapter.DATA_PARALLEL)
        batch = adapter.put_batch(self.small_batch(8))
        inputs, on_gpu = (start(params), batch), jax.default_backend() == "gpu"
        with exact():
            try:
                program = compiled(step, *inputs, options={"xla_gpu_deterministic_ops": True} if on_gpu else None)
                return start, program, batch, True
            except Exception as error:  # whatever this XLA has against it
                print(f"no deterministic operations: {error}", file=sys.stderr, flush=True)
                return start, compiled(step, *inputs), batch, False

    def small_batch(self, count: int) -> dict[str, np.ndarray]:
        """Drawn images of `small_size` pixels and their labels."""
        examples, stride = packed.drawn(count), packed.SIZE // self.small_size
        return training_batch(examples._replace(images=examples.images[:, ::stride, ::stride]))

    @functools.cached_property
    def large_params(self) -> Any:
        """Fresh parameters of the configuration's network, float32 whatever it computes in."""
        return adapter.init_params(adapter.make_unet(self.config), 32, adapter.conditions())

    @functools.cache  # noqa: B019  there is one run
    def large(self, dtype: str) -> "Large":
        """The configuration's network."""
        unet = adapter.make_unet(self.config, dtype=dtype)
        params = self.large_params
        start, step = adapter.make_training(unet, self.config, adapter.DATA_PARALLEL)
        batch = adapter.put_batch(training_batch(packed.drawn(self.config.train.batch_size)))
        return Large(unet, params, start, compiled(step, start(params), batch), batch)

    @functools.cache  # noqa: B019
    def sampling(self, dtype: str, weight: float | None) -> tuple["Program", Any]:
        """DDIM of that network, compiled, and the request for `sample_batch` images; CFG unless the weight is None."""
        large, labels = self.large(dtype), np.resize(np.arange(adapter.CLASSES), self.sample_batch)
        request = adapter.make_request(labels, self.sample_steps, weight)
        return compiled(adapter.make_sampler(large.network, 32, "ddim"), large.params, request), request


Part = Callable[[Run], dict[str, Any]]
"""A check or a measurement: its result, or an error."""


class Large(NamedTuple):
    """The configuration's network: itself, fresh parameters, and its training: start, step and a batch."""

    network: Any
    params: Any
    start: Callable[[Any], Any]
    step: "Program"
    batch: Any


class Program(NamedTuple):
    """A compiled function. `flops` by XLA's count before optimisation, in which a loop's body counts once."""

    call: Callable[..., Any]
    seconds: float
    flops: float
    bytes: dict[str, int]


def compiled(jitted: Any, *arguments: Any, options: dict[str, Any] | None = None) -> Program:
    """Lowers and compiles, timed; `options` are XLA's."""
    start = time.perf_counter()
    lowered = jitted.lower(*arguments)
    program = lowered.compile(options)
    seconds = time.perf_counter() - start
    memory = program.memory_analysis()
    names = ("argument", "output", "temp", "alias")
    sizes = {name: int(getattr(memory, f"{name}_size_in_bytes", 0)) for name in names}
    return Program(program, seconds, flops_of(lowered), sizes)


def flops_of(lowered: Any) -> float:
    """By XLA's cost analysis; 0 where it has none."""
    found = lowered.cost_analysis() or {}
    return float((found[0] if isinstance(found, list) else found).get("flops", 0))


def noisy(params: Any, scale: float = 0.05) -> Any:
    """Parameters plus noise: at initialisation the last layers are zero, and any network would do."""
    draw = np.random.default_rng(0).standard_normal
    return jax.tree.map(lambda p: p + jnp.asarray(scale * draw(p.shape), p.dtype), params)


def training_batch(examples: packed.Examples, flip: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Images in [-1, 1] and labels; those in `flip` are mirrored."""
    images = examples.images
    if flip is not None:
        images = np.where(flip[:, None, None, None], images[:, :, ::-1], images)
    return {"image": images / np.float32(127.5) - 1, "label": examples.labels}


def to_uint8(images: Any) -> np.ndarray:
    """From [-1, 1]."""
    array = np.asarray(images, np.float32)
    require(bool(np.isfinite(array).all()), "images are not finite")
    return np.clip(np.round(array * 127.5 + 127.5), 0, 255).astype(np.uint8)


def require(condition: bool, message: str) -> None:
    """Raises `RuntimeError` with the message unless the condition holds."""
    if not condition:
        raise RuntimeError(message)


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Matrix products in full float32; a GPU's default may be TF32, whose errors depend on the size of the batch."""
    with jax.default_matmul_precision("highest"):
        yield
