"""ADM on ImageNet 64x64 (Dhariwal & Nichol 2021, tables 11 and 12): class-conditional, with its classifier.

    python main.py --config=configs/imagenet64.py --workdir=runs/imagenet64

296M parameters, the classifier 65M. With OpenAI's 64x64_diffusion.pt and 64x64_classifier.pt, classifier weight 1 and
250 steps: FID 2.07 (its README). The other sizes' configs start from this one. What of the paper's training has no key
here (16-bit training with loss scaling, the classifier's random crops) is left out.
"""

from ml_collections import ConfigDict

from guided_diffusion_jax.experiment.default import get_config as default


def get_config() -> ConfigDict:
    """ImageNet at 64 pixels."""
    c = default()
    c.data.update(name="imagenet2012", image_size=64, flip=True)
    c.model.update(
        width=192, channel_mult=(1, 2, 3, 4), num_res_blocks=3, attention_resolutions=(32, 16, 8), head_width=64,
        dropout=0.1, class_fusion="add", time_injection="scale_shift", resample="block", dtype="bfloat16",
    )  # fmt: skip
    c.model.attention_order = "new"  # of qkv in guided-diffusion's files: "legacy", "new" (use_new_attention_order)
    c.diffusion.update(schedule="cosine", num_steps=1000, prediction="eps", variance="learned_range")
    c.train.update(
        batch_size=2048, steps=540_000, learning_rate=3e-4, warmup_steps=0, weight_decay=0.0, grad_clip=0.0,
        ema_decay=0.9999, cfg_dropout=0.0, save_every=10_000, sample_every=10_000,
    )  # fmt: skip
    c.classifier.model.update(
        width=128, channel_mult=(1, 2, 3, 4), num_res_blocks=4, attention_resolutions=(32, 16, 8), head_width=64,
        dtype="bfloat16", attention_order="legacy",
    )  # fmt: skip
    c.classifier.train.update(batch_size=1024, steps=300_000, learning_rate=6e-4, weight_decay=0.2)
    c.sample.update(sampler="ddpm", steps=250)
    # Weight 0: ADM was never trained without its label, so that there is no null class for CFG.
    c.sample.guidance.update(weight=0.0, classifier_weight=1.0)
    return c
