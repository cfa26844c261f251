"""`--dry_run`: what a run would take, before anything is rented, read or allocated.

`python main.py --config=configs/imagenet64.py --dry_run [--mode=classifier] [--devices=8]` needs neither the data set
nor `--workdir`. See `training.cost` for the account and docs/scaling.md for how far it can be trusted.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from guided_diffusion_jax import sharding
from guided_diffusion_jax.commands import build, control, kinds, networks
from guided_diffusion_jax.commands import config as configs
from guided_diffusion_jax.errors import choose, require
from guided_diffusion_jax.training import cost, state
from guided_diffusion_jax.training.accelerators import ACCELERATORS, USABLE, UTILISATION

GB = 1e9


class Account(NamedTuple):
    """What one of `devices` does and holds in training.

    Attributes:
        parameters: how many, by part of the network.
        devices: of all hosts.
        batch: images on a device.
        accumulate: parts in which they come.
        state: bytes on a device, by part of the state.
        batch_bytes: of the images and what else is read with them.
        gathered: bytes of the largest parameters that are whole on a device for a moment.
        share: of the parameters that a device keeps.
        cost: of the step.
    """

    parameters: dict[str, int]
    devices: int
    batch: int
    accumulate: int
    state: dict[str, int]
    batch_bytes: int
    gathered: int
    share: float
    cost: cost.Cost

    @property
    def flops(self) -> float:
        """Of the step, for an image."""
        return self.cost.flops / self.accumulate

    @property
    def each(self) -> int:
        """Bytes of the activations of one image, where they are the most."""
        return max(point.each for point in self.cost.live)

    def temporaries(self, batch: int) -> int:
        """Bytes of activations, gradients and the like with so many images on a device."""
        part = batch // self.accumulate
        return self.gathered + max(int(self.share * point.fixed) + part * point.each for point in self.cost.live)

    def needs(self, batch: int) -> int:
        """All bytes with so many images on a device."""
        return sum(self.state.values()) + batch * self.batch_bytes // self.batch + self.temporaries(batch)

    def largest(self, room: int) -> int:
        """The most images on a device for which that many bytes are enough; 0 where one is too many."""
        high = 1
        while self.needs(high * self.accumulate) <= room:
            high *= 2
        low = high // 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.needs(middle * self.accumulate) <= room else (low, middle)
        return low * self.accumulate


class Program(NamedTuple):
    """The step of a config, with the shapes of what it is given.

    Attributes:
        step: `train_step` with all but state and batch.
        state: its shapes.
        batch: gives the shapes for so many images.
    """

    step: sharding.Step
    state: state.TrainState
    batch: Callable[[int], dict[str, jax.ShapeDtypeStruct]]


def run(config: ConfigDict, workdir: epath.Path, mode: str, devices: str) -> None:
    """Prints the resolved config, parameters, memory on a device, work, and what would be enough.

    Args:
        config: of a file or of a run.
        workdir: of the run, if there is one.
        mode: "train" or "classifier".
        devices: how many; empty is those of this machine.

    Raises:
        InputError: what cannot work, or what only the data could tell.
    """
    part = choose({"train": "train", "classifier": "classifier"}, mode, "--mode of a --dry_run")
    require(devices == "" or (devices.isdecimal() and int(devices) >= 1), f"--devices={devices} must be 1 or more")
    number = int(devices) if devices else jax.device_count()
    config = resolved(control.with_base(config, workdir))
    found = account(config, part, number)
    print("\n".join(f"  {key}={value}" for key, value in configs.flatten(config)))
    print("\n".join(["", *lines(found, config, part)]), flush=True)


def resolved(config: ConfigDict) -> ConfigDict:
    """The config with nothing left to the data.

    Raises:
        InputError: it leaves something to the data; the message says how to give it.
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
    require(not missing, f"--dry_run reads no data; say what {d.name} would: {', '.join(missing)}")
    return found


def program(config: ConfigDict, part: str) -> Program:
    """The step as training compiles it, of a resolved config."""
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
    return Program(step, jax.eval_shape(begin, frozen), functools.partial(_batch, config))


def _batch(config: ConfigDict, images: int) -> dict[str, jax.ShapeDtypeStruct]:
    made_of_images, null = ("known", "low_res"), kinds.null(config, 1)
    rows = {kind: np.asarray(getattr(null, kind)) for kind in kinds.names(config) if kind not in made_of_images}
    batch = {kind: jax.ShapeDtypeStruct((images, *row.shape[1:]), row.dtype) for kind, row in rows.items()}
    batch["image"] = jax.ShapeDtypeStruct((images, *networks.image_shape(config)), jnp.float32)
    batch["label"] = jax.ShapeDtypeStruct((images,), jnp.int32)
    return batch


def account(config: ConfigDict, part: str, devices: int) -> Account:
    """Of a part of a resolved config, "train" or "classifier", on so many devices.

    Raises:
        InputError: settings that cannot work.
    """
    t = config[part]
    shards = build.shards(config, part, devices)
    mesh = AbstractMesh((devices // shards, shards), sharding.AXES)
    sharding.check_batch(t.batch_size, t.accumulate, part, devices)
    made = program(config, part)
    shapes = made.state
    placed = sharding.abstract_with_sharding(shapes, mesh)
    on_device = {
        "parameters": cost.on_device(placed.params),
        "average": cost.on_device(placed.ema),
        "optimiser": cost.on_device(placed.opt_state),
        "frozen": cost.on_device(placed.frozen),
    }
    largest = max(cost.nbytes(leaf) for leaf in jax.tree.leaves(shapes.params))
    batch = t.batch_size // devices
    return Account(
        parameters={name: cost.count(tree) for name, tree in {**shapes.params, **shapes.frozen}.items()},
        devices=devices,
        batch=batch,
        accumulate=t.accumulate,
        state={name: size for name, size in on_device.items() if size},
        batch_bytes=batch * cost.nbytes(made.batch(1)),
        gathered=0 if mesh.shape["fsdp"] == 1 else 2 * largest,  # one in use while the next comes
        share=on_device["parameters"] / cost.nbytes(shapes.params),
        cost=cost.of(made.step, shapes, made.batch(cost.MARK * t.accumulate)),
    )


def lines(found: Account, config: ConfigDict, part: str) -> Iterator[str]:
    """What `run` prints of an account."""
    t, batch = config[part], found.batch
    parts = ", ".join(f"{name} {size:,}" for name, size in found.parameters.items())
    yield f"{sum(found.parameters.values()):,} parameters: {parts}"
    yield f"on each of {found.devices} device(s), by {part}.parallel={t.parallel}, {batch} of {t.batch_size} images:"
    held = ", ".join(f"{name} {size / GB:.2f}" for name, size in found.state.items())
    yield f"  {sum(found.state.values()) / GB:8.2f} GB of state: {held}"
    yield f"  {found.batch_bytes / GB:8.2f} GB of data"
    yield (
        f"  {found.temporaries(batch) / GB:8.2f} GB of activations and gradients: {found.each / GB:.3f} an image "
        f"{'with' if _remat(config, part) else 'without'} remat, {t.accumulate} part(s)"
    )
    yield f"  {found.needs(batch) / GB:8.2f} GB together"
    yield f"  {found.flops * batch / 1e12:8.2f} TFLOP a step, {found.flops / 1e9:,.1f} GFLOP an image"
    yield "memory is an account of the traced program, not a compiler's plan: see docs/scaling.md"
    dtype = config["model" if part == "train" else part].dtype
    yield (
        f"images/s assume {UTILISATION:.0%} of the peak in bfloat16, and devices that never wait for each other; "
        f"room is {USABLE:.0%} of the memory"
    )
    if dtype != "bfloat16":
        yield f"this config computes in {dtype}, which is slower: no images/s"
    yield from table(found, speed=dtype == "bfloat16")


def _remat(config: ConfigDict, part: str) -> bool:
    return config["model" if part == "train" else part].remat


def table(found: Account, *, speed: bool) -> Sequence[str]:
    """A line for each accelerator: whether the batch fits, the largest that does, images a second on all devices."""
    rows = [f"{'':10} {'memory':>8} {'fits':>5} {'most images a device':>21} {'images/s':>9}"]
    for accelerator in ACCELERATORS:
        fits = "yes" if found.needs(found.batch) <= accelerator.usable else "no"
        largest = found.largest(accelerator.usable)
        rate = f"{found.devices * accelerator.rate(found.flops):,.0f}" if speed and largest else "-"
        rows.append(f"{accelerator.name:10} {accelerator.memory / 2**30:4.0f} GiB {fits:>5} {largest:>21,} {rate:>9}")
    fitting = [a.name for a in ACCELERATORS if found.needs(found.batch) <= a.usable]
    return [*rows, f"fits in: {', '.join(fitting) or 'none of these; lower the batch or use remat, fsdp, accumulate'}"]
