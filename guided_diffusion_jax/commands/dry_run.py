"""`--dry_run`: memory and work of a training step, before anything is read, allocated or rented.

`python main.py --config=configs/imagenet64.py --dry_run [--mode=classifier] [--devices=8]` needs neither the data set
nor `--workdir`. See `profiling` for the method and docs/scaling.md for its accuracy.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from guided_diffusion_jax import profiling
from guided_diffusion_jax.commands import build, control, kinds, networks
from guided_diffusion_jax.errors import choose, require
from guided_diffusion_jax.training import parallel, state


class Program(NamedTuple):
    """Training step of a config, with the shapes of its arguments.

    Attributes:
        step: (state, batch) -> (state, metrics).
        loss: (params, batch) -> scalar; what the step differentiates.
        state: shapes of the training state.
        batch: number of images -> shapes of a batch.
    """

    step: parallel.Step
    loss: Callable[[Any, dict[str, jax.Array]], jax.Array]
    state: state.TrainState
    batch: Callable[[int], dict[str, jax.ShapeDtypeStruct]]


def run(config: ConfigDict, workdir: epath.Path, mode: str, devices: str) -> None:
    """Prints parameters, memory per device, work per step, and the accelerators that suffice.

    On a CPU memory is estimated; on other backends the step is compiled for one device and XLA's plan is used.

    Args:
        config: of a file or of a run.
        workdir: of the run, if there is one.
        mode: "train" or "classifier".
        devices: number of devices; empty uses those of this machine.

    Raises:
        InputError: settings that cannot work, or that only the data set could determine.
    """
    part = choose({"train": "train", "classifier": "classifier"}, mode, "--mode of a --dry_run")
    require(devices == "" or (devices.isdecimal() and int(devices) >= 1), f"--devices={devices} must be 1 or more")
    number = int(devices) if devices else jax.device_count()
    # XLA's plan for a CPU undoes rematerialisation and computes bfloat16 in float32.
    compile_step = jax.default_backend() != "cpu"
    found = profile(resolved(control.with_base(config, workdir)), part, number, compile_step=compile_step)
    print(*profiling.summary(found), sep="\n", flush=True)


def resolved(config: ConfigDict) -> ConfigDict:
    """Copy of a config in which nothing is left for the data set to determine.

    Raises:
        InputError: something is missing; the message names the flags that set it.
    """
    d, m = config.data, config.model
    found = config.copy_and_resolve_references()
    unknown = {
        "--config.data.channels=3": d.channels == 0,
        "--config.model.num_classes=1000 (0 is none)": m.num_classes == -1,
        "--config.data.map_channels=3": bool(d.map) and d.map_channels == 0,
        "--config.data.attributes=() or the run's --workdir": len(d.attributes) != len(d.attribute_values),
    }
    missing = [remedy for remedy, is_missing in unknown.items() if is_missing]
    require(not missing, f"--dry_run reads no data; set what {d.name} would determine: {', '.join(missing)}")
    return found


def program(config: ConfigDict, part: str) -> Program:
    """Training step of a resolved config."""
    t, optimizer = config[part], build.optimizer(config, part)
    frozen: Any = {}
    if part == "train":
        network = networks.network(config)
        loss_function, timesteps = build.loss_function(network, config), build.timesteps(config)
        init = functools.partial(networks.init, network, config)
        _, frozen = networks.trained(network, jax.eval_shape(init))

        def fresh():
            return networks.trained(network, init())[0]
    else:
        classes = config.model.num_classes or len(config.data.class_names)
        require(classes >= 2, f"model.num_classes={classes}, but a classifier needs at least 2")
        classifier = networks.classifier(config, classes)
        loss_function, timesteps = build.classifier_loss(classifier, config), None
        fresh = functools.partial(networks.init_classifier, classifier, config)

    def begin(frozen):
        return state.create(fresh(), optimizer, jax.random.key(config.seed), timesteps, frozen, t.spike)

    step = build.step(config, part, loss_function, optimizer, timesteps)
    shapes = jax.eval_shape(begin, frozen)

    def loss(params, batch):
        count = len(batch["image"])
        chosen = {} if timesteps is None else {"t": jnp.zeros(count, jnp.int32)}
        return jnp.mean(loss_function(params, jax.random.split(jax.random.key(0), count), batch, **chosen).loss)

    return Program(step, loss, shapes, functools.partial(_batch, config))


def _batch(config: ConfigDict, images: int) -> dict[str, jax.ShapeDtypeStruct]:
    made_of_images, null = ("known", "low_res"), kinds.null(config, 1)
    rows = {kind: np.asarray(getattr(null, kind)) for kind in kinds.names(config) if kind not in made_of_images}
    batch = {kind: jax.ShapeDtypeStruct((images, *row.shape[1:]), row.dtype) for kind, row in rows.items()}
    batch["image"] = jax.ShapeDtypeStruct((images, *networks.image_shape(config)), jnp.float32)
    batch["label"] = jax.ShapeDtypeStruct((images,), jnp.int32)
    return batch


def profile(config: ConfigDict, part: str, devices: int, *, compile_step: bool = False) -> profiling.Profile:
    """Profile of a part of a resolved config, "train" or "classifier", on `devices` devices.

    Raises:
        InputError: settings that cannot work.
    """
    t = config[part]
    shards = build.shards(config, part, devices)
    parallel.check_batch(t.batch_size, t.accumulate, part, devices)
    made = program(config, part)
    return profiling.profile(
        functools.partial(made.step, accumulate=1),
        made.loss,
        made.state,
        made.batch,
        sharded=parallel.placed(made.state, AbstractMesh((devices // shards, shards), parallel.AXES)),
        devices=devices,
        batch_size=t.batch_size,
        accumulate=t.accumulate,
        compile_step=compile_step,
    )
