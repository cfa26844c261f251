"""ADM on ImageNet 128x128 (Dhariwal & Nichol 2021, tables 11 and 12): class-conditional, with its classifier.

    python main.py --config=configs/imagenet128.py --workdir=runs/imagenet128

422M parameters, the classifier 43M. With OpenAI's weights, classifier weight 0.5 and 250 steps: FID 2.97 (its README).
"""

from ml_collections import ConfigDict

from guided_diffusion_jax.experiment.config import preset


def get_config() -> ConfigDict:
    """ImageNet at 128 pixels."""
    c = preset("imagenet64")
    c.data.image_size = 128
    c.model.update(
        width=256, channel_mult=(1, 1, 2, 3, 4), num_res_blocks=2, head_width=0, num_heads=4, dropout=0.0,
        attention_order="legacy",
    )  # fmt: skip
    c.diffusion.schedule = "linear"
    c.train.update(batch_size=256, steps=4_360_000, learning_rate=1e-4)
    c.classifier.model.update(channel_mult=(1, 1, 2, 3, 4), num_res_blocks=2)
    c.classifier.train.update(batch_size=256, steps=300_000, learning_rate=3e-4, weight_decay=0.05)
    c.sample.guidance.classifier_weight = 0.5
    return c
