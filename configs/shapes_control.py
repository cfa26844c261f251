"""A branch that obeys a map of what is where, on top of a frozen model that never saw one (ControlNet).

    python main.py --config=configs/shapes_text.py --workdir=runs/shapes_text
    python main.py --config=configs/shapes_control.py --workdir=runs/shapes_control
    python main.py --workdir=runs/shapes_control --mode=sample --config.sample.map=map.png --config.sample.prompt=blue

Another base: --config.control.base=runs/...; edges instead of areas: --config.data.map=edges
"""

from ml_collections import ConfigDict

from configs.shapes_text import get_config as shapes_text


def get_config() -> ConfigDict:
    """Maps."""
    c = shapes_text()
    c.control.base = "runs/shapes_text"
    c.data.map = "segmentation"
    c.train.update(steps=1000, learning_rate=5e-4)
    c.train.drop.text = 0.3  # so that the map says what the sentence does not
    return c
