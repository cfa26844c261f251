"""The diffusion process that a network is trained for: its levels, and what the network predicts."""

import dataclasses
from typing import Any

import numpy as np

from guided_diffusion_jax import schedules
from guided_diffusion_jax.errors import choose, require
from guided_diffusion_jax.gaussian import VARIANCES
from guided_diffusion_jax.prediction import PREDICTIONS, Parametrization
from guided_diffusion_jax.trajectories import Steps, pad, trajectory
from guided_diffusion_jax.typing import Level


@dataclasses.dataclass(frozen=True, eq=False)
class Process:
    """Levels x = alpha x0 + sigma eps, and what a network predicts at them.

    Attributes:
        levels: all T training levels, the least noisy first: `schedules.cosine(1000)`, `schedules.table(alpha, sigma)`.
        prediction: "eps", "x0", "v" or "velocity", a key of `prediction.PREDICTIONS`.
        variance: of an ancestral step: "fixed_small", "fixed_large" or "learned_range" (see `gaussian.variance`); with
            "learned_range" the network has twice the channels, the second half being the share of the variance.

    >>> Process(schedules.cosine(1000), prediction="w")
    Traceback (most recent call last):
    guided_diffusion_jax.errors.InputError: diffusion.prediction='w' is not one of eps, x0, v, velocity...
    """

    levels: Level
    prediction: str = "eps"
    variance: str = "fixed_small"

    def __post_init__(self) -> None:
        choose(PREDICTIONS, self.prediction, "diffusion.prediction")
        choose(VARIANCES, self.variance, "diffusion.variance")
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
        return PREDICTIONS[self.prediction]

    @property
    def learned_variance(self) -> bool:
        """Whether the network also puts out a share of the variance."""
        return self.variance == "learned_range"

    def trajectory(self, steps: Steps, spacing: str = "linspace", **options: Any) -> Level:
        """Levels that a sampler visits, padded to T + 1 rows, so that their number compiles nothing."""
        return pad(trajectory(self.levels, steps, spacing, **options), self.num_steps + 1)

    def describe(self) -> dict[str, Any]:
        """JSON-able description, from which `from_description` makes the same process."""
        columns = {name: np.asarray(column, np.float64).tolist() for name, column in self.levels._asdict().items()}
        for name, schedule in schedules.SCHEDULES.items():
            if _same(schedule, self.levels):
                columns = {"schedule": name, "num_steps": self.num_steps}
                break
        return {**columns, "prediction": self.prediction, "variance": self.variance}

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> "Process":
        """Process that `describe` described."""
        choices = {"prediction": description["prediction"], "variance": description["variance"]}
        if "schedule" in description:
            schedule = choose(schedules.SCHEDULES, description["schedule"], "diffusion.schedule")
            return cls(schedule(description["num_steps"]), **choices)
        return cls(Level(*(np.float32(description[name]) for name in Level._fields)), **choices)


def _same(schedule: Any, levels: Level) -> bool:
    try:
        made = schedule(len(levels.time))
    except ValueError:  # a schedule that has no table of this length
        return False
    return all(np.array_equal(a, b) for a, b in zip(made, levels, strict=True))
