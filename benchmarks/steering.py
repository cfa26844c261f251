"""Two classifiers steer at once: `python -m benchmarks.steering --workdir=runs/digits`.

Needs a run of `make demo` and its ink classifier (`--mode=classifier --config.classifier.attribute=ink`). The
unconditional model generates 500 digits. One classifier steers each to its class; the other steers half of them to thin
and half to bold strokes. The digit is classified by a logistic regression on real digits, the ink is counted.
"""

import argparse
import itertools
import sys

import numpy as np
from etils import epath

from guided_diffusion_jax.commands import demo
from guided_diffusion_jax.data.digits import ink
from guided_diffusion_jax.experiment import build, runs, sampling
from guided_diffusion_jax.experiment import config as configs

COUNT = 250
"""Images of each kind of stroke."""


def main(arguments: list[str]) -> int:
    """Prints the share of images with the intended digit, stroke and both, at each pair of weights."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steering")
    parser.add_argument("--workdir", default="runs/digits")
    parser.add_argument("--weights", default="5,10", help="of the digits' classifier")
    parser.add_argument("--ink_weights", default="0,5,10", help="of the ink classifier")
    options = parser.parse_args(arguments)
    config = configs.load("", options.workdir)
    pipe = runs.pipeline(config, epath.Path(options.workdir))
    independent = demo.fit_classifier(build.dataset(config))
    labels = np.resize(np.arange(10), COUNT)
    weights, ink_weights = (map(float, given.split(",")) for given in (options.weights, options.ink_weights))
    for weight, ink_weight in itertools.product(weights, ink_weights):
        shares = []
        for value in (0, 1):
            images = pipe(
                labels=labels,
                weight=-1.0,
                classifier_weight=weight,
                classifiers={"ink": (value, ink_weight)},
                **{**sampling.solver_wishes(config), "seed": value},
            )
            digit, stroke = independent.predict(demo.features(images)) == labels, ink(images) == value
            shares.append((digit.mean(), stroke.mean(), (digit & stroke).mean()))
        digit, stroke, both = np.mean(shares, axis=0)
        print(f"digit w = {weight:g}, ink w = {ink_weight:g}: digit {digit:.1%}, ink {stroke:.1%}, both {both:.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
