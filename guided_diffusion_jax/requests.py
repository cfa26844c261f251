"""From what a user gives (labels, a prompt, images, weights) to a `Request`, checked before anything is compiled."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from guided_diffusion_jax import guidance as rules
from guided_diffusion_jax import samplers
from guided_diffusion_jax.codecs import Codec
from guided_diffusion_jax.conditions import CONDITIONS, ConditionSpec, nulls
from guided_diffusion_jax.data.dataset import DatasetInfo
from guided_diffusion_jax.data.images import decode, decode_map
from guided_diffusion_jax.data.text import TextEncoder
from guided_diffusion_jax.errors import InputError, choose, hint, require
from guided_diffusion_jax.generation import COMPOSED, Guide, Inpaint, Request
from guided_diffusion_jax.guidance import Guidance, Weight, WeightSchedule
from guided_diffusion_jax.inputs import (
    ImageLike,
    array_rows,
    attribute_row,
    check_same_part,
    each_row,
    image_rows,
    label_rows,
    mask_rows,
    repeated,
)
from guided_diffusion_jax.process import Process
from guided_diffusion_jax.samplers import Sampler
from guided_diffusion_jax.typing import Conditions

MAX_SEED = 2**63 - 1

NO_NULL = "needs a null class, which guided-diffusion's networks were never trained with"


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
    """

    specs: Mapping[str, ConditionSpec]
    info: DatasetInfo
    process: Process
    codec: Codec
    text_encoder: TextEncoder | None
    make_guides: Callable[..., tuple[Guide, ...]]


def build(
    context: RequestContext,
    *,
    labels: int | str | Sequence[int | str] | np.ndarray | None = None,
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
    guidance: str | Guidance | None = None,
    classifier_weight: Weight | None = None,
    classifiers: Mapping[str, tuple[int, float]] | None = None,
    log_prob: Callable[..., Any] | None = None,
    sampler: str | Sampler = "ddim",
    steps: int | Sequence[int] = 50,
    spacing: str = "linspace",
    eta: float = 0.0,
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
        shown = f"{keyword}={value!r}" if isinstance(value, str | Mapping) else keyword
        require(
            ("text" if name == "negative" else name) in specs or not wanted,
            f"{shown} is given, but the model was not trained with it; it has {names}",
        )
    rows = _count(labels, prompt, low_res, count)
    scene = {"image": image, "inpaint_mask": inpaint_mask, "control_image": control_image}
    check_same_part({**scene, **{f"regions[{i}]": region for i, region in enumerate(regions)}})
    label = label_rows(labels, rows, context.info, classes_of(context))
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
    strength = plain_weight(weight, guidance_scale)
    masks = [mask_rows("regions", region, context.codec.shape, rows, soft=True) for region in regions]
    branches, branch_weights = compose(context, null, given, prompt, strength, weights or {}, masks, rows)
    if negative:
        null = {**null, "text": repeated(_encode(context, [negative]), rows)}
    require(
        isinstance(seed, int | np.integer) and 0 <= seed <= MAX_SEED,
        f"seed={seed!r} must be a whole number in 0 .. 2**63 - 1",
    )
    return Request(
        key=jax.random.key(seed),
        indices=np.arange(rows, dtype=np.int32),
        branches=branches,
        null=null,
        weights=branch_weights,
        interval=interval_array(interval),
        levels=context.process.trajectory(steps, spacing),
        sampler=make_sampler(sampler, context.process, eta),
        rule=make_rule(guidance),
        guides=context.make_guides(label, classifier_weight, classifiers or {}, log_prob),
        inpaint=inpaint,
        labels=label,
    )


def check_null_unused(request: Request, specs: Mapping[str, ConditionSpec]) -> None:
    """Raises `InputError` where a request uses the null class, of a network that was never trained with it."""
    used = request.prune_branches()
    if not any(np.any(np.asarray(values["label"]) == specs["label"].null) for values in (*used.branches, used.null)):
        return
    remedy = "or where one row of the class embedding is a trained null, load or import with null_label=ROW"
    require(not request.branches, f"weight={request.weights and request.weights[0]} {NO_NULL}; use weight=0, {remedy}")
    raise InputError(f"labels is missing: an image without a class {NO_NULL}; give labels, {remedy}")


def classes_of(context: RequestContext) -> int:
    """Number of classes: the model's, or of an unconditional model, which a classifier may steer, the data's."""
    return context.specs["label"].null if "label" in context.specs else len(context.info.class_names)


def _count(labels: Any, prompt: Any, low_res: Any, count: int | None) -> int:
    if count is not None:
        require(isinstance(count, int | np.integer) and count >= 1, f"count={count!r} must be at least 1")
        return int(count)
    for several in (labels, prompt):
        if several is not None and not isinstance(several, int | str | np.integer):
            return len(several)
    return len(low_res) if isinstance(low_res, np.ndarray | jax.Array) and low_res.ndim == 4 else 1


def _inpaint(image: Any, mask: Any, context: RequestContext, rows: int, soft: bool) -> Inpaint | None:
    require(
        (image is None) == (mask is None),
        "image and inpaint_mask belong together: an image, and a mask that is white where it is drawn anew",
    )
    if image is None:
        return None
    shape = context.codec.image_shape or context.codec.shape
    images = image_rows("image", image, shape, rows)
    white = mask_rows("inpaint_mask", mask, shape, rows, soft=soft)
    return Inpaint(images, each_row(lambda white: 1 - white, white))


def _masked(images: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.where(mask > 0.5, images, 0).astype(np.float32)


def plain_weight(weight: Weight | None, guidance_scale: Weight | None) -> Weight:
    """W from `weight`, or from `guidance_scale` = 1 + w; 1 where neither is given."""
    require(
        weight is None or guidance_scale is None,
        "weight and guidance_scale are both given; guidance_scale is 1 + weight",
    )
    if guidance_scale is None:
        return 1.0 if weight is None else weight
    if isinstance(guidance_scale, WeightSchedule):
        return guidance_scale._replace(weights=np.asarray(guidance_scale.weights) - 1)
    return np.asarray(guidance_scale) - 1 if np.ndim(guidance_scale) else float(guidance_scale) - 1  # type: ignore[arg-type]


def interval_array(interval: tuple[float | int, float | int] | None) -> Float[np.ndarray, " 2"]:
    """First and last time at which guidance acts; everywhere for None."""
    first, last = (-np.inf, np.inf) if interval is None else interval
    require(first <= last, f"interval={interval} is empty; give the first and the last time at which guidance acts")
    return np.array([first, last], np.float32)


def make_sampler(sampler: str | Sampler, process: Process, eta: float = 0.0) -> Sampler:
    """Sampler by name, or as it is given."""
    require(eta >= 0, f"eta={eta} must not be negative; 0 is the ODE, 1 as noisy as DDPM")
    if not isinstance(sampler, str):
        require(isinstance(sampler, Sampler), f"sampler={sampler!r} is no sampler; e.g. gd.samplers.ddim()")
        return sampler
    return samplers.create(sampler, eta=np.float32(eta), variance=process.variance)


def make_rule(guidance: str | Guidance | Callable[..., Guidance] | None) -> Any:
    """Rule by name, or as it is given: a `Guidance`, or a constructor `(weights, interval) -> Guidance`."""
    if guidance is None:
        return COMPOSED
    if isinstance(guidance, str):
        return NAMED_RULES.setdefault(guidance, _partial(choose(rules.GUIDANCE, guidance, "guidance")))
    return guidance


def _partial(constructor: Callable[..., Guidance]) -> Any:
    return jax.tree_util.Partial(constructor)


NAMED_RULES: dict[str, Any] = {"cfg": COMPOSED}
"""Rules by name as they are given to a compiled program, made once."""


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
    for name in own_weights:
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
