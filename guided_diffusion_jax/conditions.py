"""The table of condition types, and conditions that are absent: nulls, and dropout in training."""

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool

from guided_diffusion_jax.errors import choose, require
from guided_diffusion_jax.models.embeddings import AttributeEmbedding, ClassEmbedding, ImageMap
from guided_diffusion_jax.typing import AnyArray, Conditions, Keys

ImageShape = tuple[int, int, int]
"""(height, width, channels)."""


class ConditionSpec(NamedTuple):
    """One sample of a condition.

    Attributes:
        shape: without the batch.
        dtype: as data has it.
        null: the value that stands for "absent".
    """

    shape: tuple[int, ...]
    dtype: Any
    null: int = 0


class ConditionType(NamedTuple):
    """A way to steer a network; a row of `CONDITIONS`.

    Attributes:
        spec: network and image shape to the spec of one sample; None if the network does not take the condition.
        encoder: network to the module that turns values into a `models.embeddings.Encoding`. None: the values enter
            beside the network's input or are read by its ControlNets, as they are.
        stream: number of its dropout's random stream, unique, from 1 << 16 on; None: it is never absent. Small numbers
            would not do: `jax.random.split(key)[i]` is `fold_in(key, i)`, and others split the same keys.
        place: where it enters a U-Net by default: "vector" (with the time, everywhere), "tokens" (cross-attention, and
            the vector if the encoding has one), "map" (beside the input), "input" (beside the input, always) or
            "controlnet" (a network beside it).
        request: its keyword in a request for images.
        separate: training drops each entry of a sample by itself.
    """

    spec: Callable[[Any, ImageShape], ConditionSpec | None]
    encoder: Callable[[Any], nn.Module] | None
    stream: int | None
    place: str
    request: str
    separate: bool = False


def setting(network: Any, name: str) -> Any:
    """A setting of a network, or of the U-Net inside it; None where neither has it."""
    return getattr(network, name, None) or getattr(getattr(network, "unet", None), name, None)


def _label(network: Any, shape: ImageShape) -> ConditionSpec | None:
    classes = setting(network, "num_classes")
    return ConditionSpec((), np.int32, null=classes) if classes else None


def _attributes(network: Any, shape: ImageShape) -> ConditionSpec | None:
    sizes = setting(network, "attribute_sizes")
    return ConditionSpec((len(sizes),), np.int32) if sizes else None


def _text(network: Any, shape: ImageShape) -> ConditionSpec | None:
    encoder = setting(network, "text")
    return ConditionSpec(encoder.input_shape, encoder.input_dtype) if encoder else None


def _text_time(network: Any, shape: ImageShape) -> ConditionSpec | None:
    encoder = setting(network, "text_time")
    return ConditionSpec(encoder.input_shape, np.float32) if encoder else None


def _reference_image(network: Any, shape: ImageShape) -> ConditionSpec | None:
    encoder = setting(network, "reference")
    return ConditionSpec((*shape[:2], encoder.channels), np.float32) if encoder else None


def _image(channels: str) -> Callable[[Any, ImageShape], ConditionSpec | None]:
    """An image as large as x with as many channels as this setting says."""

    def spec(network: Any, shape: ImageShape) -> ConditionSpec | None:
        value = setting(network, channels)
        return ConditionSpec((*shape[:2], value), np.float32) if value else None

    return spec


def _of_controlnets(shape: Callable[[Any, ImageShape], tuple[int, ...]]) -> Callable[..., ConditionSpec | None]:
    """What each of the ControlNets beside a U-Net takes; `shape(controlnet, shape of x)` is that of one."""

    def spec(network: Any, image_shape: ImageShape) -> ConditionSpec | None:
        nets = getattr(network, "controlnets", None)
        return ConditionSpec((len(nets), *shape(nets[0], image_shape)), np.float32) if nets else None

    return spec


def _hint_shape(controlnet: Any, shape: ImageShape) -> tuple[int, ...]:
    return shape[0] * controlnet.factor, shape[1] * controlnet.factor, controlnet.image_channels


def _low_res(network: Any, shape: ImageShape) -> ConditionSpec | None:
    low_res_shape = getattr(network, "low_res_shape", None)
    return ConditionSpec(low_res_shape(shape), np.float32) if low_res_shape else None


CONDITIONS: dict[str, ConditionType] = {
    "label": ConditionType(
        _label, lambda net: ClassEmbedding(net.num_classes, 4 * net.width, net.dtype), 1 << 16, "vector", "labels"
    ),
    "attributes": ConditionType(
        _attributes,
        lambda net: AttributeEmbedding(net.attribute_sizes, 4 * net.width, net.dtype),
        (1 << 16) + 1,
        "vector",
        "attributes",
        separate=True,
    ),
    "text": ConditionType(_text, lambda net: net.text, (1 << 16) + 2, "tokens", "prompt"),
    "reference_image": ConditionType(
        _reference_image, lambda net: net.reference, (1 << 16) + 3, "tokens", "reference_image"
    ),
    "control_image": ConditionType(
        _image("control_channels"), lambda net: ImageMap(), (1 << 16) + 4, "map", "control_image"
    ),
    "masked_image": ConditionType(_image("masked_channels"), None, (1 << 16) + 5, "input", "image"),
    "text_time": ConditionType(_text_time, lambda net: net.text_time, None, "vector", "text_time"),
    "low_res": ConditionType(_low_res, None, None, "input", "low_res"),
    "control_hints": ConditionType(_of_controlnets(_hint_shape), None, None, "controlnet", "control_image"),
    "control_scales": ConditionType(
        _of_controlnets(lambda net, _: (net.summands,)), None, None, "controlnet", "control_scale"
    ),
    "control_times": ConditionType(_of_controlnets(lambda net, _: (2,)), None, None, "controlnet", "control_window"),
}
"""All condition types. A new one is a line here, or `CONDITIONS["hue"] = ConditionType(...)` from outside; its settings
reach a network through the field `extra`."""


def condition_specs(network: Any, image_shape: ImageShape) -> dict[str, ConditionSpec]:
    """Specs of the conditions that a network (or its settings) takes, for images `(h, w, c)`."""
    specs = {name: kind.spec(network, image_shape) for name, kind in CONDITIONS.items()}
    return {name: spec for name, spec in specs.items() if spec is not None}


def nulls(specs: Mapping[str, ConditionSpec], count: int) -> dict[str, np.ndarray]:
    """Each condition absent from `count` samples. A `low_res` image, which is never absent, is grey.

    The rows are one value in memory, however many they are, and so are read only.

    >>> nulls({"label": ConditionSpec((), np.int32, null=10)}, 2)
    {'label': array([10, 10], dtype=int32)}
    """
    return {
        name: np.broadcast_to(np.asarray(spec.null, spec.dtype), (count, *spec.shape)) for name, spec in specs.items()
    }


def fill_nulls(conditions: Conditions, specs: Mapping[str, ConditionSpec], count: Any) -> dict[str, Array]:
    """The conditions in `specs`, those that are not given at their nulls.

    `count`, the number of samples, may be a symbolic dimension of `jax.export`.
    """
    given = {name: value for name, value in conditions.items() if value is not None}

    def absent(spec: ConditionSpec) -> Array:
        return jnp.full((count, *spec.shape), spec.null, spec.dtype)

    return {name: jnp.asarray(given[name]) if name in given else absent(spec) for name, spec in specs.items()}


def keep_only(conditions: Conditions, names: Collection[str], specs: Mapping[str, ConditionSpec]) -> Conditions:
    """The conditions with all but these at their nulls: one branch of `guidance.composed`.

    Raises:
        InputError: a name that is not among the conditions.
    """
    given = {name: value for name, value in conditions.items() if value is not None}
    for name in names:
        choose(given, name, "condition")
    return {
        name: value if name in names or CONDITIONS[name].stream is None else jnp.full_like(value, specs[name].null)
        for name, value in given.items()
    }


def drop(
    keys: Keys,
    conditions: Conditions,
    specs: Mapping[str, ConditionSpec],
    rate: ArrayLike,
    rates: Mapping[str, ArrayLike] = MappingProxyType({}),
) -> Conditions:
    """Dropout of conditions in training: some samples lose all of them, some lose one.

    With probability `rate` a sample loses all at once (Ho & Salimans 2022, algorithm 1). Each condition in `rates` it
    also loses by itself, and of the attributes each by itself. All draws come from the sample's own key, those of a
    condition from a stream of its own: whether other conditions have rates changes nothing.

    Args:
        keys: one per sample.
        conditions: of each sample.
        specs: of these conditions, for their nulls.
        rate: in [0, 1].
        rates: condition to rate in [0, 1]; 0 for conditions that are not named.

    Raises:
        InputError: `rates` names a condition that cannot be absent.
    """
    for name in rates:
        choose(_streams(), name, "rates")
    all_dropped = jax.vmap(lambda key: jax.random.bernoulli(key, rate))(keys)

    def dropped(name: str, value: AnyArray) -> Array:
        kind = CONDITIONS[name]
        if kind.stream is None:
            return jnp.asarray(value)
        shape = value.shape[1:] if kind.separate else (1,) * (value.ndim - 1)
        absent = all_dropped.reshape(-1, *[1] * (value.ndim - 1))
        if name in rates:
            absent |= _draw(keys, kind.stream, shape, rates[name])
        return jnp.where(absent, jnp.asarray(specs[name].null, value.dtype), value)

    return {name: dropped(name, value) for name, value in conditions.items() if value is not None}


def _streams() -> dict[str, int]:
    """Conditions that can be absent, and the number of each one's random stream."""
    return {name: kind.stream for name, kind in CONDITIONS.items() if kind.stream is not None}


def _draw(keys: Keys, number: int, shape: tuple[int, ...], rate: ArrayLike) -> Bool[Array, "b ..."]:
    """True with probability `rate`, from each sample's stream of this number."""
    return jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, number), rate, shape))(keys)


def check_rates(rates: Mapping[str, float], key: str) -> None:
    """Raises `InputError` for `rates` that `drop` cannot take; `key` names them in the message.

    >>> check_rates({"label": 0.1, "text": 1.5}, "train.per_condition_dropout")
    Traceback (most recent call last):
    guided_diffusion_jax.errors.InputError: train.per_condition_dropout: text=1.5 must lie in [0, 1]; 0 never drops it
    alone.
    """
    for name, rate in rates.items():
        choose(_streams(), name, key)
        require(0 <= rate <= 1, f"{key}: {name}={rate} must lie in [0, 1]; 0 never drops it alone.")
