"""Three ways of steering compared on 8x8 digits, three trainings each, and the report.

    python main.py --config=configs/digits_report.py --workdir=runs/digits_report --mode=report

A narrower U-Net and a shorter training than configs/digits.py, so that nine of them and three classifiers fit into
some minutes on 2 CPU cores: what leaves something to gain from guidance also shows what it does.
"""

from ml_collections import ConfigDict

from guided_diffusion_jax.experiment.config import preset


def get_config() -> ConfigDict:
    """Digits, small."""
    c = preset("digits")
    c.model.update(width=16, head_width=16)
    c.train.update(steps=600, warmup_steps=50, log_every=50, save_every=600, sample_every=0, ema_decay=0.99)
    c.classifier.model.update(width=16, head_width=16)
    c.classifier.train.update(steps=300, log_every=50)
    c.sample.guidance.update(weight=1.0, classifier_weight=2.0)
    c.evaluate.update(count=500, batch_size=500)
    c.report.compare_methods = True
    c.evaluate.sweep.update(
        weight=(0.0, 1.0, 2.0, 4.0, 8.0), classifier_weight=(0.0, 1.0, 2.0, 5.0, 10.0), steps=(2, 5, 10, 20, 50)
    )
    return c
