"""From conditions to pictures: a network, a schedule, a guidance rule and a sampler in one compiled program."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, ArrayLike, Float, Int, Key

from guided_diffusion_jax import guidance
from guided_diffusion_jax.denoisers import class_log_prob, conditional_denoiser
from guided_diffusion_jax.errors import choose
from guided_diffusion_jax.samplers import Sampler, ddim, ddpm, film, prior, sample, sample_keys
from guided_diffusion_jax.typing import (
    Conditions,
    Denoiser,
    Gradient,
    Images,
    Keys,
    Level,
    Network,
    Params,
)

Solver = Callable[[Denoiser, Gradient | None, str, ArrayLike], tuple[Sampler, Denoiser]]


def _ddim(denoise: Denoiser, gradient: Gradient | None, variance: str, eta: ArrayLike) -> tuple[Sampler, Denoiser]:
    """Classifiers shift eps (Dhariwal & Nichol 2021, algorithm 2)."""
    return ddim(eta), denoise if gradient is None else guidance.classifier(denoise, gradient)


def _ddpm(denoise: Denoiser, gradient: Gradient | None, variance: str, eta: ArrayLike) -> tuple[Sampler, Denoiser]:
    """Classifiers shift the mean (Dhariwal & Nichol 2021, algorithm 1)."""
    return ddpm(variance, gradient), denoise


SOLVERS: dict[str, Solver] = {"ddim": _ddim, "ddpm": _ddpm}


class Steering(NamedTuple):
    """What one classifier is asked for. All of it is data.

    Attributes:
        params: the classifier's.
        label: the class of each picture.
        weight: w, scalar or one per picture; 0 leaves the model as it is.
        interval: first and last `time` at which it acts, `[2]`.
    """

    params: Params
    label: Int[Array, " b"]
    weight: Float[Array, ""] | Float[Array, " b"]
    interval: Float[Array, " 2"]


class Known(NamedTuple):
    """Pictures to be completed. All of it is data.

    Attributes:
        images: in [-1, 1]; without meaning where they are not known, but finite.
        mask: 1 where they are known, 0 where not; all 0 for a picture that shall be drawn freely.
    """

    images: Images
    mask: Float[Array, "b h w 1"]


class Request(NamedTuple):
    """What is asked for. All of it is data: another request of the same shapes compiles nothing.

    Attributes:
        key: of the whole set of pictures; picture i is drawn with `fold_in(key, numbers[i])`.
        numbers: which pictures of the set these are.
        conditions: K branches to steer towards, each with the conditions of every picture (see `guidance.composed`).
            One is classifier-free guidance; none is the plain model of `null`.
        null: what to steer away from: the same kinds, each at its null value (see `conditions.null_like`), or a
            negative prompt.
        weights: w of each branch: a scalar, one per picture or one per pixel; 0 is the plain conditional model.
        eta: DDIM's; scalar or one per picture.
        levels: `schedules.trajectory`, padded to one length by `schedules.pad` where the number of steps shall vary.
        steering: one for each of the generator's classifiers.
        known: what of the pictures is given (see `guidance.inpaint`); None leaves this out of the program.
    """

    key: Key[Array, ""]
    numbers: Int[Array, " b"]
    conditions: tuple[Conditions, ...]
    null: Conditions
    weights: tuple[Float[Array, ""] | Float[Array, " b"] | Float[Array, "b h w 1"], ...]
    eta: Float[Array, ""] | Float[Array, " b"]
    levels: Level
    steering: tuple[Steering, ...] = ()
    known: Known | None = None


class Generator(NamedTuple):
    """How a model draws; what it is asked for comes as a `Request`.

    Attributes:
        apply: `apply(params, x, time, conditions)`, the network.
        shape: (h, w, c) of a picture.
        prediction: "eps", "x0" or "v".
        variance: "fixed_small", "fixed_large" or "learned_range".
        solver: a key of `SOLVERS`.
        clip: keep the predicted clean image in [-1, 1].
        classifiers: `apply(params, x, time)` to logits, of each classifier that steers.
        rematerialise: the classifiers' activations are computed again instead of kept; less memory, more time.
    """

    apply: Callable[[Params, Images, Array, Conditions], Images]
    shape: tuple[int, int, int]
    prediction: str = "eps"
    variance: str = "fixed_small"
    solver: str = "ddim"
    clip: bool = True
    classifiers: tuple[Callable[[Params, Images, Array], Array], ...] = ()
    rematerialise: bool = False

    def images(self, params: Params, request: Request) -> Images:
        """Pictures `[b h w c]`, about in [-1, 1]."""
        return sample(*self._walk(params, request))

    def film(self, params: Params, request: Request, frames: int) -> Float[Array, "frames b h w c"]:
        """The same pictures on their way from noise, the last frame being the result."""
        return film(*self._walk(params, request), frames)

    def _walk(self, params: Params, request: Request) -> tuple[Sampler, Denoiser, Keys, Images, Level]:
        solver = choose(SOLVERS, self.solver, "sample.solver")
        sampler, denoise = solver(self._denoiser(params, request), self._gradient(request), self.variance, request.eta)
        if self.clip:
            # After all guidance: where alpha is nearly 0 a small shift of eps is a huge one of x0.
            denoise = guidance.clip_x0(denoise)
        if request.known is not None:
            denoise = guidance.inpaint(denoise, *request.known)
        keys = sample_keys(request.key, request.numbers)
        return sampler, denoise, keys, prior(keys, self.shape), request.levels

    def _gradient(self, request: Request) -> Gradient | None:
        gradients = []
        for apply, steering in zip(self.classifiers, request.steering, strict=True):
            log_prob = class_log_prob(functools.partial(apply, steering.params), steering.label)
            one = guidance.gradient(log_prob, rematerialise=self.rematerialise)
            interval = (steering.interval[0], steering.interval[1])
            gradients.append(guidance.weighted(one, steering.weight, interval))
        if not gradients:
            return None
        # What is known is not steered: DDPM's shift of the mean comes after `inpaint`.
        together = guidance.total(gradients)
        return together if request.known is None else guidance.weighted(together, 1 - request.known.mask)

    def _denoiser(self, params: Params, request: Request) -> Denoiser:
        network: Network = functools.partial(self.apply, params)
        denoise = conditional_denoiser(network, self.prediction, self.variance == "learned_range")
        return guidance.composed(denoise, request.conditions, request.null, request.weights)
