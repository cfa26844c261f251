"""Features of a small classifier that is trained on the evaluated data set itself.

It needs no download and fits images of any size. Its values compare with each other on one data set and with nothing
else: they are not FID, which uses Inception, so its name states what it is and its accuracy.

Without classes it learns to recognise rotations by 0, 90, 180 or 270 degrees (Gidaris, Singh & Komodakis 2018), for
which it has to recognise what an image shows.
"""

import dataclasses
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from guided_diffusion_jax import sharding
from guided_diffusion_jax.data.augmentation import random_crop
from guided_diffusion_jax.data.dataset import Dataset
from guided_diffusion_jax.data.pipeline import batches
from guided_diffusion_jax.evaluation import cache
from guided_diffusion_jax.evaluation.feature_pipeline import FeaturePipeline
from guided_diffusion_jax.evaluation.features import Extractor, Features
from guided_diffusion_jax.evaluation.features.extractor import bind
from guided_diffusion_jax.models.layers import GroupNorm, conv3x3, dense
from guided_diffusion_jax.runtime import notices
from guided_diffusion_jax.samplers import sample_keys
from guided_diffusion_jax.training.state import update_ema
from guided_diffusion_jax.typing import Params

VERSION = 1
"""Raised with every change of the network or its training, which makes cached parameters stale."""

BATCH_SIZE = 128
LEARNING_RATE, WARMUP_STEPS, GRAD_CLIP, EMA_DECAY = 2e-3, 50, 1.0, 0.98
IN_FLIGHT = 8
"""Steps that the host may be ahead of the devices."""

WIDTH, SPATIAL_CHANNELS = 64, 4
"""Width of `Features.pool`, and number of its maps in `Features.spatial`."""

FINEST, COARSEST = 16, 4
"""Resolutions of the first full block (larger images are halved down to it) and of the last maps, at most."""

ROTATIONS = ("0 degrees", "90 degrees", "180 degrees", "270 degrees")


class DatasetClassifier(nn.Module):
    """Convolutions down to a few pixels, two for each halving, and a mean; float32.

    Attributes:
        num_classes: of the logits.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Features:
        """Features and logits of images in [-1, 1]."""
        layers = 0

        def block(x: Array, channels: int, stride: int = 1) -> Array:
            nonlocal layers
            layers += 1
            x = conv3x3(channels, dtype=x.dtype, name=f"conv_{layers}", stride=stride)(x)
            return nn.relu(GroupNorm(name=f"norm_{layers}")(x))

        while x.shape[1] > FINEST:
            x = block(x, WIDTH // 2, stride=2)
        x = block(x, WIDTH // 2)
        while x.shape[1] > COARSEST:
            x = block(block(x, WIDTH, stride=2), WIDTH)
        if x.shape[-1] != WIDTH:  # images of a few pixels
            x = block(x, WIDTH)
        pool = x.mean((1, 2))
        logits = dense(self.num_classes, dtype=x.dtype, name="logits")(pool)
        return Features(pool, x[..., :SPATIAL_CHANNELS].reshape(len(x), -1), logits)


class DatasetFeatures(NamedTuple):
    """Trained classifier of a data set.

    Attributes:
        extractor: its name states its accuracy; without classes it gives no logits.
        identity: name of the file it is cached in, which differs from that of any other network.
        accuracy: on held-out images, 0 .. 1.
        has_classes: whether it recognises the data set's classes, rather than rotations.
    """

    extractor: Extractor
    identity: str
    accuracy: float
    has_classes: bool


def dataset_features(
    train: Dataset, held_out: Dataset, where: Sequence[epath.Path] = (), batch_size: int = 100
) -> DatasetFeatures:
    """Classifier of a data set, from the cache or trained now.

    Args:
        train: split to learn.
        held_out: split to measure its accuracy on.
        where: folders to cache it in.
        batch_size: images at a time, for the accuracy.
    """
    has_classes = train.num_classes >= 2
    names = (train.name, held_out.name)
    file = cache.file_name("own", VERSION, cache.fingerprint(train))
    if not has_classes:
        train, held_out = rotated(train), rotated(held_out)
    network = DatasetClassifier(train.num_classes)
    stored = cache.arrays(file, where, lambda: flatten_dict(train_classifier(network, train), sep="/"))
    params = unflatten_dict(stored, sep="/")

    def measure() -> dict[str, np.ndarray]:
        pipeline = FeaturePipeline([classifier_extractor("", network, params)], batch_size)
        predicted = np.concatenate([np.asarray(f.logits).argmax(1) for (f,) in pipeline(pipeline.dataset(held_out))])
        indices = np.array_split(np.arange(len(held_out)), -(-len(held_out) // BATCH_SIZE))
        labels = np.concatenate([held_out.read(rows)["label"] for rows in indices])
        return {"accuracy": np.asarray((predicted == labels).mean())}

    accuracy_file = cache.file_name("own-accuracy", file, cache.fingerprint(held_out))
    accuracy = float(cache.arrays(accuracy_file, where, measure)["accuracy"])
    title = "classifier of {}, {:.1%} right on {}" if has_classes else "rotation classifier of {}, {:.1%} right on {}"
    title = title.format(names[0], accuracy, names[1])
    return DatasetFeatures(classifier_extractor(title, network, params, has_classes), file, accuracy, has_classes)


def num_steps(count: int) -> int:
    """Number of training steps for `count` images: 20 epochs, between 200 and 2000 steps."""
    return min(max(20 * count // BATCH_SIZE, 200), 2000)


def classifier_extractor(name: str, network: DatasetClassifier, params: Params, has_classes: bool = True) -> Extractor:
    """Extractor of the trained network, without logits where it has learned rotations."""

    def features(params: Params, images: Array) -> Features:
        output: Any = network.apply({"params": params}, images.astype("float32") / 127.5 - 1)
        return output if has_classes else output._replace(logits=None)

    return Extractor(name, bind(features, params))


def rotated(data: Dataset) -> Dataset:
    """Every image in four rotations, labelled by rotation; image i is rotation i % 4 of i // 4."""

    def read(indices: np.ndarray) -> dict[str, np.ndarray]:
        images, turns = data.read(indices // 4)["image"], indices % 4
        turned = np.stack([np.rot90(image, turn) for image, turn in zip(images, turns, strict=True)])
        return {"image": turned, "label": turns.astype(np.int32)}

    return dataclasses.replace(
        data,
        length=4 * len(data),
        class_names=ROTATIONS,
        read=read,
        attributes=(),
        control_channels=0,
        has_reference=False,
    )


def train_classifier(network: DatasetClassifier, data: Dataset) -> Params:
    """Averaged parameters after `num_steps` steps; reproducible, with one seed and one order of the data."""
    mesh, steps = sharding.mesh(), num_steps(len(data))
    replicated, options = sharding.replicated(mesh), sharding.compiler_options()
    rate = lambda count: LEARNING_RATE * jnp.minimum(1.0, (count + 1) / WARMUP_STEPS)  # noqa: E731
    optimizer = optax.chain(optax.clip_by_global_norm(GRAD_CLIP), optax.adamw(rate, weight_decay=0.0))
    shift = max(1, data.image_shape[0] // 8)

    def init() -> tuple:
        params = network.init(jax.random.key(0), jnp.zeros((1, *data.image_shape)))["params"]
        return params, jax.tree.map(jnp.copy, params), optimizer.init(params)

    def update(state: tuple, step: Array, images: Array, labels: Array) -> tuple:
        params, average, opt_state = state
        keys = sample_keys(jax.random.fold_in(jax.random.key(0), step), jnp.arange(len(images)))

        def loss(params: Params) -> Array:
            output: Any = network.apply({"params": params}, random_crop(keys, images, shift))
            return optax.softmax_cross_entropy_with_integer_labels(output.logits, labels).mean()

        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
        params = optax.apply_updates(params, updates)
        return params, update_ema(average, params, EMA_DECAY, step), opt_state

    processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    size = sharding.round_up(BATCH_SIZE, mesh.size) // jax.process_count()
    stream = batches(data, batch_size=size, seed=0, **processes)
    print(f"training a classifier of {data.name} for its features: {steps} steps, once", flush=True)
    state = jax.jit(init, out_shardings=replicated, compiler_options=options)()
    compiled = jax.jit(update, donate_argnums=0, out_shardings=replicated, compiler_options=options)
    with notices.progress(steps, "training the features", " steps", leave=False) as bar:
        for step, batch in zip(range(steps), stream, strict=False):
            images, labels = sharding.put_batch((batch["image"], batch["label"]), mesh)
            with notices.compiling("the training of the features", state, images) if step == 0 else nullcontext():
                state = compiled(state, jnp.int32(step), images, labels)
            if step % IN_FLIGHT == 0:
                jax.block_until_ready(state)
                bar.update(step + 1 - bar.n)
    return jax.tree.map(np.asarray, state[1])
