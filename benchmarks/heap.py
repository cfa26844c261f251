"""What glibc's settings of the heap are worth on a Linux CPU: `python -m benchmarks.heap`.

By default glibc gives the memory of a step's arrays back to the system, which maps it anew, page by page, in the next
step. The table compares training steps in processes without and with settings that keep it, in an arena for each thread
or in one, also with pages of 2 MiB, in turns; each process reads the compiled step from a cache.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

from benchmarks.cases import case
from benchmarks.compiling import NETWORKS
from benchmarks.report import markdown
from benchmarks.timing import Spread

KEEP = "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592"
ONE_ARENA = f"{KEEP}:glibc.malloc.arena_max=1"
SETTINGS = {
    "default": "",
    "kept": KEEP,
    "kept, one arena": ONE_ARENA,
    "kept, one arena, large pages": f"{ONE_ARENA}:glibc.malloc.hugetlb=1",
}
"""Values of the environment's GLIBC_TUNABLES by name; the Makefile has the last. An arena other than the main one has
no place for arrays of more than 64 MiB, whatever the thresholds are, and maps each of them anew."""
STEPS = {"digits": 40, "8.0M": 6}
ROUNDS = 3


def main(arguments: list[str]) -> int:
    """Prints the table, or with a network's name as argument the figures of one process."""
    if arguments:
        print(json.dumps(steps(*arguments)))
        return 0
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        for size in STEPS:
            process(size, "", cache)
            found = [{name: process(size, value, cache) for name, value in SETTINGS.items()} for _ in range(ROUNDS)]
            for name in SETTINGS:
                ratio = Spread.of(np.array([one["default"]["seconds"] / one[name]["seconds"] for one in found]))
                faults, peak = (np.median([one[name][key] for one in found]) for key in ("faults", "peak"))
                rows.append(
                    [size, name, str(ratio), f"{faults:,.0f}",
                     f"{peak / 2**20:.2f}"]
                )  # fmt: skip
    print(markdown(("network", "heap", "speed, default = 1", "page faults a step", "peak, GiB"), rows))
    return 0


def process(size: str, tunables: str, cache: str) -> dict[str, float]:
    """Figures of a process with these settings."""
    environment = os.environ | {
        "GLIBC_TUNABLES": tunables,
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    command = [sys.executable, "-m", "benchmarks.heap", size]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def steps(size: str) -> dict[str, float]:
    """Median seconds of a training step, page faults of one, and the process's peak memory in KiB."""
    network = NETWORKS[size]
    made = case(network.size, network.changes)
    trainer = made.trainer()
    batch, current = made.batch_on(trainer.mesh), made.start(trainer)
    step, seconds, faults = trainer.compiled_step, [], []
    for _ in range(2 + STEPS[size]):
        begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        current, metrics = step(current, batch)
        jax.block_until_ready((current, metrics))
        seconds.append(time.perf_counter() - begin)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        faults.append(usage.ru_minflt - before)
    return {"seconds": float(np.median(seconds[2:])), "faults": float(np.median(faults[2:])), "peak": usage.ru_maxrss}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
