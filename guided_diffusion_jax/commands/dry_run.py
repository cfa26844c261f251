"""`--dry_run`: memory and work of a training step, before anything is read, allocated or rented.

`python main.py --config=configs/imagenet64.py --dry_run [--mode=classifier] [--devices=8]` needs neither the data set
nor `--workdir`. With `--config=stable_diffusion` it is fine-tuning and sampling of `finetune.base`: sd15, sd21, sdxl or
a folder in diffusers' layout. See `profiling` for the method and docs/scaling.md for its accuracy.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from guided_diffusion_jax import profiling, sharding
from guided_diffusion_jax.commands import fitting
from guided_diffusion_jax.conditions import condition_specs
from guided_diffusion_jax.data.dataset import Dataset
from guided_diffusion_jax.errors import InputError, choose, require
from guided_diffusion_jax.experiment import build, trainers
from guided_diffusion_jax.experiment import config as configs
from guided_diffusion_jax.finetuning import accounts
from guided_diffusion_jax.interop.stable_diffusion import PRESETS, Part, is_folder
from guided_diffusion_jax.interop.stable_diffusion.folder import modules
from guided_diffusion_jax.objectives.denoising import DERIVED
from guided_diffusion_jax.objectives.partition import merge
from guided_diffusion_jax.training import run_files
from guided_diffusion_jax.training.state import TrainState
from guided_diffusion_jax.training.trainer import Trainer


def run(config: ConfigDict, workdir: epath.Path, mode: str, devices: str, extent: str = "brief") -> None:
    """Prints parameters, memory per device, work per step, and the accelerators that suffice or what would help.

    On a CPU memory is estimated; on other backends the step is compiled for one device and XLA's plan is used.

    Args:
        config: of a file or of a run.
        workdir: of the run, if there is one: its data set is known then.
        mode: "train", "classifier", "autoencoder" or "finetune".
        devices: number of devices; empty uses those of this machine.
        extent: "full" prints every key of the configuration before that.

    Raises:
        InputError: settings that cannot work, or that only the data set could determine.
    """
    choose({"brief": None, "full": None}, extent, "--dry_run")
    part = choose({name: name for name in (*TRAINERS, "finetune")}, mode, "--mode of a --dry_run")
    require(devices == "" or (devices.isdecimal() and int(devices) >= 1), f"--devices={devices} must be 1 or more")
    number = int(devices) if devices else jax.device_count()
    if extent == "full":
        print(*(f"{key} = {value!r}" for key, value in configs.flatten(config)), sep="\n", flush=True)
    if config.finetune.base or part == "finetune":
        for line in stable_diffusion(config, workdir, part, number):
            print(line, flush=True)
        return
    # XLA's plan for a CPU undoes rematerialization and computes bfloat16 in float32.
    found = profile(config, part, number, workdir, compile_step=jax.default_backend() != "cpu")
    print(*profiling.summary(found, assumption(config, workdir)), sep="\n", flush=True)
    if not profiling.fitting(found):
        print("trying changes that would make it fit ...", file=sys.stderr, flush=True)
        print(*remedies(config, part, found, workdir), sep="\n", flush=True)


def stable_diffusion(config: ConfigDict, workdir: epath.Path, mode: str, devices: int) -> Iterator[str]:
    """Lines with memory and work of sampling, and of a step of fine-tuning.

    Args:
        config: `finetune.base` names a published model or a folder in diffusers' layout.
        workdir: a folder of weights stands for that.
        mode: "finetune" is `finetune.method` alone, else it is each of `ACCOUNTED`.
        devices: that share the batch.
    """
    f, t, m, s = config.finetune, config.train, config.model, config.sample
    sharding.check_batch(t.batch_size, 1, "train", devices)
    base = str(workdir) if is_folder(workdir) else f.base
    require(
        base in PRESETS or is_folder(epath.Path(base).expanduser()),
        f"finetune.base={base!r} of a --dry_run must be a folder in diffusers' layout or one of {', '.join(PRESETS)}",
    )
    preset = PRESETS[base] if base in PRESETS else modules(epath.Path(base).expanduser())
    how = {"image_size": config.data.image_size, "dtype": m.dtype}
    yield f"{base}, sampling:"
    yield from accounts.sampling(preset, batch_size=min(s.count, s.batch_size), **how)
    for method in (f.method,) if mode == "finetune" else ACCOUNTED:
        options = {"rank": f.rank, "layers": f.layers} if method == "lora" else {}
        options |= {"text_encoder": f.text_encoder} if method in ("lora", "full") else {}
        how |= {"batch_size": t.batch_size, "remat": m.remat, "devices": devices, "parallel": t.parallel}
        yield f"{base}, finetune.method={method}:"
        yield from profiling.summary(accounts.account(preset, method, **how, **options))


ACCOUNTED = ("full", "lora", "controlnet")
"""Methods of fine-tuning that a dry run tells of, unless it is asked for one."""


def stand_in(config: ConfigDict, workdir: epath.Path) -> Dataset:
    """Data set without images, of the shapes that a run's data set has or that the configuration tells.

    Raises:
        InputError: only the data set could tell; the message names the flags that do.
    """
    d, s = config.data, config.data.image_size
    known = _description(workdir)
    if known is None:
        unknown = [key for key in ("attributes", "control_image") if d[key]]
        require(not unknown, f"--dry_run reads no data: data.{unknown and unknown[0]} needs --workdir of a run")
        classes = NUM_CLASSES.get(d.name.partition("/")[0], ASSUMED_CLASSES) if config.model.use_labels else 0
        channels = d.channels or (1 if d.name == "digits" else 3)
        info: dict[str, Any] = dict(image_shape=(s, s, channels), class_names=tuple(map(str, range(classes))))
    else:
        info = {**known["data"], "image_shape": tuple(known["data"]["image_shape"])}
        info = {key: info[key] for key in ("image_shape", "class_names", "attributes", "control_channels")}
    made = Dataset(name=d.name, length=1, read=_no_images, **info)
    return dataclasses.replace(made, raw=made)  # its captions are encoded already


def assumption(config: ConfigDict, workdir: epath.Path) -> str:
    """What `stand_in` had to assume, in words; empty if nothing."""
    known = _description(workdir) is not None or config.data.name.partition("/")[0] in NUM_CLASSES
    return "" if known or not config.model.use_labels else f"{ASSUMED_CLASSES} classes assumed"


def _description(workdir: epath.Path) -> dict[str, Any] | None:
    """Of the run in a folder; None without one."""
    return run_files.read(workdir) if str(workdir) not in ("", ".") else None


NUM_CLASSES = {"digits": 10, "shapes": 8, "cifar10": 10, "cifar100": 100, "mnist": 10, "imagenet2012": 1000}
"""Classes of data sets, which are not opened."""

ASSUMED_CLASSES = 1000
"""Classes of any other data set."""


def _no_images(indices: Any) -> dict[str, Any]:
    raise AssertionError("a dry run reads no images")


class Program(NamedTuple):
    """What is profiled.

    Attributes:
        trainer: of the part of the configuration.
        loss: (params of the whole network, batch) -> scalar.
        state: shapes of the training state.
        batch: number of images -> shapes of a batch.
    """

    trainer: Trainer
    loss: Callable[[Any, dict[str, jax.Array]], jax.Array]
    state: TrainState
    batch: Callable[[int], dict[str, jax.ShapeDtypeStruct]]


def program(config: ConfigDict, part: str, workdir: epath.PathLike = "") -> Program:
    """Training of a part of a configuration, a key of `TRAINERS`."""
    data = stand_in(config, epath.Path(workdir))
    coder = {"coder": _autoencoder(config, epath.Path(workdir), data)} if part == "train" else {}
    made = TRAINERS[part](config, None, data, **coder)
    specs = condition_specs(made.model, made.shape) if part == "train" else {}

    def batch(images: int) -> dict[str, jax.ShapeDtypeStruct]:
        shapes = {
            name: jax.ShapeDtypeStruct((images, *spec.shape), spec.dtype)
            for name, spec in specs.items()
            if name not in DERIVED
        }
        *size, channels = made.shape
        moments = 1 if made.autoencoder is None else 2  # mean and standard deviation of latents
        image = jax.ShapeDtypeStruct((images, *size, moments * channels), jnp.float32)
        return {**shapes, "image": image, "label": jax.ShapeDtypeStruct((images,), jnp.int32)}

    def loss(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        count = len(batch["image"])
        chosen = {} if made.timesteps is None else {"t": jnp.zeros(count, jnp.int32)}
        keys = jax.random.split(jax.random.key(0), count)
        return jnp.mean(made.objective.loss(params, params, {}, keys, batch, **chosen).loss)

    return Program(made, loss, jax.eval_shape(made.init), batch)


TRAINERS: dict[str, Callable[..., Trainer]] = {
    "train": trainers.trainer, "classifier": trainers.classifier_trainer, "autoencoder": trainers.autoencoder_trainer,
}  # fmt: skip
"""Of each part its trainer."""


def _autoencoder(config: ConfigDict, workdir: epath.Path, data: Dataset) -> Part | None:
    """The autoencoder of a latent model; where none is trained yet the one that the configuration describes."""
    try:
        return build.autoencoder(config, workdir)
    except InputError:
        return Part(build.autoencoder_model(config, data.image_shape), {})


def profile(
    config: ConfigDict, part: str, devices: int, workdir: epath.PathLike = "", *, compile_step: bool = False
) -> profiling.Profile:
    """Profile of a part of a configuration, a key of `TRAINERS`, on `devices` devices.

    Raises:
        InputError: settings that cannot work.
    """
    t, _ = sections(config, part)
    shards = sharding.shards(t.parallel, t.shards, devices, part)
    sharding.check_batch(t.batch_size, t.accumulate, part, devices)
    made = program(config, part, workdir)
    return profiling.profile(
        made.trainer.step(accumulate=1),
        made.loss,
        made.state,
        made.batch,
        sharded=sharded(made.state, devices, shards),
        devices=devices,
        batch_size=t.batch_size,
        accumulate=t.accumulate,
        compile_step=compile_step,
    )


def sections(config: ConfigDict, part: str) -> tuple[ConfigDict, ConfigDict]:
    """Settings of the training and of the network of a part, a key of `TRAINERS`."""
    return (config.train, config.model) if part == "train" else (config[part].train, config[part].model)


def sharded(state: TrainState, devices: int, shards: int) -> Any:
    """Shapes of a training state with a sharding on each, divided among `shards` of the devices."""
    return sharding.abstract_with_sharding(state, AbstractMesh((devices // shards, shards), sharding.AXES))


def remedies(config: ConfigDict, part: str, found: profiling.Profile, workdir: epath.PathLike = "") -> Iterator[str]:
    """A line for each size of memory, with the fewest changes by which the step fits into it (see `fitting`).

    Args:
        config: the configuration.
        part: a key of `TRAINERS`.
        found: its profile.
        workdir: of the run, if there is one.
    """
    training, model = sections(config, part)
    made = program(config, part, workdir)
    one_image = profiling.tree_bytes(made.batch(1))

    @functools.cache
    def activations(remat: bool, dtype: str) -> int:
        if (remat, dtype) == (model.remat, model.dtype):
            return found.per_image - found.accumulate * one_image
        changed = config.copy_and_resolve_references()
        sections(changed, part)[1].update(remat=remat, dtype=dtype)
        other = program(changed, part, workdir)
        return profiling.activation_bytes(other.loss, merge(other.state.params, other.state.frozen), other.batch)

    @functools.cache
    def state_bytes(parallel: str, devices: int, accumulated: bool) -> tuple[dict[str, int], int]:
        asked = training.shards if parallel == training.parallel else 0
        shards = sharding.shards(parallel, asked, devices, part)
        return profiling.state_bytes(sharded(made.state, devices, shards), 1 + accumulated)

    def memory(plan: fitting.Plan) -> int:
        held, gradients = state_bytes(plan.parallel, plan.devices, plan.accumulate > 1)
        changed = found._replace(
            devices=plan.devices, accumulate=plan.accumulate, state=held, gradients=gradients,
            per_image=activations(plan.remat, plan.dtype) + plan.accumulate * one_image,
        )  # fmt: skip
        return changed.memory(plan.batch_size // plan.devices)

    names = ("train", "model") if part == "train" else (f"{part}.train", f"{part}.model")
    before = fitting.Plan(
        training.accumulate, model.remat, model.dtype, found.devices, training.parallel, training.batch_size
    )
    for size in sorted(set(profiling.ACCELERATORS.values())):
        plans = fitting.fewest_changes(before, memory, profiling.room(size))
        changes = ", or ".join(fitting.describe(before, plan, *names) for plan in plans)
        yield f"{size:4} GiB would do with {changes or 'a smaller network: none of the changes tried is enough'}"
