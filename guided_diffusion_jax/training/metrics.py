"""Where a run's metrics go: `metrics.jsonl`, TensorBoard, the terminal and loggers of the user's."""

import contextlib
import json
import os
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from etils import epath
from jaxtyping import UInt8
from tqdm import tqdm

from guided_diffusion_jax.data.images import write_png
from guided_diffusion_jax.runtime import files, notices
from guided_diffusion_jax.training.pace import Pace
from guided_diffusion_jax.training.tensorboard import TensorBoard

FILE = "metrics.jsonl"


def lines(folder: epath.Path) -> list[dict[str, Any]]:
    """Metrics that a run in this folder has written, in order."""
    file = folder / FILE
    written = file.read_bytes().splitlines()
    return [files.parse_json(line, str(file), number) for number, line in enumerate(written, 1)]


@runtime_checkable
class MetricWriter(Protocol):
    """A logger that can be plugged in beside ours, such as one for Weights & Biases or CLU.

    Only the main process calls it, and only with what has been computed already.
    """

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Metrics of the steps since the last call."""

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """An image, such as a grid of samples."""

    def close(self) -> None:
        """The end of the run, also after an error."""


class Writer:
    """Writes the metrics of steps after `start` to a run's folder, and shows them.

    Lines of `metrics.jsonl` beyond `start`, which a killed run had already written, are removed first, so that every
    step is there once.

    Args:
        folder: the run's.
        start: the step that the run goes on from.
        steps: the step that it ends at.
        writers: further loggers.
    """

    def __init__(self, folder: epath.PathLike, start: int, steps: int, writers: Sequence[MetricWriter] = ()):
        self._folder = folder = epath.Path(folder)
        self._file = folder / FILE
        _keep_until(self._file, start)
        self._writers: list[MetricWriter] = [TensorBoard(folder / "tensorboard", start + 1), *writers]
        self._opened = contextlib.ExitStack()
        self._bar = self._opened.enter_context(notices.progress(steps, "training", "step", initial=start))
        self._pace = Pace(start, steps)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()
        for writer in self._writers:
            writer.close()

    def advance(self) -> None:
        """One more step has finished."""
        self._bar.update()
        if warning := self._pace.advance():
            self.line(warning)

    def restart_clock(self) -> None:
        """Leaves the time since the last step out of the rate and of the time that is left."""
        self._bar.unpause()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Metrics of the steps since the last call; a NaN (nothing to average) is left out."""
        values = {name: value for name, value in values.items() if not np.isnan(value)}
        _append(self._file, json.dumps({"step": step, **values}) + "\n")
        for writer in self._writers:
            writer.scalars(step, values)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self._bar.disable:
            print(f"step {step}/{self._bar.total}: {shown}", flush=True)
        else:
            self._bar.set_postfix_str(
                ", ".join(f"{k} {values[k]:.4g}" for k in ("loss", "images_per_second") if k in values)
            )

    def line(self, text: str) -> None:
        """A note about a step, for the terminal alone."""
        tqdm.write(text)

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """An image, for the loggers and as `NAME/step_STEP.png`."""
        for writer in self._writers:
            writer.image(step, name, image)
        write_png(self._folder / name / f"step_{step:07d}.png", image)


class Silent(Writer):
    """Writer that writes nothing: of many processes one has a `Writer`, the others this."""

    def __init__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def advance(self) -> None:
        pass

    def restart_clock(self) -> None:
        pass

    def scalars(self, step: int, values: dict[str, float]) -> None:
        pass

    def line(self, text: str) -> None:
        pass

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        pass


def _append(file: epath.Path, line: str) -> None:
    """Adds a line, or nothing where the disk has no room for all of it."""
    size = file.stat().length if file.exists() else 0
    try:
        with file.open("a") as opened:
            opened.write(line)
    except OSError:
        os.truncate(file, size)
        raise


def _keep_until(file: epath.Path, step: int) -> None:
    if not file.exists():
        return
    kept = []
    for line in file.read_text().splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except ValueError:  # cut short by a kill
            break
    with files.atomic_write(file, "w") as whole:
        whole.write("".join(kept))
