"""What a report is about: everything measured and drawn, before a word is said of it."""

import json
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float, Int, UInt8
from ml_collections import ConfigDict

from guided_diffusion_jax.commands import classifier, kinds, sample
from guided_diffusion_jax.commands.ask import Wanted
from guided_diffusion_jax.commands.draw import Artist
from guided_diffusion_jax.commands.evaluate import scoring, sweep, swept
from guided_diffusion_jax.commands.evaluate.scoring import Scorer
from guided_diffusion_jax.commands.report import approaches
from guided_diffusion_jax.training import metrics

WEIGHTS, CLASSIFIER_WEIGHTS = "0,0.5,1,2,4,8", "0,1,2,5,10"
"""Of the sweep, where the config leaves them open."""

NEIGHBOURS = 3
"""Training pictures shown beside each drawn one."""

HELD_OUT = 500
"""Held-out pictures, at most, whose distances those of drawn ones are compared to."""


class Point(NamedTuple):
    """A setting of the guidance, with each figure's mean and standard deviation over the trainings.

    Attributes:
        approach: "cfg", "classifier" or "class-conditional".
        weight: w.
        steps: of the sampler, as `sample.steps`.
        trainings: how many.
        mean: of each figure by its name in `sweep.json`; figures that are missing are left out.
        spread: of the same; 0 for a single training.
    """

    approach: str
    weight: float
    steps: str
    trainings: int
    mean: dict[str, float]
    spread: dict[str, float]


class Drawn(NamedTuple):
    """Pictures of a sweep at one weight; those of one number come from the same noise at every weight."""

    approach: str
    weight: float
    images: UInt8[np.ndarray, "n h w c"]
    labels: Int[np.ndarray, " n"]


class Neighbours(NamedTuple):
    """Drawn pictures beside the training pictures that are nearest in the extractor's features.

    Attributes:
        drawn: where they are from.
        images: of the training set, nearest first.
        distances: of these.
        held_out: distance of held-out pictures to their nearest training picture.
    """

    drawn: Drawn
    images: UInt8[np.ndarray, "n k h w c"]
    distances: Float[np.ndarray, "n k"]
    held_out: Float[np.ndarray, " m"]


class Film(NamedTuple):
    """Pictures on their way from noise, by the weight of the run's config."""

    frames: UInt8[np.ndarray, "frames n h w c"]
    labels: Int[np.ndarray, " n"]


class Results(NamedTuple):
    """All that a report tells.

    Attributes:
        run: the folder whose pictures are shown.
        config: its own, resolved.
        checkpoint_step: of what drew them.
        features: the extractor's name, with its test accuracy where it is the data set's own.
        weights: points of different weights, one number of steps.
        steps: points of different numbers of steps, one weight.
        compared: the three approaches at the weights of the config; empty where they were not asked for.
        drawn: pictures at each weight.
        film: of the run.
        neighbours: of its pictures at the weight of the config.
        training: the lines of its `metrics.jsonl`.
        classifier: `accuracy.json` of the classifier that steered; empty where there is none.
        warnings: of the scores.
    """

    run: epath.Path
    config: ConfigDict
    checkpoint_step: int
    features: str
    weights: list[Point]
    steps: list[Point]
    compared: list[Point]
    drawn: list[Drawn]
    film: Film
    neighbours: Neighbours
    training: list[dict[str, float]]
    classifier: dict[str, list[float]]
    warnings: list[str]


def points(rows: list[dict[str, Any]]) -> list[Point]:
    """Rows of the same setting as one point, in the order of the ways, the steps and the weights.

    >>> rows = [{"kind": "cfg", "weight": 1.0, "steps": "20", "fd": fd} for fd in (2.0, 4.0)]
    >>> found, = points(rows)
    >>> found.trainings, found.mean["fd"], round(found.spread["fd"], 3)
    (2, 3.0, 1.414)
    """
    groups: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for row in rows:
        key = (row.get("approach", row["kind"]), row["steps"], float(row["weight"]))
        groups.setdefault(key, []).append(row)
    made = []
    for approach, steps, weight in sorted(groups, key=lambda key: (key[0], steps_in(key[1]), key[2])):
        group = groups[approach, steps, weight]
        names = [name for name, value in group[0].items() if isinstance(value, int | float) and name != "seed"]
        columns = {name: [row[name] for row in group if row.get(name) is not None] for name in names}
        mean = {name: float(np.mean(values)) for name, values in columns.items()}
        # Of a sample: these trainings stand for all that there could be.
        spread = {n: float(np.std(values, ddof=1)) if len(values) > 1 else 0.0 for n, values in columns.items()}
        made.append(Point(approach, weight, steps, len(group), mean, spread))
    return made


def steps_in(steps: str) -> int:
    """How many steps "20", "ddim20" or "logsnr20" are."""
    return int("".join(filter(str.isdigit, steps)))


def collect(
    config: ConfigDict, workdir: epath.Path, scorer: Scorer, compared: dict[str, Any], beside: epath.Path
) -> Results:
    """Everything about a trained run, measuring what was not measured yet.

    Args:
        config: resolved, the run's.
        workdir: the run's.
        scorer: for this config.
        compared: what `approaches.run` found, which then is told instead of the run's own weights; {} is nothing.
        beside: the folder whose approaches these are.
    """
    config = config.copy_and_resolve_references()
    ask_for_weights(config, workdir)
    by_steps = _over_steps(config, workdir, scorer)
    mine = config.copy_and_resolve_references()
    mine.evaluate.sweep.steps = ""
    rows = swept.rows("weights", mine, workdir, scorer) if sweep.asked(mine) else []
    places = {row["kind"]: workdir for row in rows}
    if compared:
        rows = [row for row in compared["rows"] if row["approach"] != "class-conditional"]
        places = {way: approaches.place(beside, way, config.seed) for way in ("cfg", "classifier")}
    artist, params, step = sample.load(config, workdir)
    wanted = _wanted(config, scorer, artist, min(10, max(1, len(config.data.class_names))))
    drawn = [_drawn(places[kind], kind, row) for kind, row in _settings(rows)]
    if not drawn:
        of_all = _wanted(config, scorer, artist, 100)
        drawn = [Drawn("none", 0.0, artist.images(params, of_all), of_all.labels)]
    told = classifier.folder(places.get("classifier", workdir), "label") / "accuracy.json"
    return Results(
        run=workdir,
        config=config,
        checkpoint_step=step,
        features=scorer.name,
        weights=points(rows),
        steps=points(by_steps),
        compared=_at(points(compared["rows"]), compared["weights"]) if compared else [],
        drawn=drawn,
        film=Film(artist.film(params, wanted), wanted.labels),
        neighbours=_neighbours(chosen(drawn, config), scorer),
        training=metrics.lines(workdir),
        classifier=json.loads(told.read_text()) if told.exists() else {},
        warnings=list(dict.fromkeys(warning for row in (*rows, *by_steps) for warning in row["warnings"])),
    )


def _wanted(config: ConfigDict, scorer: Scorer, artist: Artist, count: int) -> Wanted:
    """What the run itself draws: of no class, and named so, where it neither learned classes nor is steered to one."""
    wanted, learned = scoring.wanted(config, scorer.data, count), config.train.condition_dropout < 1
    if not learned:
        wanted = wanted.at(-1.0)
    if not artist.guides and not (learned and kinds.names(config)):
        wanted = wanted._replace(labels=np.full_like(wanted.labels, len(config.data.class_names)))
    return wanted.spared()


def ask_for_weights(config: ConfigDict, workdir: epath.Path) -> None:
    """Sets the weights of the sweep where the config leaves them open: for what the run was trained for."""
    s = config.evaluate.sweep
    if not s.weight and kinds.names(config):
        dropout = config.train.condition_dropout
        s.weight = WEIGHTS if 0 < dropout < 1 else "" if dropout else "0"
    if not s.classifier_weight and swept.newest(classifier.folder(workdir, "label")):
        s.classifier_weight = CLASSIFIER_WEIGHTS


def _at(found: list[Point], weights: dict[str, float]) -> list[Point]:
    """Of each way the point whose weight is nearest to this, the ways in the order of `weights`."""
    return [
        min((p for p in found if p.approach == way), key=lambda p: abs(p.weight - weight))
        for way, weight in weights.items()
    ]


def chosen(drawn: list[Drawn], config: ConfigDict) -> Drawn:
    """The pictures whose weight is nearest to the config's."""
    weight = config.sample.guidance.weight
    first = [one for one in drawn if one.approach == drawn[0].approach]
    return min(first, key=lambda one: abs(one.weight - weight))


def _over_steps(config: ConfigDict, workdir: epath.Path, scorer: Scorer) -> list[dict[str, Any]]:
    """At the config's weight; nothing where the config names no numbers of steps."""
    if not config.evaluate.sweep.steps or not config.evaluate.sweep.weight:
        return []
    one = config.copy_and_resolve_references()
    one.evaluate.sweep.update(weight=f"{config.sample.guidance.weight:g}", classifier_weight="")
    return swept.rows("steps", one, workdir, scorer)


def _settings(rows: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """The first row of each kind and weight."""
    found = {(row["kind"], row["weight"]): row for row in reversed(rows)}
    return [(kind, found[kind, weight]) for kind, weight in sorted(found)]


def _drawn(workdir: epath.Path, kind: str, row: dict[str, Any]) -> Drawn:
    with (
        sweep.pictures(workdir, kind, row["weight"], row["steps"]).open("rb") as file,
        np.load(file, allow_pickle=False) as arrays,
    ):
        return Drawn(kind, row["weight"], arrays["arr_0"], arrays["arr_1"])


def _neighbours(drawn: Drawn, scorer: Scorer) -> Neighbours:
    numbers = np.arange(min(HELD_OUT, len(scorer.data)))
    _, held_out = scorer.nearest(scorer.data.read(numbers)["image"], 1)
    found, distances = scorer.nearest(drawn.images, NEIGHBOURS)
    images = scorer.train.read(found.reshape(-1))["image"]
    return Neighbours(drawn, images.reshape(*found.shape, *images.shape[1:]), distances, held_out[:, 0])
