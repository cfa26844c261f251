"""`--mode=train`: train, or go on from the newest checkpoint."""

import functools

from etils import epath
from ml_collections import ConfigDict

from guided_diffusion_jax.experiment import build, runs
from guided_diffusion_jax.experiment import config as configs


def run(config: ConfigDict, workdir: epath.Path) -> None:
    """Trains to `train.steps`.

    Raises:
        InputError: before anything is compiled, for whatever in the configuration cannot work.
    """
    configs.check_same(config, workdir, ("classifier.",))
    data = build.dataset(config)
    network, pretrained = None, None
    if config.model.name == "controlnet":
        network, pretrained = runs.controlnet(config, data, workdir)
    trainer = build.trainer(config, workdir, data, network=network, pretrained=pretrained)
    t = config.train
    trainer.fit(
        t.steps,
        t.batch_size,
        log_every=t.log_every,
        save_every=t.save_every,
        callback=runs.preview(config, trainer, build.reader(config)) if t.sample_every else None,
        callback_every=t.sample_every,
        on_start=functools.partial(configs.save, config, workdir),
    )
