"""A class in the style of a picture: the shape by its label, texture and background from a reference. 16 pixels.

    python main.py --config=configs/shapes_style.py --workdir=runs/shapes_style
    python main.py --workdir=runs/shapes_style --mode=sample --config.sample.style=ref.png --config.sample.labels=5

docs/results.md has the minutes on 2 CPU cores and the figures.
"""

from ml_collections import ConfigDict

from configs.shapes_class import get_config as shapes_class


def get_config() -> ConfigDict:
    """Class and style."""
    c = shapes_class()
    c.data.update(attributes=(), style="style")
    c.model.update(style_width=64, style_depth=2)
    c.train.steps = 6000
    return c
