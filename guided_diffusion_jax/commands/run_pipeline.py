"""A trained run with the interface of `evaluation.sweep.Pipeline`, on the objects of the old commands.

TEMPORARY: to be replaced by `guided_diffusion_jax.pipeline.Pipeline`.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from guided_diffusion_jax import guidance, schedules
from guided_diffusion_jax.commands import ask, build, kinds, networks, sample
from guided_diffusion_jax.commands.ask import Wanted
from guided_diffusion_jax.commands.draw import Artist, Guide
from guided_diffusion_jax.conditions import null_like
from guided_diffusion_jax.data.shapes.scenes import ATTRIBUTES
from guided_diffusion_jax.data.source import Columns, Source
from guided_diffusion_jax.data.sources import open_source
from guided_diffusion_jax.denoisers import conditional_denoiser
from guided_diffusion_jax.errors import choose, require
from guided_diffusion_jax.evaluation.metrics import MOST
from guided_diffusion_jax.training import parallel
from guided_diffusion_jax.typing import Level


class OneEvaluation(NamedTuple):
    evaluations: int = 1


class Classifier(NamedTuple):
    log_prob: Any
    weight: float


class RunRequest(NamedTuple):
    wanted: Wanted
    levels: Level
    classifiers: tuple[Guide, ...] = ()
    sampler: OneEvaluation = OneEvaluation()

    @property
    def branches(self) -> list[dict[str, Any]]:
        return [self._dict(one) for one in self.wanted.branches]

    @property
    def null(self) -> dict[str, Any]:
        return self._dict(self.wanted.null)

    @property
    def labels(self) -> np.ndarray:
        return self.wanted.labels

    @property
    def guides(self) -> list[Classifier]:
        return [Classifier(guide.params, guide.weight) for guide in self.classifiers]

    def prune_branches(self) -> "RunRequest":
        return self._replace(wanted=self.wanted.spared())

    @staticmethod
    def _dict(conditions: Any) -> dict[str, Any]:
        return {key: value for key, value in vars(conditions).items() if value is not None}


class RunPipeline:
    def __init__(self, config: ConfigDict, workdir: epath.Path, data: Source):
        self.config, self.workdir, self.data = config, workdir, data
        self.mesh, self.variance = build.mesh(config, "train"), config.diffusion.variance
        self._artists: dict[int, Artist] = {}

    @functools.cached_property
    def network(self):
        return networks.network(sample.checked(self.config, self.workdir))

    @functools.cached_property
    def _restored(self):
        return sample.averaged(self.network, self.config, self.workdir)

    @property
    def params(self):
        return self._restored[0]

    @property
    def step(self) -> int:
        return self._restored[1]

    @property
    def unguided_weight(self) -> float:
        return -1.0 if self.config.train.condition_dropout > 0 else 0.0

    @functools.cached_property
    def judged(self) -> tuple[str, ...]:
        name, there = self.config.data.name, kinds.names(self.config)
        require(
            name.startswith("shapes"),
            f"evaluate.metrics=adherence needs data.name=shapes, not {name!r}; use evaluate.metrics=bpd",
        )
        chosen = tuple(filter(None, self.config.evaluate.kinds.split("+")))
        for kind in chosen:
            choose(dict.fromkeys(there), kind, "evaluate.kinds")
        return chosen or tuple(kind for kind in there if kind != "known")

    def check(self, chosen: Any) -> None:
        count = self.config.evaluate.count
        if {"bpd", "adherence"} & set(chosen):
            require(
                count <= len(self.data),
                f"evaluate.count={count}, but {self.data.name} has {len(self.data)} images; 0 is all of them",
            )
        if "bpd" in chosen:
            self.bound_levels()
        if "adherence" in chosen:
            _ = self.judged

    def check_sweep(self, weight: Sequence[float], classifier_weight: Sequence[float], steps: Sequence[str]) -> None:
        sample.checked(self.config, self.workdir)
        for count in steps:
            schedules.trajectory(build.table(self.config), count)
        if weight:
            require(bool(kinds.names(self.config)), "evaluate.sweep.weight is of CFG, but this run has no conditions")
            require(
                self.config.train.condition_dropout > 0 or not any(weight),
                f"evaluate.sweep.weight={weight}: this run was trained with train.condition_dropout=0, so it has no "
                "unconditional model; use 0 alone, or evaluate.sweep.classifier_weight",
            )
        if classifier_weight:
            _ = self._guide

    @functools.cached_property
    def _guide(self) -> Guide:
        return sample.guide(self.workdir, self.mesh, "label", None, 0.0)

    def request(self, *, weight=None, classifier_weight=None, steps=None) -> RunRequest:
        config, data = self.config.copy_and_resolve_references(), self.data
        config.sample.steps = steps or config.sample.steps
        count = config.evaluate.count or min(len(data), MOST)
        if set(kinds.names(config)) <= {"label"}:
            number = max(1, config.model.num_classes or len(config.data.class_names))
            wanted = ask.for_labels(config, np.arange(count, dtype=np.int32) % number)
        else:
            wanted = ask.for_examples(config, data, np.arange(count) % len(data))
        wanted = wanted if weight is None else wanted.at(weight)
        if classifier_weight is None:
            guides = sample.guides(config, self.workdir) if weight is None else []
        else:
            guides = [self._guide._replace(weight=classifier_weight)]
        return RunRequest(wanted, build.trajectory(config), tuple(guides))

    def request_for(self, count: int, only: Sequence[str]) -> RunRequest:
        wanted = ask.for_examples(self.config, self.data, np.arange(count), tuple(only))
        return RunRequest(wanted, build.trajectory(self.config))

    def _artist(self, request: RunRequest) -> Artist:
        guides = request.classifiers
        if len(guides) not in self._artists:
            self._artists[len(guides)] = Artist(self.network, self.config, guides)
        artist = self._artists[len(guides)]
        artist.levels = request.levels
        return artist

    def compile(self, request: RunRequest):
        weights = [guide.weight for guide in request.classifiers]
        return self._artist(request).compiled(self.params, request.wanted, weights)

    def generate(self, request: RunRequest) -> np.ndarray:
        weights = [guide.weight for guide in request.classifiers]
        return self._artist(request).images(self.params, request.wanted, weights)

    def bound_levels(self) -> Level:
        levels = build.table(self.config)
        rows = schedules.select(self.config.evaluate.steps or str(len(levels.time)), len(levels.time))
        require(len(rows) >= 2, "the likelihood needs at least 2 steps; raise diffusion.num_steps or evaluate.steps")
        return Level(*(column[rows] for column in levels))

    def denoiser(self, params, batch, keys):
        conditions = dataclasses.replace(kinds.of_batch(self.config)(batch, keys), known=None)
        if self.config.train.condition_dropout == 1:
            conditions = null_like(conditions, self.config.model.num_classes)
        apply = parallel.gathering(self.mesh)(networks.applied(self.network))
        learned = self.variance == "learned_range"
        denoise = conditional_denoiser(functools.partial(apply, params), self.config.diffusion.prediction, learned)
        return guidance.clip_x0(guidance.conditional(denoise, conditions))


def adherence_examples(config: ConfigDict, count: int) -> dict[str, np.ndarray]:
    """What the first examples show: see `evaluation.adherence.adherence`."""
    d = config.data
    columns = Columns(
        attributes=tuple(name for name in ATTRIBUTES if name != "shape"), text="caption", map="segmentation"
    )
    split = {"split": config.evaluate.split, "image_size": d.image_size, "data_dir": d.data_dir}
    return open_source(d.name, **split, columns=columns, memory_limit=0).read(np.arange(count))
