"""`--mode=demo`: train the digits, then show the three ways of steering by an independent classifier and in images."""

from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from guided_diffusion_jax import grids
from guided_diffusion_jax.commands import classifier, sample, train
from guided_diffusion_jax.commands.arguments import program
from guided_diffusion_jax.data.dataset import Dataset
from guided_diffusion_jax.data.images import write_png
from guided_diffusion_jax.errors import require
from guided_diffusion_jax.experiment import build, runs, sample_sets, sampling
from guided_diffusion_jax.guidance.weights import weight_text
from guided_diffusion_jax.runtime import npz

WEIGHTS = (-1.0, 0.0, 0.5, 1.0, 2.0, 4.0)
CLASSIFIER_WEIGHTS = (0.0, 1.0, 2.0, 5.0, 10.0)

ENDING = """look at   three_ways.png (from the same noise), weights.png (one row for each w), trajectory.png
try next  {program} --workdir={run} --mode=serve
          a page to play with; it needs the extra "serve": pip install -e ".[serve]"
          {program} --workdir={run} --mode=sample --config.sample.labels=3,7 --config.sample.guidance.weight=2
          two classes, strongly guided; python main.py in a terminal needs: source .venv/bin/activate
          {program} --config=small --config.data.data_dir=PHOTOS --workdir=runs/photos
          a model of your own images, a folder for each class"""


def run(config: ConfigDict, workdir: epath.Path) -> None:
    """Trains the model and its classifier, generates 500 images at each weight from the same noise, classifies them.

    Leaves in `samples/`, or in `samples_2/` where that holds other images: `samples.npz` and `samples.png` of the best
    weight of classifier-free guidance (CFG), `samples_w0.png`, `weights.png` and `classifier_weights.png` (one row a
    weight), `three_ways.png` and `trajectory.png`.
    """
    require(config.data.name == "digits", "--mode=demo is about the digits; use --config=digits")
    train.run(config, workdir)
    classifier.run(config, workdir)
    independent = fit_classifier(build.dataset(config, "train"))
    test = build.dataset(config, "test")
    real = test.read(np.arange(len(test)))
    accuracy = independent.score(features(real["image"]), real["label"])
    print(f"classifier: logistic regression on the real training digits, {accuracy:.1%} right on real test digits")

    pipe, solver = runs.pipeline(config, workdir), sampling.solver_wishes(config)
    labels = np.resize(np.arange(10), max(500, config.sample.count)).astype(np.int32)
    wishes = {"labels": labels.tolist(), **solver}
    cfg = dict(zip(WEIGHTS, pipe.sweep(weight=WEIGHTS, **wishes), strict=True))
    right = accuracies("CFG", independent, cfg, labels)
    best = max(WEIGHTS, key=right.__getitem__)
    guided = {}
    for weight in CLASSIFIER_WEIGHTS:
        steered = pipe.request(weight=-1.0, classifier_weight=weight, **wishes)
        guided[weight] = pipe.generate(steered.prune_branches())
    right_guided = accuracies("unconditional model with classifier", independent, guided, labels)
    best_guided = max(CLASSIFIER_WEIGHTS, key=right_guided.__getitem__)

    names = [grids.class_name(label, pipe.info.class_names) for label in labels]
    record = sample.record_of(config, pipe, workdir) | {"sample": {"demo": config.sample.to_dict()}}
    with sample_sets.new_set(workdir / "samples", record, len(labels)) as out:
        npz.write(out / "samples.npz", cfg[best], labels)
        for name, weight in (("samples.png", best), ("samples_w0.png", 0.0)):
            title = f"w = {weight_text(weight)}: {right[weight]:.1%} are classified as intended"
            write_png(out / name, grids.sheet(cfg[weight], names, title=title))
        write_png(out / "weights.png", rows(cfg))
        write_png(out / "classifier_weights.png", rows(guided))
        ways = {
            "class-conditional": cfg[0.0],
            f"classifier, w = {weight_text(best_guided)}": guided[best_guided],
            f"CFG, w = {weight_text(best)}": cfg[best],
        }
        write_png(out / "three_ways.png", grids.grid([images[:20] for images in ways.values()], list(ways)))
        asked = pipe.request(weight=best, **wishes)
        write_png(out / "trajectory.png", sample.trajectory(pipe, asked, config.sample.frames))
    print(ENDING.format(program=program(), run=workdir))


def accuracies(
    method: str, independent: Any, images: dict[float, np.ndarray], labels: np.ndarray
) -> dict[float, float]:
    """Share of images that the independent classifier names as intended, at each weight; prints it."""
    right = {weight: independent.score(features(some), labels) for weight, some in images.items()}
    for weight, share in right.items():
        print(f"{method}, w = {weight:4g}: {share:.1%} of {len(labels)} samples are the intended digit", flush=True)
    return right


def rows(images: dict[float, np.ndarray]) -> np.ndarray:
    """The first twenty images at each weight, from the same noise."""
    return grids.grid([some[:20] for some in images.values()], [f"w = {weight_text(weight)}" for weight in images])


def fit_classifier(data: Dataset) -> Any:
    """A classifier that never saw a generated image: a fitted `LogisticRegression`."""
    from sklearn.linear_model import LogisticRegression  # a second of imports that no other mode needs

    real = data.read(np.arange(len(data)))
    return LogisticRegression(max_iter=2000, C=0.1).fit(features(real["image"]), real["label"])


def features(images: np.ndarray) -> np.ndarray:
    """Pixels in [-1, 1], a row an image."""
    return images.reshape(len(images), -1) / 127.5 - 1
