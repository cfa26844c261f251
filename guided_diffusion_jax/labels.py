"""Classes as users give them, by number or by name, and as messages list them."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from guided_diffusion_jax.checks import shown
from guided_diffusion_jax.errors import InputError, hint, require

QUOTES = "'\""


def label_rows(labels: Any, rows: int, class_names: Sequence[str], classes: int) -> Int[np.ndarray, " n"]:
    """Class number of each image: the labels in turn, by number or name; the number of classes for none.

    Raises:
        InputError: a class that there is not.
    """
    if labels is None:
        return np.full(rows, classes, np.int32)
    several = [labels] if isinstance(labels, str) or np.ndim(labels) == 0 else list(labels)
    require(len(several) > 0, "labels is empty; give class numbers or names, or None")
    require(classes > 0, f"labels={shown(labels)}, but this run has no classes; leave labels out")
    require(
        len(several) <= rows, f"labels has {len(several)} classes for {rows} images; give count={len(several)} or more"
    )
    return np.resize(np.array([_number(label, class_names, classes) for label in several], np.int32), rows)


def _number(label: Any, names: Sequence[str], classes: int) -> int:
    """The number of a class that is given by its number, or in a text by its name or number."""
    if isinstance(label, str):
        if label in names:
            return list(names).index(label)
        label = int(label) if re.fullmatch(r"\d{1,9}", label) else label
    whole = np.ndim(label) == 0 and np.asarray(label).dtype.kind in "iu"
    if not whole or not 0 <= int(label) < classes:
        named = class_list(names) if len(names) == classes else ""
        near = hint(label, names) if isinstance(label, str) else ""
        listed = f" or a name: {named}" if named and named != f"0 to {classes - 1}" else ""
        raise InputError(f"labels: {shown(label).strip(QUOTES)} is no class; use 0 to {classes - 1}{listed}{near}")
    return int(label)


def class_list(names: Sequence[str], *, all_of_them: bool = False) -> str:
    """Classes with their numbers, for people; a long list is cut in the middle.

    >>> class_list(["cats", "dogs"]), class_list([str(i) for i in range(10)])
    ('0 cats, 1 dogs', '0 to 9')
    """
    if list(names) == [str(i) for i in range(len(names))]:
        return f"0 to {len(names) - 1}"
    listed = [f"{i} {name}" for i, name in enumerate(names)]
    if len(listed) > 12 and not all_of_them:
        listed = [*listed[:10], "...", listed[-1]]
    return ", ".join(listed)
