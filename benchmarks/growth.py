"""Memory of a training process over its steps: `python -m benchmarks.growth [--steps=2200]`.

A small run on digits trains, logs, saves and samples in a process of its own, whose resident set is read from outside,
without pages of files, which the system drops as it likes. The first steps are left out: the programs and buffers of
the first saves and samples stay.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

WARM, EACH = 200, 200
"""Steps that are left out at first, and steps of one mean: memory rises and falls with each save."""


def watch(steps: int, workdir: Path) -> dict[int, float]:
    """Resident set in MiB, read every half second, by the newest step that the run has logged."""
    overrides = {
        "model.width": 8, "model.head_width": 8, "train.steps": steps, "train.log_every": 10, "train.save_every": 100,
        "train.sample_every": 100, "train.batch_size": 16, "sample.steps": 5,
    }  # fmt: skip
    command = [sys.executable, "main.py", "--config=configs/digits.py", f"--workdir={workdir}"]
    command += [f"--config.{key}={value}" for key, value in overrides.items()]
    seen: dict[int, float] = {}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        run = psutil.Process(process.pid)
        while process.poll() is None:
            lines = (workdir / "metrics.jsonl").read_text().splitlines() if (workdir / "metrics.jsonl").exists() else []
            if lines and process.poll() is None:
                memory = run.memory_info()
                seen[json.loads(lines[-1])["step"]] = (memory.rss - memory.shared) / 2**20
            time.sleep(0.5)
    assert process.returncode == 0
    return seen


def main() -> None:
    """Prints means of the resident set over the steps, and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2200)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as folder:
        seen = watch(steps, Path(folder))
    warm = {step: size for step, size in seen.items() if step >= WARM}
    sizes = np.array(list(warm.values()))
    firsts = range(WARM, steps, EACH)
    parts = {first: [size for step, size in warm.items() if step // EACH == first // EACH] for first in firsts}
    means = {first: np.mean(part) for first, part in parts.items() if part}
    for first, mean in means.items():
        print(f"steps {first} to {first + EACH - 1}: {mean:.1f} MiB in the mean")
    half = len(sizes) // 2
    print(f"mean of the second half / of the first = {sizes[half:].mean() / sizes[:half].mean():.4f}")
    print(f"means, largest / smallest = {max(means.values()) / min(means.values()):.4f}")


if __name__ == "__main__":
    main()
