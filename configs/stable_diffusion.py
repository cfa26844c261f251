r"""Stable Diffusion: images by its weights, and fine-tuning of them on a folder of captioned pictures.

    python main.py --workdir=stable-diffusion-v1-5/ --mode=sample --config.sample.prompt="a red fox"
    python main.py --config=stable_diffusion --mode=finetune --config.finetune.base=stable-diffusion-v1-5/ \
        --config.data.data_dir=FOXES --workdir=runs/fox
    python main.py --workdir=runs/fox --mode=sample --config.sample.prompt="a red fox in the snow"
    python main.py --config=stable_diffusion --config.finetune.base=sdxl --config.data.image_size=1024 --dry_run

docs/finetuning.md has the memory that each kind of fine-tuning takes.
"""

from ml_collections import ConfigDict

from guided_diffusion_jax.experiment.default import get_config as default


def get_config() -> ConfigDict:
    """Four images by the scheduler that came with the weights; LoRA of rank 8 for a thousand steps."""
    c = default()
    c.sample.update(count=4, batch_size=4, sampler="native", spacing="native", steps=50, frames=0)
    c.finetune.base = "sd15"
    c.data.update(image_size=512, channels=3, flip=False, text="caption")
    c.train.update(
        batch_size=1, steps=1000, learning_rate=1e-4, warmup_steps=0, weight_decay=0.01, ema_decay=0.0, cfg_dropout=0.0,
        log_every=10, save_every=500, sample_every=0, keep=1,
    )  # fmt: skip
    return c
