"""What a start costs: `python -m benchmarks.starts`, each start in a process of its own.

Each is run three times: first with an empty cache of compiled programs, then twice with a full one, of which the
quicker counts. The table has the seconds from the process's start to its end, as a multiple of those of a process that
imports JAX and Flax and ends; of them, what JAX reports of tracing, lowering, reading compiled programs and compiling;
and which of the slow packages were imported.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.report import markdown

PROBE = """
import atexit, json, sys
import jax, flax.linen, jax.monitoring
seconds = {}
def note(name, duration, **about):
    seconds[name] = seconds.get(name, 0) + duration
jax.monitoring.register_event_duration_secs_listener(note)
slow = ("optax", "orbax.checkpoint", "grain", "tensorflow_datasets", "sklearn", "matplotlib", "PIL", "tensorboardX")
atexit.register(lambda: print("\\nPROBE " + json.dumps([seconds, [name for name in slow if name in sys.modules]])))
"""
"""Counts what JAX reports, and prints it as the last line."""

COMMAND = "from guided_diffusion_jax.commands import cli; assert cli.main(['main.py', {}]) == 0"
SMALL = "'--config=digits', '--config.train.steps=1', '--config.train.sample_every=0', '--config.data.data_dir={home}'"
STARTS = {
    "import jax, flax": "",
    "gd.load('digits'), two images": "import guided_diffusion_jax as gd; gd.load('digits')(labels=[3, 7], steps=10)",
    "--help": COMMAND.format("'--help'"),
    "--mode=sample, digits": COMMAND.format("'--workdir=digits', '--mode=sample', '--config.sample.count=10'"),
    "one training step, digits": COMMAND.format(SMALL + ", '--workdir={run}'"),
    "one training step, 8.0M": (
        "import numpy as np; from benchmarks.cases import case; from benchmarks.compiling import NETWORKS;"
        "made = case(NETWORKS['8.0M'].size, NETWORKS['8.0M'].changes);"
        "made.trainer().fit(1, made.batch)"
    ),
}
"""Python code by name; {home} and {run} are folders that are removed afterwards."""

TRACE, LOWER, READ, COMPILE = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/compilation_cache/cache_retrieval_time_sec",
    "/jax/core/compile/backend_compile_duration",  # reading is a part of it
)
HEAD = ("start", "cache", "in total, s", "of the imports", "trace, s", "lower, s", "read, s", "compile, s", "imports")


class Start(NamedTuple):
    """One process: its seconds from start to end, JAX's by event, and the slow packages that it imported."""

    total: float
    seconds: dict[str, float]
    imported: list[str]


def start(code: str, cache: Path, folder: Path) -> Start:
    """Runs a start with this folder as cache of compiled programs and another one for its files."""
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        "PYTHONPATH": str(Path(__file__).parent.parent),
    }
    with tempfile.TemporaryDirectory(dir=folder) as run:
        script = PROBE + code.replace("{home}", str(folder / "data")).replace("{run}", f"{run}/run")
        begin = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=run, env=environment, capture_output=True, text=True, check=True
        )
        total = time.perf_counter() - begin
    seconds, imported = json.loads(done.stdout.rpartition("PROBE ")[2])
    return Start(total, seconds, imported)


def main(arguments: Sequence[str]) -> int:
    """Exit code 0. Arguments are parts of the names of starts, all by default; the imports are always measured."""
    rows, base = [], 0.0
    for name, code in STARTS.items():
        if base and arguments and not any(part in name for part in arguments):
            continue
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            first, *others = (start(code, place / "cache", place) for _ in range(3))
        second = min(others, key=lambda one: one.total)
        base = base or second.total
        rows += [row(name, cache, one, base) for cache, one in (("empty", first), ("full", second))]
        print(*rows[-1], sep=" | ", file=sys.stderr, flush=True)
    print(markdown(HEAD, rows))
    return 0


def row(name: str, cache: str, one: Start, base: float) -> list[str]:
    """A row of the table."""
    read: Any = one.seconds.get(READ, 0.0)
    parts = [one.seconds.get(TRACE, 0.0), one.seconds.get(LOWER, 0.0), read, one.seconds.get(COMPILE, 0.0) - read]
    shown = [f"{max(0.0, seconds):.1f}" for seconds in parts]
    return [name, cache, f"{one.total:.1f}", f"{one.total / base:.1f}", *shown, ", ".join(one.imported)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
