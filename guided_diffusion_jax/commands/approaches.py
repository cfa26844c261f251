"""Class-conditional model, classifier guidance and classifier-free guidance (CFG), trained and measured alike.

All use the same U-Net, training steps, data order, seeds and sampler. They differ in how often training drops the
condition: never, always (a classifier steers an unconditional model), or as often as `train.condition_dropout`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from guided_diffusion_jax import writing
from guided_diffusion_jax.commands import classifier, sample, train
from guided_diffusion_jax.commands import config as configs
from guided_diffusion_jax.commands.evaluate import scoring, sweep, swept
from guided_diffusion_jax.commands.evaluate.scoring import Scorer
from guided_diffusion_jax.errors import require
from guided_diffusion_jax.training import metrics

SEEDS = 3
"""Trainings of each approach, from `seed` on."""

NAMES = ("class-conditional", "classifier", "cfg")

SAME = ("seed", "data", "model", "diffusion", "train", "classifier")
"""Parts of the config in which an existing run must agree with the one that would be trained."""

Rows = list[dict[str, Any]]


def run(config: ConfigDict, workdir: epath.Path, scorer: Scorer) -> Rows:
    """Trains and measures the missing runs in `approaches/NAME_SEED/`, and writes `approaches.json`.

    Returns:
        Rows of the sweeps with "approach", "seed" and the seconds of training.

    Raises:
        InputError: the config leaves an approach nothing to do, or one of its runs was trained with another config.
    """
    check(config)
    rows = [row for seed in seeds(config) for name in NAMES for row in _measured(config, workdir, scorer, name, seed)]
    settings = {part: config[part].to_dict() for part in SAME[1:]} | {"seeds": seeds(config)}
    writing.as_json(workdir / "approaches.json", {"rows": rows, "weights": weights(config), "settings": settings})
    return rows


def _measured(config: ConfigDict, workdir: epath.Path, scorer: Scorer, name: str, seed: int) -> Iterator[dict]:
    one, folder, classifier_seconds = config_of(config, name, seed), folder_of(workdir, name, seed), 0.0
    configs.check_same(one, folder, SAME)
    if swept.newest(folder) != one.train.steps:
        train.run(one, folder)
    if name == "classifier":
        if swept.newest(classifier.folder(folder, "label")) != one.classifier.steps:
            classifier.run(one, folder)
        classifier_seconds = training_seconds(metrics.lines(folder / "classifier"), one.classifier.batch_size)
    times = {
        "train_seconds": training_seconds(metrics.lines(folder), one.train.batch_size),
        "classifier_train_seconds": classifier_seconds,
    }
    measure = _single_point if name == "class-conditional" else sweep.run
    for row in swept.rows("weights", one, folder, scorer, measure):
        yield {**row, "approach": name, **times, "seed": seed}


def check(config: ConfigDict) -> None:
    """Raises `InputError` unless all three approaches can be trained."""
    dropout, classes = config.train.condition_dropout, config.model.num_classes
    require(
        0 < dropout < 1,
        f"evaluate.approaches includes CFG, and train.condition_dropout={dropout} does not train it; use 0.1",
    )
    require(classes >= 2, f"evaluate.approaches needs classes, but model.num_classes={classes}; use 2 or more")
    for key in ("weight", "classifier_weight"):
        require(bool(config.evaluate.sweep[key]), f"evaluate.sweep.{key} is empty; give weights to compare, e.g. 0,1,2")


def seeds(config: ConfigDict) -> list[int]:
    """Seeds of the trainings."""
    return list(range(config.seed, config.seed + SEEDS))


def folder_of(workdir: epath.Path, name: str, seed: int) -> epath.Path:
    """Folder of one training."""
    return workdir / "approaches" / f"{name}_{seed}"


def config_of(config: ConfigDict, name: str, seed: int) -> ConfigDict:
    """Config of one training: its condition dropout, its seed, and the guidance weights that apply to it."""
    one = config.copy_and_resolve_references()
    one.seed, one.evaluate.approaches, one.evaluate.sweep.steps = seed, False, ""
    guidance, swept_weights = one.sample.guidance, one.evaluate.sweep
    if name == "cfg":
        guidance.classifier_weight, swept_weights.classifier_weight = 0.0, ""
    elif name == "classifier":
        one.train.condition_dropout, guidance.weight, swept_weights.weight = 1.0, 0.0, ""
    else:
        one.train.condition_dropout = 0.0
        guidance.update(weight=0.0, classifier_weight=0.0)
        swept_weights.update(weight="0", classifier_weight="")
    return one


def weights(config: ConfigDict) -> dict[str, float]:
    """Guidance weight at which each approach is compared with the others."""
    guidance = {name: config_of(config, name, config.seed).sample.guidance for name in NAMES}
    return {name: float(g.weight or g.classifier_weight) for name, g in guidance.items()}


def training_seconds(lines: Sequence[Mapping[str, Any]], batch_size: int) -> float:
    """Duration of all steps of a training by the median of its metrics' lines, which excludes compilation."""
    return float(np.median([batch_size / line["images_per_second"] for line in lines]) * lines[-1]["step"])


def _single_point(config: ConfigDict, folder: epath.Path, scorer: Scorer) -> Rows:
    """The conditional model without guidance, sampled with one forward per step (a sweep evaluates both branches)."""
    artist, params, _ = sample.load(config, folder)
    request = scoring.wanted(config, scorer.data, scoring.count_of(config, scorer.data)).at(0.0).spared()
    row, _ = sweep.point(artist, params, request, 0.0, scorer)
    return [{"kind": "cfg", "weight": 0.0, "steps": config.sample.steps, **row}]
