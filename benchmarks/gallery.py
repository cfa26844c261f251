"""Pictures of a run with classes, for a page of a gallery: `python -m benchmarks.gallery --workdir=RUN --out=FOLDER`.

Classes, guidance weights from the same noise, completed test images, mixtures of two classes, and the training images
nearest to what was generated.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from PIL import Image

import guided_diffusion_jax as gd
from guided_diffusion_jax import grids
from guided_diffusion_jax.commands.evaluate import make_scorer, open_split
from guided_diffusion_jax.data.images import to_uint8
from guided_diffusion_jax.experiment import config as configs
from guided_diffusion_jax.experiment import sampling
from guided_diffusion_jax.pipeline import Pipeline

WEIGHTS = (-1.0, 0.0, 0.5, 1.0, 2.0, 4.0)
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of the second class in a mixture."""
PAIRS = (("automobile", "truck"), ("horse", "deer"), ("airplane", "ship"), ("cat", "dog"))
STEPS, COLUMNS = 50, 10


def main(arguments: list[str]) -> int:
    """Exit code 0. Writes the pictures into `--out`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gallery", description=__doc__)
    parser.add_argument("--workdir", default="runs/cifar10_latent")
    parser.add_argument("--out", default="runs/gallery")
    parser.add_argument("--weight", type=float, default=1.0, help="of guidance, where it is not what is shown")
    given = parser.parse_args(arguments)
    out = epath.Path(given.out)
    out.mkdir(parents=True, exist_ok=True)
    config = configs.load("", given.workdir)
    pipe, how = gd.load(given.workdir), sampling.solver_wishes(config)
    test = open_split(config)
    names = pipe.info.class_names
    shown = classes(pipe, given.weight, **how)
    pages = {
        "classes": grids.grid(list(shown), names, f"w = {given.weight:g}, {COLUMNS} images of each class"),
        "weights": weights(pipe, **how),
        "completed": completed(pipe, test, given.weight, **how),
        "mixtures": mixtures(pipe, given.weight),
    }
    scorer = make_scorer(config, test, epath.Path(given.workdir))
    rows, _ = scorer.nearest(shown[:, 0], 3)
    near = [scorer.train.read(rows[:, rank])["image"] for rank in range(3)]
    ranks = ["generated", "nearest", "second", "third"]
    pages["nearest"] = grids.grid([shown[:, 0], *near], ranks, "and the nearest training images")
    for name, page in pages.items():
        Image.fromarray(page).save(out / f"{name}.png")
        print(out / f"{name}.png")
    return 0


def classes(pipe: Pipeline, weight: float, **how: Any) -> np.ndarray:
    """Images `[class image h w c]`, nothing chosen by hand."""
    labels = np.repeat(np.arange(len(pipe.info.class_names)), COLUMNS)
    made = pipe(labels=labels.tolist(), weight=weight, **how)
    return made.reshape(-1, COLUMNS, *made.shape[1:])


def weights(pipe: Pipeline, **how: Any) -> grids.Canvas:
    """A class a column, a weight a row, the same noise in a column."""
    labels = list(range(len(pipe.info.class_names)))
    rows = [pipe(labels=labels, weight=weight, **how) for weight in WEIGHTS]
    return grids.grid(
        rows, [f"w = {weight:g}" for weight in WEIGHTS], "guidance weights", columns=pipe.info.class_names
    )


def completed(pipe: Pipeline, test: gd.data.Dataset, weight: float, **how: Any) -> grids.Canvas:
    """Test images whose lower half is drawn anew, twice."""
    given = test.read(np.arange(COLUMNS))
    mask = np.zeros((*test.image_shape[:2], 1), np.float32)
    mask[test.image_shape[0] // 2 :] = 1
    hidden = np.where(mask > 0, 128, given["image"]).astype(np.uint8)
    rows = [given["image"], hidden]
    for first in (0, COLUMNS):
        made = [
            pipe(labels=[label], weight=weight, image=image, inpaint_mask=mask, **{**how, "seed": seed})[0]
            for seed, (image, label) in enumerate(zip(given["image"], given["label"].tolist(), strict=True), first)
        ]
        rows.append(np.stack(made))
    return grids.grid(rows, ["test images", "what is given", "completed", "other seeds"], "lower half drawn anew")


def mixtures(pipe: Pipeline, weight: float) -> grids.Canvas:
    """From one class to another: the prediction is a mean of both conditional ones, guided away from the null class."""
    rows = [mixture(pipe, first, second, weight) for first, second in PAIRS]
    named = [f"{first} to {second}" for first, second in PAIRS]
    return grids.grid(rows, named, "mixtures", columns=[f"{share:.0%}" for share in SHARES] * 2)


def mixture(pipe: Pipeline, first: str, second: str, weight: float) -> np.ndarray:
    """Two images at all shares of the second class, from the same noise each."""
    names, null = pipe.info.class_names, pipe.specs["label"].null
    shares = jnp.tile(jnp.asarray(SHARES), 2)[:, None, None, None]
    keys = gd.samplers.sample_keys(jax.random.key(0), jnp.repeat(jnp.arange(2), len(SHARES)))
    levels = gd.schedules.trajectory(pipe.process.levels, STEPS)

    def branches(x: jax.Array, level: gd.typing.Level, labels: Sequence[int]) -> list[gd.typing.Prediction]:
        return [pipe.denoiser(x, level, {"label": jnp.full(len(x), label)}) for label in labels]

    @jax.jit
    def images(x: jax.Array) -> jax.Array:
        def denoise(x: jax.Array, level: gd.typing.Level) -> gd.typing.Prediction:
            def mixed(none: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
                return (1 + weight) * ((1 - shares) * a + shares * b) - weight * none

            return jax.tree.map(mixed, *branches(x, level, (null, names.index(first), names.index(second))))

        return pipe.codec.decode(gd.samplers.sample(gd.samplers.ddim(), denoise, keys, x, levels))

    return to_uint8(np.asarray(images(gd.samplers.prior(keys, pipe.codec.shape))))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
