"""Class-conditional, classifier guidance and classifier-free guidance (CFG), trained and measured on equal terms.

Each is the same U-Net, trained for the same number of steps on the same pictures in the same order, from the same
seeds, and drawn by the same solver. What differs is how often its condition is dropped: never, always (a classifier
steers what is then an unconditional model), or as often as `train.condition_dropout` says.
"""

from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from guided_diffusion_jax.commands import classifier, sample, train
from guided_diffusion_jax.commands import config as configs
from guided_diffusion_jax.commands.evaluate import scoring, sweep, swept
from guided_diffusion_jax.commands.evaluate.scoring import Scorer
from guided_diffusion_jax.errors import require
from guided_diffusion_jax.runtime import files
from guided_diffusion_jax.training import metrics

SEEDS = 3
"""Trainings of each, from `seed` on."""

NAMES = ("class-conditional", "classifier", "cfg")

EQUAL = ("seed", "data", "model", "diffusion", "train", "classifier")
"""Parts of the config in which a run that is there already must be as it would be trained now."""


def run(config: ConfigDict, workdir: epath.Path, scorer: Scorer) -> dict[str, Any]:
    """Trains, by a resolved config, what `approaches/NAME_SEED/` lack, measures it and writes `approaches.json`.

    That holds `rows`, each that of a sweep with `approach` and the seconds that training took beside it, `weights`, at
    which each approach is to be compared with the others, and `settings`, what all have in common.

    Raises:
        InputError: the config leaves an approach nothing to do, or one of its runs was trained with another config.
    """
    check(config)
    rows = []
    for seed in seeds(config):
        for name in NAMES:
            mine, folder = one(config, name, seed), place(workdir, name, seed)
            configs.check_same(mine, folder, EQUAL)
            if swept.newest(folder) != mine.train.steps:
                train.run(mine, folder)
            steered = name == "classifier"
            if steered and swept.newest(classifier.folder(folder, "label")) != mine.classifier.steps:
                classifier.run(mine, folder)
            about = {
                "approach": name,
                "train_seconds": seconds(folder, mine.train.batch_size),
                "classifier_train_seconds": seconds(folder / "classifier", mine.classifier.batch_size)
                if steered
                else 0.0,
            }
            rows += [
                {**row, **about, "seed": seed} for row in swept.rows("weights", mine, folder, scorer, MEASURES[name])
            ]
    weights = {name: guidance_weight(one(config, name, config.seed)) for name in NAMES}
    settings = {part: config[part].to_dict() for part in EQUAL[1:]} | {"seeds": seeds(config)}
    found = {"rows": rows, "weights": weights, "settings": settings}
    files.write_json(workdir / "approaches.json", found)
    return found


def check(config: ConfigDict) -> None:
    """Raises `InputError` unless all three can be trained."""
    dropout, classes = config.train.condition_dropout, config.model.num_classes
    require(
        0 < dropout < 1,
        f"evaluate.approaches compares CFG with others, and train.condition_dropout={dropout} trains none; use 0.1",
    )
    require(classes >= 2, f"evaluate.approaches compares ways to a class, but the model knows {classes}; use 2 or more")
    for key in ("weight", "classifier_weight"):
        require(bool(config.evaluate.sweep[key]), f"evaluate.sweep.{key} is empty; give weights to compare, e.g. 0,1,2")


def seeds(config: ConfigDict) -> list[int]:
    """Of the trainings."""
    return list(range(config.seed, config.seed + SEEDS))


def place(workdir: epath.Path, name: str, seed: int) -> epath.Path:
    """The folder of one training."""
    return workdir / "approaches" / f"{name}_{seed}"


def one(config: ConfigDict, name: str, seed: int) -> ConfigDict:
    """The config of one training: how often the condition is dropped, the seed, and which weights mean anything."""
    made = config.copy_and_resolve_references()
    made.seed = seed
    made.evaluate.approaches = False
    made.evaluate.sweep.steps = ""
    guided, swept_at = made.sample.guidance, made.evaluate.sweep
    if name == "cfg":
        guided.classifier_weight, swept_at.classifier_weight = 0.0, ""
    elif name == "classifier":
        made.train.condition_dropout = 1.0
        guided.weight, swept_at.weight = 0.0, ""
    else:
        made.train.condition_dropout = 0.0
        guided.update(weight=0.0, classifier_weight=0.0)
        swept_at.update(weight="0", classifier_weight="")
    return made


def unguided(config: ConfigDict, folder: epath.Path, scorer: Scorer) -> swept.Rows:
    """The one point of a model without guidance, by one branch; a sweep has both at every weight, in one program."""
    artist, params, _ = sample.load(config, folder)
    wanted = scoring.wanted(config, scorer.data, scoring.count_of(config, scorer.data)).at(0.0).spared()
    row, _ = sweep.point(artist, params, wanted, 0.0, scorer)
    return [{"kind": "cfg", "weight": 0.0, "steps": config.sample.steps, **row}]


MEASURES = {"class-conditional": unguided, "classifier": sweep.run, "cfg": sweep.run}


def guidance_weight(config: ConfigDict) -> float:
    """The w of the one kind of guidance that the config of a training has."""
    guided = config.sample.guidance
    return float(guided.weight or guided.classifier_weight)


def seconds(folder: epath.Path, batch_size: int) -> float:
    """How long the steps of a training took: the median of its lines in `metrics.jsonl`, so without compiling them."""
    lines = metrics.lines(folder)
    return float(np.median([batch_size / line["images_per_second"] for line in lines]) * lines[-1]["step"])
