"""`--mode=report`: the report of a run, or of three ways of steering compared, in `report.html` and `report.md`."""

from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from guided_diffusion_jax import report
from guided_diffusion_jax.commands import approaches, evaluate
from guided_diffusion_jax.data.dataset import Dataset
from guided_diffusion_jax.errors import require
from guided_diffusion_jax.evaluation import cache, sweep
from guided_diffusion_jax.evaluation.scorer import Scorer
from guided_diffusion_jax.experiment import config as configs
from guided_diffusion_jax.experiment import runs
from guided_diffusion_jax.generation import Request
from guided_diffusion_jax.loading import classifier_folder
from guided_diffusion_jax.pipeline import Pipeline
from guided_diffusion_jax.report.results import nearest_weight
from guided_diffusion_jax.runtime import notices
from guided_diffusion_jax.runtime.files import read_json
from guided_diffusion_jax.training import metrics
from guided_diffusion_jax.training.checkpoint import latest_step

WEIGHTS, CLASSIFIER_WEIGHTS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0), (0.0, 1.0, 2.0, 5.0, 10.0)
"""Weights of the sweep if the config gives none."""

NEIGHBORS, HELD_OUT = 3, 500
"""Training images shown beside each generated one, and held-out images (at most) whose distances are compared."""

Rows = list[dict[str, Any]]


def run(config: ConfigDict, workdir: epath.Path) -> None:
    """Measures what was not measured yet and writes `report.html` and `report.md`.

    With `report.compare_methods` it trains the three methods in `approaches/` and compares them; samples, trajectory
    and training curves are then those of the first CFG run. Otherwise the report is about the run in `workdir`.

    Raises:
        InputError: there is no run, or settings that cannot work.
    """
    require(jax.process_count() == 1, "--mode=report is for one process; use --distributed=off")
    compare = config.report.compare_methods
    data = evaluate.open_split(config)
    if compare:
        approaches.check(config, data)
    else:
        require(
            latest_step(workdir) is not None,
            f"{workdir} holds no trained run; train one, or compare three: --config.report.compare_methods=True",
        )
    scorer = evaluate.make_scorer(config, data, workdir)
    if compare:
        rows = approaches.run(config, workdir, data, scorer)
        one = approaches.config_of(config, "cfg", config.seed)
        one.evaluate.sweep.steps = config.evaluate.sweep.steps
        folders = {name: approaches.folder_of(workdir, name, config.seed) for name in ("cfg", "classifier")}
        found = collect(one, folders["cfg"], data, scorer, rows, folders, approaches.weights(config))
        configs.save(config, workdir)
    else:
        config = config.copy_and_resolve_references()
        default_weights(config, workdir)
        one = config.copy_and_resolve_references()
        one.evaluate.sweep.steps = ()
        swept = one.evaluate.sweep.weight or one.evaluate.sweep.classifier_weight
        rows = sweep_rows("weights", one, workdir, data, scorer) if swept else []
        found = collect(config, workdir, data, scorer, rows, {row["method"]: workdir for row in rows})
    with notices.working("drawing the figures"):
        written = report.write(report.build(found), workdir)
    print(*written, sep="\n", flush=True)


def sweep_rows(name: str, config: ConfigDict, workdir: epath.Path, data: Dataset, scorer: Scorer) -> Rows:
    """Rows of the sweep of a run, computed again where anything that they depend on has changed."""
    settings = {
        "sample": config.sample.to_dict(),
        "evaluate": config.evaluate.to_dict(),
        "step": latest_step(workdir),
        "classifier": latest_step(classifier_folder(workdir, "label")),
    }
    path = workdir / "sweep" / f"{name}.json"
    return cache.rows(path, settings, lambda: evaluate.run_sweep(config, workdir, data, scorer))


def collect(
    config: ConfigDict,
    workdir: epath.Path,
    data: Dataset,
    scorer: Scorer,
    rows: Rows,
    folders: dict[str, epath.Path],
    compared: dict[str, float] | None = None,
) -> report.Results:
    """Results of a trained run; measures the sweep over steps and generates the images that are missing.

    Args:
        config: the run's.
        workdir: the run's.
        data: split whose examples give the conditions.
        scorer: for this config.
        rows: of the sweep over weights, or of the compared methods.
        folders: of the runs whose sweeps left samples, by method.
        compared: weight of each method in their comparison; None for the report of one run.
    """
    pipe, classes = runs.pipeline(config, workdir), scorer.train.class_names
    request = _request(config, pipe, data, min(10, max(1, len(classes))))
    shown = [row for row in rows if row.get("approach") != "class-conditional"]
    first = {(row["method"], row["weight"]): row for row in reversed(shown)}
    samples = [_samples(folders[method], first[method, weight]) for method, weight in sorted(first)]
    if not samples:
        every = _request(config, pipe, data, 100)
        samples = [report.Samples("none", 0.0, pipe.generate(every), every.labels)]
    of_first = [one for one in samples if one.approach == samples[0].approach]
    by_approach = report.points(rows) if compared else []
    accuracy = classifier_folder(folders.get("classifier", workdir), "label") / "accuracy.json"
    over_steps = _over_steps(config, workdir, data, scorer)
    return report.Results(
        run=str(workdir),
        dataset=f"{config.data.name}, {config.data.image_size}×{config.data.image_size} pixels",
        class_names=classes,
        settings=dict(configs.flatten(config)),
        sampler=f"{config.sample.sampler}, {config.sample.steps} steps",
        training_setup=f"{config.train.steps:,} steps of {config.train.batch_size} images",
        checkpoint_step=pipe.step,
        features=scorer.name,
        weights=report.points(shown),
        steps=report.points(over_steps),
        approaches=[
            nearest_weight([p for p in by_approach if p.approach == name], weight)
            for name, weight in (compared or {}).items()
        ],
        samples=samples,
        trajectory=report.Trajectory(pipe.trajectory(request, frames=max(1, config.sample.frames)), request.labels),
        neighbors=_neighbors(nearest_weight(of_first, config.sample.guidance.weight), scorer),
        training=metrics.lines(workdir),
        classifier=read_json(accuracy) if accuracy.exists() else {},
        warnings=list(dict.fromkeys(warning for row in (*shown, *over_steps) for warning in row["warnings"])),
    )


def default_weights(config: ConfigDict, workdir: epath.Path) -> None:
    """Sets the weights of the sweep that the config leaves open, for the guidance that the run was trained for."""
    s, dropout = config.evaluate.sweep, config.train.cfg_dropout
    if not s.weight and runs.pipeline(config, workdir).specs:
        s.weight = WEIGHTS if 0 < dropout < 1 else () if dropout else (0.0,)
    if not s.classifier_weight and latest_step(classifier_folder(workdir, "label")):
        s.classifier_weight = CLASSIFIER_WEIGHTS


def _request(config: ConfigDict, pipe: Pipeline, data: Dataset, count: int) -> Request:
    """Conditions of the run's own samples; unconditional, and labelled so, if it was trained without conditions."""
    conditional = config.train.cfg_dropout < 1
    request = runs.evaluation_request(config, pipe, data, count)
    request = request if conditional else request.with_weight(-1.0)
    if not request.guides and not (conditional and pipe.specs):
        request = request._replace(labels=np.full_like(request.labels, len(pipe.info.class_names)))
    return request.prune_branches()


def _over_steps(config: ConfigDict, workdir: epath.Path, data: Dataset, scorer: Scorer) -> Rows:
    """Sweep over the numbers of steps at the config's weight; empty if the config names none."""
    if not config.evaluate.sweep.steps or not config.evaluate.sweep.weight:
        return []
    one = config.copy_and_resolve_references()
    one.evaluate.sweep.update(weight=(config.sample.guidance.weight,), classifier_weight=())
    return sweep_rows("steps", one, workdir, data, scorer)


def _samples(workdir: epath.Path, row: dict[str, Any]) -> report.Samples:
    path = workdir / "sweep" / sweep.Point(row["method"], row["weight"], row["steps"]).file
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return report.Samples(row["method"], row["weight"], arrays["arr_0"], arrays["arr_1"])


def _neighbors(samples: report.Samples, scorer: Scorer) -> report.Neighbors:
    held_out = scorer.data.read(np.arange(min(HELD_OUT, len(scorer.data))))["image"]
    nearest, distances = scorer.nearest(samples.images, NEIGHBORS)
    images = scorer.train.read(nearest.reshape(-1))["image"]
    images = images.reshape(*nearest.shape, *images.shape[1:])
    return report.Neighbors(samples, images, distances, scorer.nearest(held_out, 1)[1][:, 0], scorer.num_searched)
