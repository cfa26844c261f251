"""Prompts to the context of Stable Diffusion's U-Nets, and to SDXL's pooled text and sizes."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from guided_diffusion_jax import checks
from guided_diffusion_jax.data.clip_tokenizer import END, START, ClipTokenizer
from guided_diffusion_jax.errors import require
from guided_diffusion_jax.models.clip import ClipText
from guided_diffusion_jax.typing import Params

PIECE = re.compile(r"\(((?:[^()\\]|\\.)*?):\s*(\d+(?:\.\d+)?)\)")
"""A weighted piece of a prompt, "(word:1.3)"; a backslash before a parenthesis makes it text."""

SIZES = ("original_size", "crop", "target_size")
"""What SDXL is told beside the pooled text, two numbers each: height and width, top and left, height and width."""


@dataclasses.dataclass(frozen=True, eq=False)
class ClipPrompts:
    """Reader of prompts with one text encoder, or with SDXL's two.

    Attributes:
        encoders: the networks.
        params: of each.
        tokenizers: of each.
        image_size: height and width in pixels, which SDXL is told by default.
        sizes: whether the U-Net takes pooled text and sizes, as SDXL's.
        zero_negative: without a negative prompt all features are zero, and not those of "".
    """

    encoders: tuple[ClipText, ...]
    params: tuple[Params, ...]
    tokenizers: tuple[ClipTokenizer, ...]
    image_size: tuple[int, int]
    sizes: bool = False
    zero_negative: bool = False

    def __post_init__(self) -> None:
        count = len(self.encoders)
        require(
            len(self.tokenizers) == count,
            f"there are {len(self.tokenizers)} tokenizers for {count} text encoders; give tokenizer= of a folder for "
            "each (a single file holds none)",
        )

    @property
    def options(self) -> tuple[str, ...]:
        """Keywords that a request may have beside the prompt."""
        more = ("prompt_2", "negative_2", *SIZES, *(f"negative_{name}" for name in SIZES)) if self.sizes else ()
        return ("clip_skip", "prompt_weights", *more)

    def read(
        self,
        prompts: Sequence[str],
        *,
        negative: bool = False,
        prompt_2: str | Sequence[str] | None = None,
        negative_2: str | Sequence[str] | None = None,
        clip_skip: int = 0,
        prompt_weights: bool = False,
        **sizes: Any,
    ) -> dict[str, np.ndarray]:
        """Conditions of prompts, a row for each.

        Args:
            prompts: any text; what is longer than 77 tokens is cut.
            negative: they are to be steered away from.
            prompt_2: for SDXL's second encoder, where it is another prompt; one, or one for each.
            negative_2: likewise of negative prompts.
            clip_skip: layers at the end of the text encoder that are left out.
            prompt_weights: read "(word:1.3)" as a word of this weight: its features are multiplied, and all of the
                prompt's scaled to keep their mean.
            sizes: of SDXL, pairs of pixels: `original_size`, `crop`, `target_size`, and for the negative prompt
                `negative_original_size` and so on.
        """
        second = negative_2 if negative else prompt_2
        others = list(prompts) if second is None else [second] * len(prompts) if isinstance(second, str) else second
        require(len(others) == len(prompts), f"prompt_2 has {len(others)} prompts, and prompt {len(prompts)}")
        skip = checks.integer("clip_skip", clip_skip, 0, min(net.depth for net in self.encoders) - 1)
        made = [self._features(pair, skip, prompt_weights) for pair in zip(prompts, others, strict=True)]
        context = np.concatenate([text for text, _ in made])
        if not self.sizes:
            return {"text": context}
        numbers = self._numbers(negative, sizes)
        pooled = [np.concatenate([vector, numbers], axis=1) for _, vector in made]
        return {"text": context, "text_time": np.concatenate(pooled)}

    def absent(self, *, clip_skip: int = 0, **options: Any) -> dict[str, np.ndarray]:
        """Conditions without a negative prompt: of the empty one, or zeros beside the sizes."""
        sizes = {name: value for name, value in options.items() if name.removeprefix("negative_") in SIZES}
        empty = self.read([""], negative=True, clip_skip=clip_skip, **sizes)
        if not self.zero_negative:
            return empty
        zeros = {name: np.zeros_like(values) for name, values in empty.items()}
        if self.sizes:
            zeros["text_time"][:, -6:] = empty["text_time"][:, -6:]
        return zeros

    def tokens(self, prompts: Sequence[str]) -> Int[np.ndarray, "n k length"]:
        """Numbers of the prompts' tokens for each of the k text encoders."""
        return np.stack([tokenizer.encode(prompts) for tokenizer in self.tokenizers], axis=1)

    def overflow(self, prompt: str) -> str:
        """What is lost of a prompt that is too long."""
        return self.tokenizers[0].overflow(prompt)

    def _features(
        self, prompts: tuple[str, str], skip: int, weighted: bool
    ) -> tuple[Float[np.ndarray, "1 n d"], Float[np.ndarray, "1 p"]]:
        """The context and the pooled text of a prompt, for the first encoder and for the second."""
        context, pooled = [], np.zeros((1, 0), np.float32)
        for net, params, tokenizer, prompt in zip(self.encoders, self.params, self.tokenizers, prompts, strict=False):
            tokens, weights = weighted_tokens(tokenizer, prompt, weighted)
            states, projected = _encode(net, skip, self.sizes)(params, tokens)
            context.append(_weighted(np.asarray(states), weights))
            pooled = pooled if projected is None else np.asarray(projected)
        return np.concatenate(context, axis=-1), pooled

    def _numbers(self, negative: bool, sizes: Mapping[str, Any]) -> Float[np.ndarray, "1 6"]:
        defaults = {"original_size": self.image_size, "crop": (0, 0), "target_size": self.image_size}
        found: list[float] = []
        for name, default in defaults.items():
            pair = sizes.get(name, default)
            key = f"negative_{name}" if negative and f"negative_{name}" in sizes else name
            pair = sizes.get(key, pair)
            require(np.shape(pair) == (2,), f"{key}={checks.shown(pair)} must be two numbers of pixels")
            found += [checks.real(key, number) for number in pair]
        return np.array([found], np.float32)


@functools.lru_cache(maxsize=32)
def _encode(net: ClipText, skip: int, penultimate: bool) -> Any:
    """Jitted `(params, tokens) -> (context, projected)`: one program for all prompts."""
    return jax.jit(functools.partial(context, net, skip=skip, penultimate=penultimate))


def context(
    net: ClipText, params: Params, tokens: Int[Array, "b n"], *, skip: int = 0, penultimate: bool = False
) -> tuple[Float[Array, "b n d"], Float[Array, "b p"] | None]:
    """What a U-Net reads of a text encoder, and the projected features; SDXL's reads the state before the last."""
    features: Any = net.apply({"params": params}, tokens, skip=skip)
    # SDXL was trained on that state without the final norm.
    return (features.states[-2 - skip] if penultimate else features.last), features.projected


def weighted_tokens(
    tokenizer: ClipTokenizer, prompt: str, weighted: bool
) -> tuple[Int[np.ndarray, "1 n"], Float[np.ndarray, "1 n"]]:
    """Numbers of a prompt's tokens, and their weights; all 1 where "(word:1.3)" is not read.

    >>> pieces("a (red:1.3) fox")
    [('a ', 1.0), ('red', 1.3), (' fox', 1.0)]
    """
    weights = np.ones((1, tokenizer.length), np.float32)
    if not weighted:
        return tokenizer.encode([prompt]), weights
    inner: list[int] = []
    for text, weight in pieces(prompt):
        tokens = tokenizer.tokens(text)
        weights[0, 1 + len(inner) : 1 + len(inner) + len(tokens)] = weight
        inner += tokens
    row = np.full((1, tokenizer.length), tokenizer.vocabulary[tokenizer.pad], np.int32)
    kept = inner[: tokenizer.length - 2]
    weights[0, len(kept) + 1 :] = 1
    row[0, : len(kept) + 2] = [tokenizer.vocabulary[START], *kept, tokenizer.vocabulary[END]]
    return row, weights


def pieces(prompt: str) -> list[tuple[str, float]]:
    """The pieces of a prompt and their weights."""
    found, end = [], 0
    for match in PIECE.finditer(prompt):
        found += [(prompt[end : match.start()], 1.0), (match[1], float(match[2]))]
        end = match.end()
    found.append((prompt[end:], 1.0))
    return [(re.sub(r"\\([()])", r"\1", text), weight) for text, weight in found if text]


def _weighted(states: Float[np.ndarray, "1 n d"], weights: Float[np.ndarray, "1 n"]) -> np.ndarray:
    states = states.astype(np.float32)
    if (weights == 1).all():
        return states
    changed = states * weights[..., None]
    return changed * (states.mean() / changed.mean())
