"""`--mode=report`: the report of a run, or of three ways of steering compared, in `report.html` and `report.md`."""

import json
import os
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from guided_diffusion_jax import report
from guided_diffusion_jax.commands import approaches, build, classifier, kinds, sample
from guided_diffusion_jax.commands import config as configs
from guided_diffusion_jax.commands.ask import Wanted
from guided_diffusion_jax.commands.draw import Artist
from guided_diffusion_jax.commands.evaluate import scoring, sweep, swept
from guided_diffusion_jax.commands.evaluate.scoring import Scorer
from guided_diffusion_jax.errors import require
from guided_diffusion_jax.report.results import nearest_weight
from guided_diffusion_jax.training import metrics

WEIGHTS, CLASSIFIER_WEIGHTS = "0,0.5,1,2,4,8", "0,1,2,5,10"
"""Weights of the sweep if the config gives none."""

NEIGHBORS, HELD_OUT = 3, 500
"""Training images shown beside each generated one, and held-out images (at most) whose distances are compared."""


def run(config: ConfigDict, workdir: epath.Path) -> None:
    """Measures what was not measured yet and writes `report.html` and `report.md`.

    With `evaluate.approaches` it trains the three approaches in `approaches/` and compares them; samples, trajectory
    and training curves are then those of the first CFG run. Otherwise the report is about the run in `workdir`.

    Raises:
        InputError: there is no run, or settings that cannot work.
    """
    require(jax.process_count() == 1, "--mode=report is for one process; use --distributed=off")
    config = build.resolve(config, build.source(config))
    compare = config.evaluate.approaches
    if compare:
        approaches.check(config)
    else:
        require(
            swept.newest(workdir) is not None,
            f"{workdir} holds no trained run; train one, or compare three: --config.evaluate.approaches=True",
        )
    scorer = Scorer(config, build.source(config, config.evaluate.split), workdir)
    if compare:
        if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # trainings that differ in the seed share their programs
            jax.config.update("jax_compilation_cache_dir", os.fspath(workdir / "compiled"))
        rows = approaches.run(config, workdir, scorer)
        one = approaches.config_of(config, "cfg", config.seed)
        one.evaluate.sweep.steps = config.evaluate.sweep.steps
        folders = {name: approaches.folder_of(workdir, name, config.seed) for name in ("cfg", "classifier")}
        found = collect(one, folders["cfg"], scorer, rows, folders, approaches.weights(config))
        configs.save(config, workdir)
    else:
        config = config.copy_and_resolve_references()
        default_weights(config, workdir)
        one = config.copy_and_resolve_references()
        one.evaluate.sweep.steps = ""
        rows = swept.rows("weights", one, workdir, scorer) if sweep.asked(one) else []
        found = collect(config, workdir, scorer, rows, {row["kind"]: workdir for row in rows})
    print(*report.write(report.build(found), workdir), sep="\n", flush=True)


def collect(
    config: ConfigDict,
    workdir: epath.Path,
    scorer: Scorer,
    rows: list[dict[str, Any]],
    folders: dict[str, epath.Path],
    compared: dict[str, float] | None = None,
) -> report.Results:
    """Results of a trained run; measures the sweep over steps and generates the images that are missing.

    Args:
        config: resolved, the run's.
        workdir: the run's.
        scorer: for this config.
        rows: of the sweep over weights, or of the compared approaches.
        folders: of the runs whose sweeps left samples, by kind of guidance.
        compared: weight of each approach in their comparison; None for the report of one run.
    """
    artist, params, step = sample.load(config, workdir)
    request = _request(config, scorer, artist, min(10, max(1, len(config.data.class_names))))
    shown = [row for row in rows if row.get("approach") != "class-conditional"]
    first = {(row["kind"], row["weight"]): row for row in reversed(shown)}
    samples = [_samples(folders[kind], first[kind, weight]) for kind, weight in sorted(first)]
    if not samples:
        every = _request(config, scorer, artist, 100)
        samples = [report.Samples("none", 0.0, artist.images(params, every), every.labels)]
    of_first = [one for one in samples if one.approach == samples[0].approach]
    by_approach = report.points(rows) if compared else []
    accuracy = classifier.folder(folders.get("classifier", workdir), "label") / "accuracy.json"
    over_steps = _over_steps(config, workdir, scorer)
    return report.Results(
        run=str(workdir),
        dataset=f"{config.data.name}, {config.data.image_size}×{config.data.image_size} pixels",
        class_names=config.data.class_names,
        settings=dict(configs.flatten(config)),
        sampler=f"{config.sample.solver}, {config.sample.steps} steps",
        training_setup=f"{config.train.steps:,} steps of {config.train.batch_size} images",
        checkpoint_step=step,
        features=scorer.name,
        weights=report.points(shown),
        steps=report.points(over_steps),
        approaches=[
            nearest_weight([p for p in by_approach if p.approach == name], weight)
            for name, weight in (compared or {}).items()
        ],
        samples=samples,
        trajectory=report.Trajectory(artist.film(params, request), request.labels),
        neighbors=_neighbors(nearest_weight(of_first, config.sample.guidance.weight), scorer),
        training=metrics.lines(workdir),
        classifier=json.loads(accuracy.read_text()) if accuracy.exists() else {},
        warnings=list(dict.fromkeys(warning for row in (*shown, *over_steps) for warning in row["warnings"])),
    )


def default_weights(config: ConfigDict, workdir: epath.Path) -> None:
    """Sets the weights of the sweep that the config leaves open, for the guidance that the run was trained for."""
    s, dropout = config.evaluate.sweep, config.train.condition_dropout
    if not s.weight and kinds.names(config):
        s.weight = WEIGHTS if 0 < dropout < 1 else "" if dropout else "0"
    if not s.classifier_weight and swept.newest(classifier.folder(workdir, "label")):
        s.classifier_weight = CLASSIFIER_WEIGHTS


def _request(config: ConfigDict, scorer: Scorer, artist: Artist, count: int) -> Wanted:
    """Conditions of the run's own samples; unconditional, and labelled so, if it was trained without conditions."""
    request, is_conditional = scoring.wanted(config, scorer.data, count), config.train.condition_dropout < 1
    if not is_conditional:
        request = request.at(-1.0)
    if not artist.guides and not (is_conditional and kinds.names(config)):
        request = request._replace(labels=np.full_like(request.labels, len(config.data.class_names)))
    return request.spared()


def _over_steps(config: ConfigDict, workdir: epath.Path, scorer: Scorer) -> list[dict[str, Any]]:
    """Sweep over the numbers of steps at the config's weight; empty if the config names none."""
    if not config.evaluate.sweep.steps or not config.evaluate.sweep.weight:
        return []
    one = config.copy_and_resolve_references()
    one.evaluate.sweep.update(weight=f"{config.sample.guidance.weight:g}", classifier_weight="")
    return swept.rows("steps", one, workdir, scorer)


def _samples(workdir: epath.Path, row: dict[str, Any]) -> report.Samples:
    path = sweep.pictures(workdir, row["kind"], row["weight"], row["steps"])
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return report.Samples(row["kind"], row["weight"], arrays["arr_0"], arrays["arr_1"])


def _neighbors(samples: report.Samples, scorer: Scorer) -> report.Neighbors:
    held_out = scorer.data.read(np.arange(min(HELD_OUT, len(scorer.data))))["image"]
    nearest, distances = scorer.nearest(samples.images, NEIGHBORS)
    images = scorer.train.read(nearest.reshape(-1))["image"]
    images = images.reshape(*nearest.shape, *images.shape[1:])
    return report.Neighbors(samples, images, distances, scorer.nearest(held_out, 1)[1][:, 0])
