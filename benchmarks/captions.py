"""A picture of test images above what runs generate for their captions, for the docs.

    python -m benchmarks.captions --workdir=runs/shapes64 --out=docs/images/shapes64_text.png
    python -m benchmarks.captions --workdir=runs/shapes64,runs/pink --out=docs/images/shapes64_pink.png

The test split is that of the last run, whose captions may be chosen (`data.caption_has`); all draw from the same noise.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from etils import epath

import guided_diffusion_jax as gd
from guided_diffusion_jax import grids
from guided_diffusion_jax.data.images import write_png
from guided_diffusion_jax.experiment import build
from guided_diffusion_jax.experiment import config as configs


def main(arguments: Sequence[str]) -> int:
    """Exit code 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.captions", description="Pictures by captions.")
    parser.add_argument("--workdir", required=True, help="runs with commas, all of one data set")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--names", default="", help="what to call each run in the picture, with commas")
    parser.add_argument("--weight", type=float, default=2.0)
    parser.add_argument("--count", type=int, default=10)
    given = parser.parse_args(arguments)
    runs = given.workdir.split(",")
    names = given.names.split(",") if given.names else ["generated for their captions"] * len(runs)
    data = build.dataset(configs.load("", runs[-1]), "test")
    examples = (data.raw or data).read(np.arange(given.count))
    captions = examples["text"].tolist()
    rows = [examples["image"]]
    for run in runs:
        pipe = gd.load(epath.Path(run))
        rows.append(pipe(prompt=captions, weight=given.weight, steps=25, seed=0))
    write_png(epath.Path(given.out), grids.grid(rows, ["test images", *names]))
    print("\n".join(captions))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
