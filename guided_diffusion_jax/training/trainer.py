"""Training: a model, a process and a data set to a run on disk, from its beginning or from where it stopped."""

import collections
import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import optax
from etils import epath

from guided_diffusion_jax import checks, models, objectives, sharding
from guided_diffusion_jax.codecs import Codec
from guided_diffusion_jax.conditions import setting
from guided_diffusion_jax.data.dataset import Dataset
from guided_diffusion_jax.data.pipeline import batches
from guided_diffusion_jax.data.text import ByteTextEncoder, TextEncoder, encode_text
from guided_diffusion_jax.errors import require
from guided_diffusion_jax.interop.stable_diffusion import Part, save_autoencoder
from guided_diffusion_jax.objectives import Objective, Timesteps
from guided_diffusion_jax.objectives.partition import Trainable, merge, split
from guided_diffusion_jax.process import Process
from guided_diffusion_jax.runtime import distributed, notices
from guided_diffusion_jax.runtime.lock import exclusive
from guided_diffusion_jax.training import latents, pace, power_ema, run_files, state
from guided_diffusion_jax.training.checkpoint import Checkpoints
from guided_diffusion_jax.training.loop import Callback, Loop, Schedule
from guided_diffusion_jax.training.metrics import MetricWriter, Silent, Writer
from guided_diffusion_jax.training.settings import TrainSettings
from guided_diffusion_jax.training.state import TrainState
from guided_diffusion_jax.training.step import Metrics, StepSettings, train_step
from guided_diffusion_jax.typing import Params


class Trainer:
    """Trains a model on a data set, and goes on where it stopped.

    Args:
        model: a Flax module of `models`, or any with the same call.
        process: levels, and what the model predicts.
        data: images with labels and other conditions.
        optimizer: any optax optimizer, with any learning-rate schedule.
        condition_dropout: probability that a sample loses all its conditions, for classifier-free guidance.
        workdir: the run's folder; None trains in memory, without checkpoints.
        objective: what is trained; None is `objectives.denoising` with `condition_dropout` and the options below.
        loss: of that objective, a key of `objectives.LOSSES`.
        per_condition_dropout: of that objective, condition to probability.
        loss_weighting: of that objective, a key of `objectives.WEIGHTINGS`.
        loss_weighting_options: of that weighting.
        timesteps: how noise levels are drawn; None is uniformly.
        text_encoder: encodes captions that are strings. None encodes them for a `models.ByteEncoder`, and leaves them
            out where the model reads no text.
        autoencoder: of `load_autoencoder`, for a model of latents: those of the data are computed once and cached, and
            the run's folder gets a copy of the autoencoder. None is pixels.
        trainable: predicate on parameter paths; the other parameters stay as they are. None trains all.
        pretrained: parameters to begin with, a nested dict; those that it lacks are fresh. Or a function that loads
            them, called once, before the first step of a new run.
        seed: of parameters, noise and the order of the data.
        flip: mirror half of the training images.
        settings: see `TrainSettings`.
        writers: loggers of the user's beside `metrics.jsonl` and TensorBoard (see `metrics.MetricWriter`).
        identity: further values that a continued run must have in common with its beginning.

    Attributes:
        state: the newest `TrainState`; None before the first step.
        shape: (h, w, c) of what the model sees.

    Raises:
        InputError: settings that cannot work, before anything is compiled.
    """

    def __init__(
        self,
        model: nn.Module,
        process: Process,
        data: Dataset,
        *,
        optimizer: optax.GradientTransformation,
        condition_dropout: float = 0.1,
        workdir: epath.PathLike | None = None,
        objective: Objective | None = None,
        loss: str = "mse",
        per_condition_dropout: Mapping[str, float] | None = None,
        loss_weighting: str = "none",
        loss_weighting_options: Mapping[str, float] | None = None,
        timesteps: Timesteps | None = None,
        text_encoder: TextEncoder | None = None,
        autoencoder: Part | None = None,
        trainable: Trainable | None = None,
        pretrained: Params | Callable[[], Params] | None = None,
        seed: int = 0,
        flip: bool = False,
        settings: TrainSettings | None = None,
        writers: Sequence[MetricWriter] = (),
        identity: Mapping[str, Any] | None = None,
    ):
        require(
            isinstance(data, Dataset),
            f"data is a {type(data).__name__}; give a data set, e.g. gd.data.from_arrays(images, labels)",
        )
        options: dict[str, Any] = {"loss": loss, "condition_dropout": condition_dropout}
        options["per_condition_dropout"] = dict(per_condition_dropout or {})
        if loss_weighting != "none" or loss_weighting_options:
            options |= {"weighting": loss_weighting, "weighting_options": dict(loss_weighting_options or {})}
        self.shape = latents.latent_shape(autoencoder, data.image_shape)
        models.check(model, self.shape)
        if objective is None:
            objective = objectives.denoising(model, process, self.shape, **options)
            described: dict[str, Any] = {"name": "denoising", **options}
        else:
            described = {"name": "given"}
        if autoencoder is not None:
            latents.check(model, self.shape)
            objective = objectives.on_latents(objective, autoencoder.model.scaling_factor)  # type: ignore[attr-defined]
            identity = {"autoencoder": latents.describe(autoencoder)} | dict(identity or {})
        text = setting(model, "text")
        if text_encoder is None and isinstance(text, models.ByteEncoder):
            text_encoder = ByteTextEncoder(text.length)
        if text_encoder is not None:
            name = getattr(text_encoder, "name", text_encoder.identity)
            identity = {"text_encoder": {"name": name, "length": text_encoder.length}} | dict(identity or {})
        self.model, self.process, self.optimizer = model, process, optimizer
        self.data, self.autoencoder = encode_text(data, text_encoder), autoencoder
        self._given, self._text_encoder = data, text_encoder
        self.objective, self.timesteps, self.trainable = objective, timesteps, trainable
        self.workdir = None if workdir is None else epath.Path(workdir)
        self.settings = settings or TrainSettings()
        self.state: TrainState | None = None
        self._pretrained, self._flip, self._writers = pretrained, flip, tuple(writers)
        self._seed = checks.seed("seed", seed)
        self._described, self._extra_identity = described, dict(identity or {})

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh:
        """Devices of this machine and how they share the state; not made before training, so that plans need none."""
        return self.settings.mesh()

    @functools.cached_property
    def codec(self) -> Codec | None:
        """Between images and latents, on the devices; None for a model of pixels."""
        if self.autoencoder is None:
            return None
        return latents.codec(self.autoencoder, self.data.image_shape, self.mesh)

    def fit(
        self,
        steps: int,
        batch_size: int,
        *,
        log_every: int = 100,
        save_every: int = 1000,
        callback: Callback | None = None,
        callback_every: int = 0,
        on_start: Callable[[], None] = lambda: None,
    ) -> TrainState:
        """Trains to step `steps`, from the beginning or from the newest checkpoint, and returns the last state.

        Args:
            steps: the last step, counted from the beginning of the run.
            batch_size: images of a step, over all devices.
            log_every: steps between two lines of metrics; a run has at least ten, if it has as many steps.
            save_every: steps between two checkpoints; 0 saves at the end alone. Ctrl-C saves too.
            callback: called every `callback_every` steps, and at the end.
            callback_every: 0 is never.
            on_start: called once when nothing can be wrong any more, before the first step.

        Raises:
            InputError: a value that cannot be; another run in the folder; or a step whose loss is not finite.
            Stopped: by Ctrl-C or SIGTERM, after saving.
        """
        run = self.steps(
            steps, batch_size, log_every=pace.log_every(log_every, steps), save_every=save_every,
            callback=callback, callback_every=callback_every, on_start=on_start,
        )  # fmt: skip
        collections.deque(run, maxlen=0)
        assert self.state is not None
        return self.state

    def steps(
        self,
        steps: int,
        batch_size: int,
        *,
        log_every: int = 100,
        save_every: int = 1000,
        callback: Callback | None = None,
        callback_every: int = 0,
        on_start: Callable[[], None] = lambda: None,
    ) -> Iterator[dict[str, float]]:
        """Trains as `fit` does, and yields the metrics of every `log_every` steps, with their "step".

        A loop that breaks off leaves the run at its last checkpoint.
        """
        part = self.settings.part
        for key, value, least in (
            ("steps", steps, 1), ("log_every", log_every, 1), ("save_every", save_every, 0),
            ("sample_every", callback_every, 0), ("batch_size", batch_size, 1),
        ):  # fmt: skip
            checks.integer(f"{part}.{key}", value, least)
        sharding.check_batch(batch_size, self.settings.accumulate, part, jax.device_count())
        with contextlib.ExitStack() as stack:
            iterator = iter(self._batches(batch_size))
            checkpoints = snapshots = None
            if self.workdir is not None:
                stack.enter_context(exclusive(self.workdir))
                begun = run_files.check_same(self.workdir, self._identity(batch_size))
                folder = self.workdir / "checkpoints"
                settings = self.settings
                with notices.working("opening the checkpoints"):
                    opened = Checkpoints(folder, keep=settings.keep, verify=settings.verify)
                checkpoints = stack.enter_context(opened)
                if settings.power_ema:
                    kept = Checkpoints(self.workdir / power_ema.FOLDER, settings.power_ema_keep, verify=settings.verify)
                    snapshots = stack.enter_context(kept)
            start = self._start(checkpoints, iterator)
            step = int(start.step)
            require(
                step <= steps, f"{part}.steps={steps}, but {self.workdir or 'the state'} is at step {step}; "
                f"use {step} or more"
            )  # fmt: skip
            distributed.barrier("the first step")
            writer: Writer | Silent = Silent()
            if distributed.is_main_process():
                if self.workdir is not None and not begun:
                    if self.autoencoder is not None:
                        save_autoencoder(self.workdir / latents.FOLDER, self.autoencoder)
                    run_files.write(self.workdir, self._identity(batch_size))
                on_start()
                self._announce(start, step, steps)
                if self.workdir is not None:
                    writer = stack.enter_context(Writer(self.workdir, step, steps, self._writers))
            loop = Loop(
                self.compiled_step, start, iterator, self.mesh,
                schedule=Schedule(steps, log_every, save_every, callback, callback_every), settings=self.settings,
                checkpoints=checkpoints, snapshots=snapshots, writer=writer, folder=self.workdir or epath.Path("."),
                keep=functools.partial(setattr, self, "state"),
            )  # fmt: skip
            self.state = start
            yield from loop.run()

    def _identity(self, batch_size: int) -> dict[str, Any]:
        return {
            "model": models.describe(self.model),
            "process": self.process.describe(),
            "objective": self._described,
            "data": self.data.info.to_dict(),
            "data_fingerprint": self.data.fingerprint(),
            "seed": self._seed,
            "flip": self._flip,
            **({"power_ema": list(self.settings.power_ema)} if self.settings.power_ema else {}),
            **self._extra_identity,
            "batch_size": batch_size,
        }

    def _batches(self, batch_size: int):
        data = self.data
        if self.autoencoder is not None:
            encoded = latents.encode_images(self._given, self.autoencoder, flip=self._flip, cache_dir=self.workdir)
            data = encode_text(encoded, self._text_encoder)
        return batches(
            data,
            batch_size=batch_size // jax.process_count(),
            seed=self._seed,
            flip=self._flip,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def init(self) -> TrainState:
        """State before the first step, from the seed and what is pretrained; under `jax.eval_shape` its shapes."""
        return self._begin({})

    def _begin(self, pretrained: Params) -> TrainState:
        params = merge(self.objective.init(jax.random.key(self._seed)), pretrained)
        trained, frozen = split(params, self.trainable)
        key, spike = jax.random.key(self._seed), self.settings.grad_spike
        averages = power_ema.init(trained, self.settings.power_ema)
        return state.create(trained, self.optimizer, key, self.timesteps, frozen, spike, averages)

    def _start(self, checkpoints: Checkpoints | None, iterator: Any) -> TrainState:
        if self.state is not None and checkpoints is None:
            iterator.set_state({"next_index": int(self.state.step)})
            return self.state
        like = sharding.abstract_with_sharding(jax.eval_shape(self.init), self.mesh)
        if checkpoints is not None and checkpoints.latest is not None and checkpoints.source is None:
            with notices.working(f"reading the checkpoint of step {checkpoints.latest}"):
                return checkpoints.restore(like, iterator)
        if checkpoints is not None and checkpoints.latest is not None:  # imported parameters alone
            pretrained, _, _ = checkpoints.restore_ema(like.network())
        else:
            pretrained = self._pretrained() if callable(self._pretrained) else self._pretrained or {}
            self._check_pretrained(pretrained)
        begin = jax.jit(
            self._begin,
            out_shardings=sharding.shardings(like, self.mesh),
            compiler_options=sharding.compiler_options(),
        )
        with notices.compiling("the first parameters", like):
            return begin(pretrained)

    def _check_pretrained(self, pretrained: Params) -> None:
        """Raises `InputError` for a pretrained parameter that the network does not have."""
        fresh = dict(run_files.flatten(jax.eval_shape(self.objective.init, jax.random.key(0))))
        for name, value in run_files.flatten(pretrained):
            require(name in fresh, f"pretrained: {name} is no parameter of the model")
            require(
                tuple(value.shape) == tuple(fresh[name].shape),
                f"pretrained: {name} has shape {tuple(value.shape)}, and {tuple(fresh[name].shape)} in the model",
            )

    def step(self, accumulate: int | None = None) -> Callable[..., tuple[TrainState, Metrics]]:
        """The update `(state, batch, collectives) -> (state, metrics)`, not compiled; see `step.train_step`."""
        s = self.settings
        parts = s.accumulate if accumulate is None else accumulate
        numbers = StepSettings(
            self.process.num_steps, s.ema_decay, s.ema_warmup, parts, s.grad_spike, tuple(s.power_ema)
        )
        return functools.partial(
            train_step,
            objective=self.objective,
            optimizer=self.optimizer,
            settings=numbers,
            timesteps=self.timesteps,
        )

    @functools.cached_property
    def compiled_step(self) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
        """The jitted `(state, batch) -> (state, metrics)`; it gives up the state that it gets."""
        return sharding.STRATEGIES[self.settings.parallel](self.step(), self.mesh)

    def _announce(self, start: TrainState, step: int, steps: int) -> None:
        size = sum(leaf.size for leaf in jax.tree.leaves(start.params))
        frozen = sum(leaf.size for leaf in jax.tree.leaves(start.frozen))
        print(
            f"{self.workdir or 'training'}: {size:,} parameters{f' and {frozen:,} frozen' * bool(frozen)}, "
            f"{len(self.data):,} images of {self.data.name}, {jax.device_count()} {jax.default_backend()} device(s), "
            f"from step {step} to {steps}",
            flush=True,
        )
