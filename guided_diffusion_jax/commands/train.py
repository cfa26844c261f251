"""`--mode=train`: train, or go on from the newest checkpoint."""

import functools

import jax
from etils import epath
from ml_collections import ConfigDict

from guided_diffusion_jax.commands import build, control, fit, networks, sample
from guided_diffusion_jax.commands import config as configs
from guided_diffusion_jax.commands.draw import Artist

CONDITIONS = ("attributes", "text", "style", "map", "low_res_size")
"""Keys of `data` that decide what the network is told."""


def run(config: ConfigDict, workdir: epath.Path) -> ConfigDict:
    """Trains to `train.steps`; gives back the config with what the data decided.

    Raises:
        InputError: before anything is compiled, for whatever in the config cannot work.
    """
    fit.check(config, "train")
    config = control.with_base(config, workdir)
    optimizer = build.optimizer(config, "train")
    data = build.source(config)
    config = build.resolve(config, data)
    network = networks.network(config)
    loss_function = build.loss_function(network, config)
    configs.check_same(config, workdir, ("model", "diffusion", "control", *(f"data.{part}" for part in CONDITIONS)))
    artist = Artist(network, config)
    fit.Fit(
        folder=workdir,
        part="train",
        config=config,
        data=data,
        init=functools.partial(networks.begin, network, config),
        loss_function=loss_function,
        optimizer=optimizer,
        timesteps=build.timesteps(config),
        frozen=networks.trained(network, jax.eval_shape(functools.partial(networks.init, network, config)))[1],
        load=functools.partial(control.load, config),
    ).run(on_start=functools.partial(configs.save, config, workdir), draw=sample.preview(artist, config, data))
    return config
