"""Latent diffusion on drawn pictures of 64 pixels by a sentence: an autoencoder, then a model of its latents, on a CPU.

    python main.py --config=configs/shapes64_latent.py --workdir=runs/shapes64 --mode=autoencoder
    python main.py --config=configs/shapes64_latent.py --workdir=runs/shapes64
    python main.py --workdir=runs/shapes64 --mode=sample --config.sample.prompt="two large red striped stars, top left"
    python main.py --workdir=runs/shapes64 --mode=evaluate

An image of 64x64x3 becomes latents of 16x16x4. docs/latent_diffusion.md has the minutes on 2 CPU cores.
"""

from ml_collections import ConfigDict

from guided_diffusion_jax.experiment.config import preset


def get_config() -> ConfigDict:
    """Sentences, in latents."""
    c = preset("shapes_text")
    c.data.update(name="shapes/64", image_size=64)
    c.autoencoder.model.update(width=16, channel_mult=(1, 2, 4), num_res_blocks=1)
    c.autoencoder.loss = "mse"
    c.autoencoder.train.update(
        batch_size=8, steps=2500, learning_rate=2e-3, lr_schedule="cosine", warmup_steps=100, ema_decay=0.99,
        log_every=100, save_every=500,
    )  # fmt: skip
    c.model.update(autoencoder="autoencoder", attention_resolutions=(8, 4), norm_groups=8)
    c.train.update(batch_size=64, steps=6500, lr_schedule="cosine")
    return c
