"""InceptionV3's features, those of FID, beside torch's: `python -m benchmarks.peers.features`.

Both sides take images of 32x32 pixels in bytes, enlarge them and give 2,048 numbers for each, with the same layers,
whose batch normalisation is folded into the convolutions. Weights are random. The two processes take turns, as in the
suite of peers, and need the environment of `make peers`.
"""

import argparse
import dataclasses
import sys
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np

from benchmarks import machine
from benchmarks.peers.suite import require_peers, timed
from benchmarks.peers.worker import FEATURES, OURS, THEIRS, two_sides
from benchmarks.report import markdown
from benchmarks.timing import Spread
from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.evaluation.features import inception


def main(arguments: list[str]) -> int:
    """Exit code: 0 done, 2 wrong input."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.features", description=__doc__)
    parser.add_argument("--images", type=int, default=16, help="of a batch")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of rounds")
    parser.add_argument("--python", type=Path, default=Path(".venv-peers/bin/python"))
    given = parser.parse_args(arguments)
    try:
        require_peers(given.python)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    with ExitStack() as stack:
        workers = {
            side: stack.enter_context(closing(worker)) for side, worker in two_sides("features", given.python).items()
        }
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
    ratios = f"{ratio.median:.2f} ({ratio.min:.2f} to {ratio.max:.2f})"
    print(markdown(head, [(f"{parameters:,}", str(given.images), *rates, ratios)]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
