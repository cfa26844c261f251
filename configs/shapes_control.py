"""A branch that obeys a map of what is where, on top of a frozen model that never saw one (ControlNet).

    python main.py --config=configs/shapes_text.py --workdir=runs/shapes_text
    python main.py --config=configs/shapes_control.py --workdir=runs/shapes_control
    python main.py --workdir=runs/shapes_control --mode=sample \
        --config.sample.control_image=map.png --config.sample.prompt=blue

Another base: --config.pretrained=runs/...; edges instead of areas: --config.data.control_image=edges
"""

from ml_collections import ConfigDict

from guided_diffusion_jax.experiment.config import preset


def get_config() -> ConfigDict:
    """Maps."""
    c = preset("shapes_text")
    c.model.name = "controlnet"
    c.pretrained = "runs/shapes_text"
    c.data.control_image = "segmentation"
    c.train.update(steps=1000, learning_rate=5e-4)
    c.train.per_condition_dropout.text = 0.3  # so that the map says what the sentence does not
    return c
