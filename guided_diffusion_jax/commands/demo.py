"""`--mode=demo`: train the digits, then show the three ways of steering by an independent judge and in pictures."""

from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from guided_diffusion_jax.commands import ask, build, classifier, pictures, sample, train
from guided_diffusion_jax.data.dataset import Dataset as Source
from guided_diffusion_jax.data.images import write_png
from guided_diffusion_jax.errors import require

WEIGHTS = (-1.0, 0.0, 0.5, 1.0, 2.0, 4.0)
CLASSIFIER_WEIGHTS = (0.0, 1.0, 2.0, 5.0, 10.0)


def run(config: ConfigDict, workdir: epath.Path) -> None:
    """Trains the model and its classifier, draws 500 pictures at each weight from the same noise, and has them judged.

    Leaves in `samples/`: `samples.npz` and `samples.png` of the best weight of classifier-free guidance (CFG),
    `samples_w0.png`, `weights.png` and `classifier_weights.png` (one row a weight), `three_ways.png` and
    `trajectory.png`.
    """
    require(config.data.name == "digits", "--mode=demo is about the digits; use --config=configs/digits.py")
    config = train.run(config, workdir)
    classifier.run(config, workdir)
    config.sample.update(count=max(500, config.sample.count), labels=("all",))

    judge = fit_judge(build.source(config, "train"))
    test = build.source(config, "test")
    real = test.read(np.arange(len(test)))
    accuracy = judge.score(features(real["image"]), real["label"])
    print(f"judge: logistic regression on the real training digits, {accuracy:.1%} right on real test digits")

    free, params, _ = sample.load(config, workdir)
    labels = build.labels(config)
    wanted = ask.for_labels(config, labels)
    drawn = {weight: free.images(params, wanted.at(weight)) for weight in WEIGHTS}
    right = judged("CFG", judge, drawn, labels)
    best = max(WEIGHTS, key=right.__getitem__)

    config.sample.guidance.classifier_weight = 1.0
    guided, params, _ = sample.load(config, workdir)
    unconditional = wanted._replace(branches=(), weights=())
    by_classifier = {weight: guided.images(params, unconditional, [weight]) for weight in CLASSIFIER_WEIGHTS}
    right_by_classifier = judged("unconditional model with classifier", judge, by_classifier, labels)
    best_by_classifier = max(CLASSIFIER_WEIGHTS, key=right_by_classifier.__getitem__)

    out = workdir / "samples"
    names = config.data.class_names
    sample.write_arrays(out / "samples.npz", drawn[best], labels)
    for name, weight in (("samples.png", best), ("samples_w0.png", 0.0)):
        title = f"w = {weight:g}: the judge names {right[weight]:.1%} as intended"
        write_png(out / name, pictures.by_class(drawn[weight], labels, names, title))
    write_png(out / "weights.png", rows(drawn))
    write_png(out / "classifier_weights.png", rows(by_classifier))
    ways = {
        "class-conditional": drawn[0.0],
        f"classifier, w = {best_by_classifier:g}": by_classifier[best_by_classifier],
        f"CFG, w = {best:g}": drawn[best],
    }
    write_png(out / "three_ways.png", pictures.grid([images[:20] for images in ways.values()], list(ways)))
    write_png(out / "trajectory.png", sample.trajectory(free, params, wanted))
    print(f"pictures: {out}")


def judged(way: str, judge: Any, drawn: dict[float, np.ndarray], labels: np.ndarray) -> dict[float, float]:
    """The share of pictures that the judge names as intended, at each weight; prints it."""
    right = {weight: judge.score(features(images), labels) for weight, images in drawn.items()}
    for weight, share in right.items():
        print(f"{way}, w = {weight:4g}: {share:.1%} of {len(labels)} samples are the intended digit", flush=True)
    return right


def rows(drawn: dict[float, np.ndarray]) -> np.ndarray:
    """The first twenty pictures at each weight, from the same noise."""
    return pictures.grid([images[:20] for images in drawn.values()], [f"w = {weight:g}" for weight in drawn])


def fit_judge(data: Source) -> Any:
    """A classifier that never saw a generated picture: a fitted `LogisticRegression`."""
    from sklearn.linear_model import LogisticRegression  # a second of imports that no other mode needs

    real = data.read(np.arange(len(data)))
    return LogisticRegression(max_iter=2000, C=0.1).fit(features(real["image"]), real["label"])


def features(images: np.ndarray) -> np.ndarray:
    """Pixels in [-1, 1], a row an image."""
    return images.reshape(len(images), -1) / 127.5 - 1
