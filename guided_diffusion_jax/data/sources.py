"""One entry for every data set."""

from guided_diffusion_jax.data.records import tfds_source
from guided_diffusion_jax.data.source import MEMORY_LIMIT, Source, cached
from guided_diffusion_jax.errors import require


def open_source(
    name: str, *, split: str = "train", image_size: int, data_dir: str = "", memory_limit: int = MEMORY_LIMIT
) -> Source:
    require(image_size >= 1, f"data.image_size={image_size} must be at least 1 pixel")
    source = tfds_source(name, split=split, image_size=image_size, data_dir=data_dir)
    return cached(source, memory_limit)
