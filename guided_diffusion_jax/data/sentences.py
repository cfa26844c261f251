"""Sentences as a pre-trained language model understands them: its last hidden states, frozen.

The model is any text encoder that the package transformers loads, by its name on the Hugging Face hub, from a folder,
or from an installed package that carries one. It runs on the CPU, beside JAX: what it makes of a data set's captions is
computed once and kept in a file.

The encoder of an encoder-decoder model (T5) and the text half of a two-tower one (CLIP) are taken by themselves.
"""

import dataclasses
import hashlib
import importlib.resources
import importlib.util
import json
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float16, Float32, Int
from tqdm import tqdm

from guided_diffusion_jax.data.text import clean
from guided_diffusion_jax.errors import InputError, require
from guided_diffusion_jax.runtime import files

BATCH = 64
"""Sentences that the model reads at a time."""

PACKAGE = "package:"
"""What a name begins with that is an installed package's, with the model's files in its folder `model`."""


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A frozen text encoder, loaded when it is first needed: `encoder(sentences)` are arrays.

    Attributes:
        name: "sentence-transformers/all-MiniLM-L6-v2" and the like on the hub, a local folder, or "package:NAME".
        length: tokens that it reads of a sentence, its own marks of beginning and end included.

    Raises:
        InputError: the name is empty or its package is not there, or `length` is below 1.
    """

    name: str
    length: int

    def __post_init__(self) -> None:
        require(self.name != "", "a text encoder needs a name, a folder, or 'package:' and a package's name")
        require(self.length >= 1, f"a text of {self.length} tokens holds nothing; the length must be at least 1")
        if self.name.startswith(PACKAGE):
            _in_package(self.name)

    def __call__(self, sentences: Sequence[str]) -> Float32[np.ndarray, "n length width"]:
        """The hidden state of each token, zeros after the last; the empty sentence is all zeros.

        Values are rounded to float16, so that fresh ones are what `embedded` keeps, up to that rounding's last bit.

        Raises:
            InputError: the model cannot be loaded, cannot read `length` tokens, or gives what float16 cannot hold.
        """
        rows = np.zeros((len(sentences), self.length, self.width), np.float32)
        said = [number for number, sentence in enumerate(sentences) if sentence]
        for start in range(0, len(said), BATCH):
            chosen = said[start : start + BATCH]
            hidden = self._hidden([sentences[number] for number in chosen])
            rows[chosen, : hidden.shape[1]] = hidden
        return rows

    @cached_property
    def width(self) -> int:
        """Numbers that stand for a token; loads the model. Raises what a call raises."""
        return self._hidden(["a"]).shape[-1]

    @cached_property
    def identity(self) -> str:
        """What changes when the model does: a digest of its files, or its name where it comes from the hub."""
        folder = self._folder
        if not os.path.isdir(folder):
            return self.name
        digest = hashlib.sha256()
        for path in sorted(path for path in Path(folder).iterdir() if path.is_file()):
            with path.open("rb") as file:
                digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()} ".encode())
        return digest.hexdigest()

    def overflow(self, sentence: str) -> str:
        """What a warning says after "has" of a sentence of more than `length` tokens; empty where it fits."""
        tokenizer, _ = self._loaded
        tokens = tokenizer(clean(sentence), add_special_tokens=False, verbose=False)["input_ids"]
        room = self.length - tokenizer.num_special_tokens_to_add()
        if len(tokens) <= room:
            return ""
        return (
            f"{len(tokens)} tokens, the model reads {room}: "
            f"the last {len(tokens) - room} were cut: {tokenizer.decode(tokens[room:])!r}"
        )

    @cached_property
    def _folder(self) -> str:
        """The local folder, or the name where there is none."""
        if self.name.startswith(PACKAGE):
            return _in_package(self.name)
        return os.path.expanduser(self.name)

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
            tokenizer, model = _load(self._folder)
        except Exception as error:  # networks, disks, formats and missing packages each fail in their own way
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")
            raise InputError(
                f"the text encoder {self.name!r} cannot be loaded: {reason}; "
                "give the name of a model on the Hugging Face hub or a folder that holds one"
            ) from error
        marks = tokenizer.num_special_tokens_to_add()
        config = getattr(model.config, "text_config", model.config)
        most = min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", tokenizer.model_max_length))
        require(
            marks < self.length <= most,
            f"the text encoder {self.name!r} reads {marks + 1} .. {most} tokens, not {self.length}; "
            "set the length to one of these",
        )
        return tokenizer, model

    def _hidden(self, sentences: list[str]) -> Float32[np.ndarray, "n tokens width"]:
        """The hidden states of sentences that are not empty, as far as the longest of them goes."""
        tokenizer, model = self._loaded
        sentences = [clean(sentence) for sentence in sentences]
        tokens = tokenizer(sentences, padding=True, truncation=True, max_length=self.length, return_tensors="pt")
        output = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        with np.errstate(over="ignore"):
            hidden = output.last_hidden_state.numpy().astype(np.float16).astype(np.float32)
        hidden = np.where(tokens["attention_mask"].numpy()[..., None] != 0, hidden, np.float32(0))
        require(
            bool(np.isfinite(hidden).all()),
            f"the text encoder {self.name!r} gives numbers that float16 (at most 65504) cannot hold; use another",
        )
        return hidden


@dataclasses.dataclass(frozen=True)
class Embedded:
    """What an encoder made of n captions, each different one kept once.

    Attributes:
        table: float16 `[u length width]`, of the different captions, on disk where that is local.
        index: int `[n]`, each caption's row in `table`.
    """

    table: Float16[np.ndarray, "u length width"]
    index: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.index)

    @property
    def width(self) -> int:
        """Numbers that stand for a token."""
        return self.table.shape[2]

    def rows(self, indices: Int[np.ndarray, " k"]) -> Float32[np.ndarray, "k length width"]:
        """Of the captions with these numbers in 0 .. n-1. Any thread may ask."""
        return np.asarray(self.table[self.index[indices]], np.float32)


def embedded(captions: Iterable[str], encoder: Encoder, folder: epath.PathLike) -> Embedded:
    """What `encoder` makes of a data set's captions, kept in `folder` and computed only where it is not there yet.

    The file's name tells the model, the length and the captions apart, so that data sets and encoders may share a
    folder, and a run that finds its file needs neither transformers nor the model. Several processes may ask at once;
    each then computes it. The computing shows a progress bar on a terminal.

    Args:
        captions: n sentences; "" where there is none.
        encoder: what reads them.
        folder: on a disk or `gs://`, made where missing; from the latter the file is read into memory.

    Raises:
        InputError: there are no captions, the encoder cannot be used, or `folder` cannot be written to.
    """
    captions = list(captions)
    require(len(captions) > 0, "there are no captions to encode; at least 1 is needed")
    # By length, so that sentences of one batch need little padding.
    different = sorted(set(captions), key=lambda caption: (len(caption), caption))
    number = {caption: row for row, caption in enumerate(different)}
    settings = json.dumps([encoder.identity, encoder.length, different])
    path = epath.Path(folder) / f"captions-{hashlib.sha256(settings.encode()).hexdigest()[:16]}.npy"
    if not path.exists():
        try:
            _write(path, different, encoder)
        except OSError as error:
            reason = error.strerror or error
            raise InputError(
                f"{path} cannot be written: {reason}; it needs a folder with space that is yours"
            ) from error
    return Embedded(_read(path), np.array([number[caption] for caption in captions]))


def _write(path: Any, captions: list[str], encoder: Encoder) -> None:
    """The captions' arrays into a NumPy file, in order, so that any file system will do."""
    shape = (len(captions), encoder.length, encoder.width)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several processes may write it at once: the last to finish wins, with the same content.
    with files.atomic_write(path) as file, tqdm(total=len(captions), desc="captions", disable=None) as bar:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": shape})
        for start in range(0, len(captions), BATCH):
            chosen = captions[start : start + BATCH]
            file.write(encoder(chosen).astype("<f2").tobytes())
            bar.update(len(chosen))


def _read(path: Any) -> Float16[np.ndarray, "u length width"]:
    try:
        if "://" not in os.fspath(path):
            return np.load(path, mmap_mode="r")
        with path.open("rb") as file:
            return np.load(file)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}; remove it, and it is made again") from error


def _in_package(name: str) -> str:
    """The folder of a package's model."""
    package = name.removeprefix(PACKAGE)
    try:
        folder = importlib.resources.files(package) / "model"
    except (ImportError, TypeError, ValueError) as error:
        raise InputError(
            f"the text encoder {name!r} needs the package {package!r}, which cannot be imported; install it"
        ) from error
    require((folder / "config.json").is_file(), f"the package of the text encoder {name!r} has no model/config.json")
    return str(folder)


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
        tokenizer, model = load(local_files_only=True)  # what lies here needs no network, which may be slow to fail
    except OSError:
        if os.path.isdir(name):
            raise
        tokenizer, model = load()
    if tokenizer.pad_token is None:  # what is padded is masked
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    return tokenizer, getattr(model, "text_model", model).eval().float().requires_grad_(False)
