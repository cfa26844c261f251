"""`--dry_run`: memory and work of a training step, before anything is read, allocated or rented.

`python main.py --config=configs/imagenet64.py --dry_run [--mode=classifier] [--devices=8]` needs neither the data set
nor `--workdir`. See `profiling` for the method and docs/scaling.md for its accuracy.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from guided_diffusion_jax import profiling, sharding
from guided_diffusion_jax.conditions import condition_specs
from guided_diffusion_jax.data.dataset import Dataset
from guided_diffusion_jax.errors import choose, require
from guided_diffusion_jax.experiment import build
from guided_diffusion_jax.objectives.denoising import DERIVED
from guided_diffusion_jax.training import run_files
from guided_diffusion_jax.training.state import TrainState
from guided_diffusion_jax.training.trainer import Trainer


def run(config: ConfigDict, workdir: epath.Path, mode: str, devices: str) -> None:
    """Prints parameters, memory per device, work per step, and the accelerators that suffice.

    On a CPU memory is estimated; on other backends the step is compiled for one device and XLA's plan is used.

    Args:
        config: of a file or of a run.
        workdir: of the run, if there is one: its data set is known then.
        mode: "train" or "classifier".
        devices: number of devices; empty uses those of this machine.

    Raises:
        InputError: settings that cannot work, or that only the data set could determine.
    """
    part = choose({"train": "train", "classifier": "classifier"}, mode, "--mode of a --dry_run")
    require(devices == "" or (devices.isdecimal() and int(devices) >= 1), f"--devices={devices} must be 1 or more")
    number = int(devices) if devices else jax.device_count()
    # XLA's plan for a CPU undoes rematerialization and computes bfloat16 in float32.
    found = profile(config, part, number, workdir, compile_step=jax.default_backend() != "cpu")
    print(*profiling.summary(found), sep="\n", flush=True)


def stand_in(config: ConfigDict, workdir: epath.Path) -> Dataset:
    """Data set without images, of the shapes that a run's data set has or that the configuration tells.

    Raises:
        InputError: only the data set could tell; the message names the flags that do.
    """
    d, s = config.data, config.data.image_size
    known = run_files.read(workdir) if str(workdir) not in ("", ".") else None
    if known is None:
        unknown = [key for key in ("attributes", "control_image") if d[key]]
        require(not unknown, f"--dry_run reads no data: data.{unknown and unknown[0]} needs --workdir of a run")
        classes = NUM_CLASSES.get(d.name.partition("/")[0], 1000) if config.model.use_labels else 0
        channels = d.channels or (1 if d.name == "digits" else 3)
        info: dict[str, Any] = dict(image_shape=(s, s, channels), class_names=tuple(map(str, range(classes))))
    else:
        info = {**known["data"], "image_shape": tuple(known["data"]["image_shape"])}
        info = {key: info[key] for key in ("image_shape", "class_names", "attributes", "control_channels")}
    made = Dataset(name=d.name, length=1, read=_no_images, **info)
    return dataclasses.replace(made, raw=made)  # its captions are encoded already


NUM_CLASSES = {"digits": 10, "shapes": 8, "cifar10": 10, "cifar100": 100, "mnist": 10, "imagenet2012": 1000}
"""Classes of data sets that are not opened; 1000 is assumed of others."""


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
    """Training of a part of a configuration, "train" or "classifier"."""
    data = stand_in(config, epath.Path(workdir))
    made = (build.classifier_trainer if part == "classifier" else build.trainer)(config, None, data)
    specs = {} if part == "classifier" else condition_specs(made.model, data.image_shape)

    def batch(images: int) -> dict[str, jax.ShapeDtypeStruct]:
        shapes = {
            name: jax.ShapeDtypeStruct((images, *spec.shape), spec.dtype)
            for name, spec in specs.items()
            if name not in DERIVED
        }
        image = jax.ShapeDtypeStruct((images, *data.image_shape), jnp.float32)
        return {**shapes, "image": image, "label": jax.ShapeDtypeStruct((images,), jnp.int32)}

    def loss(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        count = len(batch["image"])
        chosen = {} if made.timesteps is None else {"t": jnp.zeros(count, jnp.int32)}
        keys = jax.random.split(jax.random.key(0), count)
        return jnp.mean(made.objective.loss(params, params, {}, keys, batch, **chosen).loss)

    return Program(made, loss, jax.eval_shape(made.init), batch)


def profile(
    config: ConfigDict, part: str, devices: int, workdir: epath.PathLike = "", *, compile_step: bool = False
) -> profiling.Profile:
    """Profile of a part of a configuration, "train" or "classifier", on `devices` devices.

    Raises:
        InputError: settings that cannot work.
    """
    t = config.train if part == "train" else config.classifier.train
    shards = sharding.shards(t.parallel, t.shards, devices, part)
    sharding.check_batch(t.batch_size, t.accumulate, part, devices)
    made = program(config, part, workdir)
    return profiling.profile(
        made.trainer.step(accumulate=1),
        made.loss,
        made.state,
        made.batch,
        sharded=sharding.abstract_with_sharding(made.state, AbstractMesh((devices // shards, shards), sharding.AXES)),
        devices=devices,
        batch_size=t.batch_size,
        accumulate=t.accumulate,
        compile_step=compile_step,
    )
