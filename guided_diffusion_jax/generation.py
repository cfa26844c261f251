"""One compiled program from a request to images: a network, a guidance rule, a sampler and a codec."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, Int, Key

from guided_diffusion_jax import guidance
from guided_diffusion_jax.codecs import Codec
from guided_diffusion_jax.denoisers import conditional_denoiser
from guided_diffusion_jax.errors import choose
from guided_diffusion_jax.guidance import Weight, chains
from guided_diffusion_jax.process import Process
from guided_diffusion_jax.random import fold, sample_keys, standard_normal
from guided_diffusion_jax.samplers import Sampler, advance, blended, ddim, sample, sample_trajectory, visited
from guided_diffusion_jax.trajectories import count_steps, num_steps
from guided_diffusion_jax.typing import AnyArray, Conditions, Denoiser, Gradient, Images, Keys, Level, Params

Constraint = Callable[[Denoiser], Denoiser]


class Guide(NamedTuple):
    """A classifier, or any differentiable function, that steers. All of it is data.

    Attributes:
        log_prob: `log_prob(label, x, level) -> [b]`, e.g. `Partial(class_log_prob, ...)` with the parameters inside.
        label: int `[b]`, the class of each image, for a function that uses it.
        weight: w; 0 leaves the model as it is.
    """

    log_prob: Callable[[Array, Images, Level], Float[Array, " b"]]
    label: AnyArray
    weight: Weight


class Inpaint(NamedTuple):
    """Images to be completed. All of it is data.

    Attributes:
        images: `[b h w c]`, in the model's space; without meaning where they are not known, but finite.
        mask: `[b h w 1]`, 1 where the image stays, 0 where it is drawn anew; all 0 for an image that is drawn freely.
    """

    images: AnyArray
    mask: AnyArray


class Blend(NamedTuple):
    """Images to be completed by putting the noisy image back after each step (see `samplers.blended`).

    Attributes:
        images: `[b h w c]`, in the model's space, finite.
        mask: `[b h w 1]`, 1 where the image stays, 0 where it is drawn anew.
    """

    images: AnyArray
    mask: AnyArray


class Start(NamedTuple):
    """Where a trajectory begins: x = alpha image + sigma noise, or without an image x = scale noise.

    Attributes:
        noise: `[b *codec.shape]`, standard normal; None draws it from the request's key.
        image: `[b *codec.shape]`, clean, in the model's space; None is none.
        scale: of the noise where there is no image; None is sqrt(alpha**2 + sigma**2) of the first level.
    """

    noise: Any = None
    image: Any = None
    scale: Any = None


class Request(NamedTuple):
    """What is asked for, a row an image; on the host or on devices. All of it is data.

    Another request of the same shapes, sampler and rule compiles nothing.

    Attributes:
        key: of the whole set of images; image i is drawn with `fold_in(key, indices[i])`.
        indices: which images of the set these are.
        branches: conditions of K branches to steer towards (see `guidance.composed`). One is classifier-free guidance;
            none is the plain model of `null`.
        null: what to steer away from: the same conditions, each at its null value, or a negative prompt.
        weights: w of each branch.
        interval: where guidance acts, all rules and classifiers, `[4]`: first and last `time`, lowest and highest
            sigma / alpha (see `guidance.inside`); `[2]` is the time alone.
        levels: `Process.trajectory`.
        sampler: see `samplers`.
        rule: `guidance.chain`, the rules that apply; or one of what makes one.
        guides: classifiers that steer.
        inpaint: what of the images is given (see `guidance.inpaint`); None leaves this out of the program.
        start: where the trajectory begins.
        labels: the class of each image, which it is filed under; not used in sampling.
    """

    key: Key[Array, ""]
    indices: Int[Any, " b"]
    branches: tuple[Conditions, ...]
    null: Conditions
    weights: tuple[Weight, ...]
    interval: Float[Any, " 4"] | Float[Any, " 2"]
    levels: Level
    sampler: Sampler = ddim()
    rule: Any = (guidance.cfg(),)
    guides: tuple[Guide, ...] = ()
    inpaint: Inpaint | Blend | None = None
    start: Start = Start()
    labels: Any = None

    @property
    def size(self) -> int:
        """Number of images."""
        return len(self.indices)

    @property
    def num_steps(self) -> int:
        """Steps of the sampler; each has `sampler.evaluations` evaluations of every branch."""
        return count_steps(visited(self.sampler, self.levels))

    def rows(self, rows: Int[np.ndarray, " n"]) -> "Request":
        """Request for these rows; beyond the last it is the last one again, with an index of its own."""
        count = len(self.indices)
        present = np.minimum(rows, count - 1)

        def take(values: Any) -> Any:
            # Not `np.take`, which copies all of an array whose rows are one value in memory.
            return values if np.ndim(values) in (0, None) else values[present]

        def take_weight(weight: Weight) -> Weight:
            return weight if isinstance(weight, guidance.WeightSchedule) else take(weight)

        beyond = self.indices[-1] + 1 + np.maximum(rows - count, 0)
        return self._replace(
            indices=np.where(rows < count, take(self.indices), beyond).astype(np.int32),
            branches=jax.tree.map(take, self.branches),
            null=jax.tree.map(take, self.null),
            weights=tuple(take_weight(weight) for weight in self.weights),
            guides=tuple(g._replace(label=take(g.label), weight=take_weight(g.weight)) for g in self.guides),
            inpaint=jax.tree.map(take, self.inpaint),
            start=jax.tree.map(take, self.start),
            labels=None if self.labels is None else take(self.labels),
        )

    def with_weight(self, weight: Weight) -> "Request":
        """Request with another weight of all branches."""
        return self._replace(weights=(weight,) * len(self.branches))

    def prune_branches(self) -> "Request":
        """Request for the same images in fewer branches, where a weight of 0 or -1 leaves one without influence.

        The rules say at which weights that is so; a rule of the user's keeps all its branches.
        """
        at = chains.prunes(guidance.chain(self.rule))
        branches, null, weights = guidance.prune_branches(self.branches, self.null, self.weights, at)
        return self._replace(branches=branches, null=null, weights=weights)

    def prune_guides(self) -> "Request":
        """Request for the same images without the classifiers whose weight is 0 everywhere."""

        def steers(weight: Weight) -> bool:
            return isinstance(weight, guidance.WeightSchedule) or bool(np.any(np.asarray(weight)))

        return self._replace(guides=tuple(guide for guide in self.guides if steers(guide.weight)))


def _first_state(start: Start, noise: Images, level: Level) -> Images:
    if start.image is not None:
        return level.alpha * jnp.asarray(start.image) + level.sigma * noise
    return noise * (jnp.sqrt(level.alpha**2 + level.sigma**2) if start.scale is None else start.scale)


def as_data(tree: Any) -> Any:
    """The tree with plain functions wrapped, so that `jit` takes it: functions are static, their options data."""
    return jax.tree.map(lambda leaf: Partial(leaf) if callable(leaf) else leaf, tree)


def _last(shift: Constraint, clip: Constraint) -> Constraint:
    return lambda denoise: clip(shift(denoise))


def _before_classifier(shift: Constraint, clip: Constraint) -> Constraint:
    return lambda denoise: shift(clip(denoise))


CLIPPING: dict[str, Callable[[Constraint, Constraint], Constraint]] = {
    "last": _last,
    "before_classifier": _before_classifier,
}
"""When the predicted clean sample is clipped: after the shift of classifiers, or before it as in guided-diffusion.

Where alpha is nearly 0 a small shift of eps is a huge one of x0, hence "last" by default. A sampler that takes the
gradient itself, such as DDPM's, shifts after clipping in both.
"""


class Generator(NamedTuple):
    """Pure functions from parameters and a request to samples, to be jitted, vmapped or sharded.

    Attributes:
        apply: `apply(params, x, time, conditions)`, the network.
        process: what it was trained for.
        codec: the model's space and its limits.
        clip: keep the predicted clean sample within the codec's limits: a key of `CLIPPING`; True is "last", False not.
        sequential: evaluate one branch at a time: less memory, the same numbers.
        rematerialize: compute the activations of classifiers again instead of storing them.
    """

    apply: Callable[[Params, Images, Array, Conditions], Images]
    process: Process
    codec: Codec
    clip: bool | str = True
    sequential: bool = False
    rematerialize: bool = False

    def latents(self, params: Params, request: Request) -> Images:
        """Samples in the model's space, `[b *codec.shape]`, not decoded."""
        return sample(*self._prepare(params, request))

    def images(self, params: Params, request: Request, decode: Callable[[Images], Images] | None = None) -> Images:
        """Images `[b h w c]`, about in [-1, 1]. `decode` is the codec's, given as data where it has parameters."""
        return (decode or self.codec.decode)(self.latents(params, request))

    def trajectory(
        self, params: Params, request: Request, frames: int, decode: Callable[[Images], Images] | None = None
    ) -> Float[Array, "frames b h w c"]:
        """The same images on their way from noise; the last frame is the result."""
        states = sample_trajectory(*self._prepare(params, request), frames)
        return jax.lax.map(decode or self.codec.decode, states)

    def start(self, params: Params, request: Request) -> Any:
        """What `part` carries from one call to the next, before the first step: a tree of arrays."""
        sampler, _, _, x, levels = self._prepare(params, request)
        return x, sampler.init(x, levels)

    def part(
        self,
        params: Params,
        request: Request,
        carry: Any,
        first: Int[ArrayLike, ""],
        last: Int[ArrayLike, ""],
        decode: Callable[[Images], Images] | None = None,
    ) -> tuple[Images, Any]:
        """Steps `first` to `last` - 1 of `images`, so that a slow trajectory can be watched; all parts are one program.

        Args:
            params: of the network.
            request: the same for all parts.
            carry: what the part before returned; before step 0 anything of the shapes of `start`.
            first: step to begin with; data.
            last: step to stop before; data.
            decode: as in `images`.

        Returns:
            The images, which only the last part decodes, and what the next part needs.
        """
        sampler, denoise, keys, x, levels = self._prepare(params, request)
        begin = (x, sampler.init(x, levels))
        carry = jax.tree.map(lambda fresh, carried: jnp.where(first == 0, fresh, carried), begin, carry)
        carry = advance(sampler, denoise, keys, carry, levels, first, last)
        decode = decode or self.codec.decode
        shape = jax.eval_shape(decode, carry[0])
        images = jax.lax.cond(
            last == num_steps(levels), decode, lambda x: jnp.zeros(shape.shape, shape.dtype), carry[0]
        )
        return images, carry

    def _prepare(self, params: Params, request: Request) -> tuple[Sampler, Any, Keys, Images, Level]:
        network = functools.partial(self.apply, params)
        denoise = conditional_denoiser(network, self.process)
        evaluate = guidance.evaluate_branches(denoise, (*request.branches, request.null), sequential=self.sequential)
        interval = tuple(jnp.asarray(request.interval))
        rules = guidance.chain(request.rule)
        rule = chains.as_guidance(rules, request.weights, interval)
        conditions = (*request.branches, request.null)[0]
        evaluate = chains.evaluate_contrasts(evaluate, rules, denoise, conditions)
        sampler, gradient = request.sampler, self._gradient(request, interval)
        if gradient is not None and sampler.with_gradient is not None:
            sampler, gradient = sampler.with_gradient(gradient), None

        order = choose(CLIPPING, "last" if isinstance(self.clip, bool) else self.clip, "clip")

        def shift(denoise):
            return denoise if gradient is None else guidance.classifier(denoise, gradient)

        def clip(denoise):
            limits = self.codec.limits if self.clip else None
            return denoise if limits is None else guidance.clip_x0(denoise, *limits)

        def constrain(denoise):
            denoise = order(shift, clip)(denoise)
            if isinstance(request.inpaint, Inpaint):
                denoise = guidance.inpaint(denoise, *request.inpaint)
            return denoise

        keys = sample_keys(request.key, request.indices)
        first = jax.tree.map(lambda column: column[0], request.levels)
        noise = request.start.noise
        noise = standard_normal(fold(keys, 0), self.codec.shape) if noise is None else jnp.asarray(noise)
        guided = guidance.guided(sampler, rule, constrain, chains.through(rules, interval))._replace(visits=None)
        if isinstance(request.inpaint, Blend):
            guided = blended(guided, request.inpaint.images, request.inpaint.mask, noise)
        return guided, evaluate, keys, _first_state(request.start, noise, first), visited(sampler, request.levels)

    def _gradient(self, request: Request, interval: guidance.Interval) -> Gradient | None:
        if not request.guides:
            return None
        gradients = [
            guidance.weighted(
                guidance.gradient(
                    functools.partial(guide.log_prob, jnp.asarray(guide.label)), rematerialize=self.rematerialize
                ),
                guide.weight,
                interval,
            )
            for guide in request.guides
        ]
        together = guidance.total(gradients)
        # Known pixels are not steered: DDPM's shift of the mean comes after `inpaint`.
        if request.inpaint is None:
            return together
        return guidance.weighted(together, 1 - jnp.asarray(request.inpaint.mask))
