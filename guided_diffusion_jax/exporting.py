"""`export`: the whole guided sampler as one file, which `exported` runs without the package's models.

Whatever depends on an image is data, an input of the program (`export_format`); how it is sampled (solver, steps, rule,
interval) is fixed in it.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import export as jax_export
from jaxtyping import Array
from safetensors.numpy import save

from guided_diffusion_jax import __version__, export_format
from guided_diffusion_jax.conditions import CONDITIONS
from guided_diffusion_jax.errors import choose, require
from guided_diffusion_jax.export_format import FORMAT, PRNG, PROGRAM, VERSION, WEIGHTS, Header
from guided_diffusion_jax.generation import Generator, Request, as_data
from guided_diffusion_jax.guidance import WeightSchedule
from guided_diffusion_jax.pipeline import Pipeline
from guided_diffusion_jax.requests import classes_of
from guided_diffusion_jax.schedules import num_steps

PLATFORMS = ("cpu", "cuda", "tpu")

BY_IMAGE = (
    "labels", "prompt", "negative", "attributes", "reference_image", "control_image", "low_res", "conditions", "count",
    "seed",
)  # fmt: skip
"""Keywords of `Pipeline.__call__` that the file itself is called with."""

Inputs = Mapping[str, Array]


def _pixels(images: Array) -> Array:
    """`data.images.to_uint8` inside a program."""
    return jnp.clip(jnp.round(images * 127.5 + 127.5), 0, 255).astype(jnp.uint8)


OUTPUTS: dict[str, Callable[[Array], Array]] = {"uint8": _pixels, "float32": lambda images: images}
"""Types of the images that a file puts out: pixels, or numbers about in [-1, 1] before they are rounded."""


def export(
    pipe: Pipeline,
    path: epath.PathLike,
    *,
    clip: bool | str = True,
    sequential: bool = False,
    rematerialize: bool = False,
    dtype: str = "uint8",
    platforms: Sequence[str] = PLATFORMS,
    **wishes: Any,
) -> Header:
    """Writes a pipeline's guided sampler as one file; see `exported.load`.

    A frozen text encoder is not in the file, whose prompts are then features, `pipe.prompts.read([...])["text"]`.

    Args:
        pipe: of one device or several; the file runs on one.
        path: of the file, a `.zip`; an older one is replaced, and its folder is made.
        clip: as in `Pipeline.__call__`.
        sequential: as there.
        rematerialize: as there.
        dtype: of the images, a key of `OUTPUTS`.
        platforms: that the program is lowered for.
        **wishes: keywords of `Pipeline.__call__` that say how to sample: sampler, steps, spacing, eta, interval,
            guidance, classifiers. A number given as `weight` or `classifier_weight` is the default of an input; without
            `classifier_weight` no classifier is in the file. A `WeightSchedule` is fixed in the program.

    Returns:
        The file's header.

    Raises:
        InputError: a keyword that belongs to a single image, or what a file cannot hold: inpainting without a model
            for it, weights of single conditions.
    """
    export_format.require_flatbuffers()
    require(not epath.Path(path).is_dir(), f"{path} is a folder; give the name of a file, e.g. sampler.zip")
    choose(OUTPUTS, dtype, "dtype")
    require(jax.process_count() == 1, "a sampler is exported by one process; this run has several")
    for name in BY_IMAGE:
        require(wishes.get(name) is None, f"{name} is an input of the exported sampler; give it to the file, not here")
    template = _template(pipe, wishes)
    steered = any(wishes.get(name) is not None for name in ("classifier_weight", "log_prob"))
    inputs = _inputs(pipe, template, wishes)
    weights = (pipe.params, tuple(guide.log_prob for guide in template.guides), as_data(pipe.codec.decode))
    paths, structure = jax.tree_util.tree_flatten_with_path(weights)
    arrays = {jax.tree_util.keystr(where, simple=True, separator="/"): np.asarray(leaf) for where, leaf in paths}
    require(len(arrays) == len(paths), "two parameters have the same path; the sampler cannot be exported")

    def apply(params: Any, x: Array, time: Array, conditions: Any) -> Any:
        return pipe.model.apply({"params": params}, x, time, conditions)  # not pipe.apply, which knows the devices

    generator = Generator(apply, pipe.process, pipe.codec, clip, sequential, rematerialize)

    def program(params: Inputs, inputs: Inputs) -> Array:
        network, log_probs, decode = jax.tree.unflatten(structure, [params[name] for name in arrays])
        request = _request(pipe, template, inputs, steered)
        guides = tuple(g._replace(log_prob=f) for g, f in zip(request.guides, log_probs, strict=True))
        return OUTPUTS[dtype](generator.images(network, request._replace(guides=guides), decode))

    (b,) = jax_export.symbolic_shape("b")
    shapes = {name: jax.ShapeDtypeStruct((b, *entry["shape"]), entry["dtype"]) for name, entry in inputs.items()}
    abstract = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in arrays.items()}
    with _without_paths():
        made = jax_export.export(jax.jit(program), platforms=platforms)(abstract, shapes)
    sampler = wishes.get("sampler") or "ddim"
    return export_format.write(path, {
        "format": FORMAT,
        "version": VERSION,
        "package": __version__,
        "jax": jax.__version__,
        "calling_convention": made.calling_convention_version,
        "platforms": list(platforms),
        "inputs": inputs,
        "output": {"shape": list(made.out_avals[0].shape[1:]), "dtype": dtype},
        "class_names": list(pipe.info.class_names),
        "sampler": sampler if isinstance(sampler, str) else "a sampler of one's own",
        "steps": int(num_steps(template.levels)),
        "spacing": wishes.get("spacing") or "linspace",
        "checkpoint_step": pipe.step,
        "parameters": sum(array.size for array in arrays.values()),
    }, {PROGRAM: bytes(made.serialize()), WEIGHTS: save(arrays)})  # fmt: skip


def _template(pipe: Pipeline, wishes: Mapping[str, Any]) -> Request:
    """A request for one image with every condition that the model takes; its rows are replaced by inputs."""
    one = {
        name: np.zeros(spec.shape, spec.dtype) for name, spec in pipe.specs.items() if name not in ("label", "low_res")
    }
    low_res = np.zeros(pipe.specs["low_res"].shape, np.uint8) if "low_res" in pipe.specs else None
    labels = 0 if "label" in pipe.specs or (pipe.info.class_names and _steers(wishes)) else None
    request = pipe.request(**wishes, labels=labels, conditions=one, low_res=low_res)
    require(request.inpaint is None, "an exported sampler does not complete images, unless its model is trained to")
    require(
        len(request.branches) <= 1, "weights of single conditions cannot be exported; give one weight, weight=, for all"
    )
    return request if pipe.null_trained else request.prune_branches()


def _negatives(pipe: Pipeline) -> dict[str, str]:
    """Conditions that come from a prompt, and the inputs that a negative prompt gives in their place."""
    names = {"text": "negative", "text_time": "negative_text_time"}
    return {name: negative for name, negative in names.items() if name in pipe.specs}


def _has_own_null(pipe: Pipeline) -> bool:
    """Whether the absence of a prompt is not zero; then the file is told both, as features."""
    return pipe.prompts is not None and bool(pipe.prompts.absent())


def _steers(wishes: Mapping[str, Any]) -> bool:
    return wishes.get("classifier_weight") is not None


def _inputs(pipe: Pipeline, template: Request, wishes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Inputs by name: shape and type of one row, and the value that a row has by default, where there is one."""

    def entry(dtype: Any, *shape: int, **default: Any) -> dict[str, Any]:
        return {"shape": list(shape), "dtype": np.dtype(dtype).name, **default}

    made = {"seed": entry(np.uint32, 2), "index": entry(np.int32)}
    for name, spec in pipe.specs.items():
        absent = {"default": int(spec.null)} if pipe.null_trained and CONDITIONS[name].stream is not None else {}
        made[name] = entry(spec.dtype, *spec.shape, **absent)
    classes = classes_of(pipe.context)
    if _steers(wishes) and classes:
        made["label"] = entry(np.int32)  # a classifier needs a class
    if "label" in made:
        made["label"]["classes"] = classes
    if template.branches:
        for name, negative in _negatives(pipe).items():
            spec, zero = pipe.specs[name], {} if _has_own_null(pipe) else {"default": 0}
            made[negative] = entry(spec.dtype, *spec.shape, **zero)
    if "text" in made and _has_own_null(pipe):
        made["text"].pop("default")
    if template.weights and not isinstance(template.weights[0], WeightSchedule):
        require(np.ndim(template.weights[0]) == 0, "weight must be one number, the default of the input 'weight'")
        made["weight"] = entry(np.float32, default=float(template.weights[0]))  # type: ignore[arg-type]
    if _steers(wishes) and not isinstance(template.guides[0].weight, WeightSchedule):
        require(np.ndim(template.guides[0].weight) == 0, "classifier_weight must be one number, the input's default")
        made["classifier_weight"] = entry(np.float32, default=float(template.guides[0].weight))  # type: ignore[arg-type]
    return made


def _request(pipe: Pipeline, template: Request, inputs: Inputs, steered: bool) -> Request:
    """The template with the inputs as its rows; where it is `steered`, its first classifier is told the class."""
    index = inputs["index"]

    def rows(value: Any) -> Array:
        return jnp.broadcast_to(jnp.asarray(value), (*index.shape, *np.shape(value)))

    given = {name: inputs[name] for name in pipe.specs}
    null = {
        name: given[name] if CONDITIONS[name].stream is None else rows(np.full(spec.shape, spec.null, spec.dtype))
        for name, spec in pipe.specs.items()
    }
    null |= {name: inputs[negative] for name, negative in _negatives(pipe).items() if negative in inputs}
    guides = [guide._replace(label=rows(guide.label[0])) for guide in template.guides]
    if "classifier_weight" in inputs:
        guides[0] = guides[0]._replace(weight=inputs["classifier_weight"])
    if steered and "label" in inputs:
        guides[0] = guides[0]._replace(label=inputs["label"])
    return template._replace(
        key=jax.random.wrap_key_data(inputs["seed"], impl=PRNG),
        indices=index,
        branches=(given,) if template.branches else (),
        null=null if template.branches else given,
        weights=(inputs["weight"],) if "weight" in inputs else template.weights,
        guides=tuple(guides),
        labels=None,
    )


@contextlib.contextmanager
def _without_paths() -> Iterator[None]:
    """Programs that do not name the source files, and so the folders of a machine, that they were made of."""
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)
