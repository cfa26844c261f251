"""CIFAR-10 on two CPU cores within an hour: latents of 16x16x4, ten classes, classifier-free guidance.

    python main.py --config=cifar10_latent --config.data.data_dir=TFDS --workdir=runs/cifar10_latent --mode=autoencoder
    python main.py --config=cifar10_latent --config.data.data_dir=TFDS --workdir=runs/cifar10_latent
    python main.py --workdir=runs/cifar10_latent --mode=sample --config.sample.labels=horse

An image of 32x32x3 becomes latents of 16x16x4, with a quarter of the positions.
Images are not mirrored: each is seen five times, and latents of mirrored ones take as long again to compute.
docs/gallery.md has what came of it, with times and figures.
"""

from ml_collections import ConfigDict

from guided_diffusion_jax.experiment.default import get_config as default


def get_config() -> ConfigDict:
    """CIFAR-10, in latents."""
    c = default()
    c.data.update(name="cifar10", image_size=32, flip=False)
    c.autoencoder.model.update(width=32, channel_mult=(1, 2), num_res_blocks=1)
    c.autoencoder.train.update(
        batch_size=16, steps=1500, learning_rate=2e-3, lr_schedule="cosine", warmup_steps=100, ema_decay=0.99,
        log_every=100, save_every=500,
    )  # fmt: skip
    c.model.update(
        autoencoder="autoencoder", width=32, channel_mult=(1, 2, 4), num_res_blocks=1, attention_resolutions=(8, 4),
        head_width=32, norm_groups=8, dropout=0.0, resample="conv",
    )  # fmt: skip
    c.diffusion.prediction = "v"
    c.train.update(
        batch_size=64, steps=3600, learning_rate=1e-3, lr_schedule="cosine", warmup_steps=200, ema_decay=0.998,
        log_every=50, save_every=500, sample_every=1500,
    )  # fmt: skip
    c.sample.update(count=100, sampler="unipc", spacing="karras", spacing_options=(("sigma_max", 80.0),), steps=20)
    return c
