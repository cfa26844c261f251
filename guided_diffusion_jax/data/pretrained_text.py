"""Frozen pre-trained language models as text encoders, through the package transformers (PyTorch on the CPU).

The last hidden states are the features. Of an encoder-decoder model (T5) the encoder is used, of a two-tower model
(CLIP) the text tower.
"""

import dataclasses
import hashlib
import importlib.util
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from guided_diffusion_jax.data.text import BATCH, clean
from guided_diffusion_jax.errors import InputError, require


@dataclasses.dataclass(frozen=True)
class PretrainedTextEncoder:
    """The last hidden states of a pre-trained model, loaded on first use.

    Attributes:
        name: a model of the Hugging Face hub ("sentence-transformers/all-MiniLM-L6-v2"), or a local folder.
        length: tokens that are read of a caption, the model's start and end tokens included.

    Raises:
        InputError: the name is empty, or `length` is below 1.
    """

    name: str
    length: int
    cached = True

    def __post_init__(self) -> None:
        require(self.name != "", "a text encoder needs the name of a model, or a folder")
        require(self.length >= 1, f"a text of {self.length} tokens holds nothing; the length must be at least 1")

    def encode(self, captions: Sequence[str]) -> Float32[np.ndarray, "n length width"]:
        """The hidden state of each token, zeros after the last; the empty caption is all zeros.

        Values are rounded to float16, as `text.cached_captions` stores them.

        Raises:
            InputError: the model cannot be loaded, cannot read `length` tokens, or gives what float16 cannot hold.
        """
        rows = np.zeros((len(captions), self.length, self.width), np.float32)
        nonempty = [row for row, caption in enumerate(captions) if caption]
        for start in range(0, len(nonempty), BATCH):
            chosen = nonempty[start : start + BATCH]
            hidden = self._hidden([captions[row] for row in chosen])
            rows[chosen, : hidden.shape[1]] = hidden
        return rows

    @cached_property
    def width(self) -> int:
        """Features of a token; loads the model. Raises as `encode` does."""
        return self._hidden(["a"]).shape[-1]

    @cached_property
    def identity(self) -> str:
        """A digest of the files of a local model; else its name on the hub."""
        folder = Path(self.name).expanduser()
        if not folder.is_dir():
            return self.name
        digest = hashlib.sha256()
        for path in sorted(path for path in folder.iterdir() if path.is_file()):
            with path.open("rb") as file:
                digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()} ".encode())
        return digest.hexdigest()

    def overflow(self, caption: str) -> str:
        """What is lost of a caption that is too long, to complete "The caption has ..."; empty if it fits."""
        tokenizer, _ = self._loaded
        tokens = tokenizer(clean(caption), add_special_tokens=False, verbose=False)["input_ids"]
        room = self.length - tokenizer.num_special_tokens_to_add()
        lost = f"the last {len(tokens) - room} were cut: {tokenizer.decode(tokens[room:])!r}"
        return f"{len(tokens)} tokens, the model reads {room}: {lost}" if len(tokens) > room else ""

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """The tokenizer and the model."""
        for package in ("transformers", "torch"):
            require(
                importlib.util.find_spec(package) is not None,
                f"the text encoder {self.name!r} needs the package {package}, which is not installed; "
                'pip install "guided_diffusion_jax[text]"',
            )
        try:
            tokenizer, model = _load(os.path.expanduser(self.name))
        except Exception as error:  # networks, disks, formats and missing packages each fail in their own way
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")
            raise InputError(
                f"the text encoder {self.name!r} cannot be loaded: {reason}; "
                "give the name of a model on the Hugging Face hub or a folder that holds one"
            ) from error
        special = tokenizer.num_special_tokens_to_add()
        config = getattr(model.config, "text_config", model.config)
        most = min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", tokenizer.model_max_length))
        require(
            special < self.length <= most,
            f"the text encoder {self.name!r} reads {special + 1} .. {most} tokens, not {self.length}; "
            "set the length to one of these",
        )
        return tokenizer, model

    def _hidden(self, captions: list[str]) -> Float32[np.ndarray, "n tokens width"]:
        """The hidden states of non-empty captions, as many tokens as the longest has."""
        tokenizer, model = self._loaded
        captions = [clean(caption) for caption in captions]
        tokens = tokenizer(captions, padding=True, truncation=True, max_length=self.length, return_tensors="pt")
        output = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        with np.errstate(over="ignore"):
            hidden = output.last_hidden_state.numpy().astype(np.float16).astype(np.float32)
        hidden = np.where(tokens["attention_mask"].numpy()[..., None] != 0, hidden, np.float32(0))
        require(
            bool(np.isfinite(hidden).all()),
            f"the text encoder {self.name!r} gives numbers that float16 (at most 65504) cannot hold; use another",
        )
        return hidden


def _load(name: str) -> tuple[Any, Any]:
    import transformers

    def load(**where: bool) -> tuple[Any, Any]:
        options = {"trust_remote_code": False, **where}
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            name, padding_side="right", truncation_side="right", **options
        )
        return tokenizer, transformers.AutoModel.from_pretrained(name, **options)

    transformers.utils.logging.disable_progress_bar()
    try:
        tokenizer, model = load(local_files_only=True)  # a local copy needs no network, which may be slow to fail
    except OSError:
        if os.path.isdir(name):
            raise
        tokenizer, model = load()
    if tokenizer.pad_token is None:  # padding is masked
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    return tokenizer, getattr(model, "text_model", model).eval().float().requires_grad_(False)
