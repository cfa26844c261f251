"""Samplers: each is a small file with an `(init, step)` pair, all run by one loop. `SAMPLERS` is the table of them."""

import inspect
from collections.abc import Callable
from typing import Any

from guided_diffusion_jax.errors import choose
from guided_diffusion_jax.random import prior, sample_keys
from guided_diffusion_jax.samplers.base import Sampler, advance, no_memory, sample, sample_trajectory
from guided_diffusion_jax.samplers.ddim import ddim
from guided_diffusion_jax.samplers.ddpm import ddpm
from guided_diffusion_jax.samplers.dpmpp_2m import dpmpp_2m
from guided_diffusion_jax.samplers.heun import heun

SAMPLERS: dict[str, Callable[..., Sampler]] = {"ddim": ddim, "ddpm": ddpm, "heun": heun, "dpmpp_2m": dpmpp_2m}
"""Choices of `sample.sampler`: a name to a constructor, whose arguments are the options that the sampler has."""


def create(name: str, **options: Any) -> Sampler:
    """Sampler of this name, with those of the options that it has; the others (another sampler's) are left out.

    Raises:
        InputError: there is no such sampler.

    >>> create("dpmpp_2m", eta=0.5, variance="fixed_small").order
    2
    """
    constructor = choose(SAMPLERS, name, "sampler")
    known = inspect.signature(constructor).parameters
    return constructor(**{key: value for key, value in options.items() if key in known})


__all__ = [
    "SAMPLERS",
    "Sampler",
    "advance",
    "create",
    "ddim",
    "ddpm",
    "dpmpp_2m",
    "heun",
    "no_memory",
    "prior",
    "sample",
    "sample_keys",
    "sample_trajectory",
]
