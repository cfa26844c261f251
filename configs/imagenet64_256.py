"""ADM's upsampler of ImageNet from 64x64 to 256x256 (Dhariwal & Nichol 2021, table 13), class-conditional.

    python main.py --mode=import --config=configs/imagenet64_256.py --import_path=64_256_upsampler.pt --workdir=RUN
    python main.py --mode=sample --workdir=RUN --config.sample.low_res=runs/imagenet64/samples/samples.npz

312M parameters. With OpenAI's weights, after the guided 64x64 model: FID 3.94 (its README).
Trained from scratch it makes its small pictures of the data set's own.
"""

from ml_collections import ConfigDict

from guided_diffusion_jax.experiment.config import preset


def get_config() -> ConfigDict:
    """From 64 to 256 pixels."""
    c = preset("imagenet256")
    c.data.low_res_size = 64
    c.model.name = "super_resolution"
    c.model.update(width=192, head_width=0, num_heads=4)
    c.train.steps = 500_000
    c.sample.guidance.classifier_weight = 0.0  # the paper guides the small picture only
    return c
