"""Sections of the report: charts, images, tables and captions made from results."""

import datetime
import importlib.metadata
import platform
import sys
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from guided_diffusion_jax.evaluation.metrics import NEIGHBOURS
from guided_diffusion_jax.evaluation.uncertainty import share_error
from guided_diffusion_jax.guidance.weights import weight_text
from guided_diffusion_jax.report import notes
from guided_diffusion_jax.report.figures import CURVES, LOOKS, Line, chart, image_row
from guided_diffusion_jax.report.page import Figure, Image, Page, Section, Table
from guided_diffusion_jax.report.results import Point, Results, Samples
from guided_diffusion_jax.report.tables import NAMES, cell, metrics_table, number, percent

SHOWN = 10
"""Images of a row."""

SWEPT = {
    "fd": "Fréchet distance (FD)",
    "accuracy": "class accuracy",
    "precision": "precision (quality)",
    "recall": "recall (diversity)",
}
"""Metrics drawn over w, and their axis labels. The limits of all but FD are those of a share."""

SHARE = (-0.03, 1.03)


def build(results: Results) -> Page:
    """Page of all sections that there are results for."""
    sections = [section(results) for section in SECTIONS]
    trainings = max((p.trainings for p in results.weights), default=1)
    subtitle = (
        f"{results.run}: diffusion model of {results.dataset}, step {results.checkpoint_step:,}"
        + (f", metrics averaged over {trainings} trainings. " if trainings > 1 else ". ")
        + f"Features of all metrics: {results.features}."
    )
    title = f"{'Three ways of steering' if results.approaches else 'Guidance'}: {results.dataset}"
    return Page(title, subtitle, [s for s in sections if s], results.warnings)


def approaches(results: Results) -> Section | None:
    """Table of the three approaches."""
    if not results.approaches:
        return None
    trainings = results.approaches[0].trainings
    text = (
        f"The same U-Net, trained {trainings} times in each of three ways ({results.training_setup}) with the same "
        f"seeds and sampled by the same sampler ({results.sampler}). The class-conditional model always receives the "
        "class; classifier guidance adds the gradient of a noise-aware classifier to an unconditional model; CFG "
        "extrapolates from the unconditional to the conditional prediction of one model."
    )
    caption = (
        f"Mean ± standard deviation over {trainings} trainings; arrows point to better values. "
        f"{notes.sizes(results.approaches, 'fd', *NEIGHBOURS)}. {notes.explained(results.approaches)}Time excludes "
        "compilation; memory is XLA's plan. CFG evaluates the network twice per step."
    )
    table = metrics_table("The three approaches", caption, results.approaches)
    return Section("Three ways to a class", text, tables=[table])


def weights(results: Results) -> Section | None:
    """Quality against diversity, and each metric over the guidance weight."""
    if not results.weights:
        return None
    figures, bars = [], notes.bars(results.weights)
    if tradeoff := _by_approach(results.weights, "recall", "precision"):
        lines = [
            Line(NAMES[name], _mean(ps, "recall"), _mean(ps, "precision"), LOOKS[name], _std(ps, "recall"),
                 _std(ps, "precision"), [weight_text(p.weight) for p in ps])
            for name, ps in tradeoff.items()
        ]  # fmt: skip
        note = notes.sizes(results.weights, "precision")
        caption = f"One point per weight w, written beside it. {note}. {bars} Features: {results.features}."
        source = chart(lines, SWEPT["recall"], SWEPT["precision"], note)
        figures.append(_chart("Quality against diversity", caption, source))
    for metric, label in SWEPT.items():
        if groups := _by_approach(results.weights, metric):
            ends = [
                f"{NAMES[p.approach]}, w = {weight_text(p.weight)}: {cell(p, metric)}"
                for ps in groups.values()
                for p in (ps[0], ps[-1])[: len(ps)]
            ]
            note = notes.sizes(results.weights, metric)
            source = _over(
                groups, metric, lambda p: p.weight, "guidance weight w", label, note, shares=metric == "accuracy",
                ylim=None if metric == "fd" else SHARE,
            )  # fmt: skip
            caption = f"{label}: {'; '.join(ends)}. {note}. {bars} Features: {results.features}."
            figures.append(_chart(f"{label} over w", caption, source))
    text = (
        "The guidance weight trades diversity for quality and class accuracy. w = 0 of CFG is the conditional model, "
        "w = 0 of classifier guidance the unconditional one; the two weights are different quantities, so compare the "
        f"curves and not the numbers on the axis. {bars}"
    )
    caption = (
        f"Every metric at every weight. {notes.sizes(results.weights, 'fd', *NEIGHBOURS)}. {bars} "
        f"{notes.explained(results.weights)}Features: {results.features}."
    )
    table = metrics_table("All points", caption, results.weights)
    return Section("Effect of the guidance weight", text, figures, [table._replace(folded=True)])


def samples(results: Results) -> Section | None:
    """Images at each weight, of every class and of one class."""
    figures = []
    for name in dict.fromkeys(s.approach for s in results.samples):
        found = [s for s in results.samples if s.approach == name]
        labels = found[0].labels
        label = int(np.bincount(labels).argmax())
        same, what = np.flatnonzero(labels == label)[:SHOWN], _class_name(results, label)
        each = _of_each_class(labels)
        classes = ", ".join(dict.fromkeys(filter(None, (_class_name(results, int(i)) for i in labels[each]))))
        caption = f"Classes: {classes}. Images of a column start from the same noise." if classes else "Samples."
        figures.append(Figure(NAMES[name], caption, _rows(found, each, "images of the classes in turn")))
        if what and len(same) > 1:
            caption = "One class from different noise: diversity along a row, the effect of w down a column."
            rows = _rows(found, same, f"images of class {what}")
            figures.append(Figure(f"{NAMES[name]}: class {what}", caption, rows))
    return Section("Samples at each weight", "Every row starts from the same noise; only w differs.", figures)


def steps(results: Results) -> Section | None:
    """FD over the number of sampling steps."""
    groups = {name: ps for name, ps in _by_approach(results.steps, "fd").items() if len(ps) > 1}
    if not groups:
        return None
    values = ", ".join(f"{p.steps} steps: {number(p.mean['fd'])}" for p in next(iter(groups.values())))
    note = notes.sizes(results.steps, "fd")
    caption = (
        f"FD at w = {weight_text(results.steps[0].weight)}. {values}. {note}. {notes.bars(results.steps)} "
        f"Features: {results.features}."
    )
    source = _over(groups, "fd", lambda p: p.steps, "sampling steps", SWEPT["fd"], note)
    text = "Every step costs one evaluation of the network (two with CFG)."
    return Section("Number of sampling steps", text, [_chart("FD over steps", caption, source)])


def trajectory(results: Results) -> Section:
    """States of the sampler from noise to images."""
    frames, labels = results.trajectory
    rows = []
    for i, label in enumerate(labels):
        name = _class_name(results, int(label)) or str(i + 1)
        alt = f"{len(frames)} states of an image ({name}), from noise to the result"
        rows.append(Image(alt, image_row(frames[:, i]), name))
    caption = f"Left: noise; right: the result. {results.sampler}; {len(frames)} states are shown."
    text = "Coarse shapes come first, details last."
    return Section("From noise to images", text, [Figure("Denoising", caption, rows)])


def training(results: Results) -> Section | None:
    """Loss curves of the run, and the classifier's accuracy over noise."""
    lines, figures = [line for line in results.training if "loss" in line], []
    if lines:
        at = [line["step"] for line in lines]
        names = {"loss": "all", **{f"loss_q{i}": f"quarter {i} of t" for i in range(1, 5)}}
        curves = {name: (at, [line.get(key, np.nan) for line in lines], ()) for key, name in names.items()}
        caption = (
            f"Training loss from {number(lines[0]['loss'])} at step {at[0]} to {number(lines[-1]['loss'])} at step "
            f"{at[-1]}. Quarter 1 of t is nearly clean images, quarter 4 nearly noise."
        )
        every = np.array([losses for _, losses, _ in curves.values()], float)
        wide = np.nanmin(every) > 0 and np.nanmax(every) > 5 * np.nanmin(every)  # else a log axis has too few ticks
        source = _curves(curves, "training step", "loss", yscale="log" if wide else "linear")
        figures.append(_chart("Loss", caption, source))
    if results.classifier:
        t, accuracy = results.classifier["time"], results.classifier["accuracy"]
        count = results.classifier.get("count", 0)
        errors = [share_error(share, count) for share in accuracy] if count else []
        note = f"n = {count:,} held-out images; band: standard error" if count else ""
        caption = (
            f"Accuracy on held-out images: {percent(accuracy[0])} without noise, {percent(accuracy[-1])} at the last "
            f"t. {note}"
        )
        source = _curves({"": (t, accuracy, errors)}, "t (noise level)", "accuracy", note, shares=True, ylim=(0, 1.02))
        figures.append(_chart("Classifier accuracy over noise", caption, source))
    return Section("Training", "Metrics logged during training.", figures) if figures else None


def neighbors(results: Results) -> Section:
    """Comparison of generated images with their nearest training images."""
    found, rows = results.neighbors, []
    nearest = found.distances[:, 0]
    for i in _of_each_class(found.samples.labels):
        name = _class_name(results, int(found.samples.labels[i])) or str(i + 1)
        nearer = percent(float(np.mean(found.held_out < nearest[i])))
        note = f"distance {number(nearest[i])}; {nearer} of held-out images are nearer"
        images = np.concatenate([found.samples.images[i : i + 1], found.images[i]])
        alt = f"Generated image ({name}), then its {len(images) - 1} nearest training images; {note}"
        rows.append(Image(alt, image_row(images), name, note))
    share = float(np.mean(nearest < np.quantile(found.held_out, 0.01)))
    text = (
        f"{percent(share)} (standard error {percent(share_error(share, len(nearest)), 2)}) of {len(nearest)} generated "
        f"images (w = {weight_text(found.samples.weight)}) are nearer to a training image than 99 % of held-out real "
        "images are; for images as varied as real ones this is 1 %. Copies of training images raise it, and so does "
        "strong guidance, which favours typical images."
    )
    curves = {}
    for name, values in (("generated", nearest), ("held-out", found.held_out)):
        below = np.arange(1, len(values) + 1) / len(values)
        curves[name] = (np.sort(values), below, [share_error(share, len(values)) for share in below.tolist()])
    note = f"n = {len(nearest)} generated, {len(found.held_out)} held-out images"
    note += f" among {found.searched:,} of training" if found.searched else ""
    caption = (
        f"Distance to the nearest training image: median {number(np.median(nearest))} of generated images, "
        f"{number(np.median(found.held_out))} of held-out images. {note}. Bands: standard error. "
        f"Features: {results.features}."
    )
    source = _curves(
        curves, "distance to the nearest training image", "share below", f"{note}; bands: standard error", shares=True,
        ylim=(0, 1.02),
    )  # fmt: skip
    k = found.images.shape[1]
    rows_caption = f"The generated image, then its k = {k} nearest training images. Features: {results.features}."
    figures = [_chart("Distances", caption, source), Figure("Nearest training images", rows_caption, rows)]
    return Section("Memorisation", text, figures)


def provenance(results: Results) -> Section:
    """Command, versions, device and settings."""
    devices = jax.devices()
    rows = [
        ("run", results.run),
        ("checkpoint step", f"{results.checkpoint_step:,}"),
        ("date", datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("command", " ".join(["python", *sys.argv])),
        ("guided_diffusion_jax", importlib.metadata.version("guided_diffusion_jax")),
        ("jax", jax.__version__),
        ("Python", f"{platform.python_version()}, {platform.system()} {platform.machine()}"),
        ("devices", f"{len(devices)} × {devices[0].device_kind} ({devices[0].platform})"),
    ]
    settings = [(key, str(value)) for key, value in results.settings.items()]
    text = "The same command on the same kind of device gives the same images."
    tables = [
        Table("Provenance", "How this page was made.", ("what", "value"), rows),
        Table("Settings", "Every key of the config.", ("key", "value"), settings, folded=True),
    ]
    return Section("Settings and provenance", text, tables=tables)


SECTIONS = (approaches, weights, samples, steps, trajectory, training, neighbors, provenance)


def _by_approach(points: Sequence[Point], *metrics: str) -> dict[str, list[Point]]:
    """Points of each approach for which all `metrics` were measured at every point."""
    groups = {name: [p for p in points if p.approach == name] for name in dict.fromkeys(p.approach for p in points)}
    return {name: ps for name, ps in groups.items() if all(metric in p.mean for p in ps for metric in metrics)}


def _mean(points: Sequence[Point], metric: str) -> list[float]:
    return [p.mean[metric] for p in points]


def _std(points: Sequence[Point], metric: str) -> list[float]:
    return [p.std[metric] for p in points]


def _over(
    groups: dict[str, list[Point]],
    metric: str,
    x: Callable[[Point], float | str],
    x_name: str,
    y_name: str,
    note: str,
    **settings,
) -> str:
    lines = [
        Line(NAMES[name], [x(p) for p in ps], _mean(ps, metric), LOOKS[name], (), _std(ps, metric))
        for name, ps in groups.items()
    ]
    return chart(lines, x_name, y_name, note, **settings)


def _curves(values: Mapping[str, tuple], x_name: str, y_name: str, note: str = "", **settings) -> str:
    lines = [
        Line(name, x, y, look, (), errors) for (name, (x, y, errors)), look in zip(values.items(), CURVES, strict=False)
    ]
    return chart(lines, x_name, y_name, note, **settings)


def _chart(title: str, caption: str, source: str) -> Figure:
    return Figure(title, caption, [Image(f"Chart: {title}. {caption}", source)])


def _of_each_class(labels: np.ndarray) -> np.ndarray:
    """Indices of `SHOWN` images at most, the same number of each class."""
    present = np.unique(labels)[:SHOWN]
    return np.concatenate([np.flatnonzero(labels == label)[: SHOWN // len(present)] for label in present])


def _rows(found: Sequence[Samples], indices: np.ndarray, what: str) -> list[Image]:
    names = [f"w = {weight_text(s.weight)}" for s in found]
    return [Image(f"At {n}, {what}", image_row(s.images[indices]), n) for n, s in zip(names, found, strict=True)]


def _class_name(results: Results, label: int) -> str:
    return [*results.class_names, "any"][label] if results.class_names else ""
