"""Error of every solver against evaluations of the network, on a closed form and on a trained model, as a figure.

    python -m benchmarks.solvers --out=docs/images/solvers.svg
    python -m benchmarks.solvers --workdir=runs/digits --out=docs/images/solvers_digits.svg

The closed form is a mixture of three Gaussians in 16 dimensions, on the cosine schedule; its reference is UniPC-3 with
1000 steps. A run's reference is DDIM with 1000 steps from the same x_T, with CFG of `--weight`. The
error is the root mean square over images that lie in [-1, 1].
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

import guided_diffusion_jax as gd

SOLVERS = {
    "ddim": {},
    "heun": {},
    "dpmpp_2s": {},
    "dpmpp_2m": {},
    "dpmpp_3m": {},
    "unipc": {"order": 2},
    "unipc 3": {"order": 3},
    "deis": {"order": 3},
    "pndm": {},
    "lms": {},
}
EVALUATIONS = (6, 8, 10, 12, 16, 20, 30, 40, 60, 100)
SPACINGS: dict[str, dict[str, float]] = {"linspace": {}, "logsnr": {}, "karras": {}}
RUN_SOLVERS = ("ddim", "dpmpp_2m", "unipc", "lms")
RUN_EVALUATIONS = (6, 8, 10, 14, 20, 40)
RUN_SPACINGS: dict[str, dict[str, float]] = {
    "linspace": {},
    "logsnr": {"sigma_max": 80.0, "sigma_min": 0.1},
    "karras": {"sigma_max": 80.0},
}
"""Fewer of a run: the last levels of the cosine schedule, to sigma / alpha = 0.006, cost steps and change little."""


def mixture(x, level):
    """The exact denoiser."""
    rng = np.random.default_rng(0)
    means, stds = rng.uniform(-0.5, 0.5, (3, 16)), np.array([0.24, 0.26, 0.25])
    flat, total = x.reshape(len(x), 1, 16), level.alpha**2 * stds**2 + level.sigma**2
    centred = flat - level.alpha * means
    p = jax.nn.softmax(-jnp.sum(centred**2, -1) / (2 * total) - 8 * jnp.log(total), -1)[..., None]
    x0 = jnp.sum(p * (means + (level.alpha * stds**2 / total)[:, None] * centred), 1).reshape(x.shape)
    return gd.prediction.from_x0(x, x0, level)


def closed_form():
    """Function `(sampler name, options, steps, spacing, spacing options) -> x`, in the model's space."""
    process = gd.Process(gd.schedules.cosine(1000))
    keys = gd.samplers.sample_keys(jax.random.key(0), jnp.arange(64))
    x = gd.samplers.prior(keys, (4, 4, 1))
    program = jax.jit(lambda sampler, levels: gd.samplers.sample(sampler, mixture, keys, x, levels))
    return lambda name, options, steps, spacing, spacing_options: program(
        gd.samplers.create(name, **options), process.trajectory(steps, spacing, **spacing_options)
    )


def trained(workdir, weight):
    """The same of a run, 20 images of its classes."""
    pipe = gd.load(workdir)
    labels = [i % len(pipe.info.class_names) for i in range(20)]

    def draw(name, options, steps, spacing, spacing_options):
        request = pipe.request(
            labels=labels, weight=weight, sampler=name, sampler_options=options, steps=steps,
            spacing=spacing, spacing_options=spacing_options,
        )  # fmt: skip
        return pipe.generate(request.prune_branches(), output="latent", progress=False)

    return draw


def distance(made, reference):
    """Root mean square."""
    return float(np.sqrt(np.mean((np.asarray(made) - reference) ** 2)))


def curves(draw, spacing, spacing_options, solvers, evaluations, reference):
    """Errors by solver: `{name: [(evaluations, error), ...]}`."""
    found = {}
    for name in solvers:
        sampler = gd.samplers.create(name.split()[0], **SOLVERS[name])
        for calls in evaluations:
            steps = calls // sampler.evaluations - (name == "pndm")
            made = draw(name.split()[0], SOLVERS[name], steps, spacing, spacing_options)
            found.setdefault(name, []).append((calls, distance(made, reference)))
    return found


def main():
    """Prints all errors and writes the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", default="", help="a run; without it the closed form")
    parser.add_argument("--weight", type=float, default=1.0, help="of classifier-free guidance of a run")
    parser.add_argument("--out", default="solvers.svg", help="the figure")
    given = parser.parse_args()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    if given.workdir:
        draw, spacings = trained(given.workdir, given.weight), RUN_SPACINGS
        solvers, evaluations = RUN_SOLVERS, RUN_EVALUATIONS
        reference = draw("ddim", {}, 1000, "linspace", {})
    else:
        draw, spacings, solvers, evaluations = closed_form(), SPACINGS, SOLVERS, EVALUATIONS
        reference = np.asarray(draw("unipc", {"order": 3}, 1000, "logsnr", {}))
    figure, axes = pyplot.subplots(1, len(spacings), figsize=(12, 4.2), sharey=True, layout="constrained")
    for axis, (spacing, options) in zip(axes, spacings.items(), strict=True):
        for name, points in curves(draw, spacing, options, solvers, evaluations, reference).items():
            axis.loglog(*zip(*points, strict=True), marker=".", label=name)
            print(f"{spacing:9} {name:9}", *(f"{calls}:{error:.2e}" for calls, error in points), flush=True)
        axis.set(title=f'spacing="{spacing}"', xlabel="evaluations of the network")
        axis.grid(True, which="major", alpha=0.3)
    axes[0].set_ylabel("RMS error of x0")
    axes[-1].legend(fontsize=8)
    figure.savefig(given.out)


if __name__ == "__main__":
    main()
