"""ADM on ImageNet 256x256 (Dhariwal & Nichol 2021, tables 11 and 12): class-conditional, with its classifier.

    python main.py --config=configs/imagenet256.py --workdir=runs/imagenet256

554M parameters, the classifier 54M. With OpenAI's weights, classifier weight 1 and 250 steps: FID 4.59 (its README).
The unconditional model, 256x256_diffusion_uncond.pt, is --config.model.use_labels=False; its classifier weight is 10.
"""

from ml_collections import ConfigDict

from guided_diffusion_jax.experiment.config import preset


def get_config() -> ConfigDict:
    """ImageNet at 256 pixels."""
    c = preset("imagenet128")
    c.data.image_size = 256
    c.model.update(channel_mult=(1, 1, 2, 2, 4, 4), head_width=64)
    c.train.steps = 1_980_000
    c.classifier.model.channel_mult = (1, 1, 2, 2, 4, 4)
    c.classifier.train.steps = 500_000
    c.sample.guidance.classifier_weight = 1.0
    return c
