"""Class, attributes, sentence, style and map at once, any mix of them, each at resolutions of its own. 16 pixels.

    python main.py --config=configs/shapes_all.py --workdir=runs/shapes_all
    python main.py --workdir=runs/shapes_all --mode=evaluate --config.evaluate.kinds=label+style
    python main.py --workdir=runs/shapes_all --mode=sample --config.sample.style=ref.png --config.sample.prompt="a star"

docs/results.md has the minutes on 2 CPU cores and the figures.
"""

from ml_collections import ConfigDict

from configs.shapes_class import get_config as shapes_class


def get_config() -> ConfigDict:
    """All kinds."""
    c = shapes_class()
    c.data.update(attributes=("colour", "size", "place"), text="caption", style="style", map="segmentation")
    c.model.update(text_length=64, text_width=64, text_depth=2, style_width=64, style_depth=2)
    c.model.inject = "16:map,8:map+text+style+label+attributes,4:text+style+label+attributes"
    # Each kind is often alone, or nothing would be learned from the one that says least.
    c.train.drop.update(label=0.5, attributes=0.5, text=0.6, style=0.3, map=0.6)
    c.train.steps = 1500
    return c
