"""One entry for every data set: the name and folder that a config gives, to a `Source`."""

from guided_diffusion_jax.data.folders import folder_source
from guided_diffusion_jax.data.records import tfds_source
from guided_diffusion_jax.data.source import MEMORY_LIMIT, Source, cached
from guided_diffusion_jax.errors import require


def open_source(
    name: str, *, split: str = "train", image_size: int, data_dir: str = "", memory_limit: int = MEMORY_LIMIT
) -> Source:
    """The data set: in memory when its pixels fit into `memory_limit` bytes, decoded while it is read otherwise.

    Args:
        name: "folder", one of ours ("digits"), or any image data set of TFDS.
        split: "train", "test", or for TFDS any of its expressions, such as "train[:90%]".
        image_size: height and width of the images in pixels.
        data_dir: the folder of images; or where TFDS's prepared data sets lie, empty for TFDS's own folder.
        memory_limit: bytes of pixels up to which everything is decoded at once; 0 for never.

    Raises:
        InputError: the data set cannot be had, lacks the split, or an image of it cannot be read.
    """
    require(image_size >= 1, f"data.image_size={image_size} must be at least 1 pixel")
    if name == "folder":
        source = folder_source(data_dir, split=split, image_size=image_size)
    else:
        source = tfds_source(name, split=split, image_size=image_size, data_dir=data_dir)
    return cached(source, memory_limit)
