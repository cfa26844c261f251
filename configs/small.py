"""Your images on a laptop in half an hour: a folder with a folder for each class, 32 pixels, no accelerator.

    python main.py --config=small --config.data.data_dir=photos --workdir=runs/pets

For about 150 to 5,000 photographs. The network is small and the run short: it shows the classes' colours and shapes,
not portraits. --config.train.steps=20000 goes on for a night; default.py is the network for an accelerator.
"""

from ml_collections import ConfigDict

from guided_diffusion_jax.experiment.default import get_config as default


def get_config() -> ConfigDict:
    """A folder of images."""
    c = default()
    c.model.update(
        width=32, channel_mult=(1, 2, 2), num_res_blocks=1, attention_resolutions=(8,), head_width=32, dropout=0.0,
        resample="conv",
    )  # fmt: skip
    c.diffusion.prediction = "v"
    c.train.update(batch_size=32, steps=2000, learning_rate=1e-3, warmup_steps=100, lr_schedule="cosine")
    c.train.update(ema_decay=0.995, log_every=50, save_every=250, sample_every=500)
    c.classifier.model.update(
        width=32, channel_mult=(1, 2, 2), num_res_blocks=1, attention_resolutions=(8,), head_width=32, resample="conv"
    )
    c.classifier.train.update(batch_size=64, steps=500, warmup_steps=50, log_every=50, save_every=250)
    c.sample.update(count=20, sampler="unipc", spacing="karras", spacing_options=(("sigma_max", 80.0),), steps=20)
    return c
