"""Every key with its default: a U-Net for 32x32 images of any data set.

    python main.py --config=configs/default.py --config.data.data_dir=IMAGES --workdir=RUN

The keys are documented in guided_diffusion_jax/experiment/default.py.
"""

from guided_diffusion_jax.experiment.default import get_config

__all__ = ["get_config"]
