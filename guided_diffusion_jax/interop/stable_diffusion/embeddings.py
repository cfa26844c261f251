"""Textual inversion (Gal et al. 2023): files of learned embeddings, as further tokens of the text encoders."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from guided_diffusion_jax.errors import InputError, require, shown
from guided_diffusion_jax.interop import files
from guided_diffusion_jax.interop.stable_diffusion.folder import Loaded, Part

TABLE = ("tokens", "embedding")
NAMES = ("clip_l", "clip_g")
"""Names of the tensors for SDXL's first encoder and for its second."""

WEB = ("emb_params", "string_to_param")
"""How the tensor's name begins in files of the web interface, which do not hold the placeholder."""


def load(parts: Loaded, path: epath.PathLike, token: str | None = None) -> Loaded:
    """Parts whose text encoders know further tokens: the placeholder, and "<toy>_1" and so on where it has several.

    Args:
        parts: of the pipeline.
        path: diffusers' `learned_embeds` (a tensor by the placeholder's name), the web interface's file, or SDXL's with
            `clip_l` and `clip_g`.
        token: the placeholder; None is the tensor's name, or the file's.

    Raises:
        InputError: it holds no embeddings, or those of another text encoder, or the placeholder is taken.
    """
    with files.opened(path) as tensors:
        found = {name: np.asarray(value, np.float32) for name, value in tensors.items()}
    rows, named = _by_encoder(found, len(parts.text_encoders), path)
    return extended(parts, rows, token or named or epath.Path(path).stem, str(path))


def extended(parts: Loaded, rows: Sequence[np.ndarray], placeholder: str, where: str = "embeddings") -> Loaded:
    """Parts whose text encoders know further tokens: the placeholder, and "<toy>_1" and so on where it has several.

    Args:
        parts: of the pipeline.
        rows: `[k d]` for each text encoder.
        placeholder: the word that stands for them.
        where: they come from, for messages.

    Raises:
        InputError: they are those of another text encoder, or the placeholder is taken.
    """
    count = len(rows[0])
    tokens = [placeholder, *(f"{placeholder}_{i}" for i in range(1, count))]
    encoders, tokenizers = [], []
    for part, tokenizer, more in zip(parts.text_encoders, parts.tokenizers, rows, strict=True):
        flat = dict(flatten_dict(part.params))
        table = flat[TABLE]
        require(
            more.ndim == 2 and more.shape == (count, table.shape[1]),
            f"{where} holds embeddings of {more.shape}, and the text encoder's have {table.shape[1]} features: they "
            "are for another base",
        )
        taken = [name for name in tokens if name in tokenizer.vocabulary]
        require(not taken, f"{shown(taken[:1])} is a token already; give another, token=")
        flat[TABLE] = jnp.concatenate([table, jnp.asarray(more, table.dtype)])
        model: Any = part.model
        encoders.append(Part(model.clone(vocabulary=len(flat[TABLE])), unflatten_dict(flat)))
        numbers = {name: len(table) + i for i, name in enumerate(tokens)}
        tokenizers.append(
            dataclasses.replace(
                tokenizer, vocabulary={**tokenizer.vocabulary, **numbers}, added=(*tokenizer.added, *tokens)
            )
        )
    return parts._replace(text_encoders=tuple(encoders), tokenizers=tuple(tokenizers))


def _by_encoder(found: dict[str, np.ndarray], encoders: int, path: Any) -> tuple[list[np.ndarray], str | None]:
    """Rows for each text encoder, and the placeholder if the file names it."""
    if all(name in found for name in NAMES):
        require(encoders == 2, f"{path} holds embeddings for the two text encoders of SDXL, and this model has one")
        return [np.atleast_2d(found[name]) for name in NAMES], None
    require(encoders == 1, f"{path} holds embeddings for one text encoder; SDXL needs clip_l and clip_g")
    plain = [name for name in found if name.startswith(WEB)]
    if plain:
        return [np.atleast_2d(found[plain[0]])], None
    if len(found) != 1:
        raise InputError(f"{path} holds {len(found)} tensors; a file of textual inversion has one")
    ((name, rows),) = found.items()
    return [np.atleast_2d(rows)], name


def save(path: epath.PathLike, placeholder: str, rows: Sequence[np.ndarray]) -> None:
    """Writes `[k d]` embeddings for each text encoder as diffusers reads them: the inverse of `load`."""
    names = (placeholder,) if len(rows) == 1 else NAMES
    files.write(path, {name: np.asarray(more, np.float32) for name, more in zip(names, rows, strict=True)})
