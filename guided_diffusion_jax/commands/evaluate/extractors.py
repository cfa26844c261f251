"""The feature extractors that a config names, the embedded one trained where it is not kept yet; and them at work."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict

from guided_diffusion_jax.commands.evaluate import kept
from guided_diffusion_jax.data.augmentation import random_crop
from guided_diffusion_jax.data.dataset import Dataset as Source
from guided_diffusion_jax.data.pipeline import batches
from guided_diffusion_jax.errors import choose, require
from guided_diffusion_jax.evaluation import own
from guided_diffusion_jax.evaluation.features import Extractor, Features
from guided_diffusion_jax.evaluation.features.pretrained import dinov2, inception
from guided_diffusion_jax.losses import Losses
from guided_diffusion_jax.training import parallel, state
from guided_diffusion_jax.training.loop import IN_FLIGHT
from guided_diffusion_jax.training.step import train_step
from guided_diffusion_jax.typing import Params

PRETRAINED = {"inception": inception, "dinov2": dinov2}
OWN = "own"

Part = tuple[UInt8[np.ndarray, "b h w c"], int]
"""This process's share of a batch that is filled up to one size, and how many pictures the batch really has."""


class Own(NamedTuple):
    """The data set's own network.

    Attributes:
        extractor: its name says how often it is right.
        identity: what tells it from any other: the file that it is kept in.
        accuracy: on the held-out split, 0 .. 1.
        told: whether it tells classes; otherwise how pictures were turned.
    """

    extractor: Extractor
    identity: str
    accuracy: float
    told: bool


def check(config: ConfigDict) -> None:
    """Raises `InputError` unless `evaluate.features` and `evaluate.weights` fit each other."""
    e = config.evaluate
    choose(dict.fromkeys((OWN, *PRETRAINED)), e.features, "evaluate.features")
    if e.features == OWN:
        require(not e.weights, f"evaluate.weights={e.weights}, but evaluate.features=own has none; leave it empty")
        return
    require(
        bool(e.weights),
        f"evaluate.features={e.features} needs evaluate.weights, the file of its weights; nothing is downloaded",
    )
    require(epath.Path(e.weights).is_file(), f"evaluate.weights={e.weights} is no file")


def pretrained(config: ConfigDict) -> Extractor:
    """The one that `evaluate.features` names, of the weights in `evaluate.weights`. Raises `InputError` as it does."""
    return PRETRAINED[config.evaluate.features](config.evaluate.weights)


class Viewer:
    """Extractors at work on all devices, on pictures in batches of one size.

    Args:
        extractors: each sees every picture.
        mesh: the devices.
        batch_size: about so many pictures at once, over all of them.
    """

    def __init__(self, extractors: Sequence[Extractor], mesh: Mesh, batch_size: int):
        self.size = parallel.filled(batch_size, mesh.size)
        self._mesh = mesh
        everywhere = parallel.whole(mesh)
        self._functions = jax.device_put([one.apply for one in extractors], everywhere)
        self._see = jax.jit(
            lambda functions, images: [see(images) for see in functions],
            out_shardings=everywhere,
            compiler_options=parallel.compiler_options(),
        )

    def features(self, parts: Iterable[Part]) -> Iterator[list[Features]]:
        """What each extractor says of each batch, in NumPy arrays, in all processes."""
        for mine, count in parts:
            found = self._see(self._functions, parallel.put_batch(mine, self._mesh))
            yield jax.tree.map(lambda values, count=count: np.asarray(values)[:count], found)

    def of_source(self, data: Source, numbers: Int[np.ndarray, " n"]) -> Iterator[Part]:
        """These examples of a data set; each process reads its own."""
        for start in range(0, len(numbers), self.size):
            batch = numbers[start : start + self.size]
            filled = batch.take(np.arange(self.size), mode="clip")
            yield data.read(parallel.here(filled))["image"], len(batch)

    def of_images(self, images: UInt8[np.ndarray, "n h w c"]) -> Iterator[Part]:
        """Pictures that all processes have."""
        return self.of_blocks(images[start : start + self.size] for start in range(0, len(images), self.size))

    def of_blocks(self, blocks: Iterable[UInt8[np.ndarray, "_ h w c"]]) -> Iterator[Part]:
        """Pictures that all processes have, in blocks of at most `size`."""
        for block in blocks:
            yield block.take(parallel.here(np.arange(self.size)), axis=0, mode="clip"), len(block)


def embedded(config: ConfigDict, train: Source, held_out: Source, where: Sequence[epath.Path]) -> Own:
    """The data set's own network, from where it is kept, or trained now.

    Args:
        config: resolved; says how many pictures are seen at once, and what the data set is called.
        train: the split that it learns.
        held_out: the split that its accuracy is of.
        where: the folders to keep it in.
    """
    told, mesh = train.num_classes >= 2, parallel.mesh()
    name = config.data.name if config.data.name != "folder" else epath.Path(config.data.data_dir).name
    split = f"its {config.evaluate.split} split"
    file = kept.file(OWN, own.VERSION, kept.identity(train))
    if not told:
        train, held_out = own.turned(train), own.turned(held_out)
    network = own.Small(train.num_classes)
    stored = kept.arrays(file, where, lambda: flatten_dict(trained(network, train, mesh), sep="/"))
    params = unflatten_dict(stored, sep="/")

    def measured() -> dict[str, np.ndarray]:
        viewer = Viewer([own.extractor("", network, params, told=True)], mesh, config.evaluate.batch_size)
        numbers = np.arange(len(held_out))
        found = viewer.features(viewer.of_source(held_out, numbers))
        predicted = np.concatenate([np.argmax(one.logits, axis=1) for (one,) in found if one.logits is not None])
        right = [
            predicted[start : start + own.BATCH] == held_out.read(numbers[start : start + own.BATCH])["label"]
            for start in range(0, len(held_out), own.BATCH)
        ]
        return {"accuracy": np.asarray(np.concatenate(right).mean())}

    accuracy = kept.arrays(kept.file("own-accuracy", file, kept.identity(held_out)), where, measured)["accuracy"]
    told_of = "own classifier of {}, {:.1%} right on {}" if told else "own network of {}, tells {:.1%} of turns on {}"
    title = told_of.format(name, float(accuracy), split)
    return Own(own.extractor(title, network, params, told=told), file, float(accuracy), told)


def trained(network: own.Small, data: Source, mesh: Mesh) -> Params:
    """The network's averaged parameters after `own.steps`, the same each time: from one seed, in one order."""
    steps, size = own.steps(len(data)), parallel.filled(own.BATCH, mesh.size)
    optimizer = state.adam(own.LEARNING_RATE, own.WARMUP_STEPS, weight_decay=0.0, grad_clip=1.0)
    shift = max(1, data.image_shape[0] // 8)

    def losses_of(params: Params, keys: Any, batch: dict[str, Any]) -> Losses:
        images, label = random_crop(keys, batch["image"], shift), batch["label"]
        found: Any = network.apply({"params": params}, images)
        loss = optax.softmax_cross_entropy_with_integer_labels(found.logits, label)
        return Losses(loss, jnp.zeros(len(label), jnp.int32), {})

    def begin() -> state.TrainState:
        params = network.init(jax.random.key(0), jnp.zeros((1, *data.image_shape)))["params"]
        return state.create(params, optimizer, jax.random.key(0))

    update = parallel.pmap(
        functools.partial(
            train_step, loss_function=losses_of, optimizer=optimizer, ema_decay=own.EMA_DECAY, num_steps=1
        ),
        mesh,
    )
    stream = batches(
        data,
        batch_size=size // jax.process_count(),
        seed=0,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    print(f"{data.name}: its own network is trained, {steps} steps, once", flush=True)
    fresh = jax.jit(begin, out_shardings=parallel.whole(mesh), compiler_options=parallel.compiler_options())
    current = fresh()
    for number, batch in zip(range(steps), stream, strict=False):
        inputs = {key: batch[key] for key in ("image", "label")}
        current, _ = update(current, parallel.put_batch(inputs, mesh))
        if number % IN_FLIGHT == 0:
            jax.block_until_ready(current)
    return jax.tree.map(np.asarray, current.ema)
