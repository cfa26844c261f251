"""`--mode=demo`: train the digits, then show what the guidance weight does, by an independent judge and in pictures."""

import numpy as np
from etils import epath
from ml_collections import ConfigDict
from sklearn.linear_model import LogisticRegression

from guided_diffusion_jax.commands import build, pictures, sample, train
from guided_diffusion_jax.data.source import Source
from guided_diffusion_jax.errors import require

WEIGHTS = (-1.0, 0.0, 0.5, 1.0, 2.0, 4.0)


def run(config: ConfigDict, workdir: epath.Path) -> None:
    """Trains, draws 500 pictures at each weight from the same noise, prints how many the judge names as intended.

    Leaves `samples.npz` and `samples.png` of the best weight, `weights.png` and `trajectory.png` in `samples/`.
    """
    require(config.data.name == "digits", "--mode=demo is about the digits; use --config=configs/digits.py")
    config = train.run(config, workdir)
    config.sample.update(count=max(500, config.sample.count), labels=("all",))
    artist, params, _ = sample.load(config, workdir)

    judge = fit_judge(build.source(config, "train"))
    held_out = build.source(config, "test").read(np.arange(len(build.source(config, "test"))))
    accuracy = judge.score(features(held_out["image"]), held_out["label"])
    print(f"judge: logistic regression on the real training digits, {accuracy:.1%} right on real test digits")

    drawn, right = {}, {}
    for weight in WEIGHTS:
        drawn[weight] = artist.images(params, artist.labels, weight)
        right[weight] = judge.score(features(drawn[weight]), artist.labels)
        print(
            f"w = {weight:4g}: {right[weight]:.1%} of {len(artist.labels)} samples are the intended digit", flush=True
        )

    best = max(WEIGHTS, key=right.__getitem__)
    out = workdir / "samples"
    out.mkdir(parents=True, exist_ok=True)
    sample.write_arrays(out / "samples.npz", drawn[best], artist.labels)
    for name, weight in (("samples.png", best), ("samples_w0.png", 0.0)):
        title = f"w = {weight:g}: the judge names {right[weight]:.1%} as intended"
        pictures.write(out / name, pictures.by_class(drawn[weight], artist.labels, config.data.class_names, title))
    rows = [drawn[weight][:20] for weight in WEIGHTS]
    pictures.write(out / "weights.png", pictures.grid(rows, [f"w = {weight:g}" for weight in WEIGHTS]))
    pictures.write(out / "trajectory.png", sample.trajectory(artist, params))
    print(f"pictures: {out}")


def fit_judge(data: Source) -> LogisticRegression:
    """A classifier that never saw a generated picture."""
    real = data.read(np.arange(len(data)))
    return LogisticRegression(max_iter=2000, C=0.1).fit(features(real["image"]), real["label"])


def features(images: np.ndarray) -> np.ndarray:
    """Pixels in [-1, 1], a row an image."""
    return images.reshape(len(images), -1) / 127.5 - 1
