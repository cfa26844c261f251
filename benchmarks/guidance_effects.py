"""Known effects of guidance rules on a Gaussian mixture in 2-D with closed-form denoisers, a figure each.

    python -m benchmarks.guidance_effects

writes docs/images/rules_*.png and prints the numbers of docs/guidance_rules.md. An "image" has 8 x 8 pixels of two
channels, each an independent point, so that norms and standard deviations of an image have a meaning. Two classes with
four clusters each; the class that is drawn lies on the right.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

import guided_diffusion_jax as gd
from guided_diffusion_jax import guidance, schedules
from guided_diffusion_jax.guidance import chains
from guided_diffusion_jax.typing import Prediction

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OUT = Path(__file__).parent.parent / "docs" / "images"
COUNT, STEPS, STD = 64, 60, 0.06
RIGHT = np.array([[0.25, -0.6], [0.55, -0.2], [0.55, 0.25], [0.2, 0.6]], np.float32)
LEFT = RIGHT * np.array([-1, 1], np.float32)
BOTH = np.concatenate([RIGHT, LEFT])
WIDE, LOW = (np.array(pair, np.float32) for pair in ([0.0, np.inf], [0.05, 0.5]))


def mixture(x, level, means, std):
    """The exact prediction for equal Gaussians N(mean, std^2 I)."""
    total = level.alpha**2 * std**2 + level.sigma**2
    away = x[..., None, :] - level.alpha * means
    share = jax.nn.softmax(-jnp.sum(away**2, -1) / (2 * total), axis=-1)
    x0 = jnp.sum(share[..., None] * (means + std**2 * level.alpha / total * away), -2)
    return Prediction(x0, (x - level.alpha * x0) / level.sigma)


def conditional(x, level, conditions=None):
    return mixture(x, level, RIGHT, STD)


def smoothed(x, level, conditions=None):
    """A worse model of the class: its clusters are broader."""
    return mixture(x, level, RIGHT, 0.22)


def limited(x, level, conditions=None):
    """A model of the class that has learned it less well than the data: broader, as a short training leaves it."""
    return mixture(x, level, RIGHT, 0.12)


LEVELS = schedules.trajectory(schedules.cosine(1000), STEPS, "logsnr")
KEYS = gd.random.sample_keys(jax.random.key(0), jnp.arange(COUNT))


@jax.jit
def draw(rules, weight, sigmas, model):
    interval = (0.0, 999.0, *sigmas)
    sampler = guidance.guided(gd.samplers.ddim(), chains.as_guidance(rules, (weight,), interval))
    null = lambda x, level: mixture(x, level, BOTH, STD)  # noqa: E731
    evaluate = lambda x, level: (model(x, level), null(x, level))  # noqa: E731
    evaluate = chains.evaluate_contrasts(evaluate, rules, None, None)
    x = gd.random.prior(KEYS, (8, 8, 2), jax.tree.map(lambda column: column[0], LEVELS))
    return gd.samplers.sample(sampler, evaluate, KEYS, x, LEVELS).reshape(-1, 2)


def samples(rules, weight, sigmas=WIDE, model=conditional):
    points = draw(guidance.chain(rules), jnp.float32(weight), sigmas, jax.tree_util.Partial(model))
    return np.asarray(points)


def numbers(points):
    """Mean x, share of outliers (beyond 4 std of all clusters), and the entropy of the clusters over its most."""
    distance = np.linalg.norm(points[:, None] - RIGHT, axis=-1)
    share = np.bincount(distance.argmin(1), minlength=4) / len(points)
    entropy = -np.sum(share * np.log(np.maximum(share, 1e-12))) / np.log(4)
    return points[:, 0].mean(), (distance.min(1) > 4 * STD).mean(), entropy, np.abs(points).max()


def figure(name, title, panels):
    """A scatter plot of each panel, and a line of numbers."""
    print(f"\n{title}\n{'':28} mean x  outliers  coverage  largest")
    shown, axes = plt.subplots(1, len(panels), figsize=(2.6 * len(panels), 3.2), sharex=True, sharey=True)
    for axis, (label, points) in zip(axes, panels.items(), strict=True):
        mean, outliers, coverage, largest = numbers(points)
        print(f"{label:28} {mean:6.3f}  {outliers:8.3f}  {coverage:8.3f}  {largest:7.2f}")
        axis.scatter(*LEFT.T, marker="x", c="silver")
        axis.scatter(*points.T, s=1, alpha=0.3)
        axis.scatter(*RIGHT.T, marker="x", c="crimson")
        axis.set(title=label, xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), aspect="equal")
    shown.suptitle(title)
    shown.tight_layout()
    shown.savefig(OUT / f"rules_{name}.png", dpi=80)
    plt.close(shown)


def main():
    """All figures."""
    strong = 6.0
    plain, cfg = samples("cfg", 0.0), samples("cfg", strong)
    figure("cfg", "CFG overshoots", {"w = 0": plain, "w = 2": samples("cfg", 2.0), "w = 6": cfg})
    figure("interval", "An interval keeps coverage",
           {"w = 0": plain, "w = 6": cfg, "sigma 0.05 to 0.5": samples("cfg", strong, LOW)})  # fmt: skip
    contrast = {w: [guidance.autoguidance(smoothed, weight=w)] for w in (0.0, 1.0, 2.0)}
    figure("autoguidance", "Autoguidance removes outliers",
           {f"w = {w:g}": samples(rules, 0.0, model=limited) for w, rules in contrast.items()})  # fmt: skip
    figure("large_weights", "APG and rescale tame a large w", {
        "cfg, w = 6": cfg, "apg, w = 6": samples([guidance.apg(eta=0.0, momentum=-0.5, norm_threshold=2.0)], strong),
        "rescale, w = 6": samples(["cfg", guidance.rescale(0.9)], strong),
        "cfgpp, w = -0.4": samples("cfgpp", -0.4),
    })  # fmt: skip


if __name__ == "__main__":
    main()
