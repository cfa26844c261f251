"""A run of random parameters, for tests that need a trained run and not its training."""

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from guided_diffusion_jax.data.pipeline import batches
from guided_diffusion_jax.experiment import build, trainers
from guided_diffusion_jax.experiment import config as configs
from guided_diffusion_jax.training import run_files, state
from guided_diffusion_jax.training.checkpoint import Checkpoints


def write(config, workdir, part="train", *, step=4, scale=0.2):
    """Leaves in the folder what training of a part of the config, "train" or "classifier", would leave."""
    folder, rng, data = epath.Path(workdir), np.random.default_rng(0), build.dataset(config)
    make = trainers.trainer if part == "train" else trainers.classifier_trainer
    trainer = make(config, folder, data)
    section = config.train if part == "train" else config.classifier.train
    shapes = jax.eval_shape(trainer.init).params
    params = jax.tree.map(lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32), shapes)
    made = state.create(params, trainer.optimizer, jax.random.key(0))
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(step, made, iter(batches(data, batch_size=4, seed=0)))
    run_files.write(folder, trainer._identity(section.batch_size))
    configs.save(config, folder)
