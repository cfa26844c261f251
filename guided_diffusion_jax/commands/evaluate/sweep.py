"""Quality, diversity, adherence and cost at each weight of guidance and each number of steps, on the same seeds."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from guided_diffusion_jax import profiling, schedules, writing
from guided_diffusion_jax.commands import build, kinds, networks, sample
from guided_diffusion_jax.commands.ask import Wanted
from guided_diffusion_jax.commands.draw import Artist, Guide
from guided_diffusion_jax.commands.evaluate import scoring
from guided_diffusion_jax.commands.evaluate.scoring import Scorer
from guided_diffusion_jax.data.source import Source
from guided_diffusion_jax.errors import require
from guided_diffusion_jax.training import distributed
from guided_diffusion_jax.typing import Params

SHOWN = 10
"""Pictures of each class that are kept of a point."""


class Axis(NamedTuple):
    """One way of steering with the weights that it is tried at: "cfg" or "classifier"."""

    kind: str
    weights: tuple[float, ...]


def asked(config: ConfigDict) -> bool:
    """Whether the config asks for a sweep."""
    return any(config.evaluate.sweep.values())


def check(config: ConfigDict, workdir: epath.Path, data: Source) -> tuple[list[Axis], list[str]]:
    """The weights of each kind, and the numbers of steps, that the sweep goes through.

    Raises:
        InputError: one that cannot be, guidance that the run was not trained for, or a classifier that is not there.
    """
    s, table = config.evaluate.sweep, build.table(config)
    scoring.count_of(config, data)
    steps = [part.strip() for part in s.steps.split(",")] if s.steps else [config.sample.steps]
    for count in steps:
        schedules.trajectory(table, count)
    free, guided = _numbers(s.weight, "weight"), _numbers(s.classifier_weight, "classifier_weight")
    if not free and not guided:
        free = (float(config.sample.guidance.weight),)
    if free:
        dropped, there = config.train.condition_dropout, kinds.names(config)
        require(bool(there), "evaluate.sweep.weight is of CFG, but this run has no conditions")
        require(
            dropped > 0 or not any(free),
            f"evaluate.sweep.weight={s.weight}: this run was trained with train.condition_dropout=0, so it knows no "
            "unconditional model to steer away from; use 0 alone, or evaluate.sweep.classifier_weight",
        )
    if guided:
        _guide(config, workdir)
    return [axis for axis in (Axis("cfg", free), Axis("classifier", guided)) if axis.weights], steps


def run(config: ConfigDict, workdir: epath.Path, scorer: Scorer) -> list[dict[str, Any]]:
    """Draws and scores at each point, prints a table, and writes `sweep.json` and the pictures in `sweep/`.

    The classifier steers the unconditional model, or, where the run has none, the conditional one at w = 0. Every
    weight and number of steps of a kind runs the same compiled program, w = 0 of CFG too, unless it is the only weight.

    Returns:
        A row a point: "kind", "weight", "steps", "seed", the scores, and the cost of a picture, "seconds" without
        compiling, "evaluations" of the network and "classifier_evaluations" with their gradient, and of the program
        "peak_bytes" on each device and all "parameters".

    Raises:
        InputError: as `check` does.
    """
    axes, steps = check(config, workdir, scorer.data)
    network = networks.network(sample.checked(config, workdir))
    params, _ = sample.averaged(network, config, workdir)
    wanted = scoring.wanted(config, scorer.data, scoring.count_of(config, scorer.data))
    rows = []
    for axis in axes:
        guides = [_guide(config, workdir)] if axis.kind == "classifier" else []
        artist = Artist(network, config, guides)
        for count in steps:
            artist.levels = build.trajectory(_with_steps(config, count))
            for weight in axis.weights:
                row = {"kind": axis.kind, "weight": weight, "steps": count}
                found, images = point(artist, params, steered(config, wanted, axis, weight), weight, scorer)
                rows.append(row | found)
                _keep(pictures(workdir, axis.kind, weight, count), images, wanted.labels)
                _show(rows)
    if distributed.leads():
        writing.as_json(workdir / "sweep.json", rows)
    print(f"{workdir / 'sweep.json'}", flush=True)
    return rows


def pictures(workdir: epath.Path, kind: str, weight: float, steps: str) -> epath.Path:
    """Where the pictures of a point are kept."""
    return workdir / "sweep" / f"{kind}_w{weight:g}_n{steps}.npz"


def steered(config: ConfigDict, wanted: Wanted, axis: Axis, weight: float) -> Wanted:
    """What is asked of the network at a weight: with CFG both branches at each, unless no weight needs the second."""
    if axis.kind == "cfg":
        return wanted.at(weight) if any(axis.weights) else wanted.at(weight).spared()
    return wanted.at(-1.0 if config.train.condition_dropout > 0 else 0.0).spared()


def point(
    artist: Artist, params: Params, wanted: Wanted, weight: float, scorer: Scorer
) -> tuple[dict[str, Any], np.ndarray]:
    """The figures of one point, with the pictures; `weight` is for the artist's guides, if it has any."""
    weights = [weight] * len(artist.guides)
    peak_bytes = profiling.program_bytes(artist.compiled(params, wanted, weights))
    start = time.perf_counter()
    images = artist.images(params, wanted, weights)
    seconds = time.perf_counter() - start
    told = wanted.labels if artist.guides or "label" in kinds.names(artist.config) else None
    branches, steps = len(wanted.branches), int(schedules.num_steps(artist.levels))
    found = {
        "seed": artist.config.sample.seed,
        "seconds": seconds / len(images),
        "evaluations": steps * (branches + 1),
        "classifier_evaluations": steps * len(artist.guides),
        "peak_bytes": peak_bytes,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves((params, [guide.params for guide in artist.guides]))),
    }
    return found | scorer.scores(images, told), images


def _guide(config: ConfigDict, workdir: epath.Path) -> Guide:
    return sample.guide(workdir, build.mesh(config, "train"), "label", None, 0.0)


def _with_steps(config: ConfigDict, steps: str) -> ConfigDict:
    changed = config.copy_and_resolve_references()
    changed.sample.steps = steps
    return changed


def _numbers(text: str, key: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        found = (float("nan"),)
    require(
        bool(np.isfinite(found).all()),
        f"evaluate.sweep.{key}={text!r} must be numbers with commas between them, e.g. 0,0.5,1,2,4,8",
    )
    return found


def _keep(path: epath.Path, images: np.ndarray, labels: np.ndarray) -> None:
    """The first pictures of each class."""
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == label)[:SHOWN] for label in np.unique(labels)]))
    if distributed.leads():
        path.parent.mkdir(parents=True, exist_ok=True)
        sample.write_arrays(path, images[chosen], labels[chosen])


COLUMNS = {"fd": "FD", "kid": "KID", "precision": "precision", "recall": "recall", "coverage": "coverage"}


def _show(rows: Sequence[dict[str, Any]]) -> None:
    """Prints the last row, before the first one what the columns are."""
    row = rows[-1]
    if len(rows) == 1:
        print(f"{row['count']:,} pictures a point against {row['reference_count']:,}; features: {row['features']}")
        names = (*COLUMNS.values(), "accuracy", "ms/image", "evaluations", "MB")
        print(f"{'':20}" + "".join(f"{name:>12}" for name in names))
    values = [_figure(row[key], ".4g") for key in (*COLUMNS, "accuracy")]
    values += [f"{1000 * row['seconds']:.3g}", f"{row['evaluations']}", _figure((row["peak_bytes"] or 0) / 1e6, ".3g")]
    point = f"{row['kind']} w={row['weight']:g} n={row['steps']}"
    print(f"{point:20}" + "".join(f"{value:>12}" for value in values), flush=True)


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
