"""Two classifiers steer at once: `python -m benchmarks.steering --workdir=runs/digits`.

Wants a run of `make demo` and its ink classifier (`--mode=classifier --config.classifier.attribute=ink`). The
unconditional model draws 500 digits, each steered to its class by one classifier and half of them each to thin or bold
strokes by the other. The digit is judged by a logistic regression on real digits, the ink is counted.
"""

import argparse
import itertools
import sys

import numpy as np
from etils import epath

from configs.default import get_config
from guided_diffusion_jax.commands import ask, build, demo, sample
from guided_diffusion_jax.commands import config as configs
from guided_diffusion_jax.data.digits import ink

COUNT = 250
"""Pictures of each kind of stroke."""


def main(arguments: list[str]) -> int:
    """Prints the share of pictures with the digit, the stroke and both as intended, at each pair of weights."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steering")
    parser.add_argument("--workdir", default="runs/digits")
    parser.add_argument("--weights", default="5,10", help="of the digits' classifier")
    parser.add_argument("--ink_weights", default="0,5,10", help="of the ink classifier")
    options = parser.parse_args(arguments)
    workdir = epath.Path(options.workdir)
    judge = None
    pairs = list(itertools.product(*(map(float, w.split(",")) for w in (options.weights, options.ink_weights))))
    found = {pair: np.zeros(3) for pair in pairs}
    for value in (0, 1):
        config = configs.load("", options.workdir, get_config())
        config.sample.update(count=COUNT, labels=("all",), seed=value)
        config.sample.guidance.update(
            classifier_weight=1.0, attributes=("ink",), attribute_labels=(value,), attribute_weights=(1.0,)
        )
        artist, params, _ = sample.load(config, workdir)
        labels = build.labels(config)
        unconditional = ask.for_labels(config, labels)._replace(branches=(), weights=())
        judge = judge or demo.fit_judge(build.source(config))
        for pair in pairs:
            images = artist.images(params, unconditional, pair)
            digit = judge.predict(demo.features(images)) == labels
            stroke = ink(images) == value
            found[pair] += [digit.mean() / 2, stroke.mean() / 2, (digit & stroke).mean() / 2]
    for (weight, ink_weight), shares in found.items():
        digit, stroke, both = shares
        print(f"digit w = {weight:g}, ink w = {ink_weight:g}: digit {digit:.1%}, ink {stroke:.1%}, both {both:.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
