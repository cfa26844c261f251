"""From what a user gives (labels, a prompt, images, weights) to a `Request`, checked before anything is compiled."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from guided_diffusion_jax import checks, prompts, scenes
from guided_diffusion_jax import guidance as rules
from guided_diffusion_jax.codecs import Codec
from guided_diffusion_jax.conditions import CONDITIONS, ConditionSpec, nulls
from guided_diffusion_jax.data.dataset import DatasetInfo
from guided_diffusion_jax.data.images import decode, decode_map
from guided_diffusion_jax.errors import InputError, hint, require
from guided_diffusion_jax.generation import Guide, Request
from guided_diffusion_jax.guidance import Weight, WeightSchedule
from guided_diffusion_jax.guidance_inputs import interval_array, make_rule
from guided_diffusion_jax.inputs import (
    ImageLike,
    array_rows,
    attribute_row,
    check_same_part,
    each_row,
    image_rows,
    mask_rows,
    repeated,
)
from guided_diffusion_jax.labels import label_rows
from guided_diffusion_jax.process import Process
from guided_diffusion_jax.prompts import PromptReader
from guided_diffusion_jax.samplers import Sampler, visited
from guided_diffusion_jax.sampling_inputs import course
from guided_diffusion_jax.scenes import control_rows, scene
from guided_diffusion_jax.trajectories import count_steps
from guided_diffusion_jax.typing import Conditions, Level

MOST_IMAGES = 10**7
"""Images of one request."""

NO_NULL = (
    "needs a null class or null condition, which this model was never trained with (train.cfg_dropout=0; where a row "
    "of an imported class embedding is a trained null, load or import with null_label=ROW)"
)


@dataclasses.dataclass(frozen=True)
class RequestContext:
    """What a request is checked against.

    Attributes:
        specs: conditions that the model takes.
        info: names of classes and attributes.
        process: for the trajectory.
        codec: for images to be completed.
        prompts: prompts to what the model reads; None without text.
        make_guides: `(labels, classifier_weight, classifiers) -> guides`.
        null_trained: the model was trained with conditions left out, as classifier-free guidance needs it.
        scheduler: settings of the scheduler that came with the model, as diffusers names them; None without.
        default_weight: w of classifier-free guidance where none is given.
    """

    specs: Mapping[str, ConditionSpec]
    info: DatasetInfo
    process: Process
    codec: Codec
    prompts: PromptReader | None
    make_guides: Callable[..., tuple[Guide, ...]]
    null_trained: bool = True
    scheduler: Mapping[str, Any] | None = None
    default_weight: float = 1.0


def build(
    context: RequestContext,
    *,
    labels: int | np.integer | str | Sequence[int | str] | np.ndarray | None = None,
    prompt: str | Sequence[str] | None = None,
    negative: str | Sequence[str] | None = None,
    attributes: Mapping[str, str] | None = None,
    reference_image: ImageLike | None = None,
    control_image: ImageLike | Sequence[ImageLike] | None = None,
    control_scale: float | Sequence[float] = 1.0,
    control_window: tuple[float, float] | Sequence[tuple[float, float]] = (0.0, 1.0),
    guess_mode: bool = False,
    image: ImageLike | None = None,
    strength: float | int | None = None,
    latents: ImageLike | None = None,
    inpaint_mask: ImageLike | None = None,
    low_res: ImageLike | None = None,
    soft_mask: bool = False,
    regions: Sequence[ImageLike] = (),
    conditions: Mapping[str, Any] | None = None,
    count: int | None = None,
    weight: Weight | None = None,
    guidance_scale: Weight | None = None,
    weights: Mapping[str, float] | None = None,
    interval: tuple[float | int, float | int] | None = None,
    sigma_interval: tuple[float | int, float | int] | None = None,
    guidance: Any = None,
    autoguidance: Any = None,
    classifier_weight: Weight | None = None,
    classifiers: Mapping[str, tuple[int, float]] | None = None,
    log_prob: Callable[..., Any] | None = None,
    sampler: str | Sampler | None = None,
    sampler_options: Mapping[str, Any] | None = None,
    steps: int | Sequence[int] = 50,
    spacing: str | None = None,
    spacing_options: Mapping[str, Any] | None = None,
    scheduler: str | Mapping[str, Any] | None = None,
    eta: float | int = 0.0,
    seed: int = 0,
    **prompt_options: Any,
) -> Request:
    """Request for images; `Pipeline.__call__` documents the arguments.

    `prompt_options` are those of the context's `PromptReader`.

    Raises:
        InputError: a condition that the model was not trained with, or a value that cannot be.
    """
    specs, names = context.specs, ", ".join(context.specs) or "no conditions"
    asked: dict[str, Any] = {
        "attributes": attributes,
        "text": prompt,
        "reference_image": reference_image,
        "control_image": control_image,
        "low_res": low_res,
        **(conditions or {}),
    }
    taken = {"negative": "text" in specs, **{CONDITIONS[name].request: True for name in specs}}
    for name, value in (*asked.items(), ("negative", negative)):
        keyword = CONDITIONS[name].request if name in CONDITIONS else name
        wanted = value is not None and (not isinstance(value, str | Mapping | Sequence) or len(value) > 0)
        shown = f"{keyword}={checks.shown(value)}" if isinstance(value, str | Mapping) else keyword
        require(
            taken.get(keyword, False) or not wanted,
            f"{shown} is given, but the model was not trained with it; it has {names}",
        )
    rows = _count(labels, prompt, negative, low_res, latents, count)
    scenes.check(image, inpaint_mask, latents, strength)
    together: dict[str, Any] = {"image": image, "inpaint_mask": inpaint_mask, "control_image": control_image}
    check_same_part({**together, **{f"regions[{i}]": region for i, region in enumerate(regions)}})
    strength = None if inpaint_mask is not None and strength == 1 else strength  # then it begins with noise
    solver, levels, noise_scale = course(
        context.process, context.scheduler, sampler=sampler, sampler_options=sampler_options, steps=steps,
        spacing=spacing, spacing_options=spacing_options, scheduler=scheduler, eta=eta, strength=strength,
    )  # fmt: skip
    first = Level(*(column[0] for column in levels))
    seen = scene(
        context.codec, specs, rows, first, image=image, inpaint_mask=inpaint_mask, soft_mask=soft_mask,
        latents=latents, strength=strength, noise_scale=noise_scale,
    )  # fmt: skip
    label = label_rows(labels, rows, context.info.class_names, classes_of(context))
    reader = context.prompts
    check_options(reader, prompt_options)
    null = {**nulls(specs, rows), **seen.always}
    if reader is not None:
        null |= {name: repeated(row, rows) for name, row in reader.absent(**prompt_options).items()}
    given = dict(seen.given)
    if "label" in specs and labels is not None:
        given["label"] = label
    if attributes:
        given["attributes"] = repeated(attribute_row(attributes, context.info), rows)
    if "control_hints" in specs:
        control = control_rows(
            specs["control_hints"], specs["control_scales"].shape[1], rows, _times(solver, levels),
            control_image=control_image, control_scale=control_scale, control_window=control_window,
            guess_mode=guess_mode,
        )  # fmt: skip
        given, null = ({**given, **control}, null) if guess_mode else (given, {**null, **control})
    images: dict[str, Any] = {
        "reference_image": reference_image,
        "control_image": control_image if "control_image" in specs else None,
    }
    for name, value in images.items():
        if value is not None:
            is_map = name == "control_image"
            decoder = decode_map if is_map else decode
            given[name] = image_rows(name, value, specs[name].shape, rows, exact=is_map, decoder=decoder)
    for name, value in (conditions or {}).items():
        given[name] = array_rows(name, value, specs[name], rows)
    if "low_res" in specs:
        if low_res is None:
            raise InputError("low_res is missing: a super-resolution model needs the small images")
        null["low_res"] = image_rows("low_res", low_res, specs["low_res"].shape, rows, exact=True)
    rule, default = make_rule(specs, context.codec, context.process, guidance, autoguidance)
    default *= context.default_weight if context.null_trained else 0.0
    w = plain_weight(weight, guidance_scale, default)
    masks = [mask_rows("regions", region, context.codec.shape, rows, soft=True) for region in regions]
    parts = prompts.parts(_reader(context), prompt, rows, **prompt_options) if prompt else []
    branches, branch_weights = compose(null, given, parts, w, weights or {}, masks)
    check_guidance(context, branches, branch_weights, {"weight": weight, "guidance_scale": guidance_scale})
    if negative is not None and "text" in specs:
        away = [negative] if isinstance(negative, str) else negative
        null |= prompts.read(_reader(context), away, rows, negative=True, **prompt_options)
    return Request(
        key=jax.random.key(checks.seed("seed", seed)),
        indices=np.arange(rows, dtype=np.int32),
        branches=branches,
        null=null,
        weights=branch_weights,
        interval=interval_array(interval, sigma_interval),
        levels=levels,
        sampler=solver,
        rule=rule,
        guides=context.make_guides(label, classifier_weight, classifiers or {}, log_prob),
        inpaint=seen.inpaint,
        start=seen.start,
        labels=label,
    )


def check_null_unused(request: Request, specs: Mapping[str, ConditionSpec]) -> None:
    """Raises `InputError` where a request uses the null class, of a network that was never trained with it."""
    used = request.prune_branches()
    if not any(np.any(np.asarray(values["label"]) == specs["label"].null) for values in (*used.branches, used.null)):
        return
    require(not request.branches, f"weight={request.weights and request.weights[0]} {NO_NULL}; use weight=0")
    raise InputError(f"labels is missing: an image without conditions {NO_NULL}")


def classes_of(context: RequestContext) -> int:
    """Number of classes: the model's, or of an unconditional model, which a classifier may steer, the data's."""
    return context.specs["label"].null if "label" in context.specs else len(context.info.class_names)


def check_options(reader: PromptReader | None, options: Mapping[str, Any]) -> None:
    """Raises `InputError` for keywords that nothing takes."""
    known = () if reader is None else reader.options
    for name in options:
        require(name in known, f"{name} is no keyword of this pipeline{hint(name, (*known, *KEYWORDS))}")


def _count(labels: Any, prompt: Any, negative: Any, low_res: Any, latents: Any, count: int | None) -> int:
    if count is not None:
        return checks.integer("count", count, 1, MOST_IMAGES)
    for several in (labels, prompt, negative):
        if (isinstance(several, Sequence) and not isinstance(several, str)) or np.ndim(several) == 1:
            return len(several)
    for images in (low_res, latents):
        if isinstance(images, np.ndarray | jax.Array) and images.ndim == 4:
            return len(images)
    return 1


def _times(sampler: Sampler, levels: Level) -> np.ndarray:
    """What the network is told at each step."""
    seen = visited(sampler, levels)
    return np.asarray(seen.time)[: count_steps(seen)]


def _reader(context: RequestContext) -> PromptReader:
    if context.prompts is None:
        raise InputError("a prompt is given, but the pipeline has no text encoder; give Pipeline text_encoder=")
    return context.prompts


def plain_weight(weight: Weight | None, guidance_scale: Weight | None, default: float = 1.0) -> Weight:
    """W from `weight`, or from `guidance_scale` = 1 + w; `default` where neither is given.

    Raises:
        InputError: both are given, or a number that is not finite.
    """
    require(
        weight is None or guidance_scale is None,
        "weight and guidance_scale are both given; guidance_scale is 1 + weight",
    )
    if guidance_scale is None:
        return default if weight is None else finite_weight("weight", weight)
    given = finite_weight("guidance_scale", guidance_scale)
    if isinstance(given, WeightSchedule):
        return given._replace(weights=np.asarray(given.weights) - 1)
    return np.asarray(given) - 1 if np.ndim(given) else float(given) - 1  # type: ignore[arg-type]


def finite_weight(name: str, weight: Weight) -> Weight:
    """The weight as it is given.

    Raises:
        InputError: it is no number, array or schedule of numbers, or one of them is not finite.
    """
    for values in weight if isinstance(weight, WeightSchedule) else (weight,):
        checks.reals(name, values)
    return weight


def check_guidance(
    context: RequestContext,
    branches: Sequence[Conditions],
    weights: Sequence[Weight],
    given: Mapping[str, Weight | None],
) -> None:
    """Raises `InputError` for guidance without the conditions, or without the null, that it needs.

    Args:
        context: of the request.
        branches: conditions of each branch.
        weights: w of each branch.
        given: keywords of the weight and their values; None for one that was left out.
    """
    name, asked = next(((name, value) for name, value in given.items() if value is not None), ("weight", None))
    w = asked if name == "weight" or asked is None else plain_weight(None, asked)
    takes = ", ".join(CONDITIONS[condition].request for condition in context.specs)
    nothing = f"give some of {takes}" if takes else "this run has no classes and takes no other conditions"
    require(
        bool(branches) or w is None or _is_one_of(w, (0, -1)),
        f"{name}={checks.shown(asked)} is guidance by a condition, and none is given: {nothing}; or leave {name} out",
    )
    if context.null_trained or not takes or (len(branches) == 1 and _is_one_of(weights[0], (0,))):
        return
    require(bool(branches), f"{takes} is missing: an image without conditions {NO_NULL}")
    said = name if asked is None else f"{name}={checks.shown(asked)}"
    raise InputError(f"{said} {NO_NULL}; use weight=0 and one set of conditions")


def _is_one_of(weight: Weight, values: tuple[int, ...]) -> bool:
    return not isinstance(weight, WeightSchedule) and bool(np.isin(np.asarray(weight), values).all())


def compose(
    null: Conditions,
    given: Mapping[str, np.ndarray],
    parts: Sequence[tuple[Conditions, bool]],
    weight: Weight,
    own_weights: Mapping[str, float],
    regions: Sequence[np.ndarray],
) -> tuple[tuple[Conditions, ...], tuple[Weight, ...]]:
    """Branches and their weights.

    The first branch has all conditions that are given, except those that have a weight of their own, which are a
    branch each. A prompt "a AND b AND NOT c" has a branch for each part (`prompts.parts`): the first part belongs to
    the first branch (unless parts have regions), "NOT" steers away. `regions` has a mask for each part, white where it
    holds.
    """
    null, parts = dict(null), list(parts)
    require(
        len(regions) in (0, len(parts)),
        f"regions has {len(regions)} masks for {len(parts)} parts of the prompt; give one for each, or none",
    )
    available = [*given, *(["text"] if parts else [])]
    for name, own in own_weights.items():
        checks.reals(f"weights: {name}", own)
        require(
            name in available,
            f"weights: {name!r} is none of the conditions that are given: {', '.join(available) or 'none'}"
            f"{hint(name, available)}",
        )
    of_text: Any = own_weights.get("text", weight)
    pulls = [rules.negated(of_text) if negated else of_text for _, negated in parts]
    if regions:
        pulls = [each_row(functools.partial(_regional, pull), mask) for pull, mask in zip(pulls, regions, strict=True)]
    together: dict[str, Any] = {name: value for name, value in given.items() if name not in own_weights}
    main = weight
    if parts and "text" not in own_weights and not regions and not parts[0][1]:
        together |= parts.pop(0)[0]
        main = pulls.pop(0)
    branches: list[Conditions] = [{**null, **together}] if together else []
    weights: list[Weight] = [main] if together else []
    for (rows, _), pull in zip(parts, pulls, strict=True):
        branches.append({**null, **rows})
        weights.append(pull)
    for name, own in own_weights.items():
        if name in given:
            branches.append({**null, name: given[name]})
            weights.append(own)
    return tuple(branches), tuple(weights)


def _regional(pull: Any, white: np.ndarray) -> np.ndarray:
    return np.asarray(rules.regional(pull, jnp.asarray(white)))


KEYWORDS = tuple(name for name in inspect.signature(build).parameters if name not in ("context", "prompt_options"))
"""Keywords of a request."""
