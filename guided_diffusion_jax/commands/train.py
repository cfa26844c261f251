"""`--mode=train`: train, or go on from the newest checkpoint."""

import functools

import jax
from etils import epath
from ml_collections import ConfigDict

from guided_diffusion_jax.commands import build, pictures
from guided_diffusion_jax.commands import config as configs
from guided_diffusion_jax.commands.draw import Artist
from guided_diffusion_jax.data.pipeline import batches
from guided_diffusion_jax.errors import require
from guided_diffusion_jax.training import parallel, state
from guided_diffusion_jax.training.checkpoint import Checkpoints
from guided_diffusion_jax.training.loop import Plan, train
from guided_diffusion_jax.training.metrics import Writer
from guided_diffusion_jax.training.step import train_step


def run(config: ConfigDict, workdir: epath.Path) -> ConfigDict:
    """Trains to `train.steps`; gives back the config with what the data decided.

    Raises:
        InputError: before anything is compiled, for whatever in the config cannot work.
    """
    # --- everything that can be wrong
    t = config.train
    parallel.check_batch(t.batch_size, "train.batch_size")
    plan = Plan(t.steps, t.log_every, t.save_every, t.sample_every)
    require(t.keep >= 1, f"train.keep={t.keep} must be at least 1")
    levels = build.table(config)
    optimizer = build.optimizer(config)
    data = build.source(config)
    config = build.resolve(config, data)
    network = build.unet(config)
    loss_function = build.loss_function(network, config)
    configs.check_same(config, workdir, ("model", "diffusion"))
    artist = Artist(network, config)

    # --- the data, and the state before or after the last save
    iterator = iter(
        batches(
            data,
            batch_size=t.batch_size // jax.process_count(),
            seed=config.seed,
            flip=config.data.flip,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
    )
    order = {
        "data.name": config.data.name,
        "data.flip": config.data.flip,
        "train.batch_size": t.batch_size,
        "seed": config.seed,
        "processes": jax.process_count(),
    }
    mesh = parallel.data_mesh()

    def fresh():
        return state.create(build.init(network, config), optimizer, jax.random.key(config.seed))

    with Checkpoints(workdir / "checkpoints", keep=t.keep) as checkpoints:
        if checkpoints.latest is None:
            start = jax.jit(fresh, out_shardings=parallel.replicated(mesh))()
        else:
            start = checkpoints.restore(jax.eval_shape(fresh), iterator, order, mesh)
        step = int(start.step)
        require(step <= t.steps, f"train.steps={t.steps}, but {workdir} is already at step {step}; use {step} or more")
        configs.save(config, workdir)
        size = sum(leaf.size for leaf in jax.tree.leaves(start.params))
        print(
            f"{workdir}: {size:,} parameters, {len(data):,} images of {data.name}, {jax.device_count()} "
            f"{jax.default_backend()} device(s), from step {step} to {t.steps}",
            flush=True,
        )

        # --- training
        def draw(step: int, current: state.TrainState) -> None:
            picture = artist.grid(current.ema)
            pictures.write(workdir / "samples" / f"step_{step:07d}.png", picture)
            writer.image(step, "samples", picture)

        with Writer(workdir, step, t.steps) as writer:
            train(
                parallel.spread(
                    functools.partial(
                        train_step,
                        loss_function=loss_function,
                        optimizer=optimizer,
                        ema_decay=t.ema_decay,
                        num_steps=len(levels.time),
                    ),
                    mesh,
                ),
                start,
                iterator,
                plan=plan,
                mesh=mesh,
                checkpoints=checkpoints,
                order=order,
                writer=writer,
                draw=draw,
            )
    return config
