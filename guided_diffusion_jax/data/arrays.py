"""Arrays in memory as a data set, with every argument checked."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from guided_diffusion_jax.data.dataset import Dataset, array_reader
from guided_diffusion_jax.errors import InputError, require


def from_arrays(
    images: Any,
    labels: Any = None,
    class_names: Sequence[str] = (),
    *,
    name: str = "arrays",
    attributes: Any = None,
    attribute_names: Sequence[tuple[str, Sequence[str]]] = (),
    text: Any = None,
    reference_image: Any = None,
    control_image: Any = None,
    **conditions: Any,
) -> Dataset:
    """A data set over NumPy (or JAX) arrays of n rows each; images are not copied.

    Args:
        images: uint8 `[n h w c]`, 0 .. 255.
        labels: int `[n]`, classes in 0 .. C-1; None for no classes.
        class_names: C names; empty for "0", "1", ... up to the largest label.
        name: its name in messages.
        attributes: int `[n k]`, values in 1 .. their number, 0 where unknown.
        attribute_names: name and names of the values of each attribute: `(("colour", ("red", "blue")),)`.
        text: n captions; "" for none (see `text.encode_text`).
        reference_image: uint8 `[n h w c]`, images in the style of `images`.
        control_image: uint8 `[n h w m]`, images that show the layout.
        **conditions: arrays `[n ...]` of further condition types, by their keys in `conditions.CONDITIONS`.

    Raises:
        InputError: an argument has the wrong type, shape, length or range.

    >>> from_arrays(np.zeros((3, 8, 8, 1)))
    Traceback (most recent call last):
    guided_diffusion_jax.errors.InputError: images of arrays are float64; uint8 (0 .. 255) [n h w c] is needed
    """
    images = _array(images, f"images of {name}", "u1", "nhwc")
    n, h, w, c = images.shape
    require(n > 0, f"{name} holds no images; at least 1 is needed")
    arrays = {"image": images, "label": np.zeros(n, np.int32)}
    if labels is not None:
        labels = _array(labels, f"labels of {name}", "iu", "n", n=n)
        class_names = class_names or [str(label) for label in range(int(labels.max()) + 1)]
        low, high, last = int(labels.min()), int(labels.max()), len(class_names) - 1
        require(
            low >= 0 and high <= last,
            f"the labels of {name} go from {low} to {high}; its {last + 1} classes need 0 .. {last}",
        )
        arrays["label"] = labels.astype(np.int32)
    require(labels is not None or not class_names, f"{name} has class_names without labels; give both or neither")
    if attributes is not None or attribute_names:
        attributes = _array(attributes, f"attributes of {name}", "iu", "nk", n=n, k=len(attribute_names))
        for (key, values), column in zip(attribute_names, attributes.T, strict=True):
            require(
                int(column.min()) >= 0 and int(column.max()) <= len(values),
                f"{key!r} of {name} goes from {column.min()} to {column.max()}; its {len(values)} values need 1 .. "
                f"{len(values)}, or 0 where unknown",
            )
        arrays["attributes"] = attributes.astype(np.int32)
    if text is not None:
        texts = [] if isinstance(text, str) else list(text)
        strings = sum(isinstance(caption, str) for caption in texts)
        require(strings == len(texts) == n, f"text of {name} has {strings} captions; give a list of {n} strings")
        arrays["text"] = np.array(texts, object)
    if reference_image is not None:
        what = f"reference_image of {name}"
        arrays["reference_image"] = _array(reference_image, what, "u1", "nhwc", n=n, h=h, w=w, c=c)
    if control_image is not None:
        arrays["control_image"] = _array(control_image, f"control_image of {name}", "u1", "nhwm", n=n, h=h, w=w)
    for key, value in conditions.items():
        arrays[key] = _array(value, f"{key} of {name}", "", "n...", n=n)
    return Dataset(
        name=name,
        length=n,
        image_shape=(h, w, c),
        class_names=tuple(class_names),
        read=array_reader(arrays),
        in_memory=True,
        attributes=tuple((key, tuple(values)) for key, values in attribute_names),
        control_channels=arrays["control_image"].shape[3] if control_image is not None else 0,
        has_reference=reference_image is not None,
        labels=arrays["label"] if labels is not None else None,
    )


def _array(value: Any, what: str, kind: str, axes: str, **sizes: int) -> np.ndarray:
    """The argument as an array: `kind` "u1" for pixels, "iu" for integers; `axes` with an axis a letter, or "n..."."""
    wanted = {"u1": "uint8 (0 .. 255) ", "iu": "integers "}.get(kind, "") + (
        f"[{' '.join(str(sizes.get(axis, axis)) for axis in axes.replace('...', '.'))}]".replace(".", "...")
    )
    if not (hasattr(value, "dtype") and hasattr(value, "shape")):
        raise InputError(f"{what} are a {type(value).__name__}, not an array; {wanted} is needed")
    array = np.asarray(value)
    right = array.dtype == np.uint8 if kind == "u1" else array.dtype.kind in (kind or array.dtype.kind)
    require(right, f"{what} are {array.dtype}; {wanted} is needed")
    shape = array.shape[:1] if axes == "n..." else array.shape
    matches = len(shape) == len(axes.replace("...", "")) and all(
        size == sizes.get(axis, size) and (size > 0 or axis == "n") for axis, size in zip(axes, shape, strict=False)
    )
    require(matches, f"{what} have the shape {list(array.shape)}; {wanted} is needed")
    return array
