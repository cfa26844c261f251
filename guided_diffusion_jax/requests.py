"""From what a user gives (labels, a prompt, images, weights) to a `Request`, checked before anything is compiled."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from guided_diffusion_jax import checks, samplers
from guided_diffusion_jax import guidance as rules
from guided_diffusion_jax.codecs import Codec
from guided_diffusion_jax.conditions import CONDITIONS, ConditionSpec, nulls
from guided_diffusion_jax.data.dataset import DatasetInfo
from guided_diffusion_jax.data.images import decode, decode_map
from guided_diffusion_jax.data.text import TextEncoder
from guided_diffusion_jax.errors import InputError, hint, require
from guided_diffusion_jax.generation import Guide, Inpaint, Request
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
from guided_diffusion_jax.samplers import Sampler
from guided_diffusion_jax.trajectories import num_steps
from guided_diffusion_jax.typing import Conditions

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
        text_encoder: prompts to what the model reads; None without text.
        make_guides: `(labels, classifier_weight, classifiers) -> guides`.
        null_trained: the model was trained with conditions left out, as classifier-free guidance needs it.
    """

    specs: Mapping[str, ConditionSpec]
    info: DatasetInfo
    process: Process
    codec: Codec
    text_encoder: TextEncoder | None
    make_guides: Callable[..., tuple[Guide, ...]]
    null_trained: bool = True


def build(
    context: RequestContext,
    *,
    labels: int | np.integer | str | Sequence[int | str] | np.ndarray | None = None,
    prompt: str | Sequence[str] | None = None,
    negative: str | None = None,
    attributes: Mapping[str, str] | None = None,
    reference_image: ImageLike | None = None,
    control_image: ImageLike | None = None,
    image: ImageLike | None = None,
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
    sampler: str | Sampler = "ddim",
    sampler_options: Mapping[str, Any] | None = None,
    steps: int | Sequence[int] = 50,
    spacing: str = "linspace",
    spacing_options: Mapping[str, Any] | None = None,
    eta: float | int = 0.0,
    seed: int = 0,
) -> Request:
    """Request for images; `Pipeline.__call__` documents the arguments.

    Raises:
        InputError: a condition that the model was not trained with, or a value that cannot be.
    """
    specs, names = context.specs, ", ".join(context.specs) or "no conditions"
    asked = {
        "attributes": attributes,
        "text": prompt,
        "reference_image": reference_image,
        "control_image": control_image,
        "low_res": low_res,
        **(conditions or {}),
    }
    for name, value in (*asked.items(), ("negative", negative)):
        keyword = CONDITIONS[name].request if name in CONDITIONS else name
        wanted = value is not None and (not isinstance(value, str | Mapping | Sequence) or len(value) > 0)
        shown = f"{keyword}={checks.shown(value)}" if isinstance(value, str | Mapping) else keyword
        require(
            ("text" if name == "negative" else name) in specs or not wanted,
            f"{shown} is given, but the model was not trained with it; it has {names}",
        )
    rows = _count(labels, prompt, low_res, count)
    require(
        (image is None) == (inpaint_mask is None),
        "image and inpaint_mask belong together: an image, and a mask that is white where it is drawn anew",
    )
    scene = {"image": image, "inpaint_mask": inpaint_mask, "control_image": control_image}
    check_same_part({**scene, **{f"regions[{i}]": region for i, region in enumerate(regions)}})
    label = label_rows(labels, rows, context.info.class_names, classes_of(context))
    null = nulls(specs, rows)
    given: dict[str, np.ndarray] = {}
    if "label" in specs and labels is not None:
        given["label"] = label
    if attributes:
        given["attributes"] = repeated(attribute_row(attributes, context.info), rows)
    for name, value in (("reference_image", reference_image), ("control_image", control_image)):
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
    inpaint = _inpaint(image, inpaint_mask, context, rows, soft_mask)
    if inpaint is not None and "masked_image" in specs:
        given["masked_image"] = each_row(_masked, inpaint.images, inpaint.mask)
    rule, default = make_rule(specs, context.codec, context.process, guidance, autoguidance)
    default = default if context.null_trained else 0.0
    strength = plain_weight(weight, guidance_scale, default)
    masks = [mask_rows("regions", region, context.codec.shape, rows, soft=True) for region in regions]
    branches, branch_weights = compose(context, null, given, prompt, strength, weights or {}, masks, rows)
    check_guidance(context, branches, branch_weights, {"weight": weight, "guidance_scale": guidance_scale})
    if negative:
        null = {**null, "text": repeated(_encode(context, [negative]), rows)}
    solver = make_sampler(sampler, context.process, eta, sampler_options)
    levels = context.process.trajectory(steps, spacing, **(spacing_options or {}))
    evaluations = int(num_steps(levels)) * solver.evaluations
    require(
        evaluations >= solver.order,
        f"steps={checks.shown(steps)} is less than the order {solver.order} of this sampler; use at least "
        f"{solver.order} steps, or sampler='ddim'",
    )
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
        inpaint=inpaint,
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


def _count(labels: Any, prompt: Any, low_res: Any, count: int | None) -> int:
    if count is not None:
        return checks.integer("count", count, 1, MOST_IMAGES)
    for several in (labels, prompt):
        if (isinstance(several, Sequence) and not isinstance(several, str)) or np.ndim(several) == 1:
            return len(several)
    return len(low_res) if isinstance(low_res, np.ndarray | jax.Array) and low_res.ndim == 4 else 1


def _inpaint(image: Any, mask: Any, context: RequestContext, rows: int, soft: bool) -> Inpaint | None:
    if image is None:
        return None
    shape = context.codec.image_shape or context.codec.shape
    images = image_rows("image", image, shape, rows)
    white = mask_rows("inpaint_mask", mask, shape, rows, soft=soft)
    return Inpaint(images, each_row(lambda white: 1 - white, white))


def _masked(images: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.where(mask > 0.5, images, 0).astype(np.float32)


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
    made = samplers.create(sampler, defaults={"variance": process.variance}, **given)
    # Numbers of one type, so that another value compiles nothing.
    step, init = (jax.tree.map(_as_float32, part) for part in (made.step, made.init))
    return made._replace(step=step, init=init)


def _as_float32(leaf: Any) -> Any:
    return np.float32(leaf) if isinstance(leaf, int | float) and not isinstance(leaf, bool) else leaf


def compose(
    context: RequestContext,
    null: Conditions,
    given: Mapping[str, np.ndarray],
    prompt: str | Sequence[str] | None,
    weight: Weight,
    own_weights: Mapping[str, float],
    regions: Sequence[np.ndarray],
    rows: int,
) -> tuple[tuple[Conditions, ...], tuple[Weight, ...]]:
    """Branches and their weights.

    The first branch has all conditions that are given, except those that have a weight of their own, which are a
    branch each. A prompt "a AND b AND NOT c" has a branch for each part: the first part belongs to the first branch
    (unless parts have regions), "NOT" steers away. `regions` has a mask for each part, white where it holds.
    """
    null = dict(null)
    parts = _parts(context, prompt, rows)
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
    together = {name: value for name, value in given.items() if name not in own_weights}
    main = weight
    if parts and "text" not in own_weights and not regions and not parts[0][1]:
        together["text"], main = parts.pop(0)[0], pulls.pop(0)
    branches: list[Conditions] = [{**null, **together}] if together else []
    weights: list[Weight] = [main] if together else []
    for (row, _), pull in zip(parts, pulls, strict=True):
        branches.append({**null, "text": row})
        weights.append(pull)
    for name, own in own_weights.items():
        if name in given:
            branches.append({**null, name: given[name]})
            weights.append(own)
    return tuple(branches), tuple(weights)


def _regional(pull: Any, white: np.ndarray) -> np.ndarray:
    return np.asarray(rules.regional(pull, jnp.asarray(white)))


def _parts(context: RequestContext, prompt: str | Sequence[str] | None, rows: int) -> list[tuple[np.ndarray, bool]]:
    """Encoded parts of a prompt, and whether each is negated; those that are not come first."""
    if prompt is None or len(prompt) == 0 or (isinstance(prompt, str) and not prompt.strip()):
        return []
    if not isinstance(prompt, str):
        return [(np.resize(_encode(context, prompt), (rows, *context.specs["text"].shape)), False)]
    parts = []
    for part in re.split(r"\s+AND\s+", prompt.strip()):
        negated = part.strip().startswith("NOT ")
        row = _encode(context, [part.strip().removeprefix("NOT ").strip()])
        parts.append((repeated(row, rows), negated))
    return sorted(parts, key=lambda part: part[1])


def _encode(context: RequestContext, prompts: Sequence[str]) -> np.ndarray:
    encoder = context.text_encoder
    require(encoder is not None, "a prompt is given, but the pipeline has no text encoder; give Pipeline text_encoder=")
    assert encoder is not None
    for prompt in prompts:
        if cut := encoder.overflow(prompt):
            print(f"warning: the prompt has {cut}", flush=True)
    return encoder.encode(list(prompts))
