"""Noise levels of few steps, learned for one model: those that bring it nearest to its own DDIM with 1000 steps.

    python -m benchmarks.learned_levels --workdir=runs/digits --sampler=unipc --steps=8 --minutes=5

The levels are fitted on one seed by Nelder-Mead on the logarithms of their distances, and judged on another.
"""

import argparse
import time

import numpy as np
from scipy.optimize import minimize

import guided_diffusion_jax as gd

IMAGES, WEIGHT, FITTED, HELD_OUT = 20, 1.0, 1, 2


def levels_of(z: np.ndarray) -> np.ndarray:
    """Falling sigma / alpha from the logarithm of the first and of the distances between their logarithms."""
    return np.exp(z[0] - np.concatenate([[0], np.cumsum(np.exp(z[1:]))]))


def main() -> None:
    """Prints the error of DDIM with 40 steps, and of the levels as they are learned."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--sampler", default="unipc")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=5.0)
    given = parser.parse_args()
    pipe = gd.load(given.workdir)
    labels = [i % len(pipe.info.class_names) for i in range(IMAGES)]

    def images(seed: int, **how: object) -> np.ndarray:
        return np.clip(pipe(labels=labels, weight=WEIGHT, seed=seed, output="latent", **how), -1, 1)

    own = {seed: images(seed, sampler="ddim", steps=1000) for seed in (FITTED, HELD_OUT)}

    def error(seed: int, **how: object) -> float:
        return float(np.sqrt(np.mean((images(seed, **how) - own[seed]) ** 2)))

    def error_of(z: np.ndarray, seed: int = FITTED) -> float:
        sigmas = {"sigmas": levels_of(z).tolist()}
        return error(seed, sampler=given.sampler, steps=given.steps, spacing="sigmas", spacing_options=sigmas)

    print(f"ddim, 40 steps: fitted seed {error(FITTED, steps=40):.4f}, held out {error(HELD_OUT, steps=40):.4f}")
    begun, step = np.linspace(np.log(80), np.log(0.1), given.steps), 0.4
    z, end = np.concatenate([begun[:1], np.log(-np.diff(begun))]), time.monotonic() + 60 * given.minutes
    while time.monotonic() < end:
        simplex = np.vstack([z, z + step * np.eye(len(z))])
        z = minimize(error_of, z, method="Nelder-Mead", options={"maxfev": 250, "initial_simplex": simplex}).x
        step *= -0.7  # a fresh simplex on the other side
        shown = np.round(levels_of(z), 3).tolist()
        print(f"{given.sampler}: fitted {error_of(z):.4f}, held out {error_of(z, HELD_OUT):.4f}, {shown}", flush=True)


if __name__ == "__main__":
    main()
