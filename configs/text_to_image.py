"""Sentences to pictures of 64 pixels, for one accelerator; any data set with captions.

A folder of pictures with a captions.jsonl beside them, {"file": "1.png", "caption": "..."} a line:

    python main.py --config=configs/text_to_image.py --config.data.data_dir=PICTURES --workdir=runs/text

a TFDS data set with a text feature: --config.data.name=NAME --config.data.text=FEATURE. With a pre-trained encoder
(pip install "guided_diffusion_jax[text]"), of which the data set keeps what it makes of each caption:

    --config.model.text_encoder=sentence-transformers/all-MiniLM-L6-v2 --config.model.text_length=32

ADM's U-Net of 64 pixels at 2/3 of its width, with cross-attention where ADM attends. Not run yet: it wants an
accelerator and a data set of some 100,000 captions.
"""

from ml_collections import ConfigDict

from guided_diffusion_jax.experiment.default import get_config as default


def get_config() -> ConfigDict:
    """Text to image."""
    c = default()
    c.data.update(name="folder", image_size=64, flip=False, text="caption")  # a caption may say "left"
    c.model.update(
        width=128, channel_mult=(1, 2, 3, 4), num_res_blocks=3, attention_resolutions=(32, 16, 8), dropout=0.1,
        use_labels=False, text_length=256, text_width=512, text_depth=6, dtype="bfloat16", remat=True,
    )  # fmt: skip
    c.train.update(batch_size=256, steps=500_000, learning_rate=1e-4, cfg_dropout=0.1)
    c.sample.guidance.weight = 3.0
    return c
