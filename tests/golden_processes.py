"""The processes and the synthetic model of golden/README.md, section 5, in this package's words and layout."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np

from guided_diffusion_jax import prediction, schedules
from guided_diffusion_jax.typing import Level

VARIANCES = {"FIXED_SMALL": "fixed_small", "FIXED_LARGE": "fixed_large", "LEARNED_RANGE": "learned_range"}


def nhwc(a):
    return jnp.asarray(np.moveaxis(a, -3, -1))


def nchw(a):
    return np.moveaxis(np.asarray(a), -1, -3)


def from_previous(x, mean, level, coefficients):
    """Prediction from the mean of q(x_nxt given x, x0), solved for x0; `coefficients` as `gaussian` has them."""
    of_x0, of_x = coefficients
    return prediction.from_x0(x, (mean - of_x * x) / of_x0, level)


def selection(text):
    """(steps, spacing) of a `timestep_respacing` of guided-diffusion: "ddim50", "250" or "10,20,30"."""
    if text.startswith("ddim"):
        return int(text.removeprefix("ddim")), "stride"
    return tuple(int(part) for part in text.split(",")), "linspace"


def select(text, num_steps):
    """The rows that it chooses, rising."""
    steps, spacing = selection(text)
    return schedules.stride_rows(steps, num_steps) if spacing == "stride" else schedules.section_rows(steps, num_steps)


def process(settings) -> Level:
    """The rows t = 0 .. S-1 of a process of the golden files, with the times that its model receives."""
    table = schedules.SCHEDULES[settings["schedule"]](settings["T"])
    rows = settings.get("use_timesteps")
    if rows is None:
        rows = select(settings["timestep_respacing"] or str(settings["T"]), settings["T"])
    scale = np.float32(1000 / settings["T"]) if settings["rescale_timesteps"] else np.float32(1)
    return Level(table.alpha[rows], table.sigma[rows], table.time[rows] * scale)


def down(levels: Level) -> Level:
    """The trajectory through all rows, noisiest first, closed by the clean level."""
    closed = zip(levels, (1, 0, 0), strict=True)
    return Level(*(np.append(column[::-1], np.float32(last)) for column, last in closed))


class Synthetic:
    """The model and the guidance function of section 5, on `[b h w c]`."""

    def __init__(self, constants):
        self.k = SimpleNamespace(**constants)

    def _wave(self, x, time, t, c, i, j):
        n, rows, columns, channels = x.shape
        time = jnp.broadcast_to(jnp.asarray(time, jnp.float32), (n,)).reshape(-1, 1, 1, 1)
        row, column, channel = jnp.ogrid[:rows, :columns, :channels]
        return t * time + c * channel[None] + i * row[None] + j * column[None]

    def f(self, x, time):
        k = self.k
        return k.a * x + k.b * jnp.sin(self._wave(x, time, k.w_t, k.w_c, k.w_i, k.w_j))

    def g(self, x, time):
        k = self.k
        return k.va * x + k.vb * jnp.sin(self._wave(x, time, k.v_t, k.v_c, k.v_i, k.v_j))

    def gradient(self, y, x, level):
        k, n = self.k, len(x)
        time = jnp.broadcast_to(level.time, (n,)).reshape(-1, 1, 1, 1)
        label = jnp.asarray(y, jnp.float32).reshape(-1, 1, 1, 1)
        wave = self._wave(x, jnp.zeros(n), 0.0, k.c_c, k.c_i, k.c_j) + k.c_y * label
        return k.ck * (1 + k.c_t * time) * (x - k.cb * jnp.cos(wave))

    def denoiser(self, name, variance, coefficients=None):
        def denoise(x, level):
            output = self.f(x, level.time)
            made = {
                "EPSILON": lambda: prediction.from_eps(x, output, level),
                "START_X": lambda: prediction.from_x0(x, output, level),
                "PREVIOUS_X": lambda: from_previous(x, output, level, coefficients),
            }[name]()
            if variance == "LEARNED_RANGE":
                made = made._replace(variance_fraction=(self.g(x, level.time) + 1) / 2)
            return made

        return denoise
