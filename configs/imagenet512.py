"""ADM on ImageNet 512x512 (Dhariwal & Nichol 2021, tables 11 and 12): class-conditional, with its classifier.

    python main.py --config=configs/imagenet512.py --workdir=runs/imagenet512

559M parameters, the classifier 54M. With OpenAI's weights, classifier weight 4 and 250 steps: FID 7.72 (its README).
"""

from ml_collections import ConfigDict

from guided_diffusion_jax.experiment.config import preset


def get_config() -> ConfigDict:
    """ImageNet at 512 pixels."""
    c = preset("imagenet256")
    c.data.image_size = 512
    c.model.channel_mult = (0.5, 1, 1, 2, 2, 4, 4)
    c.train.steps = 1_940_000
    c.classifier.model.channel_mult = (0.5, 1, 1, 2, 2, 4, 4)
    c.sample.guidance.classifier_weight = 4.0
    return c
