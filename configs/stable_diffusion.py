"""Images by Stable Diffusion: the settings where --workdir is a folder or a file of its weights.

python main.py --workdir=stable-diffusion-v1-5/ --mode=sample --config.sample.prompt="a red fox"
"""

from ml_collections import ConfigDict

from guided_diffusion_jax.experiment.default import get_config as default


def get_config() -> ConfigDict:
    """Four images by the scheduler that came with the weights."""
    c = default()
    c.sample.update(count=4, batch_size=4, sampler="native", spacing="native", steps=50, frames=0)
    return c
