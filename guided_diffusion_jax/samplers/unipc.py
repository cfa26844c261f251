"""UniPC: a multistep predictor, corrected by the next step's prediction; one evaluation a step."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from guided_diffusion_jax import checks
from guided_diffusion_jax.errors import choose
from guided_diffusion_jax.prediction import from_eps, from_x0
from guided_diffusion_jax.samplers import multistep
from guided_diffusion_jax.samplers.base import Sampler
from guided_diffusion_jax.typing import Images

VARIANTS = {"bh1": False, "bh2": True}
"""B(h) of Zhao et al. 2023: h, or exp(h) - 1. It stands for twice J_1 where a step has one other prediction only."""


class Memory(NamedTuple):
    """History, and the corrected state of the next level: `known + factor m` with its prediction m."""

    history: multistep.Memory
    known: Images
    factor: Float[Array, ""]
    step: Array


def unipc(
    order: int = 2,
    variant: str = "bh2",
    predict_x0: bool = True,
    lower_order_final: bool | int = True,
    skip_corrector: tuple[int, ...] = (),
) -> Sampler:
    """UniPC (Zhao et al. 2023, algorithms 5 and 6), for any alpha and sigma.

    The predictor is a polynomial in lambda through the last `order` predictions, as in DPM-Solver++. Once the network
    has seen the new state, its prediction is one more point of the same polynomial, which gives that state anew: this
    corrector costs no evaluation.

    Args:
        order: 1, 2 or 3.
        variant: "bh1" or "bh2".
        predict_x0: interpolate x0, else eps.
        lower_order_final: the last step is of first order, the one before it of second.
        skip_corrector: numbers of the steps, from 0, whose result is not corrected: of the first ones where the
            weight of guidance is large.
    """
    options = {
        "order": np.int32(checks.integer("order", order, 1, 3)),
        "half": np.bool_(choose(VARIANTS, variant, "variant")),
        "final": multistep.final_order(lower_order_final),
        "skip_corrector": np.array([-1, *skip_corrector], np.int32),
    }
    step = Partial(_step_x0 if predict_x0 else _step_eps, **options)
    return Sampler(init=Partial(_init), step=step, order=order)


def _init(x, levels):
    history = multistep.start(x, levels, 2)
    return Memory(history, jnp.zeros_like(x), jnp.zeros_like(history.places[0]), jnp.int32(0))


def _step_x0(denoise, keys, x, now, nxt, memory, **options):
    x0 = denoise(x, now).x0
    x = jnp.where(memory.factor != 0, memory.known + memory.factor * x0, x)
    base = nxt.alpha * x0 + nxt.sigma * from_x0(x, x0, now).eps
    return _advance(now, nxt, memory, x0, base, nxt.alpha, 1, **options)


def _step_eps(denoise, keys, x, now, nxt, memory, **options):
    prediction = denoise(x, now)
    x0, eps, *_ = prediction
    x = jnp.where(memory.factor != 0, memory.known + memory.factor * eps, x)
    x0 = jnp.where(memory.factor != 0, from_eps(x, eps, now).x0, x0)
    return _advance(now, nxt, memory, eps, nxt.alpha * x0 + nxt.sigma * eps, nxt.sigma, -1, **options)


def _advance(now, nxt, memory, value, base, scale, sign, *, order, half, final, skip_corrector):
    """The predictor's step, and what the corrector will need of it."""
    history = memory.history
    h, usable = multistep.logsnr_step(now, nxt)
    here = multistep.half_logsnr(now)
    order = multistep.order_of_step(history, jnp.where(usable, order, 1), final)
    u = multistep.nodes(history, here, h)
    j0, j1, j2, j3 = multistep.exponential_moments(sign * h, 3)
    simple = jnp.where(half, j0, sign * h) / 2
    w = multistep.select(order, [multistep.weights(u[:1], [simple]), multistep.weights(u, [j1, j2])])
    predicted = base + scale * multistep.correction(history, value, w)

    new = jnp.ones_like(h)  # the place of the next level
    first = [simple, *[jnp.zeros_like(h)] * 2]
    second, third = multistep.weights([new, u[0]], [j1, j2]), multistep.weights([new, *u], [j1, j2, j3])
    higher = multistep.select(order, [second, third])
    of_new, *of_old = (jnp.where(order == 1, a, b) for a, b in zip(first, higher, strict=True))
    factor = scale * of_new
    known = base + scale * multistep.correction(history, value, of_old) - factor * value
    corrects = usable & jnp.all(memory.step != skip_corrector)
    factor = jnp.where(corrects, factor, 0).astype(memory.factor.dtype)
    return predicted, Memory(multistep.remember(history, value, here), known, factor, memory.step + 1)
