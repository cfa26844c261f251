"""Measures ours and diffusers in turns, each in a process of its own, when it has made sure that they are as large."""

import datetime
import functools
import math
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import machine
from benchmarks.cases import SIZES as CASES
from benchmarks.compiling import NETWORKS
from benchmarks.peers.worker import (
    CFG,
    CLASSIFIER,
    DDIM,
    FORWARD,
    LOADING,
    MATMUL,
    OURS,
    TRAINING,
    Worker,
    WorkerError,
)
from benchmarks.timing import Spread, rounds
from guided_diffusion_jax.errors import choose, one_line, require

EAGER, COMPILED = "diffusers", "diffusers, compiled"
MODULES = {OURS: "benchmarks.peers.ours", EAGER: "benchmarks.peers.theirs", COMPILED: "benchmarks.peers.theirs"}
PROGRAMS = (TRAINING, FORWARD, DDIM, CFG, CLASSIFIER, MATMUL)
"""Of all sides. The training step is prepared when a process starts."""
SAMPLING = (DDIM, CFG, CLASSIFIER)
APART = 0.01
"""Largest relative difference of the numbers of parameters."""
SHORTEST, MOST_CALLS = 0.2, 50
"""Seconds that the calls between two readings of the clock take together, and how many they are at most."""
LONG = 3.0
"""Seconds of a call that is timed without a call before it."""
LOADED = 64
"""Batches between two readings: several times what is read ahead."""
REQUIREMENTS = Path(__file__).with_name("requirements.txt")


class Network(NamedTuple):
    """A size of `cases`, changes of its configuration, and the images of a batch in sampling."""

    size: str
    changes: dict[str, Any]
    images: int


SAME = {"model.dropout": 0.0, "model.dtype": "float32"}
"""Not all of diffusers' blocks have dropout."""
ACCELERATED = SAME | {"model.dtype": "bfloat16"}
DDPM = {
    "model.num_res_blocks": 2, "model.attention_resolutions": (16,), "model.time_injection": "add",
    "model.resample": "conv",
}  # fmt: skip
"""The 35.7M network of Ho et al. 2020 (appendix B)."""
FIXED = {"diffusion.variance": "fixed_small"}
"""Their example scripts have no learned variance."""
QUICK = {
    "train.batch_size": 4, "model.channel_mult": (1,), "model.attention_resolutions": (), "model.num_res_blocks": 1,
}  # fmt: skip
SIZES = {
    "digits": Network("digits", SAME, 16),
    "cifar10-small": Network("cifar10", SAME | CASES["cifar10"].on_cpu, 4),
    "8m": Network("cifar10", SAME | NETWORKS["8.0M"].changes, 4),
    "cifar10": Network("cifar10", ACCELERATED | DDPM, 128),
    "imagenet64": Network("imagenet64", ACCELERATED | FIXED | {"train.batch_size": 32}, 32),
}
"""The last two are for accelerators."""


class Options(NamedTuple):
    """What is measured, and with which python diffusers runs.

    Attributes:
        sizes: keys of `SIZES`.
        python: of an environment with torch and diffusers.
        budget: seconds of rounds of a program.
        quick: networks of one level, two images, and no compiled diffusers.
    """

    sizes: tuple[str, ...]
    python: Path
    budget: float
    quick: bool = False


def run(options: Options, command: str) -> dict[str, Any]:
    """Measures everything and returns what the JSON holds.

    Raises:
        InputError: there is no such size; the environment lacks something; or the networks are not as large.
    """
    networks = {size: choose(SIZES, size, "--sizes") for size in options.sizes}
    require_peers(options.python)
    begin = time.perf_counter()
    found: dict[str, Any] = {
        "suite": "peers",
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "notes": {
            "ratios": "of seconds in the same round; diffusers / ours is above 1 where ours is faster",
            "starts": "seconds from the start of a process to the end of its first training step, with empty and with "
            "full caches of compiled programs",
            "flops_per_image": "ours: XLA's count before optimisation; diffusers: torch's FlopCounterMode",
            "host_peak_bytes": "largest resident memory of the process, compiling included",
        },
        "cases": [], "starts": [], "ratios": [], "measurements": [], "skipped": [],
    }  # fmt: skip
    for size, network in networks.items():
        measure(size, network, options, found)
    return found | {"seconds": time.perf_counter() - begin}


def require_peers(python: Path) -> None:
    """Raises `InputError` unless torch and diffusers are in the environment of `python`."""
    wanted = " and ".join(REQUIREMENTS.read_text().split())
    remedy = f"`make peers` installs {wanted} there; --python=PATH takes another environment that has them"
    require(python.exists(), f"--suite=peers needs {python}, which is not there; {remedy}")
    look = "from importlib.util import find_spec as f; print(*(n for n in ('torch', 'diffusers') if f(n) is None))"
    missing = subprocess.run([python, "-c", look], capture_output=True, text=True, check=True).stdout.split()
    require(not missing, f"--suite=peers: {python} has no {' and no '.join(missing)}; {remedy}")


def measure(size: str, network: Network, options: Options, found: dict[str, Any]) -> None:
    """Measures one network and adds to the record."""
    changes, images = network.changes | (QUICK if options.quick else {}), 2 if options.quick else network.images
    requests: dict[str, Any] = {OURS: {"size": network.size, "changes": changes, "images": images}}
    with tempfile.TemporaryDirectory() as caches, ExitStack() as stack:
        workers: dict[str, Worker] = {}
        case: dict[str, Any] = {"name": size, "changes": changes, "sides": {}}
        found["cases"].append(case)
        for side in [OURS, EAGER] if options.quick else [OURS, EAGER, COMPILED]:
            say(f"{size}: start of {side}")
            worker = stack.enter_context(closing(launch(side, options.python, caches)))
            built = worker.ask("build", **requests[side])
            case["sides"][side], took = built, worker.age
            require_same_size(size, case["sides"][OURS], built)
            if side == OURS:
                case["work"] = work = built.pop("work")
                theirs = {"work": work, "threads": machine.cores()}
                requests |= {EAGER: theirs | {"compiled": False}, COMPILED: theirs | {"compiled": True}}
            if first_step(worker, size, side, took, "empty", found):
                workers[side] = worker
        for program in PROGRAMS:
            say(f"{size}: {program}")
            in_turns(program, workers, case, options.budget, found)
        loading(workers[OURS], case, options.budget, found)
        for side, worker in workers.items():
            case["sides"][side] |= worker.ask("describe")
        for side in workers:
            say(f"{size}: second start of {side}")
            with closing(launch(side, options.python, caches)) as worker:
                worker.ask("build", **requests[side])
                first_step(worker, size, side, worker.age, "full", found)


def launch(side: str, python: Path, caches: str) -> Worker:
    """Starts a side's process, which keeps its compiled programs in `caches`."""
    environment = {
        "JAX_COMPILATION_CACHE_DIR": f"{caches}/jax",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "TORCHINDUCTOR_CACHE_DIR": f"{caches}/torch",
    }
    return Worker([sys.executable if side == OURS else os.fspath(python), "-m", MODULES[side]], environment)


def require_same_size(size: str, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Raises `InputError` if the numbers of parameters are further apart than `APART`."""
    for part in ("parameters", "classifier_parameters"):
        a, b = ours[part], theirs[part]
        require(
            abs(a - b) <= APART * a, f"{size}: ours has {a:,} {part} and diffusers {b:,}, more than {APART:.0%} apart"
        )


def first_step(worker: Worker, size: str, side: str, built: float, state: str, found: dict[str, Any]) -> bool:
    """Prepares the training step and records how long the start took; whether the side can do it."""
    about = prepare(worker, size, side, TRAINING, found)
    if about is not None:
        found["starts"].append({
            "case": size, "side": side, "caches": state, "imports": worker.imported, "build": built - worker.imported,
            "first_step": worker.age - built, "total": worker.age, **about,
        })  # fmt: skip
    return about is not None


def prepare(worker: Worker, size: str, side: str, program: str, found: dict[str, Any]) -> dict[str, Any] | None:
    """Prepares a program. None, with a record, where compiled diffusers cannot: it needs a C++ compiler."""
    try:
        return worker.ask("prepare", program=program)
    except WorkerError as error:
        if side != COMPILED:
            raise
        found["skipped"].append({"case": size, "side": side, "program": program, "error": one_line(error)})
        return None


def in_turns(
    program: str, workers: dict[str, Worker], case: dict[str, Any], budget: float, found: dict[str, Any]
) -> None:
    """Measures one program of all sides in turns."""
    size, about = case["name"], dict[str, dict[str, Any]]()
    for side, worker in workers.items():
        if program == TRAINING:
            about[side] = {}
        elif (prepared := prepare(worker, size, side, program, found)) is not None:
            about[side] = prepared
    once = workers[OURS].ask("run", program=program, calls=1)
    calls = min(math.ceil(SHORTEST / once), MOST_CALLS)
    seconds = timed({side: (workers[side], program, calls) for side in about}, budget, before=int(once < LONG))
    work = case["work"]
    batch = 1 if program == MATMUL else work["images"] if program in SAMPLING else work["batch_size"]
    for side, values in seconds.items():
        record(found, size, side, program, batch, values, about[side])
        if side != OURS:
            add_ratio(found, size, f"{program}: {side} / ours", values / seconds[OURS])


def loading(ours: Worker, case: dict[str, Any], budget: float, found: dict[str, Any]) -> None:
    """Measures our loader alone, in turns with the training step."""
    say(f"{case['name']}: loader")
    for program in LOADING.values():
        ours.ask("prepare", program=program)
    calls = {TRAINING: 1, **dict.fromkeys(LOADING.values(), LOADED)}
    seconds = timed({program: (ours, program, count) for program, count in calls.items()}, budget)
    for program in LOADING.values():
        values = seconds[program]
        record(found, case["name"], OURS, program, case["work"]["batch_size"], values, {})
        add_ratio(found, case["name"], f"{TRAINING} / {program}", seconds[TRAINING] / values)


def timed(programs: dict[str, tuple[Worker, str, int]], budget: float, before: int = 0) -> dict[str, np.ndarray]:
    """Seconds of one call in each round, by name; a name has a worker, its program and the calls of a round.

    A turn begins with `before` calls that are not timed: the system takes memory from processes that wait.
    """

    def turn(worker: Worker, program: str, calls: int) -> float:
        if before:
            worker.ask("run", program=program, calls=before)
        return worker.ask("run", program=program, calls=calls)

    turns = {name: functools.partial(turn, *what) for name, what in programs.items()}
    return {name: values / programs[name][2] for name, values in rounds(turns, budget).items()}


def record(
    found: dict[str, Any], size: str, side: str, program: str, batch: int, values: np.ndarray, about: dict[str, Any]
) -> None:
    """Records the seconds of a batch."""
    found["measurements"].append({
        "case": size, "side": side, "program": program, "batch": batch, "seconds": Spread.of(values)._asdict(),
        "images_per_second": batch / float(np.median(values)), **about,
    })  # fmt: skip


def add_ratio(found: dict[str, Any], size: str, name: str, values: np.ndarray) -> None:
    """Records the median and the range of ratios."""
    found["ratios"].append({"case": size, "name": name, **Spread.of(values)._asdict(), "rounds": len(values)})


def say(what: str) -> None:
    """Prints what is being done."""
    print(what, file=sys.stderr, flush=True)
