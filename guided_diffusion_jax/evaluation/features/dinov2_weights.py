"""The weights of DINOv2 as transformers names them, as parameters of ours."""

import math
import re
from collections.abc import Mapping

import numpy as np
from etils import epath

from guided_diffusion_jax.errors import require
from guided_diffusion_jax.evaluation.features import weights
from guided_diffusion_jax.evaluation.features.dinov2 import HEAD_WIDTH, SIZE, Shape
from guided_diffusion_jax.evaluation.features.resize import bicubic_grid
from guided_diffusion_jax.evaluation.features.weights import Loaded
from guided_diffusion_jax.interop.pickled import LazyTensor

START, POSITIONS = "embeddings.cls_token", "embeddings.position_embeddings"
PATCHES = "embeddings.patch_embeddings.projection"
QKV = ("attention.attention.query", "attention.attention.key", "attention.attention.value")
DENSE = {"project": "attention.output.dense", "hidden": "mlp.fc1", "out": "mlp.fc2"}
NORMS = {"norm_1": "norm1", "norm_2": "norm2"}
SCALES = {"scale_1": "layer_scale1.lambda1", "scale_2": "layer_scale2.lambda1"}
ADVICE = "give a DINOv2 of size S, B or L without registers, by transformers' names, such as facebook/dinov2-small"


def load(path: epath.PathLike) -> tuple[Shape, Loaded]:
    """DINOv2's sizes and parameters, its positions on the grid of images of 224 pixels.

    The published positions are those of 518 pixels. They are resized as in transformers, by torch's bicubic
    interpolation to the grid's size (the authors' own code adds a tenth of a patch to it).

    Args:
        path: of the `model.safetensors` of `facebook/dinov2-small`, `-base` or `-large`.

    Raises:
        InputError: the file cannot be read, or a tensor is missing, misshapen or unknown; it names the first.
    """
    digest = weights.sha256(path)
    with weights.opened(path) as tensors:
        shape = _shape(path, tensors)
        side = math.isqrt(tensors[POSITIONS].shape[1] - 1)
        weights.check(path, tensors, shapes(shape, side), unused=r"embeddings\.mask_token", advice=ADVICE)
        flat = {
            ("start",): tensors[START].read(),
            ("positions",): _resized(tensors[POSITIONS].read(), side, SIZE // shape.patch),
            ("patches", "kernel"): tensors[f"{PATCHES}.weight"].read().transpose(2, 3, 1, 0),
            ("patches", "bias"): tensors[f"{PATCHES}.bias"].read(),
            **_norm(tensors, "norm", "layernorm"),
        }
        for i in range(shape.depth):
            flat |= {(f"block_{i}", *ours): array for ours, array in _block(tensors, f"encoder.layer.{i}.").items()}
        return shape, Loaded(weights.parameters(flat), digest)


def shapes(shape: Shape, side: int) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the file's tensors, for `side` x `side` positions."""
    width, depth, hidden, patch = shape

    def layer(name: str, sees: int, features: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (features, sees), f"{name}.bias": (features,)}

    expected: dict[str, tuple[int, ...]] = {
        START: (1, 1, width),
        POSITIONS: (1, side * side + 1, width),
        f"{PATCHES}.weight": (width, 3, patch, patch),
        f"{PATCHES}.bias": (width,),
    }
    for i in range(depth):
        block: dict[str, tuple[int, ...]] = {}
        for name in (*QKV, DENSE["project"]):
            block |= layer(name, width, width)
        block |= layer(DENSE["hidden"], width, hidden) | layer(DENSE["out"], hidden, width)
        block |= {f"{name}.{part}": (width,) for name in NORMS.values() for part in ("weight", "bias")}
        block |= dict.fromkeys(SCALES.values(), (width,))
        expected |= {f"encoder.layer.{i}.{name}": size for name, size in block.items()}
    return expected | {"layernorm.weight": (width,), "layernorm.bias": (width,)}


def _shape(path: epath.PathLike, tensors: Mapping[str, LazyTensor]) -> Shape:
    """The sizes, from the tensors that show them; what is inconsistent, `check` finds."""
    hidden = f"encoder.layer.0.{DENSE['hidden']}.weight"
    for name, rank in {START: 3, POSITIONS: 3, f"{PATCHES}.weight": 4, hidden: 2}.items():
        require(name in tensors, f"{path}: tensor {name} is missing; {ADVICE}")
        found = tensors[name].shape
        require(len(found) == rank, f"{path}: tensor {name} has the shape {found}, not {rank} dimensions; {ADVICE}")
    width, patch = tensors[START].shape[-1], tensors[f"{PATCHES}.weight"].shape[-1]
    require(width % HEAD_WIDTH == 0, f"{path}: {START} has {width} channels, no multiple of {HEAD_WIDTH}; {ADVICE}")
    require(0 < patch <= SIZE and SIZE % patch == 0, f"{path}: patches of {patch} pixels do not fill {SIZE}; {ADVICE}")
    numbers = (re.match(r"encoder\.layer\.(\d+)\.", name) for name in tensors)
    depth = len({number[1] for number in numbers if number})
    return Shape(width, depth, tensors[hidden].shape[0], patch)


def _block(tensors: Mapping[str, LazyTensor], prefix: str) -> dict[tuple[str, ...], np.ndarray]:
    parts = {part: [tensors[f"{prefix}{name}.{part}"].read() for name in QKV] for part in ("weight", "bias")}
    flat: dict[tuple[str, ...], np.ndarray] = {}
    flat["qkv", "kernel"], flat["qkv", "bias"] = np.concatenate(parts["weight"]).T, np.concatenate(parts["bias"])
    for ours, name in DENSE.items():
        flat[ours, "kernel"] = tensors[f"{prefix}{name}.weight"].read().T
        flat[ours, "bias"] = tensors[f"{prefix}{name}.bias"].read()
    for ours, name in NORMS.items():
        flat |= _norm(tensors, ours, f"{prefix}{name}")
    return flat | {(ours,): tensors[f"{prefix}{name}"].read() for ours, name in SCALES.items()}


def _norm(tensors: Mapping[str, LazyTensor], ours: str, name: str) -> dict[tuple[str, ...], np.ndarray]:
    return {(ours, "scale"): tensors[f"{name}.weight"].read(), (ours, "bias"): tensors[f"{name}.bias"].read()}


def _resized(positions: np.ndarray, side: int, size: int) -> np.ndarray:
    """Positions `[1 1+side**2 d]`, the class token's first, as `[1 1+size**2 d]`."""
    if side == size:
        return positions
    grid, matrix = positions[0, 1:].reshape(side, side, -1), bicubic_grid(side, size)
    new = np.einsum("ih,jw,hwd->ijd", matrix, matrix, grid, optimize=True).reshape(1, size * size, -1)
    return np.concatenate([positions[:, :1], new], axis=1)
