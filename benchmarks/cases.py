"""What is measured: networks and steps of the package's own configurations, fed with noise."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks.timing import Program, Spread, Times
from configs import cifar10, digits
from guided_diffusion_jax.commands import networks
from guided_diffusion_jax.errors import choose
from guided_diffusion_jax.typing import Params


class Size(NamedTuple):
    """A configuration, with what it would learn from its data, and what makes it bearable on a CPU."""

    get_config: Callable[[], ConfigDict]
    of_data: dict[str, Any]
    on_cpu: dict[str, Any]


SIZES = {
    "digits": Size(digits.get_config, {"data.channels": 1}, {}),
    "cifar10": Size(
        cifar10.get_config,
        {"data.channels": 3},
        {
            "model.width": 32,
            "model.channel_mult": (1, 2, 2),
            "model.num_res_blocks": 1,
            "model.dtype": "float32",
            "train.batch_size": 8,
        },
    ),
}


class Case(NamedTuple):
    """A size on this machine.

    Attributes:
        name: the size's, or "cifar10-small" where a CPU takes the reduced one.
        overrides: what differs from the configuration's file; keys as in `--config.KEY`.
        config: resolved.
        batch: images, in training and in sampling.
    """

    name: str
    overrides: dict[str, Any]
    config: ConfigDict
    batch: int

    def params(self) -> Params:
        """Small random numbers in the shapes of the network's parameters; compiles nothing."""
        draw = np.random.default_rng(0).standard_normal
        shapes = jax.eval_shape(lambda: networks.init(networks.unet(self.config), self.config))
        return jax.tree.map(lambda leaf: jnp.asarray(0.02 * draw(leaf.shape), leaf.dtype), shapes)

    def labels(self) -> np.ndarray:
        """Classes in turn, `[batch]`."""
        return np.resize(np.arange(self.config.model.num_classes, dtype=np.int32), self.batch)


def case(size: str, changes: dict[str, Any]) -> Case:
    """The case of a size with further `changes` of its configuration.

    Raises:
        InputError: no such size.
    """
    chosen = choose(SIZES, size, "--sizes")
    reduced = chosen.on_cpu if jax.default_backend() == "cpu" else {}
    overrides = {**reduced, **changes}
    config = chosen.get_config()
    config.update_from_flattened_dict({**chosen.of_data, **overrides})
    return Case(f"{size}-small" if overrides else size, overrides, config, config.train.batch_size)


class Measurement(NamedTuple):
    """One program. `seconds` are those of one batch, for sampling through all steps; the rest as in `timing`."""

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
    """What two programs that took turns have to say of each other."""

    case: str
    name: str
    value: Spread
    rounds: int


class Results(NamedTuple):
    """What a benchmark gives back."""

    measurements: list[Measurement]
    ratios: list[Ratio]


def measurement(case: Case, name: str, program: Program, times: Times, steps: int = 1) -> Measurement:
    """Of the program with this name in `times`, whose timed calls took so many steps each."""
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
    """Of the seconds of two programs in `times`."""
    return Ratio(case.name, description, times.ratio(name, to), len(times.seconds[name]))
