"""Your captioned pictures at 256 pixels, for one accelerator: an autoencoder, then a model of its latents.

A folder of pictures with a captions.jsonl beside them, {"file": "1.png", "caption": "..."} a line:

    python main.py --config=pictures256_latent --config.data.data_dir=PICTURES --workdir=runs/p --mode=autoencoder
    python main.py --config=pictures256_latent --config.data.data_dir=PICTURES --workdir=runs/p
    python main.py --workdir=runs/p --mode=sample --config.sample.prompt="..."

--config.model.autoencoder=stable-diffusion-v1-5/vae takes a trained autoencoder instead of the first command.

An image of 256x256x3 becomes latents of 32x32x4 (LDM's f = 8, Rombach et al. 2022). Not run yet: it wants an
accelerator and some 100,000 pictures. --dry_run says what each command takes; docs/latent_diffusion.md has it.
"""

from ml_collections import ConfigDict

from guided_diffusion_jax.experiment.config import preset


def get_config() -> ConfigDict:
    """Text to image, in latents."""
    c = preset("text_to_image")
    c.data.update(image_size=256, channels=3)
    c.autoencoder.model.update(width=128, channel_mult=(1, 2, 4, 4), num_res_blocks=2, dtype="bfloat16", remat=True)
    c.autoencoder.train.update(
        batch_size=16, steps=200_000, learning_rate=1e-4, warmup_steps=1000, ema_decay=0.999, save_every=5000,
    )  # fmt: skip
    c.model.autoencoder = "autoencoder"
    c.model.update(width=256, channel_mult=(1, 2, 4), num_res_blocks=2, dropout=0.0)
    c.train.update(batch_size=256, steps=400_000)
    return c
