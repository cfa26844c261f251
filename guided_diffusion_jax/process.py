"""The diffusion process that a network is trained for: its levels, and what the network predicts."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from guided_diffusion_jax import schedules
from guided_diffusion_jax.errors import choose, require
from guided_diffusion_jax.gaussian import VARIANCES
from guided_diffusion_jax.prediction import PREDICTIONS, Parametrization, edm
from guided_diffusion_jax.trajectories import Steps, pad, trajectory
from guided_diffusion_jax.typing import Level


@dataclasses.dataclass(frozen=True, eq=False)
class Process:
    """Levels x = alpha x0 + sigma eps, and what a network predicts at them.

    Attributes:
        levels: all T training levels, the least noisy first: `schedules.cosine(1000)`, `schedules.table(alpha, sigma)`.
        prediction: "eps", "x0", "v", "velocity" or "edm", a key of `prediction.PREDICTIONS`.
        variance: of an ancestral step: "fixed_small", "fixed_large" or "learned_range" (see `gaussian.variance`); with
            "learned_range" the network has twice the channels, the second half being the share of the variance.
        sigma_data: standard deviation of the images, for which "edm" scales inputs and outputs.
        made_of: arguments of `schedules.create` that make the levels, which `describe` then tells instead of numbers.

    >>> Process(schedules.cosine(1000), prediction="w")
    Traceback (most recent call last):
    guided_diffusion_jax.errors.InputError: diffusion.prediction='w' is not one of eps, x0, v, velocity, edm...
    """

    levels: Level
    prediction: str = "eps"
    variance: str = "fixed_small"
    sigma_data: float = 0.5
    made_of: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)

    @classmethod
    def create(
        cls,
        schedule: str = "cosine",
        num_steps: int = 1000,
        *,
        shift: float = 1.0,
        zero_terminal_snr: bool = False,
        **choices: Any,
    ) -> "Process":
        """Process with a schedule by name.

        Args:
            schedule: a key of `schedules.SCHEDULES`.
            num_steps: T.
            shift: how many times the noise; d / 64 for images of d pixels (see `schedules.shifted`).
            zero_terminal_snr: end at pure noise (see `schedules.rescaled_to_zero_snr`).
            choices: the other attributes.

        Raises:
            InputError: what cannot be, or a network that predicts eps, which tells nothing of images at pure noise.

        >>> Process.create("cosine", 100, shift=2.0, prediction="v").describe()
        {'schedule': 'cosine', 'num_steps': 100, 'shift': 2.0, 'prediction': 'v', 'variance': 'fixed_small'}
        """
        options: dict[str, Any] = {"shift": shift} if shift != 1 else {}
        options |= {"zero_terminal_snr": True} if zero_terminal_snr else {}
        levels = schedules.create(schedule, num_steps, **options)
        require(
            not zero_terminal_snr or choices.get("prediction", "eps") != "eps",
            "diffusion.zero_terminal_snr=True ends at pure noise, where eps tells nothing of the image; use "
            "diffusion.prediction='v'",
        )
        return cls(levels, made_of={"schedule": schedule, "num_steps": num_steps, **options}, **choices)

    def __post_init__(self) -> None:
        choose(PREDICTIONS, self.prediction, "diffusion.prediction")
        choose(VARIANCES, self.variance, "diffusion.variance")
        require(self.sigma_data > 0, f"diffusion.sigma_data={self.sigma_data} must be positive")
        require(
            isinstance(self.levels, Level),
            f"levels is a {type(self.levels).__name__}; give a table of levels, e.g. schedules.cosine(1000)",
        )

    @property
    def num_steps(self) -> int:
        """T, the number of training levels."""
        return len(self.levels.time)

    @property
    def parametrization(self) -> Parametrization:
        """Conversions of what the network predicts."""
        return edm(self.sigma_data) if self.prediction == "edm" else PREDICTIONS[self.prediction]

    @property
    def learned_variance(self) -> bool:
        """Whether the network also puts out a share of the variance."""
        return self.variance == "learned_range"

    def trajectory(self, steps: Steps, spacing: str = "linspace", **options: Any) -> Level:
        """Levels that a sampler visits, padded to T + 1 rows, so that their number compiles nothing."""
        return pad(trajectory(self.levels, steps, spacing, **options), self.num_steps + 1)

    def at(self, time: ArrayLike) -> Level:
        """Levels at real times in [0, T-1], the rows at whole ones; `[b]` times give one level per sample."""
        return schedules.at(self.levels, jnp.asarray(time, jnp.float32))

    def describe(self) -> dict[str, Any]:
        """JSON-able description, from which `from_description` makes the same process."""
        named = ({"schedule": name, "num_steps": self.num_steps} for name in schedules.SCHEDULES)
        made_of = next((how for how in (self.made_of, *named) if how and _makes(how, self.levels)), None)
        if made_of is None:
            columns = self.levels._asdict().items()
            made_of = {name: np.asarray(column, np.float64).tolist() for name, column in columns}
        choices = {"prediction": self.prediction, "variance": self.variance}
        return {**made_of, **choices, **({"sigma_data": self.sigma_data} if self.prediction == "edm" else {})}

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> "Process":
        """Process that `describe` described."""
        options = dict(description)
        choices = {name: options.pop(name) for name in ("prediction", "variance")}
        if "schedule" in options:
            return cls.create(options.pop("schedule"), options.pop("num_steps"), **options, **choices)
        levels = Level(*(np.float32(options.pop(name)) for name in Level._fields))
        return cls(levels, **options, **choices)


def _makes(how: Mapping[str, Any], levels: Level) -> bool:
    options = dict(how)
    try:
        made = schedules.create(options.pop("schedule"), **options)
    except ValueError:  # a schedule that has no table of this length
        return False
    return all(np.array_equal(a, b) for a, b in zip(made, levels, strict=True))
