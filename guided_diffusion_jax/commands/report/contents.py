"""From results to the sections of a page: which chart, which pictures, which figures, and what is to be seen."""

from collections.abc import Sequence

import numpy as np

from guided_diffusion_jax.commands.pictures import class_name
from guided_diffusion_jax.commands.report import charts
from guided_diffusion_jax.commands.report.charts import NAMES, Line
from guided_diffusion_jax.commands.report.parts import COLUMNS, Gallery, Graph, Section, Table, cell, number, percent
from guided_diffusion_jax.commands.report.results import Drawn, Point, Results, steps_in
from guided_diffusion_jax.commands.report.strips import Strip, strip

SHOWN = 10
"""Pictures of a row."""

SWEPT = {
    "fd": ("Distance to real pictures", "Fréchet distance (FD)", False),
    "accuracy": ("Obedience", "share whose class is right", True),
    "precision": ("Quality", "precision", True),
    "recall": ("Diversity", "recall", True),
}
"""Figures drawn over w: title, axis, whether it is a share."""


def sections(results: Results) -> list[Section]:
    """All sections that there are results for."""
    made = [compared(results), weights(results), galleries(results), steps(results), film(results), training(results)]
    return [section for section in (*made, neighbours(results)) if section]


def facts(results: Results) -> tuple[str, list[tuple[str, str]]]:
    """What the figures are of that a page opens with, CFG or what else there is at the config's weight; and they."""
    if not results.weights:
        return "", []
    shown = results.neighbours.drawn
    point = next(p for p in results.weights if (p.approach, p.weight) == (shown.approach, shown.weight))
    names = [name for name in ("fd", "accuracy", "precision", "recall", "seconds", "parameters") if name in point.mean]
    of = f"{NAMES[point.approach]}, w = {point.weight:g}, {point.steps} steps"
    return of, [(cell(point, name), COLUMNS[name].title.rstrip(" ↑↓")) for name in names]


def compared(results: Results) -> Section | None:
    """The table of the three approaches."""
    points = results.compared
    if not points:
        return None
    names = [n for n in COLUMNS if n not in ("kid", "density") and any(n in point.mean for point in points)]
    head = ["approach", "w", *(COLUMNS[name].title for name in names)]
    rows = [[NAMES[p.approach], f"{p.weight:g}", *(cell(p, name) for name in names)] for p in points]
    trainings, c = points[0].trainings, results.config
    text = (
        f"One U-Net, trained {trainings} times in each of three ways for {c.train.steps:,} steps of "
        f"{c.train.batch_size} pictures, from the same seeds, drawn by {c.sample.solver} in {points[0].steps} steps. "
        "The class-conditional model always knows the class; classifier guidance steers a model that never did by the "
        "gradient of a noise-aware classifier; CFG extrapolates from the model without to the model with the class."
    )
    caption = (
        f"Mean ± standard deviation over {trainings} trainings; arrows point to the better. Time is that of a compiled "
        "program and a picture of a batch, memory what the compiler reserves for it. "
        "An evaluation of CFG counts the network twice, with and without the class."
    )
    return Section("Three ways to a class", text, tables=[Table("The three approaches", caption, head, rows)])


def weights(results: Results) -> Section | None:
    """Quality against diversity, and each figure over w."""
    if not results.weights:
        return None
    ways = _ways(results.weights)
    note = f"Features: {results.features}."
    graphs = tradeoff(ways, note)
    for name, (title, y_name, share) in SWEPT.items():
        there = {way: points for way, points in ways.items() if all(name in p.mean for p in points)}
        if not there:
            continue
        lines = [
            Line(NAMES[way], way, [p.weight for p in points], _column(points, name), (), _spread(points, name))
            for way, points in there.items()
        ]
        alt = f"{title} over w. {_ends(there, name)}"
        drawn = charts.lines(f"{name}_over_w", alt, lines, "guidance weight w", y_name, share=share)
        graphs.append(Graph(f"{name}_over_w", f"{title} over w", f"{_ends(there, name)} {note}", alt, drawn))
    names = [n for n in COLUMNS if any(n in p.mean for p in results.weights)]
    head = ["way", "w", *(COLUMNS[n].title for n in names)]
    rows = [[NAMES[p.approach], f"{p.weight:g}", *(cell(p, n) for n in names)] for p in results.weights]
    table = Table("All points", f"Every figure at every weight. {note}", head, rows, folded=True)
    trainings = max(p.trainings for p in results.weights)
    text = (
        "How strongly to steer is a choice between obedience, quality and diversity. w = 0 of CFG is "
        "the plain conditional model; w = 0 of the classifier is a model without any class. The two weights are "
        "different quantities: compare the curves, not the numbers on the axis."
    )
    bars = f" Bars are standard deviations over {trainings} trainings." if trainings > 1 else ""
    return Section("What the weight does", text + bars, graphs, tables=[table])


def tradeoff(ways: dict[str, list[Point]], note: str) -> list[Graph]:
    """Precision over recall, where both were measured."""
    ways = {
        way: points for way, points in ways.items() if all({"recall", "precision"} <= p.mean.keys() for p in points)
    }
    if not ways:
        return []
    path = [
        Line(
            NAMES[way],
            way,
            _column(points, "recall"),
            _column(points, "precision"),
            _spread(points, "recall"),
            _spread(points, "precision"),
            [f"{p.weight:g}" for p in points] if len(points) > 1 else (),
        )
        for way, points in ways.items()
    ]
    alt = f"Precision over recall, one point a weight. {_ends(ways, 'recall')} {_ends(ways, 'precision')}"
    caption = f"Each point is a weight w, written beside it: upwards is quality, to the right is diversity. {note}"
    drawn = charts.lines("tradeoff", alt, path, "recall (diversity)", "precision (quality)")
    return [Graph("tradeoff", "Quality against diversity", caption, alt, drawn)]


def galleries(results: Results) -> Section | None:
    """Pictures at each weight, of every class and of one class."""
    made = []
    names = results.config.data.class_names
    for way in dict.fromkeys(d.approach for d in results.drawn):
        of_way = [d for d in results.drawn if d.approach == way]
        each = _each_class(of_way[0].labels)
        made.append(
            Gallery(
                f"samples_{way}", f"{NAMES[way]}: one noise a column",
                _listed([class_name(int(i), names) for i in of_way[0].labels[each]])
                + " Only w differs between rows." * (len(of_way) > 1),
                [_row(d, each, "pictures of the classes in turn") for d in of_way],
            )
        )  # fmt: skip
        label = int(np.bincount(of_way[0].labels).argmax())
        same = np.flatnonzero(of_way[0].labels == label)[:SHOWN]
        if len(names) and len(same) > 1:
            shown = class_name(label, names)
            made.append(
                Gallery(
                    f"one_class_{way}", f"{NAMES[way]}: {len(same)} times “{shown}”",
                    f"The same class from {len(same)} noises: look along a row for diversity, down a column for what w "
                    "makes of one picture.",
                    [_row(d, same, f"pictures of class {shown}") for d in of_way],
                )
            )  # fmt: skip
    return Section("Pictures at each weight", "Every row starts from the same noise.", galleries=made) if made else None


def steps(results: Results) -> Section | None:
    """FD over the number of sampling steps."""
    ways = {way: points for way, points in _ways(results.steps).items() if len(points) > 1}
    if not ways:
        return None
    lines = [
        Line(NAMES[way], way, [float(steps_in(p.steps)) for p in points], _column(points, "fd"))
        for way, points in ways.items()
    ]
    weight = results.steps[0].weight
    found = ", ".join(f"{p.steps} steps: FD {number(p.mean['fd'])}" for p in next(iter(ways.values())))
    alt = f"FD over the number of sampling steps at w = {weight:g}. {found}."
    drawn = charts.lines("fd_over_steps", alt, lines, "sampling steps", "Fréchet distance (FD)", log_x=True)
    caption = f"{found}; w = {weight:g}. Features: {results.features}."
    text = "Every step costs an evaluation of the network; the curve shows from where on more of them buy nothing."
    return Section("How many steps", text, [Graph("fd_over_steps", "FD over steps", caption, alt, drawn)])


def film(results: Results) -> Section:
    """From noise to pictures."""
    names, frames = results.config.data.class_names, results.film.frames
    rows = []
    for number_, label in enumerate(results.film.labels):
        name = class_name(int(label), names) or str(number_ + 1)
        alt = f"{len(frames)} states of one picture ({name}) from noise, at the left, to the result"
        rows.append(strip(name, alt, frames[:, number_]))
    s = results.config.sample
    caption = f"Left: noise; right: the result. {s.solver}, {s.steps} steps, of which {len(frames)} states are shown."
    gallery = Gallery("trajectory", "Denoising", caption, rows)
    return Section("From noise to pictures", "First comes the coarse shape, the details late.", galleries=[gallery])


def training(results: Results) -> Section | None:
    """The curves of the run, and the classifier's accuracy over noise."""
    lines = [line for line in results.training if "loss" in line]
    graphs = []
    if lines:
        at = [line["step"] for line in lines]
        alt = (
            f"Training loss from {number(lines[0]['loss'])} at step {at[0]} to {number(lines[-1]['loss'])} at {at[-1]}."
        )
        whole = {"loss": (at, [line["loss"] for line in lines])}
        drawn = charts.curves("loss", alt, whole, "training step", "loss (mean squared error)", log_y=True)
        graphs.append(Graph("loss", "Loss", alt, alt, drawn))
        quarters = {
            f"{name} quarter of t": (at, [line.get(f"loss_q{i}", np.nan) for line in lines])
            for i, name in enumerate(("first", "second", "third", "last"), 1)
        }
        alt = "Training loss by noise level; the first quarter of t is nearly clean pictures, the last nearly noise."
        drawn = charts.curves("loss_by_noise", alt, quarters, "training step", "loss (mean squared error)", log_y=True)
        graphs.append(Graph("loss_by_noise", "Loss by noise level", alt, alt, drawn))
    if results.classifier:
        time, right = results.classifier["time"], results.classifier["accuracy"]
        alt = (
            f"The classifier is right on {percent(right[0])} of held-out pictures without noise and on "
            f"{percent(right[-1])} where all is noise."
        )
        drawn = charts.curves(
            "classifier", alt, {"": (time, right)}, "time t (noise level)", "share right", fraction=True
        )
        graphs.append(Graph("classifier", "The classifier over noise", alt, alt, drawn))
    return Section("Training", "What the run wrote down as it learned.", graphs) if graphs else None


def neighbours(results: Results) -> Section:
    """Whether drawn pictures are copies of training pictures."""
    found, names = results.neighbours, results.config.data.class_names
    nearest = found.distances[:, 0]
    share = float(np.mean(nearest < np.quantile(found.held_out, 0.01)))
    rows = []
    for i in _each_class(found.drawn.labels):
        name = class_name(int(found.drawn.labels[i]), names) or str(i + 1)
        images = np.concatenate([found.drawn.images[i : i + 1], found.images[i]])
        closer = percent(float(np.mean(found.held_out < nearest[i])))
        note = f"distance {number(float(nearest[i]))}; {closer} of held-out pictures are nearer"
        alt = f"A drawn picture ({name}), then its {len(found.images[i])} nearest training pictures; {note}"
        rows.append(strip(name, alt, images, note))
    text = (
        f"Of {len(nearest)} drawn pictures (w = {found.drawn.weight:g}) {percent(share)} are nearer to a training "
        "picture than all but 1% of held-out real pictures are. New pictures as various as real ones would have 1%; "
        "copies have far more, and so have strongly guided pictures, which are typical ones: look at them."
    )
    grid = Gallery(
        "neighbours", "Nearest training pictures",
        f"First the drawn picture, then what it is nearest to. Features: {results.features}.", rows,
    )  # fmt: skip
    cumulative = {
        name: (np.sort(values), np.arange(1, len(values) + 1) / len(values))
        for name, values in (("drawn", nearest), ("held-out", found.held_out))
    }
    alt = (
        f"Distance to the nearest training picture: median {number(float(np.median(nearest)))} of drawn pictures, "
        f"{number(float(np.median(found.held_out)))} of {len(found.held_out)} held-out ones."
    )
    drawn = charts.curves("distances", alt, cumulative, "distance to the nearest training picture", "share below",
                          fraction=True)  # fmt: skip
    caption = f"{alt} A curve far left of that of held-out pictures is memorisation. Features: {results.features}."
    return Section("Is it memory?", text, [Graph("distances", "Distances", caption, alt, drawn)], [grid])


def _ways(points: Sequence[Point]) -> dict[str, list[Point]]:
    return {way: [p for p in points if p.approach == way] for way in dict.fromkeys(p.approach for p in points)}


def _column(points: Sequence[Point], name: str) -> list[float]:
    return [p.mean[name] for p in points]


def _spread(points: Sequence[Point], name: str) -> list[float]:
    return [p.spread[name] for p in points]


def _ends(ways: dict[str, list[Point]], name: str) -> str:
    """What becomes of a figure from the smallest weight to the largest, in words."""
    said = []
    for way, points in ways.items():
        if len(points) < 2:
            continue
        first, last = points[0], points[-1]
        title = COLUMNS[name].title.split()[0] if name != "accuracy" else "class accuracy"
        said.append(
            f"{NAMES[way]}, w = {first.weight:g} → {last.weight:g}: {title} {cell(first, name)} → {cell(last, name)}."
        )
    return " ".join(said)


def _each_class(labels: np.ndarray) -> np.ndarray:
    """Numbers of pictures: as many of each class as fit into a row, ten rows at most; the first ten of one class."""
    present = np.unique(labels)[:SHOWN]
    each = max(1, SHOWN // len(present))
    return np.concatenate([np.flatnonzero(labels == label)[:each] for label in present])


def _row(drawn: Drawn, numbers: np.ndarray, what: str) -> Strip:
    return strip(f"w = {drawn.weight:g}", f"At w = {drawn.weight:g}, {what}", drawn.images[numbers])


def _listed(names: list[str]) -> str:
    named = list(dict.fromkeys(name for name in names if name))
    return f"Classes {', '.join(named)}." if named else ""
