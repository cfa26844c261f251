"""The embedded default: 8x8 handwritten digits, ten classes, classifier-free guidance, on a laptop.

    python main.py --config=configs/digits.py --workdir=runs/digits

About two minutes on 2 CPU cores, see docs/results.md for the figures.
"""

from ml_collections import ConfigDict

from guided_diffusion_jax.experiment.default import get_config as default


def get_config() -> ConfigDict:
    """Digits."""
    c = default()
    c.data.update(name="digits", image_size=8, flip=False)
    c.model.update(
        width=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,), head_width=32, dropout=0.0,
    )  # fmt: skip
    c.model.resample = "conv"
    c.train.update(batch_size=64, steps=1000, learning_rate=1e-3, warmup_steps=100, ema_decay=0.995)
    c.train.update(log_every=100, save_every=500, sample_every=500)
    c.classifier.model.update(
        width=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,), head_width=32, resample="conv"
    )
    c.classifier.train.update(
        batch_size=64, steps=600, learning_rate=1e-3, warmup_steps=50, log_every=100, save_every=300
    )
    c.sample.steps = 20
    return c
