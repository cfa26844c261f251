"""OpenAI's guided-diffusion (ADM): files of its weights as modules and parameters, and back."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from guided_diffusion_jax import models
from guided_diffusion_jax.errors import InputError, one_line, require, shown
from guided_diffusion_jax.interop import files, infer, limits
from guided_diffusion_jax.interop.infer import is_adm
from guided_diffusion_jax.interop.layout import ORDERS, VECTOR, Network, Row, rows, shape_faults
from guided_diffusion_jax.interop.pickled import Damaged
from guided_diffusion_jax.models import Classifier, SuperResolution, UNet
from guided_diffusion_jax.typing import Params

__all__ = [
    "ORDERS", "VECTOR", "Loaded", "adm_shapes", "is_adm", "kind_of", "load", "params_from_state_dict", "rows", "save",
    "state_dict_from_params",
]  # fmt: skip

ADVICE = "give the arguments that the weights were trained with."


class Loaded(NamedTuple):
    """A network of a file.

    Attributes:
        model: the module.
        params: its parameters, float32.
        kind: "unet", "super_resolution" or "classifier".
        image_size: height and width of the images that the network sees, in pixels.
        attention_order: as `save` needs it.
        variance: "learned_range" where the network learns it, else None.
        schedule: of the process that a published network was trained with; None for other networks.
    """

    model: Network
    params: Params
    kind: str
    image_size: int
    attention_order: str
    variance: str | None
    schedule: str | None


def load(
    path: epath.PathLike,
    *,
    image_size: int | None = None,
    channels: int = 3,
    attention_order: str | None = None,
    null_label: int | None = None,
    **settings: Any,
) -> Loaded:
    """A network of guided-diffusion from a file of its weights.

    OpenAI's published networks are recognised by the shapes of their tensors. Others need `image_size`, the heads
    (`head_width` or `num_heads`), `attention_order` where it is "new" and, for a classifier with `resample` "block",
    `num_res_blocks`: tensors do not tell these.

    Args:
        path: a `.pt`, `.pth` or `.safetensors` file. It is read one tensor at a time; nothing in it is run.
        image_size: of the images that the network sees, in pixels.
        channels: of an image.
        attention_order: "new" where guided-diffusion's `use_new_attention_order` is True, else "legacy", the default.
        null_label: row of the class embedding, from 0, that was trained as the null class; the others are the classes.
            None: all are classes, and no null class was trained.
        **settings: fields of `UNet` or `Classifier`, such as `dtype`; those that tensors tell are checked.

    Raises:
        InputError: the file is damaged, holds another network, or does not fit the settings; it names the tensors.

    >>> load("missing.pt")
    Traceback (most recent call last):
    guided_diffusion_jax.errors.InputError: missing.pt is no file
    """
    with _opened(path) as (tensors, prefix):
        if prefix:
            note = f"{path}: all names of tensors begin with {shown(repr(prefix))}, which is ignored."
            warnings.warn(one_line(note), stacklevel=2)
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        kind = infer.kind(shapes, channels)
        known = infer.published(shapes, kind)
        size = image_size or (known.image_size if known else 0)
        require(size > 0, "image_size is missing: the weights do not tell it; give the size in pixels.")
        order = attention_order or (known.attention_order if known else "legacy")
        if known and kind == "classifier":
            settings = {"num_res_blocks": known.num_res_blocks} | settings
        found = infer.settings(shapes, size, settings.get("num_res_blocks"))
        if null_label is not None:
            found["num_classes"] = _without_null(null_label, kind, found)
        fields = found | _heads(settings, known) | settings
        model = _build(kind, fields, size)
        advice = _differences(fields, found, size) or ADVICE
        params = params_from_state_dict(
            model, tensors, image_size=size, attention_order=order, advice=advice, null_label=null_label
        )
    variance = "learned_range" if fields.get("out_channels") == 2 * channels else None
    return Loaded(model, params, kind, size, order, variance, known.schedule if known else None)


def _without_null(null_label: int, kind: str, found: Mapping[str, Any]) -> int:
    """Number of classes beside the null class."""
    rows = 0 if kind == "classifier" else found.get("num_classes", 0)
    whole = isinstance(null_label, int) and not isinstance(null_label, bool)
    require(
        rows > 1 and whole and 0 <= null_label < rows,
        f"null_label={null_label!r} is no row of the class embedding, which has {rows}"
        + (f"; use 0 to {rows - 1}, or None" if rows > 1 else "; leave it out"),
    )
    return rows - 1


def kind_of(path: epath.PathLike, channels: int = 3) -> str:
    """`Loaded.kind` of a file, by the names and shapes of its tensors. Raises `InputError` as `load`."""
    with _opened(path) as (tensors, _):
        return infer.kind({name: tensor.shape for name, tensor in tensors.items()}, channels)


def save(
    path: epath.PathLike,
    model: Network,
    params: Params,
    *,
    image_size: int,
    attention_order: str = "legacy",
    null_label: int | None = None,
) -> None:
    """Writes a `.safetensors` file with ADM's names and layouts: the inverse of `load`.

    The null class, which ADM does not have, is left out; with `null_label` it is this row of the class embedding.
    """
    weights = state_dict_from_params(
        model, params, image_size=image_size, attention_order=attention_order, null_label=null_label
    )
    files.write(path, weights)


def params_from_state_dict(
    module: Network,
    state_dict: Mapping[str, Any],
    *,
    image_size: int,
    attention_order: str,
    advice: str = ADVICE,
    null_label: int | None = None,
) -> Params:
    """ADM's weights as parameters, float32: `module.apply({"params": params}, x, time, ...)`.

    Args:
        module: a network with the settings of the weights.
        state_dict: names of ADM's tensors to arrays in torch's layout. Anything that has a `shape` and converts to a
            NumPy array works, also in half precision; each is converted once, after all shapes have been checked.
        image_size: of the images that the network sees; it decides which blocks attend.
        attention_order: "new" where ADM's `use_new_attention_order` is True, "legacy" where it is False.
        advice: the end of an error's message.
        null_label: as in `load`.

    Raises:
        InputError: for missing, extra or misshapen tensors, of which it names the first few, and for numbers that are
            not finite.
    """
    given = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    first = given.get("input_blocks.0.0.weight", ())
    seen = first[1] if len(first) == 4 else 0  # only the number of input channels comes from the weights
    channels = (seen // 2 if isinstance(module, SuperResolution) else seen) or 3
    expected = adm_shapes(
        module, image_size=image_size, attention_order=attention_order, channels=channels, null_label=null_label
    )
    faults = shape_faults(expected, given)
    require(not faults, f"the state dict does not fit the network: {faults}; {advice}")
    table = rows(module, image_size, attention_order, null_label)
    return unflatten_dict({row.path: _parameter(row, state_dict[row.name]) for row in table})


def state_dict_from_params(
    module: Network, params: Params, *, image_size: int, attention_order: str, null_label: int | None = None
) -> dict[str, np.ndarray]:
    """The inverse of `params_from_state_dict`, without a null class but `null_label`. Arrays may be strided views."""
    flat = flatten_dict(params)
    table = rows(module, image_size, attention_order, null_label)
    return {row.name: row.layout.to_adm(np.asarray(flat[row.path])) for row in table}


def adm_shapes(
    module: Network, *, image_size: int, attention_order: str, channels: int = 3, null_label: int | None = None
) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a network's tensors in ADM; nothing is computed."""
    flat = flatten_dict(jax.eval_shape(lambda: _init(module, image_size, channels)))
    table = list(rows(module, image_size, attention_order, null_label))
    unknown = set(flat) ^ {row.path for row in table}
    assert not unknown, f"the table and the module disagree on {sorted(unknown)}"
    return {row.name: row.layout.to_adm(np.broadcast_to(np.float32(0), flat[row.path].shape)).shape for row in table}


def _init(module: Network, image_size: int, channels: int) -> Params:
    return models.init_params(module, jax.random.key(0), (image_size, image_size, channels))


def _parameter(row: Row, tensor: Any) -> jax.Array:
    array = np.asarray(tensor)
    require(_finite(array), f"{row.name} holds numbers that are not finite")
    # Waiting here frees the file's copy of one tensor before the next is read.
    return jax.block_until_ready(jnp.asarray(row.layout.from_adm(array), jnp.float32))


def _finite(array: np.ndarray) -> bool:
    """Whether all numbers are finite, also as float32; without an array of the answers."""
    largest = float(np.finfo(np.float32).max)
    return not array.size or (-largest <= float(array.min()) and float(array.max()) <= largest)


# --- the module of a file


@contextmanager
def _opened(path: epath.PathLike) -> Iterator[tuple[files.Tensors, str]]:
    """The tensors of a file by ADM's names, and the prefix that these had; the file's name is added to errors."""
    with files.opened(path) as tensors:
        try:
            prefix = infer.shared_prefix(tensors)
            if prefix and is_adm(name.removeprefix(prefix) for name in tensors):
                tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
            else:
                prefix = ""
            infer.require_adm(tensors)
            _check_tensors(tensors, epath.Path(path).stat().length)
            yield tensors, prefix
        except Damaged:
            raise  # the name is added by `files`
        except InputError as error:
            raise InputError(f"{path}: {error}") from None


def _check_tensors(tensors: files.Tensors, size: int) -> None:
    """Raises `InputError` for numbers that no weights are, and where tensors are made of the same numbers."""
    for name, tensor in tensors.items():
        require(
            jnp.issubdtype(tensor.dtype, jnp.floating), f"{shown(name)} is {tensor.dtype}; weights are floating point"
        )
        require(0 not in tensor.shape, f"{shown(name)} is empty: its shape is {tensor.shape}")
    total = sum(tensor.nbytes for tensor in tensors.values())
    require(
        total <= limits.tensor(size),
        f"its tensors have {total:,} bytes together, more than the file: they share numbers",
    )


def _heads(settings: Mapping[str, Any], known: infer.Published | None) -> dict[str, int]:
    if "head_width" in settings:
        return {}
    if "num_heads" in settings:
        return {"head_width": 0}
    if known is None:
        raise InputError("head_width is missing: the weights do not tell it; give it, or num_heads.")
    return {"head_width": known.head_width, "num_heads": known.num_heads}


def _build(kind: str, fields: Mapping[str, Any], image_size: int) -> Network:
    others = ("pool", "num_classes") if kind == "classifier" else ("out_channels",)
    for key in ("width", "num_res_blocks", "channel_mult", "attention_resolutions", "time_injection", *others):
        # A missing field would silently take the module's default.
        require(key in fields, f"{key} is missing: the weights do not tell it; give it.")
    if kind == "classifier":
        classifier = Classifier(**fields)
        models.check(classifier, (image_size, image_size, 3))
        return classifier
    unet = UNet(**fields)
    models.check(unet, (image_size, image_size, 3))
    return SuperResolution(unet) if kind == "super_resolution" else unet


def _differences(fields: Mapping[str, Any], found: Mapping[str, Any], image_size: int) -> str:
    """What the tensors tell that the settings contradict."""
    heights = (image_size >> level for level in range(len(fields["channel_mult"])))
    attending = tuple(pixels for pixels in heights if pixels in fields["attention_resolutions"])
    given = {**fields, "attention_resolutions": attending}
    differing = [f"{key}={value!r}, not {given[key]!r}" for key, value in found.items() if value != given[key]]
    return f"by their shapes the weights have {'; '.join(differing)}." if differing else ""
