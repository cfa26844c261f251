"""Feature extraction on all devices, in batches of one size."""

from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial
from jaxtyping import Int, UInt8

from guided_diffusion_jax import sharding
from guided_diffusion_jax.data.dataset import Dataset
from guided_diffusion_jax.evaluation.features import Extractor, Features
from guided_diffusion_jax.runtime import notices

Batch = tuple[UInt8[np.ndarray, "b h w c"], int]
"""This process's images of a padded batch, and the number of images in the whole batch without padding."""


class FeaturePipeline:
    """Extractors compiled into one program for all devices.

    Args:
        extractors: each is applied to every image.
        batch_size: images at a time over all devices, rounded up to a multiple of their number.
        mesh: the devices; all by default.
    """

    def __init__(self, extractors: Sequence[Extractor], batch_size: int = 100, mesh: Mesh | None = None):
        self._mesh = sharding.mesh() if mesh is None else mesh
        self.batch_size = sharding.round_up(batch_size, self._mesh.size)
        replicated = sharding.replicated(self._mesh)
        # Functions are arguments, so that their parameters are no constants of the program.
        functions = [f if isinstance(f, Partial) else Partial(f) for f in (extractor.apply for extractor in extractors)]
        self._functions = jax.device_put(functions, replicated)
        self._apply = jax.jit(
            lambda functions, images: [function(images) for function in functions],
            out_shardings=replicated,
            compiler_options=sharding.compiler_options(),
        )

    def __call__(self, batches: Iterable[Batch]) -> Iterator[list[Features]]:
        """Features of each batch from each extractor, as NumPy arrays, in all processes."""
        with notices.progress(None, "features", " images", leave=False) as bar:
            for images, count in batches:
                on_devices = sharding.put_batch(images, self._mesh)
                with notices.compiling("the features", self._functions, on_devices):
                    output = self._apply(self._functions, on_devices)
                yield jax.tree.map(lambda values, count=count: np.asarray(values)[:count], output)
                bar.update(count)

    def dataset(self, data: Dataset, indices: Int[np.ndarray, " n"] | None = None) -> Iterator[Batch]:
        """Batches of examples of a data set, all by default; each process reads its own part."""
        indices = np.arange(len(data)) if indices is None else indices
        for start in range(0, len(indices), self.batch_size):
            batch = indices[start : start + self.batch_size]
            padded = batch.take(np.arange(self.batch_size), mode="clip")
            yield data.read(sharding.process_local(padded))["image"], len(batch)

    def arrays(self, images: UInt8[np.ndarray, "n h w c"]) -> Iterator[Batch]:
        """Batches of images that all processes have."""
        return self.blocks(images[start : start + self.batch_size] for start in range(0, len(images), self.batch_size))

    def blocks(self, blocks: Iterable[UInt8[np.ndarray, "_ h w c"]]) -> Iterator[Batch]:
        """Batches from blocks of at most `batch_size` images that all processes have."""
        for block in blocks:
            yield block.take(sharding.process_local(np.arange(self.batch_size)), axis=0, mode="clip"), len(block)
