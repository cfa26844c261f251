"""`--mode=train`: train, or go on from the newest checkpoint."""

import shlex

from etils import epath
from ml_collections import ConfigDict

from guided_diffusion_jax.commands.arguments import program
from guided_diffusion_jax.experiment import build, runs, trainers
from guided_diffusion_jax.experiment import config as configs
from guided_diffusion_jax.runtime import distributed
from guided_diffusion_jax.training import pace


def run(config: ConfigDict, workdir: epath.Path) -> None:
    """Trains to `train.steps`.

    Raises:
        InputError: before anything is compiled, for whatever in the configuration cannot work.
    """
    configs.check_same(config, workdir, runs.OTHER_PARTS)
    data = build.dataset(config)
    network, pretrained = None, None
    if config.model.name in build.ADDITIONS:
        network, pretrained = trainers.on_pretrained(config, data, workdir)
    trainer = trainers.trainer(config, workdir, data, network=network, pretrained=pretrained)
    t, sample_every = config.train, pace.sample_every(config.train.sample_every, config.train.steps)
    trainers.fit(
        trainer, t, config, workdir,
        callback=trainers.preview(config, trainer, build.reader(config)) if sample_every else None,
        callback_every=sample_every,
    )  # fmt: skip
    if distributed.is_main_process():
        grids = f"grids of samples in {workdir / 'samples'}, " if sample_every else ""
        print(
            f"{workdir}: step {t.steps}; {grids}checkpoints in {workdir / 'checkpoints'}, metrics in "
            f"{workdir / 'metrics.jsonl'} and for TensorBoard; next: {program()} --workdir={shlex.quote(str(workdir))} "
            "--mode=sample",
            flush=True,
        )
