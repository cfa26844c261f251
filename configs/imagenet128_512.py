"""ADM's upsampler of ImageNet from 128x128 to 512x512 (Dhariwal & Nichol 2021, table 13), class-conditional.

    python main.py --mode=import --config=configs/imagenet128_512.py --import_path=128_512_upsampler.pt --workdir=RUN
    python main.py --mode=sample --workdir=RUN --config.sample.low_res=runs/imagenet128/samples/samples.npz

309M parameters. With OpenAI's weights, after the guided 128x128 model: FID 3.85 (its README).
Trained from scratch it makes its small pictures of the data set's own.
"""

from ml_collections import ConfigDict

from guided_diffusion_jax.experiment.config import preset


def get_config() -> ConfigDict:
    """From 128 to 512 pixels; the levels are those of 64 to 256, so that the smallest map has 16."""
    c = preset("imagenet64_256")
    c.data.update(image_size=512, low_res_size=128)
    c.model.update(attention_resolutions=(32, 16), head_width=64)
    c.train.steps = 1_050_000
    return c
