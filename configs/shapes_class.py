"""Drawn pictures by class and attributes: shape, colour, size, place, texture, background. 16 pixels, on a laptop.

    python main.py --config=configs/shapes_class.py --workdir=runs/shapes_class
    python main.py --workdir=runs/shapes_class --mode=sample \
        "--config.sample.attributes=(('colour','red'),('size','large'))"

docs/results.md has the minutes on 2 CPU cores and the figures. For 32 pixels and up to three objects, on an
accelerator: --config.data.name=shapes/32 --config.data.image_size=32 --config.model.width=64
"""

from ml_collections import ConfigDict

from guided_diffusion_jax.experiment.default import get_config as default


def get_config() -> ConfigDict:
    """Class and attributes."""
    c = default()
    c.data.update(name="shapes/16", image_size=16, flip=False)
    c.data.attributes = ("colour", "size", "place", "texture", "background")
    c.model.update(
        width=32, channel_mult=(1, 2, 2), num_res_blocks=1, attention_resolutions=(4,), head_width=32, dropout=0.0,
        resample="conv",
    )  # fmt: skip
    # A plain background is told at the noisiest levels, where eps says nothing of x0.
    c.diffusion.prediction = "v"
    c.train.update(batch_size=64, steps=2500, learning_rate=1e-3, warmup_steps=200, ema_decay=0.999)
    c.train.update(log_every=100, save_every=500, sample_every=1000)
    c.train.per_condition_dropout.attributes = 0.1
    c.sample.steps = 25
    c.evaluate.update(count=300, metrics=("adherence",))
    return c
