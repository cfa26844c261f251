"""Images as the functions of `gd.metrics` take them: an array, or the path of a file or a folder."""

import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from guided_diffusion_jax.errors import InputError, require
from guided_diffusion_jax.evaluation import reference
from guided_diffusion_jax.evaluation.feature_pipeline import Batch, FeaturePipeline


class ImageSet(NamedTuple):
    """Images, checked.

    Attributes:
        length: number of images.
        batches: their batches for a pipeline.
    """

    length: int
    batches: Callable[[FeaturePipeline], Iterator[Batch]]

    @classmethod
    def of(cls, images: Any, name: str) -> "ImageSet":
        """Images from an array, uint8 `[n h w c]` with 1 or 3 channels, or a path (`reference.samples`).

        Args:
            images: the array, or what NumPy makes an array of; or the path.
            name: of the argument, for messages.

        Raises:
            InputError: they are none of these.
        """
        if isinstance(images, str | os.PathLike):
            found = reference.samples(images)
            return cls(found.shape[0], lambda pipeline: pipeline.blocks(reference.blocks(found, pipeline.batch_size)))
        try:
            array = np.asarray(images)
        except ValueError:
            raise InputError(f"{name}: the images differ in shape; give an array [n h w c] of one size") from None
        require(
            array.dtype == np.uint8,
            f"{name} is an array of {array.dtype}; it must be uint8 in 0 .. 255: of floats in [-1, 1] give "
            "np.uint8(np.clip((x + 1) * 127.5, 0, 255).round()), of floats in [0, 1] np.uint8((x * 255).round())",
        )
        require(
            array.ndim == 4 and array.shape[3] in (1, 3) and array.size > 0,
            f"{name} has shape {array.shape}; it must be [n h w c] with 1 or 3 channels, and hold an image at least",
        )
        return cls(len(array), lambda pipeline: pipeline.arrays(array))
