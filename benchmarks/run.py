"""Runs the benchmarks, prints their tables and writes them as JSON.

`python -m benchmarks.run` measures digits and CIFAR-10, in under 5 minutes on 2 CPU cores; with `--quick` a smaller
digits alone, in under one. `--suite=peers` measures ours and diffusers in turns.
`--show=runs/bench.json` prints the tables of an earlier run and measures nothing.
"""

import argparse
import datetime
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import jax
from etils import epath

from benchmarks import machine, report, sampling, training_step
from benchmarks.cases import SIZES, Case, Results, case
from benchmarks.peers import suite
from benchmarks.peers.plot import plot
from benchmarks.peers.tables import tables
from guided_diffusion_jax.errors import InputError

QUICK = {"train.batch_size": 16, "model.channel_mult": (1,), "model.attention_resolutions": (8,)}
SUITES = {"own": "digits,cifar10", "peers": "digits,8m"}
"""The sizes that a suite measures by default."""
BUDGET, QUICK_BUDGET = 8.0, 2.0
"""Seconds of rounds for each group of programs that take turns."""


def main(arguments: list[str]) -> int:
    """Exit code: 0 done, 2 wrong input."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description="Training step and DDIM-50 sampling.")
    parser.add_argument("--suite", choices=SUITES, default="own", help="peers: beside diffusers; default own")
    parser.add_argument("--sizes", help=f"some of {','.join(SIZES)}; of peers, of {','.join(suite.SIZES)}")
    parser.add_argument("--out", help="where the JSON goes; default runs/bench.json, of peers runs/peers.json")
    parser.add_argument(
        "--quick", action="store_true", help="networks of one level and fewer rounds, for a look at whether all runs"
    )
    parser.add_argument("--budget", type=float, help=f"seconds of rounds; default {BUDGET:.0f}")
    parser.add_argument(
        "--python", default=".venv-peers/bin/python", help="of peers: of the environment with torch and diffusers"
    )
    parser.add_argument("--show", metavar="FILE", help="print the tables of an earlier run's JSON and stop")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="of peers: the ratios as a figure, .svg or .png")
    options = parser.parse_args(arguments)
    if options.show:
        show(json.loads(epath.Path(options.show).read_text()), options.plot)
        return 0
    sizes = tuple((options.sizes or ("digits" if options.quick else SUITES[options.suite])).split(","))
    budget = options.budget or (QUICK_BUDGET if options.quick else BUDGET)
    command = shlex.join(["python", "-m", "benchmarks.run", *arguments])
    try:
        if options.suite == "peers":
            found = suite.run(suite.Options(sizes, Path(options.python).absolute(), budget, options.quick), command)
        else:
            cases = [case(size, QUICK if options.quick else {}) for size in sizes]
            jax.config.update("jax_enable_compilation_cache", False)  # compile times without a cache
            found = measure(cases, budget, command)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    out = options.out or ("runs/peers.json" if options.suite == "peers" else "runs/bench.json")
    write(found, epath.Path(out))
    show(found, options.plot)
    print(f"\nwritten to {out}")
    return 0


def show(found: dict[str, Any], figure: Path | None) -> None:
    """Prints the tables of a run of either suite, and draws the figure of one beside peers."""
    peers = found.get("suite") == "peers"
    print((tables if peers else report.tables)(found))
    if peers and figure is not None:
        plot(found, figure)


def measure(cases: list[Case], budget: float, command: str) -> dict[str, Any]:
    """Runs all benchmarks of all cases and returns what the JSON holds."""
    start = time.perf_counter()
    described = machine.describe()
    results: list[Results] = []
    for one in cases:
        for benchmark in (training_step, sampling):
            print(f"{time.perf_counter() - start:5.0f} s: {benchmark.__name__} {one.name}", file=sys.stderr, flush=True)
            results.append(benchmark.run(one, budget))
    return {
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": time.perf_counter() - start,
        "machine": described,
        "notes": {
            "ratios": "of seconds of programs that ran alternately in this run: median, min and max over the rounds",
            "program_bytes": "XLA's plan (memory_analysis): arguments + results + temporaries - donated; "
            "without what libraries allocate at run time",
            "device_peak_bytes": "memory_stats()['peak_bytes_in_use'] of the first device after the program's first "
            "call, over the life of the process; null on a CPU, which does not count",
        },
        "cases": [
            {
                "name": one.name,
                "overrides": one.overrides,
                "batch": one.batch,
                "parameters": sum(leaf.size for leaf in jax.tree.leaves(one.params())),
                "config": one.config.to_dict(),
            }
            for one in cases
        ],
        "ratios": [
            {"case": r.case, "name": r.name, **r.value._asdict(), "rounds": r.rounds} for x in results for r in x.ratios
        ],
        "measurements": [
            {**m._asdict(), "seconds": m.seconds._asdict()} for x in results for m in x.measurements
        ],
    }  # fmt: skip


def write(found: dict[str, Any], path: epath.Path) -> None:
    """Writes the JSON beside its place, then renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.parent / f"{path.name}.tmp"
    beside.write_text(json.dumps(found, indent=2) + "\n")
    beside.replace(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
