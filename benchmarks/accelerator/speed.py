"""Measurements of speed and memory, and a training for the time that is left."""

import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.tree_util import keystr, tree_leaves_with_path

import guided_diffusion_jax as gd
from benchmarks.accelerator import packed
from benchmarks.accelerator.run import Part, Program, Run, require
from benchmarks.timing import matmul_chain
from guided_diffusion_jax import profiling
from guided_diffusion_jax.experiment import trainers
from guided_diffusion_jax.runtime.preemption import Stopped

RESERVE = 45.0
"""Seconds at the end of a training for its samples."""
SAMPLES = 2000
"""Images that a training leaves if there is time."""
WEIGHTS_LIMIT = 16e6
"""Bytes; larger weights are not written."""
MOST_STEPS = 10**9
PLAIN, CFG = 0.0, 1.0
"""Weights of guidance."""


def matmul_peak(run: Run) -> dict[str, Any]:
    """FLOP/s of chained square matrix products of random numbers, at JAX's default precision."""
    size, length = (256, 2) if run.options.rehearse else (8192, 20)
    found: dict[str, Any] = {"size": size}
    for dtype in ("bfloat16", "float32"):
        found[dtype] = 2 * size**3 * length / median(timed(matmul_chain(dtype, size, length), run.budget / 4))
    return found


def training_step(dtype: str) -> Part:
    """Measurement of chained updates."""

    def measure(run: Run) -> dict[str, Any]:
        made = run.large_training(dtype)
        state, length = made.start(), 1 if run.options.rehearse else 20

        def chain():
            nonlocal state
            for _ in range(length):
                state, metrics = made.step.call(state, made.batch)
            return metrics

        seconds = [round_ / length for round_ in timed(chain, run.budget)]
        flops = profiling.flops(made.trainer.step(), state, made.batch)
        return figures(run, dtype, made.step, seconds, run.config.train.batch_size, flops)

    return measure


def sampling(dtype: str, weight: float) -> Part:
    """Measurement of DDIM, to 8-bit images. Its work is that of one evaluation times their number."""

    def measure(run: Run) -> dict[str, Any]:
        pipe, b = run.large(dtype), run.sample_batch
        request = run.large_request(weight, b)
        begin = time.perf_counter()
        program = Program(pipe.compile(request, batch_size=b), time.perf_counter() - begin)
        seconds = timed(lambda: pipe.generate(request, batch_size=b, progress=False), run.budget)
        inputs = jnp.zeros((b, *pipe.codec.shape)), jnp.zeros(b), {"label": jnp.zeros(b, jnp.int32)}
        evaluations = run.sample_steps * (1 + len(request.branches))
        flops = profiling.flops(pipe.apply, pipe.params, *inputs) * evaluations
        return figures(run, dtype, program, seconds, b, flops) | {"steps": run.sample_steps}

    return measure


def figures(run: Run, dtype: str, program: Program, seconds: list[float], batch: int, flops: float) -> dict[str, Any]:
    """Result of a measurement; `seconds` of one batch in each round, `flops` of one batch."""
    peak = run.found["parts"].get("matmul_peak", {}).get("result", {}).get(dtype)
    rate = flops / median(seconds)
    return {
        "batch": batch,
        "seconds": {"median": median(seconds), "min": min(seconds), "max": max(seconds), "rounds": len(seconds)},
        "images_per_second": batch / median(seconds),
        "flops": flops,
        "flops_per_second": rate,
        "share_of_matmul_peak": rate / peak if peak else None,
        "compile_seconds": program.seconds,
        "program_bytes": profiling.program_bytes(program.call),
        "device_memory": device_memory(),
    }


def timed(call: Callable[[], Any], budget: float) -> list[float]:
    """Seconds of each of at least 3 calls, after one to warm up."""
    jax.block_until_ready(call())
    rounds: list[float] = []
    while len(rounds) < 3 or sum(rounds) < budget:
        start = time.perf_counter()
        jax.block_until_ready(call())
        rounds.append(time.perf_counter() - start)
    return rounds


def device_memory() -> dict[str, int] | None:
    """Bytes; the peak is over the life of the process. None on a CPU, which does not count."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return {key: stats[key] for key in ("bytes_in_use", "peak_bytes_in_use", "bytes_limit") if key in stats} or None


def training(run: Run) -> dict[str, Any]:
    """Trains the configuration's network in bfloat16 until the time is up; leaves a grid, samples and weights.

    The run ends as one that a scheduler stops: it saves, and the samples are of the checkpoint. The grid is also
    written on the way, and the record every few seconds, for the case of a kill.
    """
    rehearse, examples = run.options.rehearse, load(run)
    until = time.monotonic() + (5 if rehearse else run.left - RESERVE)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainers.trainer(run.config, epath.Path(folder), examples.dataset())
        about = {"data": examples.source, "images": len(trainer.data), "batch": run.config.train.batch_size}
        result = about | train(run, trainer, until, about)
        pipe = gd.load(folder)
    require(pipe.step == result["steps"], f"training stopped at {result['steps']}, the checkpoint is of {pipe.step}")
    images = [generate(run, pipe, 0)]
    packed.write_grid(run.out / "samples.png", images[0])
    result["weights"] = write_weights(run.out / "weights.npz", pipe.params)
    run.progress("training", result)
    while not rehearse and len(images) * run.sample_batch < SAMPLES and run.left > RESERVE / 3:
        images.append(generate(run, pipe, len(images)))
    samples = np.concatenate(images)
    np.savez_compressed(run.out / "samples.npz", samples, run.large_request(CFG, SAMPLES).labels[: len(samples)])
    return result | {"samples": len(samples), "guidance_weight": CFG, "device_memory": device_memory()}


def train(run: Run, trainer: gd.Trainer, until: float, about: dict[str, Any]) -> dict[str, Any]:
    """Trains until a time; the curve of the loss and the speed, which the record has on the way with `about`."""
    result: dict[str, Any] = {"steps": 0, "curve": (curve := [])}
    chunk, stopping = 2 if run.options.rehearse else 50, False
    begin = last_grid = time.monotonic()
    try:
        for metrics in trainer.steps(MOST_STEPS, about["batch"], log_every=chunk, save_every=0):
            curve.append({name: metrics[name] for name in ("step", "loss", "images_per_second")})
            speed = median(row["images_per_second"] for row in curve)  # compilation is in the first row
            seconds = curve[-1]["seconds"] = time.monotonic() - begin
            result |= {"steps": metrics["step"], "seconds": seconds, "images_per_second": speed}
            run.progress("training", about | result)
            if time.monotonic() > until and not stopping:
                signal.raise_signal(signal.SIGTERM)
                stopping = True
            elif time.monotonic() - last_grid > 60:
                averaged = run.large("bfloat16").with_params(trainer.state.network())
                packed.write_grid(run.out / "samples.png", generate(run, averaged, 0))
                last_grid = time.monotonic()
    except Stopped:
        return result
    raise RuntimeError("the training did not stop when it was asked to")


def generate(run: Run, pipe: gd.Pipeline, number: int) -> np.ndarray:
    """Batch of this number of the samples, with CFG."""
    rows = np.arange(number * run.sample_batch, (number + 1) * run.sample_batch)
    return pipe.generate(run.large_request(CFG, SAMPLES).rows(rows), batch_size=run.sample_batch, progress=False)


def load(run: Run) -> packed.Examples:
    """Reads the data of `--data`; draws images without it, or where it cannot be read."""
    try:
        if run.options.data:
            return packed.read(Path(run.options.data))
        reason = "no --data"
    except Exception as error:  # a training on drawn images is better than none
        reason = f"{type(error).__name__}: {error}"
    examples = packed.drawn(1000 if run.options.rehearse else 50_000)
    return examples._replace(source=f"{examples.source} ({reason})")


def write_weights(path: Path, params: Any) -> str:
    """Writes averaged parameters as float16 by name, unless they are too large."""
    leaves = {keystr(name): np.asarray(leaf, np.float16) for name, leaf in tree_leaves_with_path(params)}
    size = sum(leaf.nbytes for leaf in leaves.values())
    if size > WEIGHTS_LIMIT:
        return f"left out: {size / 1e6:.0f} MB"
    np.savez(path, **leaves)  # type: ignore[arg-type]
    return path.name
