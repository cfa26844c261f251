"""From a `scheduler_config.json` of diffusers to a process, and to the sampler and the levels that it stands for.

diffusers' schedulers differ in more than their solver: in the times that they visit, in rounding them, in where they
end and in the scale of the first noise. `sampling` brings all of it into `Level`s and a sampler's options. Their
sigma is our sigma / alpha; states of their Euler, Heun, LMS and KDPM2 are x / alpha, ours are x.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from guided_diffusion_jax import random, samplers, schedules, trajectories
from guided_diffusion_jax.errors import choose, require
from guided_diffusion_jax.gaussian import beta
from guided_diffusion_jax.process import Process
from guided_diffusion_jax.samplers import Sampler
from guided_diffusion_jax.samplers.pndm import Memory as PNDMMemory
from guided_diffusion_jax.typing import Level

Config = Mapping[str, Any]

PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
"""`prediction_type` to a key of `prediction.PREDICTIONS`."""


class Sampling(NamedTuple):
    """What a scheduler does.

    Attributes:
        sampler: with its options.
        levels: that it visits, not padded.
        noise_scale: of the first x, which is `noise_scale` times standard normal noise.
    """

    sampler: Sampler
    levels: Level
    noise_scale: float = 1.0


class _Settings(NamedTuple):
    """A scheduler's configuration, its table in float64, the number of steps, and the share of them that is made."""

    config: Config
    table: Level
    steps: int
    eta: float
    strength: float | None = None

    @property
    def dropped(self) -> int:
        """Steps at the noisy end that are left out, as diffusers' pipelines that begin with an image do."""
        return 0 if self.strength is None else max(self.steps - int(self.steps * self.strength), 0)

    def get(self, key: str, default: Any) -> Any:
        value = self.config.get(key)
        return default if value is None else value


def process(config: Config) -> Process:
    """Process that a network with this scheduler was trained for.

    Raises:
        InputError: a schedule of betas or a type of prediction that is not known.
    """
    prediction = choose(PREDICTIONS, config.get("prediction_type", "epsilon"), "prediction_type")
    return Process(_float32(table(config)), prediction)


def sampling(config: Config, steps: int, eta: float = 0.0, strength: float | None = None) -> Sampling:
    """Sampler and levels of a scheduler that is asked for so many steps.

    Args:
        config: `scheduler_config.json`, as a dictionary.
        steps: diffusers' `num_inference_steps`.
        eta: of DDIM.
        strength: share of the steps that is made, those at the clean end, from an image with noise; None is all of
            them, from noise.

    Raises:
        InputError: a strength that leaves no step; a class, or an option of it, that is not known here.
    """
    name = str(config.get("_class_name", "")).removesuffix("Scheduler")
    for option in ("use_flow_sigmas", "use_dynamic_shifting", "shift_terminal"):
        require(not config.get(option), f"{option} of {name}Scheduler is not supported")
    settings = _Settings(config, table(config, clean_last=name == "DDIM"), steps, eta, strength)
    require(settings.dropped < steps, f"strength={strength} leaves none of {steps} steps; use at least {1 / steps:.2g}")
    found = choose(SCHEDULERS, name, "_class_name")(settings)
    return found._replace(levels=_float32(found.levels))


# --- the table


def table(config: Config, clean_last: bool = True) -> Level:
    """Training levels in float64, the least noisy first.

    Args:
        config: `scheduler_config.json`.
        clean_last: keep the exact zero of a zero-SNR table; else 2**-24 stands for the last alpha_bar.
    """
    count = config.get("num_train_timesteps", 1000)
    start, end = config.get("beta_start", 0.0001), config.get("beta_end", 0.02)
    name = config.get("beta_schedule", "linear")
    if config.get("trained_betas") is not None:
        betas = np.asarray(config["trained_betas"], np.float64)
    else:
        betas = choose(_BETAS, name, "beta_schedule")(count, start, end)
    alpha = np.sqrt(np.cumprod(1 - betas))
    made = schedules.table(alpha, np.sqrt(1 - alpha**2), np.float64)
    if config.get("rescale_betas_zero_snr"):
        made = schedules.rescaled_to_zero_snr(made)
        if not clean_last:
            made.alpha[-1], made.sigma[-1] = 2.0**-12, np.sqrt(1 - 2.0**-24)
    return made


def _linear(count: int, start: float, end: float) -> np.ndarray:
    return np.linspace(start, end, count)


def _scaled_linear(count: int, start: float, end: float) -> np.ndarray:
    return np.linspace(start**0.5, end**0.5, count) ** 2


def _cosine(count: int, start: float, end: float) -> np.ndarray:
    alpha_bar = schedules.cosine(count, np.float64).alpha ** 2
    return 1 - alpha_bar / np.append(1.0, alpha_bar[:-1])


_BETAS = {"linear": _linear, "scaled_linear": _scaled_linear, "squaredcos_cap_v2": _cosine}


# --- DDIM, PNDM, DDPM, LCM: rows of the table


def _ddim(s: _Settings) -> Sampling:
    times, targets = _times_and_targets(s, one=True)
    return Sampling(*_stepping_to(samplers.ddim(np.float32(s.eta)), s, times, targets))


def _pndm(s: _Settings) -> Sampling:
    times, targets = _times_and_targets(s, one=False)
    prediction = choose(PREDICTIONS, s.get("prediction_type", "epsilon"), "prediction_type")
    if s.get("skip_prk_steps", False):
        return Sampling(*_stepping_to(samplers.pndm(prediction), s, times, targets))
    require(s.steps > 3, f"PNDMScheduler with skip_prk_steps=False needs 4 steps at least, and got {s.steps}")
    require(not s.dropped, "PNDMScheduler with skip_prk_steps=False starts from noise; leave strength at 1")
    half, first = len(s.table.time) // s.steps // 2, times.time[:4].astype(int)
    middle = first[1:] + half
    inner = np.stack([first[:3], middle, middle, first[1:]], 1).ravel()
    rows = (inner, inner - np.tile([half, 0], 6))
    times, targets = (
        Level(*(np.append(column[i], others[3:]) for column, others in zip(s.table, levels, strict=True)))
        for i, levels in zip(rows, (times, targets), strict=True)
    )
    return Sampling(*_stepping_to(samplers.f_pndm(prediction), s, times, targets))


def _lcm(s: _Settings) -> Sampling:
    """Some of the `original_inference_steps` that the model was distilled for."""
    count = s.get("original_inference_steps", 50)
    require(s.steps <= count, f"LCMScheduler: steps={s.steps} is more than the model's {count}; use fewer")
    rows = np.arange(count, 0, -1) * (len(s.table.time) // count) - 1
    rows = rows[np.floor(np.linspace(0, count, s.steps, endpoint=False)).astype(int)]
    last = Level(1, 0, 0) if s.get("set_alpha_to_one", True) else _row(s.table, 0)
    levels = trajectories.close(_kept(s, Level(*(column[rows] for column in s.table))), last)
    return Sampling(samplers.lcm(s.get("timestep_scaling", 10.0)), levels)


def _ddpm(s: _Settings) -> Sampling:
    variance = s.get("variance_type", "fixed_small")
    sampler, rows = samplers.ddpm(variance), _kept(s, _rows(s, "leading", rounded=True))
    if variance == "fixed_large" and rows.time[-1] > 0:
        sampler = sampler._replace(step=Partial(_step_with_last_noise, inner=sampler))
    return Sampling(sampler, trajectories.close(rows, Level(1, 0, 0)))


def _step_with_last_noise(denoise, keys, x, now, nxt, memory, *, inner):
    """Step of a sampler that adds beta's noise also to the clean image, as DDPMScheduler does above time 0."""
    x, memory = inner.step(denoise, keys, x, now, nxt, memory)
    std = jnp.where(nxt.sigma > 0, 0, jnp.sqrt(beta(now, nxt)))
    return x + std * random.standard_normal(keys, x.shape[1:]), memory


def _times_and_targets(s: _Settings, one: bool) -> tuple[Level, Level]:
    """Levels that are visited, and those T // n earlier, to which their steps lead whatever comes next."""
    rows, num_rows = _rows(s, "leading", rounded=True), len(s.table.time)
    last = Level(1, 0, 0) if s.get("set_alpha_to_one", one) else _row(s.table, 0)
    earlier = rows.time.astype(int) - num_rows // s.steps
    columns = (np.append(column, end) for column, end in zip(s.table, last, strict=True))
    return rows, Level(*(column[np.where(earlier < 0, num_rows, earlier)] for column in columns))


def _stepping_to(sampler: Sampler, s: _Settings, times: Level, targets: Level) -> tuple[Sampler, Level]:
    """Sampler whose step i leads to `targets` i, where that is not the next level, and the levels."""
    if sampler.visits is not None and s.strength is not None:
        return _stepping_from(sampler, s, times, targets)
    times, targets = _kept(s, times), _kept(s, targets)
    levels = trajectories.close(times, _row(targets, -1))
    if (levels.time[1:-1] == targets.time[:-1]).all():
        return sampler, levels
    if sampler.visits is not None:
        targets = Level(*(np.insert(column, 1, one) for column, one in zip(targets, _row(times, 1), strict=True)))
    return _with_targets(sampler, s, times, targets), levels


def _stepping_from(sampler: Sampler, s: _Settings, times: Level, targets: Level) -> tuple[Sampler, Level]:
    """PNDM from an image: the doubled call is left out with the first steps, and the second is still a repetition."""
    visits = np.insert(np.arange(s.steps), 1, 1)[s.dropped :]
    times, targets = (Level(*(column[visits] for column in levels)) for levels in (times, targets))
    for column, one in zip(targets, times, strict=True):
        column[1:2] = one[1:2]
    levels = trajectories.close(times, _row(targets, -1))
    return _with_targets(sampler, s, times, targets)._replace(visits=None), levels


def _with_targets(sampler: Sampler, s: _Settings, times: Level, targets: Level) -> Sampler:
    """The second time that PNDM's first step is made, it starts T // n above its end."""
    above = int(times.time[min(1, len(times.time) - 1)]) + len(s.table.time) // s.steps
    origin = _row(s.table, min(above, len(s.table.time) - 1))
    padded = trajectories.pad(targets, len(s.table.time) + 1)  # another number of steps compiles nothing
    options = {"inner": sampler, "targets": _float32(padded), "origin": _float32(origin)}
    return sampler._replace(init=Partial(_init_stepping, inner=sampler), step=Partial(_step_to_target, **options))


def _kept(s: _Settings, levels: Level) -> Level:
    """The levels without those of the steps that are left out."""
    return Level(*(column[s.dropped :] for column in levels))


def _init_stepping(x, levels, *, inner):
    return jnp.int32(0), inner.init(x, levels)


def _step_to_target(denoise, keys, x, now, nxt, memory, *, inner, targets, origin):
    index, memory = memory
    nxt = Level(*(jnp.asarray(column)[index] for column in targets))
    if isinstance(memory, PNDMMemory):
        level = Level(*(jnp.where(index == 1, a, b) for a, b in zip(origin, memory.level, strict=True)))
        memory = memory._replace(level=level)
    x, memory = inner.step(denoise, keys, x, now, nxt, memory)
    return x, (index + 1, memory)


# --- Euler, Heun, LMS, KDPM2: fractional times


def _euler(s: _Settings) -> Sampling:
    return _in_sigma(samplers.euler(), s)


def _euler_ancestral(s: _Settings) -> Sampling:
    return _in_sigma(samplers.euler_ancestral(), s)


def _heun(s: _Settings) -> Sampling:
    return _in_sigma(samplers.heun(predict_x0=False), s)


def _lms(s: _Settings) -> Sampling:
    return _in_sigma(samplers.lms(), s)


def _kdpm2(s: _Settings) -> Sampling:
    sampler, levels, scale = _in_sigma(samplers.dpm_2(), s)
    if s.get("use_karras_sigmas", False):
        levels = levels._replace(time=np.round(levels.time))
    ratio = levels.sigma[:-1] / levels.alpha[:-1]
    middle = trajectories.at_ratio(s.table, np.sqrt(ratio[1:] * ratio[:-1]))
    after = np.arange(1, len(ratio))
    levels = Level(*(np.insert(column, after, between) for column, between in zip(levels, middle, strict=True)))
    return Sampling(sampler, levels, scale)


def _in_sigma(sampler: Sampler, s: _Settings) -> Sampling:
    rows = _rows(s, "linspace", rounded=False)
    last = _row(s.table, 0) if s.get("final_sigmas_type", "zero") == "sigma_min" else Level(1, 0, 0)
    if s.get("interpolation_type", "linear") == "log_linear":
        whole = trajectories.logsnr(s.table, s.steps + 1)
        rows, last = Level(*(column[:-1] for column in whole))._replace(time=rows.time), _row(whole, -1)
    else:
        rows = _respaced(s, rows, *(float(rows.sigma[i] / rows.alpha[i]) for i in (-1, 0)))
    if s.get("timestep_type", "discrete") == "continuous" and s.get("prediction_type", "epsilon") == "v_prediction":
        rows = rows._replace(time=0.25 * np.log(rows.sigma / rows.alpha))
    # Theirs starts from max sigma times noise, of x / alpha, unless it is leading: then from what x has in training.
    scale = 1.0 if s.get("timestep_spacing", "linspace") == "leading" else float(rows.sigma[0])
    return Sampling(sampler, trajectories.close(_kept(s, rows), last), scale)


# --- DPM-Solver, UniPC, DEIS: whole times


def _dpm_multistep(s: _Settings) -> Sampling:
    algorithm, order = s.get("algorithm_type", "dpmsolver++"), s.get("solver_order", 2)
    kind, short = s.get("solver_type", "midpoint"), s.steps < 15
    levels, stays = _in_lambda(s)
    final = (s.get("lower_order_final", True) and short) or s.get("euler_at_final", False)
    final = final and 1 + stays
    kind = kind if kind in ("midpoint", "heun") else "midpoint"
    # Half of the second derivative is what these classes add.
    make: dict[tuple[str, int], Callable[[], Sampler]] = {
        ("dpmsolver++", 1): samplers.euler,
        ("dpmsolver++", 2): lambda: samplers.dpmpp_2m(kind, final),
        ("dpmsolver++", 3): lambda: samplers.dpmpp_3m(kind, final, curvature=0.5),
        ("sde-dpmsolver++", 1): samplers.euler_ancestral,
        ("sde-dpmsolver++", 2): lambda: samplers.dpmpp_2m_sde(kind, final),
        **{("dpmsolver", k): functools.partial(samplers.dpm_solver, k, kind, final, curvature=0.5) for k in (1, 2, 3)},
    }
    require((algorithm, order) in make, f"algorithm_type={algorithm!r} with solver_order={order} is not supported")
    return Sampling(make[algorithm, order](), levels)


def _dpm_singlestep(s: _Settings) -> Sampling:
    algorithm, order = s.get("algorithm_type", "dpmsolver++"), s.get("solver_order", 2)
    known = algorithm in ("dpmsolver++", "dpmsolver") and order in (1, 2, 3)
    require(known, f"algorithm_type={algorithm!r} with solver_order={order} is not supported")
    require(not s.dropped, "DPMSolverSinglestepScheduler always makes all steps; leave strength at 1")
    zero = s.get("final_sigmas_type", "zero") == "zero"
    final = s.get("lower_order_final", False) or zero or s.steps % order != 0
    kind = s.get("solver_type", "midpoint")
    options = (kind if kind in ("midpoint", "heun") else "midpoint", algorithm == "dpmsolver++", final)
    make = {1: lambda *_: samplers.euler(), 2: samplers.dpmpp_2s, 3: samplers.dpmpp_3s}[order]
    levels, stays = _in_lambda(s)
    if stays:  # it is a step from the level before, which must count
        levels.sigma[-1] *= 1 - 1e-6
    return Sampling(make(*options), levels)


def _unipc(s: _Settings) -> Sampling:
    kind, (levels, stays) = s.get("solver_type", "bh2"), _in_lambda(s)
    sampler = samplers.unipc(
        order=s.get("solver_order", 2),
        variant=kind if kind in ("bh1", "bh2") else "bh2",
        predict_x0=s.get("predict_x0", True),
        lower_order_final=s.get("lower_order_final", True) and 1 + stays,
        skip_corrector=tuple(s.get("disable_corrector", ())),
    )
    return Sampling(sampler, levels)


def _deis(s: _Settings) -> Sampling:
    levels, stays = _in_lambda(s, "sigma_min")
    final = s.get("lower_order_final", True) and s.steps < 15 and 1 + stays
    return Sampling(samplers.deis(s.get("solver_order", 2), final), levels)


def _in_lambda(s: _Settings, final: str = "zero") -> tuple[Level, bool]:
    """Levels, and whether the last step is one to the level where it begins, which the trajectory leaves out."""
    half_logsnr = np.log(s.table.alpha) - np.log(s.table.sigma)
    usable = int((half_logsnr >= s.get("lambda_min_clipped", -np.inf)).sum())
    clipped = s._replace(table=Level(*(column[:usable] for column in s.table)))
    rows = _rows(clipped, "linspace", rounded=True, endpoint=False)
    rows = _respaced(s, rows, *(float(s.table.sigma[i] / s.table.alpha[i]) for i in (0, -1)))
    cut = np.round if s.get("use_karras_sigmas", False) or s.get("use_lu_lambdas", False) else np.floor
    last = Level(1, 0, 0) if s.get("final_sigmas_type", final) == "zero" else _row(s.table, 0)
    stays = bool(np.isclose(last.sigma, rows.sigma[-1], rtol=1e-6, atol=0))
    last = _row(rows, -1) if stays else last
    return trajectories.close(_kept(s, rows._replace(time=cut(rows.time))), last), stays


SCHEDULERS: dict[str, Callable[[_Settings], Sampling]] = {
    "DDIM": _ddim,
    "PNDM": _pndm,
    "DDPM": _ddpm,
    "LCM": _lcm,
    "EulerDiscrete": _euler,
    "EulerAncestralDiscrete": _euler_ancestral,
    "HeunDiscrete": _heun,
    "LMSDiscrete": _lms,
    "KDPM2Discrete": _kdpm2,
    "DPMSolverMultistep": _dpm_multistep,
    "DPMSolverSinglestep": _dpm_singlestep,
    "UniPCMultistep": _unipc,
    "DEISMultistep": _deis,
}
"""`_class_name` without "Scheduler" to the function that reads its options."""


# --- spacings


def _rows(s: _Settings, default: str, *, rounded: bool, endpoint: bool = True) -> Level:
    """Rows at the times of `timestep_spacing`."""
    spacing = s.get("timestep_spacing", default)
    if spacing == "leading":
        return trajectories.leading(s.table, s.steps, offset=s.get("steps_offset", 0), endpoint=endpoint)
    if spacing == "trailing":
        return trajectories.trailing(s.table, s.steps)
    require(spacing == "linspace", f"timestep_spacing={spacing!r} is not one of linspace, leading, trailing")
    return trajectories.linspace(s.table, s.steps, rounded=rounded, endpoint=endpoint)


def _respaced(s: _Settings, rows: Level, low: float, high: float) -> Level:
    """Rows at Karras', exponential or beta sigmas between two ratios, or as they are."""
    ends = {"sigma_min": s.get("sigma_min", low), "sigma_max": s.get("sigma_max", high)}
    for option, spacing in _RESPACED.items():
        if s.get(option, False):
            return spacing(s.table, s.steps, **ends)
    return rows


_RESPACED: dict[str, Callable[..., Level]] = {
    "use_karras_sigmas": trajectories.karras,
    "use_lu_lambdas": trajectories.logsnr,
    "use_exponential_sigmas": trajectories.logsnr,
    "use_beta_sigmas": trajectories.beta,
}


def _row(levels: Level, index: int) -> Level:
    return Level(*(column[index] for column in levels))


def _float32(levels: Level) -> Level:
    return jax.tree.map(lambda column: np.asarray(column, np.float32), levels)
