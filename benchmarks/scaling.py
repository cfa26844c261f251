"""Weak scaling by simulation: work and communication of one device, read from the step that XLA has partitioned.

`python -m benchmarks.scaling` prints the Markdown table of docs/scaling.md. For each number of devices, a process of
its own simulates so many, lowers the training step for them and gives it to XLA's compiler, which writes the program of
one device when its partitioner is done. The rest of the compilation is for a CPU, tells nothing and is not waited for.
Nothing is run or allocated.
"""

import argparse
import functools
import json
import math
import os
import re
import runpy
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from benchmarks.report import markdown
from guided_diffusion_jax import sharding
from guided_diffusion_jax.commands import dry_run

DEVICES = (1, 8, 64, 256)
PASS = "spmd-partitioning"
STEP = 100_000
"""Characters that the program of a step has at least; others are short."""

WIDTH = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}

RING = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: n - 1.0,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
}
"""Bytes that a device sends over a ring of n, of each byte of the result on a device (Thakur et al. 2005)."""

SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
CALLED = re.compile(r"(?:to_apply|body|condition|calls)=%?([\w.\-]+)")


def main(arguments: list[str]) -> int:
    """Exit code 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description="Weak scaling, by simulation.")
    parser.add_argument("--config", default="configs/imagenet64.py")
    parser.add_argument("--set", default="{}", help='JSON of overrides, e.g. {"model.width": 32}')
    parser.add_argument("--each", type=int, default=8, help="images on a device")
    parser.add_argument("--devices", default=",".join(map(str, DEVICES)))
    parser.add_argument("--ways", default="data_parallel,fsdp")
    parser.add_argument("--shards", type=int, default=0, help="train.shards; 0 is up to 64")
    parser.add_argument("--only", action="store_true", help="lower for this process's devices; the others use it")
    options = parser.parse_args(arguments)
    if options.only:
        lower(options)
        return 0
    rows = []
    for devices in map(int, options.devices.split(",")):
        for way in options.ways.split(","):
            rows.append(row(partitioned(arguments, devices, way), devices, way))
            print(*rows[-1], file=sys.stderr, flush=True)  # a row takes minutes
    head = ["devices", "way", "TFLOP", *(f"{kind}, GB" for kind in RING), "sent over a ring, GB"]
    print(markdown(head, rows))
    return 0


def lower(options: argparse.Namespace) -> None:
    """Compiles the step for all devices of this process."""
    config = runpy.run_path(options.config)["get_config"]()
    config.update_from_flattened_dict(json.loads(options.set))
    config.train.batch_size = options.each * jax.device_count()
    config.train.parallel, config.train.shards = options.ways, min(options.shards, jax.device_count())
    compile_step(config)


def compile_step(config: ConfigDict) -> jax.stages.Compiled:
    """The training step of a configuration for the devices of this process."""
    made = dry_run.program(config, "train")
    mesh = made.trainer.mesh
    batch = {
        name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding.data_sharding(mesh))
        for name, a in made.batch(config.train.batch_size).items()
    }
    step: Any = made.trainer.compiled_step
    return step.lower(sharding.abstract_with_sharding(made.state, mesh), batch).compile()


def partitioned(arguments: list[str], devices: int, way: str) -> str:
    """The program of one device of so many."""
    wanted = f"*.after_{PASS}.*txt" if devices > 1 else "*jit_*.before_optimizations.txt"  # one needs no partitioner
    with tempfile.TemporaryDirectory() as folder:
        flags = (
            f"--xla_force_host_platform_device_count={devices} --xla_dump_to={folder} --xla_dump_hlo_pass_re={PASS} "
            "--xla_dump_hlo_as_text"
        )
        child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.scaling", *arguments, "--only", f"--ways={way}"],
            env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        )
        try:
            while child.poll() is None:
                time.sleep(1)
                for text in (file.read_text() for file in Path(folder).glob(wanted)):
                    if len(text) > STEP and text.rstrip().endswith("}"):  # the step's, written to its end
                        return text
        finally:
            child.kill()
            child.wait()
    raise RuntimeError(f"{devices} devices, {way}: the compiler ended with {child.returncode} and wrote no program")


def row(program: str, devices: int, way: str) -> list[str]:
    """A line of the table."""
    moved, sent = collectives(program)
    return [
        str(devices),
        way,
        f"{products(program) / 1e12:.3f}",
        *(f"{moved[kind] / 1e9:.3f}" for kind in RING),
        f"{sent / 1e9:.3f}",
    ]


def collectives(program: str) -> tuple[Counter[str], float]:
    """The bytes of the results of each kind of collective, and the bytes that a device sends, in one step."""
    moved: Counter[str] = Counter()
    sent = 0.0
    for _, (_, result, operation, rest) in executed(program):
        kind = operation.removesuffix("-start")
        if kind in RING and (group := group_size(rest)) > 1:
            size = nbytes(result)
            moved[kind] += size
            sent += size * RING[kind](group)
    return moved, sent


def products(program: str) -> int:
    """Floating-point operations of the convolutions and matrix products, two a multiplication with its addition."""
    shapes = {name: result for lines in computations(program).values() for name, result, _, _ in lines}
    total = 0
    for _, (_, result, operation, rest) in executed(program):
        operands = re.findall(r"%([\w.\-]+)", rest.split(")")[0])
        if operation == "dot":
            axes = matched(r"lhs_contracting_dims=\{([\d,]*)\}", rest)
            left = dimensions(shapes[operands[0]])
            total += 2 * math.prod(dimensions(result)) * math.prod(left[int(a)] for a in axes[1].split(",") if a)
        elif operation == "convolution":
            labels = matched(r"dim_labels=\w+_(\w+)->", rest)
            kernel = dimensions(shapes[operands[1]])
            total += 2 * math.prod(dimensions(result)) * math.prod(kernel) // kernel[labels[1].index("o")]
    return total


def executed(program: str) -> Iterator[tuple[str, tuple[str, str, str, str]]]:
    """The lines that run in one step, those of a called computation once for each call: (computation, line).

    Loops count once: the one that a step has, over the parts of `accumulate`, makes one turn here.
    """
    lines = computations(program)
    entry = matched(r"(?m)^ENTRY %?([\w.\-]+)", program)[1]
    left = [entry]
    while left:
        name = left.pop()
        for line in lines[name]:
            yield name, line
            left += [called for called in CALLED.findall(line[3]) if line[2] in ("call", "while", "fusion")]


@functools.lru_cache(maxsize=1)
def computations(program: str) -> dict[str, list[tuple[str, str, str, str]]]:
    """The lines (name, result, operation, rest) of each computation of an HLO text."""
    found: dict[str, list[tuple[str, str, str, str]]] = defaultdict(list)
    current = ""
    for text in program.splitlines():
        if text.endswith("{") and not text.startswith((" ", "HloModule")):
            current = text.removeprefix("ENTRY ").lstrip("%").split()[0]
        elif match := LINE.match(text):
            name, result, operation, rest = match.groups()
            found[current].append((name, result, operation, rest))
    return found


def group_size(rest: str) -> int:
    """How many devices talk to each other."""
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(match[1])
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return len(match[1].split(","))
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]* \{([^}]*)\}", rest):
        lengths = dict(axis.split("=") for axis in match[1].split(","))
        return math.prod(int(lengths[axis]) for axis in match[2].split(",") if axis)
    if "source_target_pairs" in rest:
        return 2
    raise ValueError(f"who talks to whom is not understood: {rest}")


def matched(pattern: str | re.Pattern[str], text: str) -> re.Match[str]:
    """Where the pattern is in the text, which it must be."""
    match = re.search(pattern, text)
    assert match is not None, f"no {pattern} in {text[:200]}"
    return match


def dimensions(shape: str) -> list[int]:
    """Of the first array of an HLO shape."""
    return [int(length) for length in matched(SHAPE, shape)[2].split(",") if length]


def nbytes(shape: str) -> int:
    """Of all arrays of an HLO shape."""
    return sum(WIDTH[t] * math.prod(int(length) for length in s.split(",") if length) for t, s in SHAPE.findall(shape))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
