"""What is measured: networks and steps of the package's own presets, fed with noise."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from benchmarks.timing import Program, Spread, Times
from guided_diffusion_jax import data, sharding
from guided_diffusion_jax.data.dataset import Dataset, as_inputs
from guided_diffusion_jax.errors import choose
from guided_diffusion_jax.experiment import trainers
from guided_diffusion_jax.experiment.config import preset
from guided_diffusion_jax.training import state
from guided_diffusion_jax.training.state import TrainState
from guided_diffusion_jax.training.trainer import Trainer
from guided_diffusion_jax.typing import Params

CLASSES = 10


class Size(NamedTuple):
    """A preset by its name: the channels of its images, and overrides for a CPU."""

    channels: int
    on_cpu: dict[str, Any]


SIZES = {
    "digits": Size(1, {}),
    "cifar10": Size(
        3,
        {
            "model.width": 32,
            "model.channel_mult": (1, 2, 2),
            "model.num_res_blocks": 1,
            "model.dtype": "float32",
            "train.batch_size": 8,
        },
    ),
    "imagenet64": Size(3, {}),
}


class Case(NamedTuple):
    """A size on this machine.

    Attributes:
        name: of the size; with "-small" where there are overrides, as on a CPU.
        overrides: differences from the preset; keys as in `--config.KEY`.
        config: of the network and its training.
        data: as many random images as a batch has, with labels.
    """

    name: str
    overrides: dict[str, Any]
    config: ConfigDict
    data: Dataset

    @property
    def batch(self) -> int:
        """Images of a batch, in training and in sampling."""
        return len(self.data)

    @property
    def labels(self) -> np.ndarray:
        """Classes in turn, `[batch]`."""
        return np.resize(np.arange(CLASSES, dtype=np.int32), self.batch)

    def trainer(self, **model: Any) -> Trainer:
        """Trainer of the configuration, with changes of its section `model`."""
        config = self.config.copy_and_resolve_references()
        config.model.update(model)
        return trainers.trainer(config, None, self.data)

    def params(self) -> Params:
        """Small random numbers in the shapes of the network's parameters; compiles nothing."""
        return small_numbers(jax.eval_shape(self.trainer().init).params)

    def start(self, trainer: Trainer) -> TrainState:
        """The trainer's state with these parameters; a step donates it, so each use needs another."""
        fresh = state.create(self.params(), trainer.optimizer, jax.random.key(0))
        return jax.device_put(fresh, sharding.replicated(trainer.mesh))

    def batch_on(self, mesh: Mesh) -> dict[str, jax.Array]:
        """All images and labels as a batch of training."""
        return sharding.put_batch(as_inputs(self.data.read(np.arange(self.batch))), mesh)


def small_numbers(shapes: Params) -> Params:
    """Random numbers of standard deviation 0.02 in these shapes."""
    draw = np.random.default_rng(0).standard_normal
    return jax.tree.map(lambda leaf: jnp.asarray(0.02 * draw(leaf.shape), leaf.dtype), shapes)


def case(size: str, changes: dict[str, Any]) -> Case:
    """Case of a size with further `changes` of its configuration.

    Raises:
        InputError: there is no such size.
    """
    chosen = choose(SIZES, size, "--sizes")
    overrides = {**(chosen.on_cpu if jax.default_backend() == "cpu" else {}), **changes}
    config = preset(size)
    config.update_from_flattened_dict(overrides)
    count, pixels = config.train.batch_size, config.data.image_size
    images = random_images(count, (pixels, pixels, chosen.channels))
    return Case(f"{size}-small" if overrides else size, overrides, config, images)


def random_images(count: int, shape: tuple[int, int, int]) -> Dataset:
    """Data set of noise, its classes in turn."""
    noise = np.random.default_rng(1).integers(0, 256, (count, *shape), np.uint8)
    labels = np.resize(np.arange(CLASSES), count)
    return data.from_arrays(noise, labels, class_names=tuple(map(str, range(CLASSES))), name="noise")


class Measurement(NamedTuple):
    """Figures of one program. `seconds` are of one batch, for sampling through all steps; the rest as in `timing`."""

    case: str
    program: str
    batch: int
    seconds: Spread
    images_per_second: float
    lower_seconds: float
    compile_seconds: float
    program_bytes: int
    device_peak_bytes: int | None


class Ratio(NamedTuple):
    """Ratio of two programs that ran alternately."""

    case: str
    name: str
    value: Spread
    rounds: int


class Results(NamedTuple):
    """Result of a benchmark."""

    measurements: list[Measurement]
    ratios: list[Ratio]


def measurement(case: Case, name: str, program: Program, times: Times, steps: int = 1) -> Measurement:
    """Measurement of the program with this name in `times`, each of whose timed calls took `steps` steps."""
    seconds = Spread.of(times.seconds[name] / steps)
    return Measurement(
        case=case.name,
        program=name,
        batch=case.batch,
        seconds=seconds,
        images_per_second=case.batch / seconds.median,
        lower_seconds=program.lower_seconds,
        compile_seconds=program.compile_seconds,
        program_bytes=program.program_bytes,
        device_peak_bytes=times.device_peak_bytes[name],
    )


def ratio(case: Case, description: str, times: Times, name: str, to: str) -> Ratio:
    """Ratio of the seconds of two programs in `times`."""
    return Ratio(case.name, description, times.ratio(name, to), len(times.seconds[name]))
