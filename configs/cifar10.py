"""CIFAR-10, 32x32 photographs of ten classes, classifier-free guidance.

    python main.py --config=configs/cifar10.py --workdir=runs/cifar10

The U-Net and the training are those of Nichol & Dhariwal 2021 (table 4) at half their steps: 57.1M parameters.
Meant for one accelerator; on a CPU make it small: --config.model.width=32 --config.model.num_res_blocks=1.
Where the data set is not prepared yet, TFDS downloads it; --config.data.data_dir names another place.
"""

from ml_collections import ConfigDict

from guided_diffusion_jax.experiment.default import get_config as default


def get_config() -> ConfigDict:
    """CIFAR-10."""
    c = default()
    c.data.update(name="cifar10", image_size=32, flip=True)
    c.model.update(width=128, channel_mult=(1, 2, 2, 2), num_res_blocks=3, dropout=0.3, dtype="bfloat16")
    c.train.update(batch_size=128, steps=250_000, learning_rate=1e-4, warmup_steps=1000)
    c.sample.update(sampler="unipc", spacing="karras", spacing_options=(("sigma_max", 80.0),), steps=20)
    return c
