"""Denoising: draw a noise level and noise for each sample, ask the network, compare (Ho et al. 2020, algorithm 1)."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike

from guided_diffusion_jax.conditions import ConditionSpec, check_rates, condition_specs, drop
from guided_diffusion_jax.data.augmentation import random_mask
from guided_diffusion_jax.denoisers import conditional_denoiser
from guided_diffusion_jax.errors import choose, require
from guided_diffusion_jax.models import init_params
from guided_diffusion_jax.objectives.base import Losses, Objective, draw_noise, split_keys
from guided_diffusion_jax.objectives.partition import AUXILIARY, merge, network
from guided_diffusion_jax.objectives.terms import LOSSES, add_noise
from guided_diffusion_jax.objectives.timesteps import Steps
from guided_diffusion_jax.objectives.weightings import Weighting, init_uncertainty, uncertainty, weighted
from guided_diffusion_jax.objectives.weightings import create as create_weighting
from guided_diffusion_jax.process import Process
from guided_diffusion_jax.random import MASK_STREAM, fold
from guided_diffusion_jax.schedules import at
from guided_diffusion_jax.typing import ConditionalDenoiser, Conditions, Images, Keys, Params


def denoising(
    model: nn.Module,
    process: Process,
    image_shape: tuple[int, int, int],
    *,
    loss: str = "mse",
    condition_dropout: float = 0.1,
    per_condition_dropout: Mapping[str, float] = MappingProxyType({}),
    weighting: str = "none",
    weighting_options: Mapping[str, float] = MappingProxyType({}),
) -> Objective:
    """Objective of a diffusion model, with conditions dropped at random (Ho & Salimans 2022, algorithm 1).

    Args:
        model: e.g. `models.UNet`.
        process: what it predicts, at which levels.
        image_shape: (h, w, c) of what it sees.
        loss: a key of `terms.LOSSES`. With a learned variance "mse" and "rescaled_mse" are the hybrid losses.
        condition_dropout: probability in [0, 1] that a sample loses all its conditions, p_uncond.
        per_condition_dropout: condition to the probability that a sample loses it alone.
        weighting: of the squared error by noise level, a key of `weightings.WEIGHTINGS`; "learned" trains an
            uncertainty along, which is no part of the network.
        weighting_options: of that weighting.

    Raises:
        InputError: a value out of its range, or a loss that does not go with the process.
    """
    rate, rates = condition_dropout, {name: rate for name, rate in per_condition_dropout.items() if rate}
    require(0 <= rate <= 1, f"train.cfg_dropout={rate} must lie in [0, 1]; 0 never drops the condition.")
    check_rates(rates, "train.per_condition_dropout")
    check_loss(loss, process)
    specs = condition_specs(model, image_shape)
    weight, learned = _weighting(weighting, loss, process, weighting_options), weighting == "learned"

    def init(key) -> Params:
        params = init_params(model, key, image_shape)
        return {**params, AUXILIARY: init_uncertainty()} if learned else params

    def losses(params, ema, frozen, keys, batch, t=None) -> Losses:
        of_drop, of_network, of_loss = split_keys(keys, 3)
        conditions = drop(of_drop, batch_conditions(specs, batch, of_drop), specs, rate, rates)
        variables, rngs = {"params": merge(network(params), frozen)}, {"dropout": of_network[0]}
        apply: Any = functools.partial(model.apply, variables, train=True, rngs=rngs)
        denoise, images = conditional_denoiser(apply, process), batch["image"]
        found = denoising_losses(denoise, of_loss, images, conditions, process, loss=loss, t=t, weighting=weight)
        if not learned:
            return found
        assert found.t is not None
        u = uncertainty(params[AUXILIARY], at(process.levels, found.t)).reshape(found.loss.shape)
        return Losses(jnp.exp(-u) * found.loss + u, found.t, {"weighted_mse": found.loss})

    return Objective(init=init, loss=losses)


def _weighting(name: str, loss: str, process: Process, options: Mapping[str, float]) -> Weighting | None:
    """Weight of the squared error, with EDM's sigma_data where none is given.

    Raises:
        InputError: there is no such weighting, or the loss is no squared error.
    """
    require(
        name == "none" or loss in ("mse", "rescaled_mse"),
        f"train.loss_weighting={name!r} weights the squared error, and train.loss={loss!r} is none; use 'mse'",
    )
    known = {"sigma_data": process.sigma_data} if name in ("edm", "learned") else {}
    return create_weighting(name, process.parametrization.target, **{**known, **options})


def check_loss(loss: str, process: Process) -> None:
    """Raises `InputError` for a loss that there is not, or that does not go with the process."""
    choose(LOSSES, loss, "train.loss")
    require(
        process.learned_variance or loss != "rescaled_mse",
        f"train.loss='rescaled_mse' rescales what trains a learned variance, but diffusion.variance="
        f"'{process.variance}' is fixed; use train.loss='mse', or diffusion.variance='learned_range'",
    )
    require(
        process.num_steps >= 2 or not (process.learned_variance or loss in ("kl", "rescaled_kl")),
        f"diffusion.num_steps={process.num_steps}, but the variational bound (train.loss='{loss}', "
        f"diffusion.variance='{process.variance}') needs at least 2; raise it, or use train.loss='mse' and a fixed "
        "variance",
    )


def denoising_losses(
    denoise: ConditionalDenoiser,
    keys: Keys,
    x0: Images,
    conditions: Conditions,
    process: Process,
    *,
    loss: str = "mse",
    t: Steps | None = None,
    weighting: Weighting | None = None,
) -> Losses:
    """Losses of a denoiser: mean squared error of the output (Ho et al. 2020, eq. 14), or another of `LOSSES`.

    Args:
        denoise: the network, with a `variance_fraction` where the variance is learned.
        keys: one per sample; they decide eps, and t where it is not given.
        x0: clean images in [-1, 1].
        conditions: of each sample, dropped or not.
        process: S levels, and what the squared error is measured in.
        loss: "mse", with a learned variance the hybrid L_simple + L_t; "rescaled_mse", the hybrid with S/1000 L_t;
            "kl", L_t; "rescaled_kl", S L_t. See `terms`.
        t: the step of each sample, as `Timesteps.sample` chooses it; None draws it uniformly.
        weighting: of the squared error at a level; None is 1 (see `weightings.create`).
    """
    terms, target = choose(LOSSES, loss, "train.loss"), weighted(process.parametrization.target, weighting)
    drawn, eps = draw_noise(keys, x0, process.levels)
    t = drawn if t is None else t
    noisy = add_noise(x0, eps, t, process.levels)
    prediction = denoise(noisy.x, noisy.now, conditions)
    return Losses(terms(prediction, noisy, target, process.variance, process.num_steps), t)


DERIVED: dict[str, Callable[[Images, Keys, ConditionSpec], Images]] = {
    "masked_image": lambda images, keys, spec: random_mask(fold(keys, MASK_STREAM), images),
    "low_res": lambda images, keys, spec: reduce_size(images, spec.shape[0]),
}
"""Conditions that are made of the training images themselves."""


def batch_conditions(specs: Mapping[str, ConditionSpec], batch: Mapping[str, Any], keys: Keys) -> Conditions:
    """Conditions of a batch of data, before dropout; one key per image."""
    images = batch["image"]
    return {
        name: DERIVED[name](images, keys, spec) if name in DERIVED else jnp.asarray(batch[name])
        for name, spec in specs.items()
    }


def reduce_size(images: ArrayLike, size: int) -> Images:
    """Images at a lower resolution, which a super-resolution model learns to enlarge."""
    n, _, _, channels = jnp.shape(images)
    return jax.image.resize(jnp.asarray(images), (n, size, size, channels), "linear")
