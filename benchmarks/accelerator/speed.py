"""How fast, with how much memory; and a training for the time that is left."""

import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path

from benchmarks.accelerator import adapter, packed
from benchmarks.accelerator.run import Part, Program, Run, flops_of, require, to_uint8, training_batch

RESERVE = 45.0
"""Seconds at the end of a training for its samples."""
SAMPLES = 2000
"""Images that a training leaves if there is time."""
WEIGHTS_LIMIT = 16e6
"""Bytes; larger weights are not written."""
GUIDANCE = 1.0
PLAIN, CFG = None, GUIDANCE


def matmul_peak(run: Run) -> dict[str, Any]:
    """FLOP/s of chained square matrix products of random numbers, at JAX's default precision."""
    size, length = (256, 2) if run.options.rehearse else (8192, 20)
    found: dict[str, Any] = {"size": size}
    for dtype in ("bfloat16", "float32"):
        a, b = (jnp.asarray(np.random.default_rng(i).standard_normal((size, size)) / size**0.5, dtype) for i in (0, 1))
        chain = jax.jit(lambda a, b: jax.lax.fori_loop(0, length, lambda i, x: x @ b, a))
        seconds = median(timed(functools.partial(chain, a, b), run.budget / 4))
        found[dtype] = 2 * size**3 * length / seconds
    return found


def training_step(dtype: str) -> Part:
    """A measurement of chained updates."""

    def measure(run: Run) -> dict[str, Any]:
        large = run.large(dtype)
        state, length = large.start(large.params), 1 if run.options.rehearse else 20

        def chain():
            nonlocal state
            for _ in range(length):
                state, metrics = large.step.call(state, large.batch)
            return metrics

        seconds = [round_ / length for round_ in timed(chain, run.budget)]
        return figures(run, dtype, large.step, seconds, run.config.train.batch_size, large.step.flops)

    return measure


def sampling(dtype: str, weight: float | None) -> Part:
    """A measurement of DDIM. Its work is that of one evaluation of the network times the number of them."""

    def measure(run: Run) -> dict[str, Any]:
        program, request = run.sampling(dtype, weight)
        large, evaluations = run.large(dtype), run.sample_steps * (1 if weight is None else 2)
        b = run.sample_batch
        x, label = jnp.zeros((b, 32, 32, 3)), jnp.zeros(b, jnp.int32)
        lowered = jax.jit(lambda *inputs: adapter.forward(large.network, *inputs)).lower(
            large.params, x, jnp.zeros(b), label
        )
        seconds = timed(lambda: program.call(large.params, request), run.budget)
        found = figures(run, dtype, program, seconds, b, flops_of(lowered) * evaluations)
        return found | {"steps": run.sample_steps}

    return measure


def figures(run: Run, dtype: str, program: Program, seconds: list[float], batch: int, flops: float) -> dict[str, Any]:
    """What a measurement gives back; `seconds` of one batch in each round, `flops` of one batch."""
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
        "program_bytes": program.bytes,
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

    The grid is also written on the way, and the record every few seconds, for the case of a kill.
    """
    rehearse = run.options.rehearse
    large, examples = run.large("bfloat16"), load(run)
    program, request = run.sampling("bfloat16", CFG)
    batch, chunk = run.config.train.batch_size, 2 if rehearse else 50
    reserve = 0 if rehearse else RESERVE
    most = time.monotonic() + (5 if rehearse else run.left - reserve)
    batches, state = shuffled(examples, batch), large.start(large.params)
    begin = last_grid = time.monotonic()
    result: dict[str, Any] = {"data": examples.source, "images": len(examples.images), "batch": batch, "curve": []}

    def sample(number: int) -> np.ndarray:
        numbers = jnp.arange(number, number + run.sample_batch, dtype=jnp.int32)
        return to_uint8(program.call(state.ema, request._replace(numbers=numbers)))

    steps = 0
    while time.monotonic() < most:
        losses = []
        for _ in range(chunk):
            state, metrics = large.step.call(state, adapter.put_batch(next(batches)))
            losses.append(metrics.loss)
        steps += chunk
        loss = float(jnp.mean(jnp.stack(losses)))
        seconds = time.monotonic() - begin
        result["curve"].append({"step": steps, "seconds": seconds, "loss": loss})
        result |= {"steps": steps, "seconds": seconds, "images_per_second": steps * batch / seconds}
        require(np.isfinite(loss), f"the loss at step {steps} is {loss}")
        run.progress("training", result)
        if time.monotonic() - last_grid > 60:
            packed.write_grid(run.out / "samples.png", sample(0))
            last_grid = time.monotonic()
    require(steps > 0, "no time was left")
    images = [sample(0)]
    packed.write_grid(run.out / "samples.png", images[0])
    result["weights"] = write_weights(run.out / "weights.npz", state.ema)
    run.progress("training", result)
    while not rehearse and len(images) * run.sample_batch < SAMPLES and run.left > RESERVE / 3:
        images.append(sample(len(images) * run.sample_batch))
    drawn = np.concatenate(images)
    np.savez_compressed(run.out / "samples.npz", drawn, np.resize(np.arange(adapter.CLASSES), len(drawn)))
    return result | {"samples": len(drawn), "guidance_weight": GUIDANCE, "device_memory": device_memory()}


def load(run: Run) -> packed.Examples:
    """The data of `--data`; drawn images without it, or when it cannot be read."""
    try:
        if run.options.data:
            return packed.read(Path(run.options.data))
        reason = "no --data"
    except Exception as error:  # a training on drawn images is better than none
        reason = f"{type(error).__name__}: {error}"
    examples = packed.drawn(1000 if run.options.rehearse else 50_000)
    return examples._replace(source=f"{examples.source} ({reason})")


def shuffled(examples: packed.Examples, batch: int) -> Iterator[dict[str, np.ndarray]]:
    """Batches without end, in a new order in each epoch, half of the images mirrored."""
    rng = np.random.default_rng(0)
    while True:
        order = rng.permutation(len(examples.images))
        for start in range(0, len(order) - batch + 1, batch):
            rows = order[start : start + batch]
            chosen = examples._replace(images=examples.images[rows], labels=examples.labels[rows])
            yield training_batch(chosen, flip=rng.random(batch) < 0.5)


def write_weights(path: Path, params: Any) -> str:
    """Averaged parameters as float16 by name, unless they are too large."""
    leaves = {keystr(name): np.asarray(leaf, np.float16) for name, leaf in tree_leaves_with_path(params)}
    size = sum(leaf.nbytes for leaf in leaves.values())
    if size > WEIGHTS_LIMIT:
        return f"left out: {size / 1e6:.0f} MB"
    np.savez(path, **leaves)  # type: ignore[arg-type]
    return path.name
