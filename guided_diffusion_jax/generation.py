"""From conditions to pictures: a network, a schedule, a guidance rule and a sampler in one compiled program."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, ArrayLike, Float, Int, Key

from guided_diffusion_jax import guidance
from guided_diffusion_jax.conditions import null_like
from guided_diffusion_jax.denoisers import conditional_denoiser
from guided_diffusion_jax.errors import choose
from guided_diffusion_jax.samplers import Sampler, ddim, ddpm, film, prior, sample, sample_keys
from guided_diffusion_jax.typing import Conditions, Denoiser, Images, Keys, Level, Network, Params

SOLVERS: dict[str, Callable[[str, ArrayLike], Sampler]] = {
    "ddim": lambda variance, eta: ddim(eta),
    "ddpm": lambda variance, eta: ddpm(variance),
}


class Request(NamedTuple):
    """What is asked for. All of it is data: another request of the same shapes compiles nothing.

    Attributes:
        key: of the whole set of pictures; picture i is drawn with `fold_in(key, numbers[i])`.
        numbers: which pictures of the set these are.
        conditions: of each of them.
        weight: of classifier-free guidance, scalar or one per picture; 0 is the plain conditional model.
        eta: DDIM's; scalar or one per picture.
        levels: `schedules.trajectory`, padded to one length by `schedules.pad` where the number of steps shall vary.
    """

    key: Key[Array, ""]
    numbers: Int[Array, " b"]
    conditions: Conditions
    weight: Float[Array, ""] | Float[Array, " b"]
    eta: Float[Array, ""] | Float[Array, " b"]
    levels: Level


class Generator(NamedTuple):
    """How a model draws; what it is asked for comes as a `Request`.

    Attributes:
        apply: `apply(params, x, time, conditions)`, the network.
        shape: (h, w, c) of a picture.
        num_classes: the label that stands for none.
        prediction: "eps", "x0" or "v".
        variance: "fixed_small", "fixed_large" or "learned_range".
        solver: a key of `SOLVERS`.
        clip: keep the predicted clean image in [-1, 1].
        free: guide by classifier-free guidance, with a batch of twice the size; else the plain conditional model,
            for which the weight has no meaning.
    """

    apply: Callable[[Params, Images, Array, Conditions], Images]
    shape: tuple[int, int, int]
    num_classes: int
    prediction: str = "eps"
    variance: str = "fixed_small"
    solver: str = "ddim"
    clip: bool = True
    free: bool = True

    def images(self, params: Params, request: Request) -> Images:
        """Pictures `[b h w c]`, about in [-1, 1]."""
        return sample(*self._walk(params, request))

    def film(self, params: Params, request: Request, frames: int) -> Float[Array, "frames b h w c"]:
        """The same pictures on their way from noise, the last frame being the result."""
        return film(*self._walk(params, request), frames)

    def _walk(self, params: Params, request: Request) -> tuple[Sampler, Denoiser, Keys, Images, Level]:
        sampler = choose(SOLVERS, self.solver, "sample.solver")(self.variance, request.eta)
        keys = sample_keys(request.key, request.numbers)
        return sampler, self._denoiser(params, request), keys, prior(keys, self.shape), request.levels

    def _denoiser(self, params: Params, request: Request) -> Denoiser:
        network: Network = functools.partial(self.apply, params)
        denoise = conditional_denoiser(network, self.prediction, self.variance == "learned_range")
        if self.free:
            null = null_like(request.conditions, self.num_classes)
            guided = guidance.classifier_free(denoise, request.conditions, null, request.weight)
        else:
            guided = guidance.conditional(denoise, request.conditions)
        return guidance.clip_x0(guided) if self.clip else guided
