"""Weights and pictures by formula, so that only what a network makes of them has to be stored.

NumPy's RandomState, whose streams are frozen, is seeded by the CRC-32 of a tensor's name.
"""

import zlib

import numpy as np

DINOV2 = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 518, "patch_size": 14}
"""A small DINOv2 for transformers' `Dinov2Config`; the positions of the published ones, 37 x 37."""


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Float32. What scales is in 0.5 .. 1.5, what is added normal, and matrices keep the size of what goes through."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    if name.endswith(("running_var", "lambda1")) or (("norm" in name or ".bn." in name) and name.endswith("weight")):
        return (0.5 + random.random_sample(shape)).astype(np.float32)
    array = random.standard_normal(shape)
    if name.endswith("weight"):
        gain = 2 if name.endswith("conv.weight") else 1
        return (array * np.sqrt(gain / np.prod(shape[1:]))).astype(np.float32)
    return (array * 0.2).astype(np.float32)


def state_dict(shapes) -> dict[str, np.ndarray]:
    return {name: weight(name, tuple(shape)) for name, shape in shapes.items()}


def pictures(name: str, n: int, h: int, w: int, c: int = 3) -> np.ndarray:
    """Waves with noise and two flat, saturated corners, uint8 `[n h w c]`."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    k, i, j, channel = np.ogrid[:n, :h, :w, :c]
    waves = 127 + 90 * np.sin((0.11 + 0.05 * k) * i + (0.17 - 0.04 * channel) * j + channel)
    values = np.clip(np.rint(waves + 25 * random.standard_normal((n, h, w, c))), 0, 255).astype(np.uint8)
    values[:, : h // 6, : w // 5], values[:, -h // 7 :, -w // 6 :] = 0, 255
    return values
