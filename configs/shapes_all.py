"""Class, attributes, sentence, style and map at once, any mix of them, each at resolutions of its own. 16 pixels.

    python main.py --config=configs/shapes_all.py --workdir=runs/shapes_all
    python main.py --workdir=runs/shapes_all --mode=evaluate "--config.evaluate.conditions=('label','reference_image')"
    python main.py --workdir=runs/shapes_all --mode=sample \
        --config.sample.reference_image=ref.png --config.sample.prompt="a star"

docs/results.md has the minutes on 2 CPU cores and the figures.
"""

from ml_collections import ConfigDict

from guided_diffusion_jax.experiment.config import preset


def get_config() -> ConfigDict:
    """All kinds."""
    c = preset("shapes_class")
    c.data.update(
        attributes=("colour", "size", "place"), text="caption", reference_image="style", control_image="segmentation"
    )
    c.model.update(text_length=64, text_width=64, text_depth=2, reference_width=64, reference_depth=2)
    low = (8, 4)
    c.model.condition_resolutions = (
        ("control_image", (16, 8)), ("text", low), ("reference_image", low), ("label", low), ("attributes", low),
    )  # fmt: skip
    # Each kind is often alone, or nothing would be learned from the one that says least.
    c.train.per_condition_dropout.update(label=0.5, attributes=0.5, text=0.6, reference_image=0.3, control_image=0.6)
    c.train.steps = 1500
    return c
