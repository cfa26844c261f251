"""Samplers: each is a small file with an `(init, step)` pair, all run by one loop. `SAMPLERS` is the table of them."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from guided_diffusion_jax import checks
from guided_diffusion_jax.errors import choose
from guided_diffusion_jax.random import prior, sample_keys
from guided_diffusion_jax.samplers.base import Sampler, advance, no_memory, sample, sample_trajectory, visited
from guided_diffusion_jax.samplers.blended import blended
from guided_diffusion_jax.samplers.ddim import ddim, invert
from guided_diffusion_jax.samplers.ddpm import ddpm
from guided_diffusion_jax.samplers.deis import deis, dpm_solver
from guided_diffusion_jax.samplers.dpmpp_2m import dpmpp_2m, dpmpp_3m
from guided_diffusion_jax.samplers.dpmpp_2m_sde import dpmpp_2m_sde
from guided_diffusion_jax.samplers.euler import euler, euler_ancestral
from guided_diffusion_jax.samplers.heun import heun
from guided_diffusion_jax.samplers.lcm import lcm
from guided_diffusion_jax.samplers.lms import lms
from guided_diffusion_jax.samplers.pndm import f_pndm, ipndm, pndm
from guided_diffusion_jax.samplers.singlestep import dpm_2, dpmpp_2s, dpmpp_3s
from guided_diffusion_jax.samplers.unipc import unipc

SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "ddim": ddim,
    "ddpm": ddpm,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "dpmpp_1s": euler,
    "dpmpp_2s": dpmpp_2s,
    "dpmpp_3s": dpmpp_3s,
    "dpmpp_3m": dpmpp_3m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpm_solver": dpm_solver,
    "dpm_2": dpm_2,
    "unipc": unipc,
    "deis": deis,
    "pndm": pndm,
    "ipndm": ipndm,
    "lms": lms,
    "lcm": lcm,
}
"""Choices of `sample.sampler`: a name to a constructor, whose arguments are the options that the sampler has."""


def create(name: str, *, defaults: Mapping[str, Any] | None = None, **options: Any) -> Sampler:
    """Sampler of this name.

    Args:
        name: a key of `SAMPLERS`.
        defaults: options that are left out where the sampler does not have them, such as a model's `variance`.
        **options: of the sampler.

    Raises:
        InputError: there is no such sampler, or it has no such option.

    >>> create("dpmpp_2m", defaults={"variance": "fixed_small"}, solver_type="heun").order
    2
    >>> create("dpmpp_2m", eta=0.5)
    Traceback (most recent call last):
    guided_diffusion_jax.errors.InputError: sampler='dpmpp_2m' has no option 'eta'; it has solver_type, ...
    """
    constructor = choose(SAMPLERS, name, "sampler")
    checks.options(f"sampler={name!r}", constructor, options)
    known = inspect.signature(constructor).parameters
    return constructor(**{key: value for key, value in (defaults or {}).items() if key in known}, **options)


__all__ = [
    "SAMPLERS", "Sampler", "advance", "blended", "create", "ddim", "ddpm", "deis", "dpm_2", "dpm_solver", "dpmpp_2m",
    "dpmpp_2m_sde", "dpmpp_2s", "dpmpp_3m", "dpmpp_3s", "euler", "euler_ancestral", "f_pndm", "heun", "invert", "ipndm",
    "lcm", "lms", "no_memory", "pndm", "prior", "sample", "sample_keys", "sample_trajectory", "unipc", "visited",
]  # fmt: skip
