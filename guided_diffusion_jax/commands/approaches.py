"""Class-conditional model, classifier guidance and classifier-free guidance (CFG), trained and measured alike.

All use the same U-Net, training steps, data order, seeds and sampler. They differ in how often training drops the
condition: never, always (a classifier steers an unconditional model), or as often as `train.cfg_dropout`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from guided_diffusion_jax.commands import classifier, report, train
from guided_diffusion_jax.data.dataset import Dataset
from guided_diffusion_jax.errors import require
from guided_diffusion_jax.evaluation import sweep
from guided_diffusion_jax.evaluation.scorer import Scorer
from guided_diffusion_jax.experiment import runs
from guided_diffusion_jax.loading import classifier_folder
from guided_diffusion_jax.runtime.files import write_json
from guided_diffusion_jax.training import metrics
from guided_diffusion_jax.training.checkpoint import latest_step

SEEDS = 3
"""Trainings of each approach, from `seed` on."""

NAMES = ("class-conditional", "classifier", "cfg")

Rows = list[dict[str, Any]]


def run(config: ConfigDict, workdir: epath.Path, data: Dataset, scorer: Scorer) -> Rows:
    """Trains and measures the missing runs in `approaches/NAME_SEED/`, and writes `approaches.json`.

    Returns:
        Rows of the sweeps with "approach", "seed" and the seconds of training.

    Raises:
        InputError: one of its runs was trained with another config.
    """
    rows = [row for s in seeds(config) for name in NAMES for row in _measured(config, workdir, data, scorer, name, s)]
    settings = {part: config[part].to_dict() for part in ("data", "model", "diffusion", "train", "classifier")}
    settings |= {"seeds": seeds(config)}
    write_json(workdir / "approaches.json", {"rows": rows, "weights": weights(config), "settings": settings})
    return rows


def _measured(
    config: ConfigDict, workdir: epath.Path, data: Dataset, scorer: Scorer, name: str, seed: int
) -> Iterator[dict[str, Any]]:
    one, folder, classifier_seconds = config_of(config, name, seed), folder_of(workdir, name, seed), 0.0
    if latest_step(folder) != one.train.steps:
        train.run(one, folder)
    if name == "classifier":
        t = one.classifier.train
        if latest_step(classifier_folder(folder, "label")) != t.steps:
            classifier.run(one, folder)
        classifier_seconds = training_seconds(metrics.lines(folder / "classifier"), t.batch_size)
    times = {
        "train_seconds": training_seconds(metrics.lines(folder), one.train.batch_size),
        "classifier_train_seconds": classifier_seconds,
    }
    rows = (
        _single_point(one, folder, data, scorer)
        if name == "class-conditional"
        else report.sweep_rows("weights", one, folder, data, scorer)
    )
    for row in rows:
        yield {**row, "approach": name, **times, "seed": seed}


def check(config: ConfigDict, data: Dataset) -> None:
    """Raises `InputError` unless all three approaches can be trained."""
    dropout, classes = config.train.cfg_dropout, data.num_classes if config.model.use_labels else 0
    require(
        0 < dropout < 1,
        f"report.compare_methods includes CFG, and train.cfg_dropout={dropout} does not train it; use 0.1",
    )
    require(classes >= 2, f"report.compare_methods needs classes, but the model has {classes}; use 2 or more")
    for key in ("weight", "classifier_weight"):
        require(
            bool(config.evaluate.sweep[key]), f"evaluate.sweep.{key} is empty; give weights to compare, e.g. (0.0, 1.0)"
        )


def seeds(config: ConfigDict) -> list[int]:
    """Seeds of the trainings."""
    return list(range(config.seed, config.seed + SEEDS))


def folder_of(workdir: epath.Path, name: str, seed: int) -> epath.Path:
    """Folder of one training."""
    return workdir / "approaches" / f"{name}_{seed}"


def config_of(config: ConfigDict, name: str, seed: int) -> ConfigDict:
    """Config of one training: its condition dropout, its seed, and the guidance weights that apply to it."""
    one = config.copy_and_resolve_references()
    one.seed, one.report.compare_methods, one.evaluate.sweep.steps = seed, False, ()
    guidance, swept_weights = one.sample.guidance, one.evaluate.sweep
    if name == "cfg":
        guidance.classifier_weight, swept_weights.classifier_weight = 0.0, ()
    elif name == "classifier":
        one.train.cfg_dropout, guidance.weight, swept_weights.weight = 1.0, 0.0, ()
    else:
        one.train.cfg_dropout = 0.0
        guidance.update(weight=0.0, classifier_weight=0.0)
        swept_weights.update(weight=(0.0,), classifier_weight=())
    return one


def weights(config: ConfigDict) -> dict[str, float]:
    """Guidance weight at which each approach is compared with the others."""
    guidance = {name: config_of(config, name, config.seed).sample.guidance for name in NAMES}
    return {name: float(g.weight or g.classifier_weight) for name, g in guidance.items()}


def training_seconds(lines: Sequence[Mapping[str, Any]], batch_size: int) -> float:
    """Duration of all steps of a training by the median of its metrics' lines, which excludes compilation."""
    return float(np.median([batch_size / line["images_per_second"] for line in lines]) * lines[-1]["step"])


def _single_point(config: ConfigDict, folder: epath.Path, data: Dataset, scorer: Scorer) -> Rows:
    """The conditional model without guidance, sampled with one forward per step (a sweep evaluates both branches)."""
    pipe, count = runs.pipeline(config, folder), config.evaluate.count or min(len(data), 10_000)
    request = runs.evaluation_request(config, pipe, data, count, weight=0.0).prune_branches()
    row, _ = sweep.measure(pipe, request, scorer)
    return [{"method": "cfg", "weight": 0.0, "steps": config.sample.steps, **row}]
