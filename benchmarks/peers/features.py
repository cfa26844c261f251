"""InceptionV3's features, those of FID, beside torch's: `python -m benchmarks.peers.features`.

Both sides take images of 32x32 pixels in bytes, enlarge them and give 2,048 numbers for each, with the same layers,
whose batch normalisation is folded into the convolutions. Weights are random. The two processes take turns, as in the
suite of peers, and need the environment of `make peers`.
"""

import argparse
import dataclasses
import sys

import numpy as np

from benchmarks import machine
from benchmarks.peers.pair import parse, two_sides
from benchmarks.peers.suite import timed
from benchmarks.peers.worker import FEATURES, OURS, THEIRS
from benchmarks.report import markdown
from benchmarks.timing import Spread
from guided_diffusion_jax.evaluation.features import inception


def main(arguments: list[str]) -> int:
    """Exit code: 0 done, 2 wrong input."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.features", description=__doc__)
    parser.add_argument("--images", type=int, default=16, help="of a batch")
    if (given := parse(parser, arguments)) is None:
        return 2
    with two_sides("features", given.python) as workers:
        layers = [dataclasses.asdict(layer) for layer in inception.LAYERS]
        counts = set()
        for worker in workers.values():
            built = worker.ask("build", layers=layers, images=given.images, threads=machine.cores())
            counts.add(built["parameters"])
            worker.ask("prepare", program=FEATURES)
        (parameters,) = counts
        seconds = timed({side: (worker, FEATURES, 1) for side, worker in workers.items()}, given.budget, before=1)
    ratio = Spread.of(seconds[THEIRS] / seconds[OURS])
    rates = [f"{given.images / np.median(seconds[side]):.1f}" for side in workers]
    head = ("parameters", "images", "ours, images/s", "torch, images/s", "ours / torch")
    print(markdown(head, [(f"{parameters:,}", str(given.images), *rates, str(ratio))]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
