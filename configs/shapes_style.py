"""A class in the style of a picture: the shape by its label, texture and background from a reference. 16 pixels.

    python main.py --config=configs/shapes_style.py --workdir=runs/shapes_style
    python main.py --workdir=runs/shapes_style --mode=sample \
        --config.sample.reference_image=ref.png --config.sample.labels=5

docs/results.md has the minutes on 2 CPU cores and the figures.
"""

from ml_collections import ConfigDict

from guided_diffusion_jax.experiment.config import preset


def get_config() -> ConfigDict:
    """Class and style."""
    c = preset("shapes_class")
    c.data.update(attributes=(), reference_image="style")
    c.model.update(reference_width=64, reference_depth=2)
    c.train.steps = 6000
    return c
