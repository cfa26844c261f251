"""CLIP's tokenizer: byte pair encoding of lower-case words (Radford et al. 2021, section 2.4)."""

import dataclasses
import functools
import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int32

from guided_diffusion_jax.errors import InputError, require, shown

WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""What is encoded apart: English endings, letters, single digits, other signs."""
START, END = "<|startoftext|>", "<|endoftext|>"
LARGEST = 64 * 2**20
"""Bytes of a file of a tokenizer, at most; CLIP's largest has 4 million."""


@dataclasses.dataclass(frozen=True)
class ClipTokenizer:
    """Prompts to the numbers of tokens: a start token, the prompt's, an end token, padding up to `length`.

    A token that stands for itself (start, end and padding) is recognised in a prompt before anything else. Where "!"
    pads, as in Stable Diffusion 2 and in SDXL's second encoder, every "!" of a prompt becomes the padding token.

    Attributes:
        vocabulary: tokens to numbers.
        merges: pairs of tokens that become one, the most frequent first.
        pad: token of the padding.
        length: tokens of a prompt, the start and the end included.
        added: further tokens that stand for themselves, such as those of textual inversion; a vocabulary has them.
            Where "<toy>_1", "<toy>_2" and so on are tokens as well, "<toy>" in a prompt is all of them.

    Raises:
        InputError: the vocabulary has no start, end or padding token.
    """

    vocabulary: dict[str, int] = dataclasses.field(repr=False)
    merges: tuple[tuple[str, str], ...] = dataclasses.field(repr=False)
    pad: str = END
    length: int = 77
    added: tuple[str, ...] = ()

    cached = False

    def __post_init__(self) -> None:
        missing = [token for token in (START, END, self.pad, *self.added) if token not in self.vocabulary]
        require(not missing, f"the tokenizer's vocabulary has no {', '.join(map(shown, missing))}")
        require(self.length >= 2, f"a prompt of {self.length} tokens has no room for its start and its end")

    @functools.cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

        try:
            bpe = models.BPE(self.vocabulary, list(self.merges), unk_token=END, end_of_word_suffix="</w>")
        except Exception as error:  # the library raises Exception itself
            raise InputError(f"the tokenizer's merges do not fit its vocabulary: {error}") from None
        tokenizer = Tokenizer(bpe)
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        words = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        specials = dict.fromkeys((START, END, self.pad, *self.added))
        tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in specials])
        return tokenizer

    @functools.cached_property
    def identity(self) -> str:
        """A digest that differs for tokenizers that encode differently."""
        content = json.dumps([self.vocabulary, self.merges, self.pad, self.length, self.added])
        return f"clip-{hashlib.sha256(content.encode()).hexdigest()[:16]}"

    def tokens(self, prompt: str) -> list[int]:
        """Numbers of a prompt's tokens, without start, end and limit."""
        for token in self.added:
            more = itertools.takewhile(self.vocabulary.__contains__, (f"{token}_{i}" for i in itertools.count(1)))
            prompt = re.sub(rf"{re.escape(token)}(?!_\d)", " ".join([token, *more]).replace("\\", r"\\"), prompt)
        return self._tokenizer.encode(prompt, add_special_tokens=False).ids

    def encode(self, prompts: Sequence[str]) -> Int32[np.ndarray, "n length"]:
        """Numbers of the prompts' tokens; longer prompts are truncated before the end token."""
        rows = np.full((len(prompts), self.length), self.vocabulary[self.pad], np.int32)
        for row, prompt in zip(rows, prompts, strict=True):
            inner = self.tokens(prompt)[: self.length - 2]
            row[: len(inner) + 2] = [self.vocabulary[START], *inner, self.vocabulary[END]]
        return rows

    def overflow(self, caption: str) -> str:
        """What is lost of a prompt that is too long, to complete "The caption has ..."; empty if it fits."""
        count = len(self.tokens(caption)) + 2
        return f"{count} tokens, of which {self.length} are read" if count > self.length else ""


def load(folder: epath.PathLike) -> ClipTokenizer:
    """The tokenizer of a folder with vocab.json and merges.txt, or with tokenizer.json.

    special_tokens_map.json says which token pads, tokenizer_config.json where that file says nothing. Further tokens
    stand in added_tokens.json, tokenizer_config.json or tokenizer.json.

    Raises:
        InputError: a file is missing or is none of a tokenizer.
    """
    folder = epath.Path(folder)
    config, specials = (_json(folder / name) or {} for name in ("tokenizer_config.json", "special_tokens_map.json"))
    pad = specials.get("pad_token", config.get("pad_token", END))
    pad = pad.get("content") if isinstance(pad, dict) else pad
    length = config.get("model_max_length", 77)
    whole = isinstance(length, int) and 2 <= length <= 4096  # where there is no limit, a huge number stands for it
    vocabulary, merges = _byte_pairs(folder)
    pad, added = pad if isinstance(pad, str) else END, _added(folder, config)
    vocabulary |= added
    fault = "holds no vocabulary and merges of a byte pair encoding"
    require(all(type(n) is int for n in vocabulary.values()) and all(len(p) == 2 for p in merges), f"{folder} {fault}")
    try:
        further = tuple(token for token in added if token not in (START, END, pad))
        return ClipTokenizer(vocabulary, merges, pad, length if whole else 77, further)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None


def _byte_pairs(folder: epath.Path) -> tuple[dict[str, int], tuple[Any, ...]]:
    """The vocabulary, and the merges, which are not checked yet."""
    vocabulary = _json(folder / "vocab.json")
    if vocabulary is not None:
        lines = (_read(folder / "merges.txt") or "").split("\n")
        return vocabulary, tuple(tuple(line.split()) for line in lines if line and not line.startswith("#version"))
    whole = _json(folder / "tokenizer.json")
    require(whole is not None, f"{folder} holds no vocab.json and no tokenizer.json: it is no tokenizer's folder")
    model = whole.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise InputError(f"{folder / 'tokenizer.json'} is no byte pair encoding, so it is not CLIP's")
    pairs = (tuple(pair.split()) if isinstance(pair, str) else tuple(pair) for pair in model.get("merges", ()))
    return model["vocab"], tuple(pairs)


def _added(folder: epath.Path, config: dict[str, Any]) -> dict[str, int]:
    """Tokens that stand for themselves and their numbers, in the order of these."""
    whole = {} if (folder / "vocab.json").exists() else _json(folder / "tokenizer.json") or {}
    found = _json(folder / "added_tokens.json") or {}
    try:
        found |= {token["content"]: int(i) for i, token in (config.get("added_tokens_decoder") or {}).items()}
        found |= {token["content"]: token["id"] for token in whole.get("added_tokens", ())}
        return dict(sorted(found.items(), key=lambda item: item[1]))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InputError(f"{folder}: what it says of added tokens is damaged") from None


def _json(path: epath.Path) -> Any:
    """The object of a JSON file; None where there is no file."""
    content = _read(path)
    try:
        value = None if content is None else json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON: {error}") from None
    require(value is None or isinstance(value, dict), f"{path} holds no JSON object")
    return value


def _read(path: epath.Path) -> str | None:
    if not path.exists():
        return None
    require(path.stat().length <= LARGEST, f"{path} has {path.stat().length:,} bytes, too many for a tokenizer")
    try:
        return path.read_text()
    except UnicodeDecodeError:
        raise InputError(f"{path} is no text") from None
