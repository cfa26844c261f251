"""One command for a machine with one GPU: checks everything, measures the speed and trains for the time that is left.

    python -m benchmarks.accelerator --pack=cifar10.npz --data_dir=TFDS_DIR      where TFDS and CIFAR-10 are
    python -m benchmarks.accelerator --data=cifar10.npz --out=DIR --seconds=480  on the GPU
    python -m benchmarks.accelerator --rehearse --out=DIR                        tiny, on a CPU

Needs Python 3.11 or newer and jax with CUDA; beside it flax, optax, orbax-checkpoint, etils, jaxtyping, ml_collections,
grain (which needs array_record, cloudpickle and portpicker), pillow, safetensors, tqdm and psutil, with what these
require. It needs no network, TensorFlow or TensorFlow Datasets. docs/accelerator.md has the wheels and what comes back.

Each part stands alone: its error is recorded and the next one runs. `accelerator.json` is written after each.
"""

import argparse
import os
import shlex
import sys
import tempfile
import threading
import traceback
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import jax

from benchmarks.accelerator import checks, packed, speed
from benchmarks.accelerator.run import Part, Run

CHECKS_UNTIL, MEASUREMENTS_UNTIL = 0.55, 0.75
"""Shares of the time after which no check and no measurement is begun."""
GRACE = 20.0
"""Seconds after the time is up, until the process ends in the middle of whatever it does."""


def main(arguments: list[str]) -> int:
    """Exit code: 0 all parts are well, 1 some are not, 2 wrong input, 3 the time was up in the middle of a part."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accelerator", description=__doc__.split("\n")[0])
    parser.add_argument("--out", default="runs/accelerator", help="folder of what comes back")
    parser.add_argument("--data", default="", help=".npz of --pack, or with images [n 32 32 3] and labels")
    parser.add_argument("--seconds", type=float, default=480, help="in total")
    parser.add_argument("--width", type=int, default=0, help="of the network, instead of the configuration's")
    parser.add_argument("--only", default="*", help="parts whose names match one of these, e.g. sampler_*,adm_import")
    parser.add_argument("--rehearse", action="store_true", help="everything tiny, on a CPU")
    parser.add_argument("--pack", default="", help="write CIFAR-10 to this .npz, and nothing else")
    parser.add_argument("--data_dir", default="", help="of --pack: TFDS's folder")
    parser.add_argument("--count", type=int, default=0, help="of --pack: so many images; 0 is all")
    options = parser.parse_args(arguments)
    if options.pack:
        print(f"{options.pack}: {packed.pack(Path(options.pack), options.data_dir, options.count)} images")
        return 0
    if options.rehearse:
        jax.config.update("jax_platforms", "cpu")
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=1"
        for name in ("tensorflow", "tensorflow_datasets", "matplotlib", "sklearn"):
            sys.modules[name] = None  # type: ignore[assignment]  # as on a machine without them
    elif jax.default_backend() == "cpu":
        print("error: JAX finds no accelerator; --rehearse runs on a CPU", file=sys.stderr)
        return 2
    run = Run(options, shlex.join(["python", "-m", "benchmarks.accelerator", *arguments]))
    watchdog = threading.Timer(options.seconds + GRACE, run.give_up)
    watchdog.daemon = True
    watchdog.start()
    try:
        with tempfile.TemporaryDirectory() as cache:  # parts share programs
            jax.config.update("jax_compilation_cache_dir", cache)
            go(run)
    except Exception:
        run.found["error"] = traceback.format_exc()
        run.write()
        raise
    watchdog.cancel()
    states = {name: part["ok"] for name, part in run.found["parts"].items()}
    print(f"{sum(ok is True for ok in states.values())} of {len(states)} parts ok; written to {run.out}")
    return int(not all(states.values()))


def machine(run: Run) -> dict[str, Any]:
    """Description of the machine."""
    from benchmarks import machine  # here, so that without psutil this part alone fails

    return machine.describe()


def go(run: Run) -> None:
    """Runs all parts."""
    measurements: dict[str, Part] = {"matmul_peak": speed.matmul_peak}
    for dtype in ("bfloat16", "float32"):
        measurements[f"training_step_{dtype}"] = speed.training_step(dtype)
        measurements[f"ddim_{dtype}"] = speed.sampling(dtype, speed.PLAIN)
        measurements[f"ddim_cfg_{dtype}"] = speed.sampling(dtype, speed.CFG)
    plan: list[tuple[dict[str, Part], float]] = [
        ({"machine": machine}, 1.0),
        (checks.all_checks(), CHECKS_UNTIL),
        (measurements, MEASUREMENTS_UNTIL),
        ({"training": speed.training}, 1.0),
    ]
    for parts, until in plan:
        for name, part in parts.items():
            if any(fnmatchcase(name, pattern) for pattern in run.options.only.split(",")):
                run.part(name, part, 1.0 if run.options.rehearse else until)
    run.found["config"] = run.config.to_dict()
    run.found["finished"] = True
    run.write()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
