"""Requests in batches of one shape on the devices, and the bar that shows them."""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from guided_diffusion_jax import checks, sharding
from guided_diffusion_jax.generation import Request, Start, as_data
from guided_diffusion_jax.guidance import Weight
from guided_diffusion_jax.runtime import notices


def in_batches(
    run: Callable[[Request, tqdm], np.ndarray],
    request: Request,
    mesh: Mesh,
    batch_size: int,
    steps: int,
    shown: bool,
    *,
    axis: int,
) -> Iterator[np.ndarray]:
    """Images of `run(part, bar)` for each batch of a request.

    Args:
        run: images of a batch that is on the devices; it advances the bar by `steps` in all.
        request: of any number of images.
        mesh: the devices.
        batch_size: at most so many images at a time.
        steps: of each batch.
        shown: whether there is a bar.
        axis: of the images in what `run` returns.
    """
    count, size = request.size, size_of(request.size, batch_size, mesh)
    starts = range(0, count, size)
    with notices.progress(len(starts) * steps, f"sampling {count:,} images", " steps", shown=shown, leave=False) as bar:
        for start in starts:
            part = on_devices(request, np.arange(start, start + size), mesh)
            images = run(part, bar)
            yield images.take(np.arange(min(size, count - start)), axis)  # without the padding of the last batch


def size_of(count: int, batch_size: int, mesh: Mesh) -> int:
    """Size of all batches of `count` images. The last one is padded, so that all have one shape."""
    checks.integer("batch_size", batch_size, 1)
    return sharding.round_up(min(batch_size, count), mesh.size)


def on_devices(request: Request, rows: np.ndarray, mesh: Mesh) -> Request:
    """These rows of a request, on the devices; numbers that all images share as arrays of one type."""
    part = request.rows(sharding.process_local(rows))
    put = functools.partial(sharding.put_batch, mesh=mesh)

    def put_weight(weight: Weight) -> Weight:
        if isinstance(weight, tuple):
            return jax.tree.map(jnp.float32, weight)
        return put(np.asarray(weight, np.float32)) if np.ndim(weight) else jnp.float32(weight)

    def put_start(start: Start) -> Start:
        scale = None if start.scale is None else jnp.float32(start.scale)
        return put(start._replace(scale=None))._replace(scale=scale)

    return as_data(
        part._replace(
            indices=put(part.indices),
            branches=put(part.branches),
            null=put(part.null),
            weights=tuple(map(put_weight, part.weights)),
            guides=tuple(
                guide._replace(label=put(guide.label), weight=put_weight(guide.weight)) for guide in part.guides
            ),
            inpaint=put(part.inpaint),
            start=put_start(part.start),
            labels=None,
        )
    )
