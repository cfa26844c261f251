"""From what a user gives as sampler, steps, spacing, scheduler and strength to the course of a trajectory."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from guided_diffusion_jax import checks, samplers
from guided_diffusion_jax.errors import require
from guided_diffusion_jax.interop import schedulers
from guided_diffusion_jax.process import Process
from guided_diffusion_jax.samplers import Sampler
from guided_diffusion_jax.trajectories import count_steps, pad
from guided_diffusion_jax.typing import Level

NATIVE = "native"
"""Value of `scheduler` that stands for the scheduler that came with a model."""

SCHEDULER_OF: Mapping[str, Mapping[str, Any]] = {
    "ddim": {"_class_name": "DDIMScheduler"},
    "pndm": {"_class_name": "PNDMScheduler"},
    "ddpm": {"_class_name": "DDPMScheduler"},
    "euler": {"_class_name": "EulerDiscreteScheduler"},
    "euler_ancestral": {"_class_name": "EulerAncestralDiscreteScheduler"},
    "heun": {"_class_name": "HeunDiscreteScheduler"},
    "lms": {"_class_name": "LMSDiscreteScheduler"},
    "dpm_2": {"_class_name": "KDPM2DiscreteScheduler"},
    "dpmpp_2m": {"_class_name": "DPMSolverMultistepScheduler"},
    "dpmpp_3m": {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3},
    "dpmpp_2m_sde": {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"},
    "dpmpp_2s": {"_class_name": "DPMSolverSinglestepScheduler"},
    "unipc": {"_class_name": "UniPCMultistepScheduler"},
    "deis": {"_class_name": "DEISMultistepScheduler"},
    "lcm": {"_class_name": "LCMScheduler"},
}
"""Our samplers under the names of diffusers' schedulers, whose times and ends a model's own scheduler settings give."""


class Course(NamedTuple):
    """How x goes from noise to data.

    Attributes:
        sampler: with its options.
        levels: that it visits, padded to T + 1 rows.
        noise_scale: of the first x where it is noise; None is sqrt(alpha**2 + sigma**2) of the first level.
    """

    sampler: Sampler
    levels: Level
    noise_scale: np.float32 | None = None


def course(
    process: Process,
    native: Mapping[str, Any] | None = None,
    *,
    sampler: str | Sampler | None = None,
    sampler_options: Mapping[str, Any] | None = None,
    steps: int | Sequence[int] = 50,
    spacing: str | None = None,
    spacing_options: Mapping[str, Any] | None = None,
    scheduler: str | Mapping[str, Any] | None = None,
    eta: float | int = 0.0,
    strength: float | int | None = None,
) -> Course:
    """Course of a trajectory; `Pipeline.__call__` documents the arguments.

    Args:
        process: of the model.
        native: settings of the model's own scheduler, as diffusers names them; None has none.
        sampler: see there.
        sampler_options: see there.
        steps: see there.
        spacing: see there.
        spacing_options: see there.
        scheduler: see there.
        eta: see there.
        strength: see there.

    Raises:
        InputError: what is unknown, or does not go together.
    """
    require(scheduler != NATIVE or native is not None, "scheduler='native': this model came without a scheduler")
    if strength is not None:
        checks.real("strength", strength, 0, 1, note="1 leaves nothing of the image")
    settings = _settings(native, scheduler, sampler, spacing, sampler_options)
    if settings is not None:
        return _by_scheduler(process, settings, sampler_options, steps, eta, strength)
    solver = make_sampler(sampler or "ddim", process, eta, sampler_options)
    levels = process.trajectory(steps, spacing or "linspace", **(spacing_options or {}))
    if strength is not None:
        levels = _last_part(levels, strength)
    evaluations = count_steps(levels) * solver.evaluations
    require(
        evaluations >= solver.order,
        f"steps={checks.shown(steps)} is less than the order {solver.order} of this sampler; use at least "
        f"{solver.order} steps, or sampler='ddim'",
    )
    return Course(solver, levels)


def _settings(
    native: Mapping[str, Any] | None,
    scheduler: str | Mapping[str, Any] | None,
    sampler: str | Sampler | None,
    spacing: str | None,
    options: Mapping[str, Any] | None,
) -> Mapping[str, Any] | None:
    """Settings of the scheduler that gives the course; None where sampler and spacing do."""
    named = sampler is None or (isinstance(sampler, str) and sampler in SCHEDULER_OF)
    if scheduler is None:
        if native is None or spacing is not None or options or not named:
            return None
        scheduler = NATIVE
    require(
        spacing is None and named,
        "scheduler says which levels are visited; leave spacing out, and name one of the samplers "
        f"{', '.join(SCHEDULER_OF)}, or none",
    )
    require(
        scheduler == NATIVE or isinstance(scheduler, Mapping),
        f"scheduler={checks.shown(scheduler)} must be 'native', or settings of diffusers' schedulers by name, such as "
        "{'timestep_spacing': 'trailing'}",
    )
    changes = {} if isinstance(scheduler, str) else scheduler
    return {**(native or {}), **(SCHEDULER_OF[sampler] if isinstance(sampler, str) else {}), **changes}


def _by_scheduler(
    process: Process,
    settings: Mapping[str, Any],
    options: Mapping[str, Any] | None,
    steps: int | Sequence[int],
    eta: float | int,
    strength: float | int | None,
) -> Course:
    require(not options, f"sampler_options={checks.shown(options)}: with a scheduler, give them as scheduler={{...}}")
    count = checks.integer("steps", steps, 1, process.num_steps)
    checks.real("eta", eta, 0, note="0 is the ODE, 1 as noisy as DDPM")
    made = schedulers.sampling(settings, count, float(eta), None if strength is None else float(strength))
    padded = pad(made.levels, process.num_steps + 1)
    return Course(_with_float32(made.sampler), padded, np.float32(made.noise_scale))


def _last_part(levels: Level, strength: float | int) -> Level:
    """The levels of the last steps, so many of all as `strength` says; at least one."""
    total = count_steps(levels)
    first = total - max(1, int(total * strength))
    return Level(*(np.pad(column[first:], (0, first), mode="edge") for column in levels))


def make_sampler(
    sampler: str | Sampler, process: Process, eta: float | int = 0.0, options: Mapping[str, Any] | None = None
) -> Sampler:
    """Sampler by name, with its options, or as it is given.

    Raises:
        InputError: there is no such sampler, or it has no such option; `eta` = 0 is none.
    """
    checks.real("eta", eta, 0, note="0 is the ODE, 1 as noisy as DDPM")
    given = {**({"eta": float(eta)} if eta else {}), **(options or {})}
    if not isinstance(sampler, str):
        require(isinstance(sampler, Sampler), f"sampler={sampler!r} is no sampler; e.g. gd.samplers.ddim()")
        require(not given, f"{', '.join(given)}: a sampler that is given as a value has its options already")
        return sampler
    for name, value in given.items():
        if isinstance(value, float):
            checks.real(f"sampler_options: {name}", value)
    return _with_float32(samplers.create(sampler, defaults={"variance": process.variance}, **given))


def _with_float32(sampler: Sampler) -> Sampler:
    """The sampler with its numbers of one type, so that another value compiles nothing."""
    step, init = (jax.tree.map(_as_float32, part) for part in (sampler.step, sampler.init))
    return sampler._replace(step=step, init=init)


def _as_float32(leaf: Any) -> Any:
    return np.float32(leaf) if isinstance(leaf, int | float) and not isinstance(leaf, bool) else leaf
