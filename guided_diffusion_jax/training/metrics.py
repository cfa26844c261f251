"""Where a run's figures go: `metrics.jsonl`, TensorBoard and the terminal."""

import json
import os
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8
from tqdm import tqdm

from guided_diffusion_jax.data.images import write_png
from guided_diffusion_jax.runtime import files
from guided_diffusion_jax.training.board import Board

FILE = "metrics.jsonl"


def lines(folder: epath.Path) -> list[dict[str, Any]]:
    """The figures that a run in this folder has written, in order."""
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


class Writer:
    """Writes the figures of steps after `start` to a run's folder, and shows them.

    Lines of `metrics.jsonl` beyond `start`, which a killed run had already written, are taken out first, so that
    every step stands there once.

    Args:
        folder: the run's.
        start: the step that the run goes on from.
        steps: the step that it ends at.
    """

    def __init__(self, folder: epath.PathLike, start: int, steps: int):
        self._folder = folder = epath.Path(folder)
        self._file = folder / FILE
        _keep_until(self._file, start)
        self._board = Board(folder / "tensorboard", start + 1)
        self._bar = tqdm(total=steps, initial=start, unit="step", disable=None, dynamic_ncols=True)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        self._board.close()

    def advance(self) -> None:
        """One more step was started."""
        self._bar.update()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """The figures of the steps since the last call; a NaN (nothing to average) is left out."""
        values = {name: value for name, value in values.items() if not np.isnan(value)}
        _append(self._file, json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self._bar.disable:
            print(f"step {step}/{self._bar.total}: {shown}", flush=True)
        else:
            self._bar.set_postfix_str(
                ", ".join(f"{k} {values[k]:.4g}" for k in ("loss", "images_per_second") if k in values)
            )

    def line(self, text: str) -> None:
        """Something to know about a step, for the terminal alone."""
        tqdm.write(text)

    def picture(self, step: int, name: str, picture: UInt8[np.ndarray, "h w 3"]) -> None:
        """A picture, for TensorBoard and as `NAME/step_STEP.png`."""
        self._board.add_image(name, picture, step)
        write_png(self._folder / name / f"step_{step:07d}.png", picture)


class Silent(Writer):
    """What writes nothing and shows nothing: of many processes one has a `Writer`, the others this."""

    def __init__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def advance(self) -> None:
        pass

    def scalars(self, step: int, values: dict[str, float]) -> None:
        pass

    def line(self, text: str) -> None:
        pass

    def picture(self, step: int, name: str, picture: UInt8[np.ndarray, "h w 3"]) -> None:
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
