"""Drawn pictures by a sentence, read byte by byte by a Transformer that is trained with the U-Net. 16 pixels, a laptop.

    python main.py --config=configs/shapes_text.py --workdir=runs/shapes_text
    python main.py --workdir=runs/shapes_text --mode=sample --config.sample.prompt="a red striped circle, top left"
    python main.py --workdir=runs/shapes_text --mode=evaluate --config.evaluate.split=novel

docs/results.md has the minutes on 2 CPU cores and the figures.
"""

from ml_collections import ConfigDict

from guided_diffusion_jax.experiment.config import preset


def get_config() -> ConfigDict:
    """Sentences."""
    c = preset("shapes_class")
    c.data.update(attributes=(), text="caption")
    c.model.update(use_labels=False, text_length=64, text_width=64, text_depth=2)
    c.train.steps = 3000
    return c
