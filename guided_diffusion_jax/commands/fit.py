"""What training a network takes, whichever it is: its data, its state before or after the last save, and the loop."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import optax
from etils import epath
from jaxtyping import UInt8
from ml_collections import ConfigDict
from numpy import ndarray

from guided_diffusion_jax import sharding
from guided_diffusion_jax.commands import build
from guided_diffusion_jax.data.pipeline import batches
from guided_diffusion_jax.data.source import Source
from guided_diffusion_jax.errors import require
from guided_diffusion_jax.losses import Timesteps
from guided_diffusion_jax.runtime import distributed
from guided_diffusion_jax.runtime.lock import exclusive
from guided_diffusion_jax.training import state
from guided_diffusion_jax.training.checkpoint import Checkpoints
from guided_diffusion_jax.training.loop import Plan, train
from guided_diffusion_jax.training.metrics import Silent, Writer
from guided_diffusion_jax.training.step import LossFunction
from guided_diffusion_jax.typing import Params


@dataclasses.dataclass(frozen=True)
class Fit:
    """A network to be trained, with settings that were checked.

    Attributes:
        folder: where its checkpoints, figures and pictures go.
        part: of the config, "train" or "classifier", with `batch_size`, `steps` and the like.
        config: whole.
        data: the pictures.
        init: makes its parameters; given those that are frozen, the others.
        frozen: shapes of the parameters that stay as they are.
        load: gives these parameters, once, before the first step.
        loss_function: what it is trained on.
        optimizer: by what.
        timesteps: how noise levels are drawn; None is uniformly, by the loss.
    """

    folder: epath.Path
    part: str
    config: ConfigDict
    data: Source
    init: Callable[[Params], Params]
    loss_function: LossFunction
    optimizer: optax.GradientTransformation
    timesteps: Timesteps | None = None
    frozen: Params = dataclasses.field(default_factory=dict)
    load: Callable[[], Params] = dict

    def run(
        self,
        on_start: Callable[[], None] = lambda: None,
        draw: Callable[[Params], UInt8[ndarray, "height width 3"]] | None = None,
    ) -> state.TrainState:
        """Trains to the last step: from the first, from the newest checkpoint, or from parameters that were imported.

        Args:
            on_start: called once nothing can be wrong any more, before the first step.
            draw: makes a picture of the averaged parameters, every `sample_every` steps.
        """
        t, mesh = self.config[self.part], build.mesh(self.config, self.part)
        plan = check(self.config, self.part)
        iterator = iter(
            batches(
                self.data,
                batch_size=t.batch_size // jax.process_count(),
                seed=self.config.seed,
                flip=self.config.data.flip,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
            )
        )
        order = {
            "data.name": self.config.data.name,
            "data.flip": self.config.data.flip,
            f"{self.part}.batch_size": t.batch_size,
            "seed": self.config.seed,
        }
        step_function = build.step(self.config, self.part, self.loss_function, self.optimizer, self.timesteps)
        with exclusive(self.folder), Checkpoints(self.folder / "checkpoints", keep=t.keep) as checkpoints:
            like = sharding.abstract_with_sharding(jax.eval_shape(self._fresh, self.frozen), mesh)
            compile_ = functools.partial(
                jax.jit,
                out_shardings=sharding.shardings(like, mesh),
                compiler_options=sharding.compiler_options(),
            )
            if checkpoints.latest is None:
                start = compile_(self._fresh)(self.load())
            elif checkpoints.source is not None:
                params, _ = checkpoints.restore_ema(
                    sharding.abstract_with_sharding(jax.eval_shape(self.init, {}), mesh)
                )
                start = compile_(self._begin)(params, {})
            else:
                start = checkpoints.restore(like, iterator, order)
            step = int(start.step)
            remedy = f"use {step} or more"
            require(step <= t.steps, f"{self.part}.steps={t.steps}, but {self.folder} is at step {step}; {remedy}")
            distributed.barrier("the first step")
            if distributed.is_main_process():
                on_start()
                self._announce(start, step, t.steps)
            with Writer(self.folder, step, t.steps) if distributed.is_main_process() else Silent() as writer:

                def show(step: int, current: state.TrainState) -> None:
                    if draw is not None:
                        writer.image(step, "samples", draw(current.frozen | current.ema))

                return train(
                    sharding.STRATEGIES[t.parallel](step_function, mesh),
                    start,
                    iterator,
                    plan=plan,
                    mesh=mesh,
                    checkpoints=checkpoints,
                    order=order,
                    writer=writer,
                    draw=show,
                )

    def _fresh(self, frozen: Params) -> state.TrainState:
        return self._begin(self.init(frozen), frozen)

    def _begin(self, params: Params, frozen: Params) -> state.TrainState:
        key, spike = jax.random.key(self.config.seed), self.config[self.part].spike
        return state.create(params, self.optimizer, key, self.timesteps, frozen, spike)

    def _announce(self, start: state.TrainState, step: int, steps: int) -> None:
        size = sum(leaf.size for leaf in jax.tree.leaves(start.params))
        print(
            f"{self.folder}: {size:,} parameters, {len(self.data):,} images of {self.data.name}, "
            f"{jax.device_count()} {jax.default_backend()} device(s), from step {step} to {steps}",
            flush=True,
        )


def check(config: ConfigDict, part: str) -> Plan:
    """How long to train and what to do when, of a part of the config.

    Raises:
        InputError: a value that cannot be.
    """
    t = config[part]
    build.mesh(config, part)
    sharding.check_batch(t.batch_size, t.accumulate, part, jax.device_count())
    require(t.spike == 0 or t.spike > 1, f"{part}.spike={t.spike} must be above 1, or 0 for none")
    require(t.keep >= 1, f"{part}.keep={t.keep} must be at least 1")
    return Plan(t.steps, t.log_every, t.save_every, t.sample_every, t.bad_step, t.on_full_disk, part)
