"""Variational bound on the likelihood of images, in bits per dimension, term by term."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from guided_diffusion_jax import random, sharding
from guided_diffusion_jax.data.dataset import Dataset
from guided_diffusion_jax.data.pipeline import numbered
from guided_diffusion_jax.denoisers import conditional_denoiser
from guided_diffusion_jax.errors import require
from guided_diffusion_jax.evaluation.numbers import number
from guided_diffusion_jax.guidance import clip_x0
from guided_diffusion_jax.objectives import add_noise, batch_conditions, prior_term, vlb_term
from guided_diffusion_jax.pipeline import Pipeline
from guided_diffusion_jax.random import sample_keys
from guided_diffusion_jax.runtime import notices
from guided_diffusion_jax.trajectories import section_rows
from guided_diffusion_jax.typing import Denoiser, Images, Keys, Level, Params


class Bound(NamedTuple):
    """Bound of each image; column t is step t of the process, 0 the least noisy. A mean of images has no first axis.

    Attributes:
        total: bits per dimension: the prior term and all of `vb`.
        prior: term of the noisiest level, which does not depend on the network.
        vb: term of each step.
        x0_mse: mean squared error of the predicted clean image.
        eps_mse: mean squared error of the predicted noise.
    """

    total: Float[Array, "..."]
    prior: Float[Array, "..."]
    vb: Float[Array, "... s"]
    x0_mse: Float[Array, "... s"]
    eps_mse: Float[Array, "... s"]


def bits_per_dimension(denoise: Denoiser, keys: Keys, x0: Images, table: Level, variance: str) -> Bound:
    """Bound of each image, one draw of the noise per step, all steps in one scan (Ho et al. 2020, eq. 5).

    Args:
        denoise: the model with its conditions; guided-diffusion evaluates `guidance.clip_x0` of it.
        keys: one per image; step t draws from `fold(keys, t)`.
        x0: clean images on the 256 grey levels of [-1, 1].
        table: levels of the process, least noisy first, S rows.
        variance: "fixed_small", "fixed_large" or "learned_range".
    """

    def step(_: None, t: Array) -> tuple[None, tuple[Array, Array, Array]]:
        eps = random.standard_normal(random.fold(keys, t), x0.shape[1:])
        noisy = add_noise(x0, eps, t, table)
        prediction = denoise(noisy.x, noisy.now)
        square = lambda a, b: jnp.mean((a - b) ** 2, axis=(1, 2, 3))  # noqa: E731
        return None, (
            vlb_term(prediction, noisy, variance),
            square(prediction.x0, x0),
            square(prediction.eps, eps),
        )

    _, by_step = jax.lax.scan(step, None, jnp.arange(len(table.time)))
    vb, x0_mse, eps_mse = (column.T for column in by_step)
    prior = prior_term(x0, Level(*(jnp.asarray(column)[-1] for column in table)))
    return Bound(prior + vb.sum(axis=1), prior, vb, x0_mse, eps_mse)


def evaluate(
    denoiser: Callable[[Params, dict[str, Array], Keys], Denoiser],
    params: Params,
    data: Dataset,
    table: Level,
    variance: str,
    *,
    count: int = 0,
    batch_size: int = 100,
    seed: int = 0,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """Mean bound of the first images of a data set, which does not depend on the batches or devices.

    Args:
        denoiser: `denoiser(params, batch, keys)`, the model with the conditions of a batch of data (see
            `data.pipeline.batches`), none of which may contain the image itself.
        params: of the model.
        data: the images, usually of a held-out split.
        table: levels that the bound goes through, least noisy first; all T give the tightest bound.
        variance: "fixed_small", "fixed_large" or "learned_range".
        count: number of images; 0 is all of them.
        batch_size: images at a time, rounded up to a multiple of the devices.
        seed: of the noise; image i draws with `fold_in(key(seed), i)`.
        mesh: the devices; all by default.

    Returns:
        "count" of images, "total" and "prior" in bits per dimension, "vb_by_quarter" of the steps, "by_step" with lists
        "time", "vb", "x0_mse" and "eps_mse".

    Raises:
        InputError: fewer than 2 levels, or fewer images than `count`.
    """
    require(len(table.time) >= 2, "the likelihood needs at least 2 steps")
    require(0 <= count <= len(data), f"count={count}, but {data.name} has {len(data)} images; 0 is all of them")
    count, mesh = count or len(data), sharding.mesh() if mesh is None else mesh

    def measure(params: Params, batch: dict[str, Any]) -> Bound:
        keys = sample_keys(jax.random.key(seed), batch["number"])
        bound = bits_per_dimension(denoiser(params, batch, keys), keys, batch["image"], table, variance)
        # Padding has the weight 0.
        return jax.tree.map(lambda a: jnp.tensordot(batch["weight"], a, axes=1), bound)

    compiled = jax.jit(measure, out_shardings=sharding.replicated(mesh), compiler_options=sharding.compiler_options())
    size = sharding.round_up(min(batch_size, count), mesh.size)
    batches = numbered(data, count, size, jax.process_index(), jax.process_count())
    total = None
    with notices.progress(-(-count // size), "bits/dim", " batches", leave=False) as bar:
        for batch in batches:
            on_devices = sharding.put_batch(batch, mesh)
            with notices.compiling("the likelihood", params, on_devices):
                found = compiled(params, on_devices)
            part = jax.tree.map(lambda a: np.asarray(a, np.float64), found)
            total = part if total is None else jax.tree.map(np.add, total, part)
            bar.update()
    mean: Bound = jax.tree.map(lambda a: a / count, total)
    by_step = {name: getattr(mean, name).tolist() for name in ("vb", "x0_mse", "eps_mse")}
    return {
        "count": count,
        "total": float(mean.total),
        "prior": float(mean.prior),
        "vb_by_quarter": by_quarter(np.asarray(mean.vb)),
        "by_step": {"time": np.asarray(table.time).tolist(), **by_step},
    }


def evaluate_pipeline(
    pipe: Pipeline,
    data: Dataset,
    *,
    steps: int = 0,
    count: int = 0,
    batch_size: int = 100,
    seed: int = 0,
    unconditional: bool = False,
) -> dict[str, Any]:
    """Mean bound of a pipeline's model on the first images of a data set, with their own conditions.

    Args:
        pipe: of the model.
        data: the images, usually of a held-out split.
        steps: number of steps that the bound goes through; 0 is all T, the tightest.
        count: number of images; 0 is all of them.
        batch_size: images at a time.
        seed: of the noise.
        unconditional: leave all conditions out.
    """
    require(
        pipe.codec.image_shape is None,
        "bpd is of pixels, and this model sees latents, whose likelihood is another one; use evaluate.metrics=scores",
    )
    process = pipe.process
    rows = section_rows((steps or process.num_steps,), process.num_steps)
    levels = Level(*(column[rows] for column in process.levels))
    # A masked image would contain the image itself.
    specs = {name: spec for name, spec in pipe.specs.items() if name != "masked_image"}
    if unconditional:
        specs = {name: spec for name, spec in specs.items() if name == "low_res"}

    def denoiser(params: Params, batch: dict[str, Array], keys: Keys) -> Denoiser:
        denoise = conditional_denoiser(functools.partial(pipe.apply, params), process)
        conditions = batch_conditions(specs, batch, keys)
        return clip_x0(lambda x, level: denoise(x, level, conditions))

    return evaluate(
        denoiser, pipe.params, data, levels, process.variance, count=count, batch_size=batch_size, seed=seed,
        mesh=pipe.mesh,
    )  # fmt: skip


def by_quarter(terms: Float[np.ndarray, " s"]) -> list[float]:
    """Sums over the four quarters of the steps, the least noisy first; fewer than 4 steps leave some at 0."""
    quarter = np.arange(len(terms)) * 4 // len(terms)
    return np.bincount(quarter, terms, minlength=4).tolist()


def summary(values: Mapping[str, Any]) -> str:
    """Result of `evaluate` in a line of text."""
    terms = ", ".join(f"q{i + 1} {number(value, 4)}" for i, value in enumerate(values["vb_by_quarter"]))
    bound, prior = number(values["total"], 4), number(values["prior"], 4)
    return f"n = {values['count']:,} images: bits/dim {bound}: prior {prior}, steps by quarter of t {terms}"
