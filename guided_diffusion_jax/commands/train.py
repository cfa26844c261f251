"""`--mode=train`: train, or go on from the newest checkpoint."""

import functools

from etils import epath
from ml_collections import ConfigDict

from guided_diffusion_jax.commands import build, fit
from guided_diffusion_jax.commands import config as configs
from guided_diffusion_jax.commands.draw import Artist


def run(config: ConfigDict, workdir: epath.Path) -> ConfigDict:
    """Trains to `train.steps`; gives back the config with what the data decided.

    Raises:
        InputError: before anything is compiled, for whatever in the config cannot work.
    """
    fit.check(config, "train")
    optimizer = build.optimizer(config, "train")
    data = build.source(config)
    config = build.resolve(config, data)
    network = build.unet(config)
    loss_function = build.loss_function(network, config)
    configs.check_same(config, workdir, ("model", "diffusion"))
    artist = Artist(network, config)
    fit.Fit(
        folder=workdir,
        part="train",
        config=config,
        data=data,
        init=functools.partial(build.init, network, config),
        loss_function=loss_function,
        optimizer=optimizer,
        timesteps=build.timesteps(config),
    ).run(on_start=functools.partial(configs.save, config, workdir), draw=artist.grid)
    return config
