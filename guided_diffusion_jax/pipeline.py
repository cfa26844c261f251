"""What a user holds: a model with its parameters, and everything that turns wishes into images."""

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jax.tree_util import Partial
from jaxtyping import Array, UInt8
from tqdm import tqdm

from guided_diffusion_jax import batching, checks, codecs, guidance_inputs, guides, requests, sharding, sweeps
from guided_diffusion_jax.codecs import Codec
from guided_diffusion_jax.conditions import condition_specs
from guided_diffusion_jax.data.dataset import Dataset, DatasetInfo, as_inputs
from guided_diffusion_jax.data.images import to_uint8
from guided_diffusion_jax.data.text import TextEncoder
from guided_diffusion_jax.denoisers import conditional_denoiser
from guided_diffusion_jax.errors import InputError, choose, require
from guided_diffusion_jax.generation import Generator, Guide, Request
from guided_diffusion_jax.guides import GuidingClassifier
from guided_diffusion_jax.objectives import reduce_size
from guided_diffusion_jax.process import Process
from guided_diffusion_jax.prompts import PromptReader, TextReader
from guided_diffusion_jax.stepwise import Stepwise
from guided_diffusion_jax.typing import ConditionalDenoiser, Conditions, Images, Params, Prediction


class Pipeline:
    """A trained model that generates images.

    `load` makes one of a run's folder or of a file of weights; here its parts are given.

    Args:
        model: a module of `models`.
        params: its parameters.
        process: what it was trained for.
        image_shape: (h, w, c) of the images; not needed with `info`.
        info: names of classes and attributes of its training data.
        codec: between images and what the model sees; None is pixels.
        text_encoder: prompts to what the model reads, a `TextEncoder` or a `PromptReader`; None without text.
        load_classifier: `load_classifier(attribute) -> GuidingClassifier`, "label" being the class itself.
        mesh: devices; None is all of them, with the parameters replicated.
        step: training step of the parameters.
        workdir: the run's folder.
        place: put the parameters on the devices; False takes them as they are.
        null_trained: whether the model was trained with conditions left out; without it there is no classifier-free
            guidance.
        scheduler: settings of the scheduler that came with the model, as diffusers names them.
        default_weight: w of classifier-free guidance where none is given.

    Attributes:
        specs: conditions that the model takes, by name.
        apply: `apply(params, x, time, conditions)`, the network, also for parameters that are sharded.
    """

    def __init__(
        self,
        model: nn.Module,
        params: Params,
        process: Process,
        image_shape: tuple[int, int, int] | None = None,
        *,
        info: DatasetInfo | None = None,
        codec: Codec | None = None,
        text_encoder: TextEncoder | PromptReader | None = None,
        load_classifier: Callable[[str], GuidingClassifier] | None = None,
        mesh: Mesh | None = None,
        step: int = 0,
        workdir: epath.Path | None = None,
        place: bool = True,
        null_trained: bool = True,
        scheduler: Mapping[str, Any] | None = None,
        default_weight: float = 1.0,
    ):
        if image_shape is None:
            require(info is not None, "Pipeline needs image_shape=(height, width, channels), or info of the data set")
            assert info is not None
            image_shape = info.image_shape
        self.model, self.process, self.step, self.workdir = model, process, step, workdir
        self.codec = codecs.pixels(image_shape) if codec is None else codec
        self.specs = condition_specs(model, self.codec.shape)
        classes = self.specs["label"].null if "label" in self.specs else 0
        self.info = info or DatasetInfo(
            name="unknown", length=0, image_shape=image_shape, class_names=tuple(map(str, range(classes)))
        )
        self.text_encoder, self.scheduler, self.default_weight = text_encoder, scheduler, default_weight
        self.prompts = TextReader(text_encoder) if isinstance(text_encoder, TextEncoder) else text_encoder
        self.null_trained = null_trained or not self.specs.keys() - {"low_res"}
        self.mesh = sharding.mesh() if mesh is None else mesh
        self.params = jax.device_put(params, sharding.shardings(params, self.mesh)) if place else params
        self._load_classifier = functools.lru_cache(maxsize=None)(load_classifier or guides.no_classifier)
        self._programs: dict[Any, Any] = {}

        def apply(params: Params, x: Images, time: Array, conditions: Conditions) -> Any:
            return model.apply({"params": params}, x, time, conditions)

        self.apply = sharding.gathering(self.mesh)(apply)

        def denoise(params: Params, *arguments: Any, **options: Any) -> Prediction:
            return conditional_denoiser(functools.partial(self.apply, params), process)(*arguments, **options)

        self._denoise = denoise

    def __call__(
        self,
        *,
        batch_size: int = 500,
        clip: bool | str = True,
        sequential: bool = False,
        rematerialize: bool = False,
        output: str = "image",
        tile: int = 0,
        **wishes: Any,
    ) -> np.ndarray:
        """Generates images, uint8 `[n h w c]`.

        Numbers are data: another weight, seed, label, prompt, eta, interval or number of steps compiles nothing.

        Args:
            labels: class of each image, by number or name; or one for all.
            prompt: text; "a AND b AND NOT c" composes several; or a list with a prompt for each image.
            negative: text to steer away from, in the place of the null condition; or one for each image.
            attributes: attribute name to value name.
            reference_image: file or array of an image whose style is wanted.
            control_image: file or array of a spatial map: a segmentation, edges. For several ControlNets a list.
            control_scale: factor of what a ControlNet adds, or one for each.
            control_window: shares of the trajectory between which it acts, or a pair for each.
            guess_mode: ControlNets act on the conditional branch alone, and the more the deeper.
            image: file or array of an image to be completed or to begin with; of a latent model also its latents.
            strength: share of the steps, in (0, 1], that is made from `image` with noise.
            latents: `[n *codec.shape]` in the place of the noise that is drawn; with `strength` the noisy image
                alpha x0 + sigma eps itself.
            inpaint_mask: white (1) where `image` is drawn anew.
            soft_mask: keep the greys of an `inpaint_mask` that is a file or uint8; else it is made black and white.
            low_res: for super-resolution models, the small images, uint8 `[n h w c]`.
            regions: a mask for each part of the prompt, white where it holds.
            conditions: further conditions by name, as arrays.
            count: number of images; labels are repeated in turn. By default as many as there are labels, or 1.
            weight: w of classifier-free guidance, 1 by default (0 for a model that was trained without condition
                dropout); 0 is the plain conditional model, -1 the unconditional one. A `guidance.WeightSchedule`
                changes it over time.
            guidance_scale: 1 + w, as other libraries have it, instead of `weight`.
            weights: condition name to a weight of its own.
            interval: first and last time, in 0 .. T-1, at which guidance acts.
            sigma_interval: lowest and highest noise sigma / alpha at which guidance acts.
            guidance: the rules that apply, in order: a combiner, then what changes its prediction, as
                `["apg", gd.guidance.rescale(0.7)]`. Each is a key of `guidance.GUIDANCE`, what one of its functions
                makes, a `Guidance`, or a function `(weights, interval) -> Guidance`. One need not be in a list.
            autoguidance: another pipeline, a worse one, to steer away from: `gd.load("runs/x", step=2000)`. Without a
                combiner in `guidance`, and without `weight`, it is all of the guidance.
            classifier_weight: w of the run's own classifier, or of `log_prob`.
            classifiers: attribute to (value, weight), for further classifiers of the run.
            log_prob: a user's classifier or energy: `log_prob(x, level) -> [b]`, differentiable.
            sampler: a key of `samplers.SAMPLERS`, or a `Sampler`; "ddim" by default.
            sampler_options: options of a sampler by name, e.g. `{"order": 3}` of "unipc".
            steps: number of steps; see `trajectories.trajectory` for several.
            scheduler: for a model that came with one, where no spacing is given: "native", the default, visits the
                levels that diffusers' scheduler of this `sampler` does with the model's settings, and without a
                `sampler` is the model's own; a dictionary changes settings, as `{"timestep_spacing": "trailing"}`.
            spacing: a key of `trajectories.SPACINGS`, "linspace" by default.
            spacing_options: its options, e.g. `{"rho": 7.0}` of "karras", and `end` (see `trajectories.trajectory`).
            eta: noise of DDIM and of euler_ancestral, 0 to 1; other samplers have none.
            seed: image i depends on the seed and i alone, whatever batch it is in.
            batch_size: images generated at a time.
            clip: keep the predicted clean image within [-1, 1]: after all guidance, or with "before_classifier"
                before the shift of classifiers, as guided-diffusion does.
            sequential: evaluate the branches of guidance one after the other, in less memory.
            rematerialize: classifiers in less memory, for more time.
            tile: of a latent model, pixels of the overlapping tiles that large images are decoded in, for less memory
                (see `codecs.tiled`); 0 decodes an image at once.
            output: "image"; or "latent" for float32 `[n *codec.shape]` in the model's space, which is not decoded.
            **wishes: the keywords above that `request` takes.

        Raises:
            InputError: a condition that the model was not trained with, or a value that cannot be.
        """
        request = self.request(**wishes).prune_branches().prune_guides()
        how: dict[str, Any] = {"clip": clip, "sequential": sequential, "rematerialize": rematerialize}
        return self.generate(request, batch_size=batch_size, output=output, tile=tile, **how)

    def with_params(self, params: Params) -> "Pipeline":
        """The same pipeline, and the same compiled programs, with other parameters of the same shapes."""
        other = copy.copy(self)
        other.params = params
        return other

    @property
    def denoiser(self) -> ConditionalDenoiser:
        """The model as `(x, level, conditions) -> Prediction`; its parameters are data."""
        return Partial(self._denoise, self.params)

    @property
    def context(self) -> requests.RequestContext:
        """What requests are checked against."""
        return requests.RequestContext(
            self.specs, self.info, self.process, self.codec, self.prompts, self._guides, self.null_trained,
            self.scheduler, self.default_weight,
        )  # fmt: skip

    @property
    def keywords(self) -> tuple[str, ...]:
        """What `request` takes."""
        return (*requests.KEYWORDS, *(self.prompts.options if self.prompts else ()))

    def request(self, **wishes: Any) -> Request:
        """Request with the keywords of `__call__`, to be changed, stored or repeated; see `generate`."""
        request = requests.build(self.context, **wishes)
        self._check_null(request)
        return request

    def _check_null(self, request: Request) -> None:
        if not self.null_trained and "label" in self.specs:
            requests.check_null_unused(request, self.specs)

    def request_for(self, data: Dataset, indices: np.ndarray, only: Sequence[str] = (), **wishes: Any) -> Request:
        """Request with the conditions of these examples of a data set.

        Args:
            data: with the conditions that the model takes.
            indices: of the examples, `[n]`.
            only: conditions to be used; the others are absent. () is all.
            wishes: keywords of `__call__` that are no conditions.
        """
        batch = as_inputs(data.read(np.asarray(indices)))
        if "low_res" in self.specs:
            wishes["low_res"] = np.asarray(reduce_size(batch["image"], self.specs["low_res"].shape[0]))
        asked = {name: wishes.pop(name, None) for name in ("weight", "guidance_scale")}
        unconditional = dataclasses.replace(self.context, null_trained=True)  # its conditions come below
        request = requests.build(unconditional, count=len(indices), **wishes)
        given = {name: batch[name] for name in only or self.specs if name in batch}
        rules = (wishes.get("guidance"), wishes.get("autoguidance"))
        _, default = guidance_inputs.make_rule(self.specs, self.codec, self.process, *rules)
        default *= self.default_weight if self.null_trained else 0.0
        strength = requests.plain_weight(**asked, default=default)
        branches, weights = (({**request.null, **given},), (strength,)) if given else ((), ())
        requests.check_guidance(self.context, branches, weights, asked)
        guides = tuple(guide._replace(label=batch["label"].astype(np.int32)) for guide in request.guides)
        request = request._replace(branches=branches, weights=weights, labels=batch["label"], guides=guides)
        self._check_null(request)
        return request

    def generate(
        self,
        request: Request,
        *,
        batch_size: int = 500,
        clip: bool | str = True,
        sequential: bool = False,
        rematerialize: bool = False,
        output: str = "image",
        tile: int = 0,
        progress: bool = True,
    ) -> np.ndarray:
        """Images of a request, uint8 `[n h w c]`; or its latents, as in `__call__`."""
        how: dict[str, Any] = {"clip": clip, "sequential": sequential, "rematerialize": rematerialize}
        batches = self.batches(request, batch_size=batch_size, output=output, tile=tile, progress=progress, **how)
        return np.concatenate(list(batches))

    def batches(
        self,
        request: Request,
        *,
        batch_size: int = 500,
        clip: bool | str = True,
        sequential: bool = False,
        rematerialize: bool = False,
        output: str = "image",
        tile: int = 0,
        progress: bool = True,
    ) -> Iterator[np.ndarray]:
        """The images of `generate` as they are made, `batch_size` at a time: for more of them than fit into memory."""
        program = self._program(clip, sequential, rematerialize)
        codec = codecs.tiled(self.codec, tile) if tile else self.codec
        decode, convert = choose(OUTPUTS, output, "output")(codec)

        def run(part: Request, bar: tqdm) -> np.ndarray:
            made = np.asarray(program(self.params, part, decode, None if bar.disable else bar.update))
            if not np.isfinite(made).all():
                latents = np.asarray(program(self.params, part, codecs.pixels(self.codec.shape).decode))
                raise InputError(overflow("U-Net" if not np.isfinite(latents).all() else "autoencoder"))
            return convert(made)

        return self._in_batches(run, request, batch_size, request.num_steps, progress, axis=0)

    def trajectory(
        self,
        request: Request | None = None,
        *,
        frames: int = 10,
        batch_size: int = 500,
        clip: bool | str = True,
        watch: Callable[[UInt8[np.ndarray, "n h w c"]], Any] | None = None,
        **wishes: Any,
    ) -> UInt8[np.ndarray, "frames n h w c"]:
        """The images on their way from noise, the last frame being the result; of a request or of keywords.

        Args:
            request: as in `generate`.
            frames: how many, evenly spaced over the steps.
            batch_size: images generated at a time.
            clip: as in `__call__`.
            watch: called with each frame of each batch as soon as it is there.
            wishes: keywords of `__call__`, in place of a request.
        """
        checks.integer("frames", frames, 1)
        asked = self.request(**wishes).prune_branches().prune_guides() if request is None else request
        program = self._program(clip, False, False)

        def run(part: Request, bar: tqdm) -> np.ndarray:
            states = []
            for state in program.frames(self.params, part, self.codec.decode, frames):
                states.append(to_uint8(np.asarray(state)))
                bar.update()
                if watch is not None:
                    watch(states[-1])
            return np.stack(states)

        return np.concatenate(list(self._in_batches(run, asked, batch_size, frames, True, axis=1)), axis=1)

    def sweep(
        self,
        *,
        batch_size: int = 500,
        clip: bool | str = True,
        sequential: bool = False,
        rematerialize: bool = False,
        tile: int = 0,
        **wishes: Any,
    ) -> UInt8[np.ndarray, "*k n h w c"]:
        """Images at every value of one setting, or pair of values of two, from the same noise.

        `[k n h w c]`, or `[k1 k2 n h w c]` in the order of the keywords. One program is compiled for each sampler.

        Args:
            batch_size: images generated at a time.
            clip: as in `__call__`.
            sequential: as there.
            rematerialize: as there.
            tile: as there.
            wishes: keywords of `__call__`, of which one or two of `sweeps.AXES` (weight, guidance_scale,
                classifier_weight, steps, sampler, eta, interval, seed) have a list of values.
        """
        axes = sweeps.axes_of(wishes, self.keywords)
        made = [self.request(**point) for point in sweeps.points(axes, wishes)]
        how: dict[str, Any] = {"clip": clip, "sequential": sequential, "rematerialize": rematerialize, "tile": tile}
        images = np.stack([self.generate(request, batch_size=batch_size, **how) for request in made])
        return images.reshape(*map(len, axes.values()), *images.shape[1:])

    def serve(self, host: str = "127.0.0.1", port: int = 7860, **settings: Any) -> None:
        """Serves a web page to play with the pipeline, until Ctrl-C; see `serve.serve`, which has the settings."""
        from guided_diffusion_jax import serve  # a web server, which nothing else needs

        serve.serve(self, host, port, **settings)

    def compile(self, request: Request, *, batch_size: int = 500, clip: bool = True) -> jax.stages.Compiled:
        """The compiled program that `generate` runs for such a request, which then need not be compiled again."""
        size = batching.size_of(request.size, batch_size, self.mesh)
        part = batching.on_devices(request, np.arange(size), self.mesh)
        return self._program(clip, False, False).compile(self.params, part, self.codec.decode)

    def classifier(self, attribute: str = "label") -> GuidingClassifier:
        """The run's own classifier of an attribute.

        Raises:
            InputError: it has trained none.
        """
        return self._load_classifier(attribute)

    def _guides(self, labels: np.ndarray, *wishes: Any) -> tuple[Guide, ...]:
        return guides.make_guides(self.classifier, labels, *wishes)

    def _program(self, clip: bool | str, sequential: bool, rematerialize: bool) -> Stepwise:
        settings = ("last" if clip is True else clip, sequential, rematerialize)
        if settings not in self._programs:
            generator = Generator(self.apply, self.process, self.codec, *settings)
            self._programs[settings] = Stepwise(generator, self.mesh)
        return self._programs[settings]

    def _in_batches(self, run: Callable[[Request, tqdm], np.ndarray], request: Request, *how: Any, axis: int) -> Any:
        self._check_null(request)  # its weights may be others than those it was made with
        return batching.in_batches(run, request, self.mesh, *how, axis=axis)


def overflow(part: str) -> str:
    """The message for images that are not finite, because of this part of the model."""
    return (
        f"the {part} gives numbers that are not finite, so there are no images: it overflows in a precision such as "
        "float16 (load it with dtype=float32 or bfloat16), or its weights are damaged"
    )


OUTPUTS: dict[str, Callable[[Codec], tuple[Callable[[Images], Images], Callable[[np.ndarray], np.ndarray]]]] = {
    "image": lambda codec: (codec.decode, to_uint8),
    "latent": lambda codec: (codecs.pixels(codec.shape).decode, np.asarray),
}
"""Choices of `output`: what a program decodes, and what becomes of it."""
