"""Sweep over guidance weights and numbers of steps: quality, diversity, adherence and cost, on the same seeds."""

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from etils import epath
from jaxtyping import Int, UInt8

from guided_diffusion_jax.errors import require
from guided_diffusion_jax.evaluation.metrics import METRICS, MOST
from guided_diffusion_jax.evaluation.numbers import number
from guided_diffusion_jax.evaluation.scorer import Scorer
from guided_diffusion_jax.guidance.weights import weight_text
from guided_diffusion_jax.runtime.files import atomic_write

IMAGES_PER_CLASS = 10
"""Images of each class that are saved of a point."""

COSTS = {
    "seconds": ("ms/image", 1e3),
    "evaluations": ("evaluations", 1),
    "classifier_evaluations": ("classifier", 1),
    "peak_bytes": ("MB", 1e-6),
}
"""Costs of a row: heading, and factor to its unit."""


@runtime_checkable
class Pipeline(Protocol):
    """The part of `guided_diffusion_jax.pipeline.Pipeline` that a sweep uses.

    If it also has `compile(request) -> jax.stages.Compiled`, that is called first, so that times leave compilation out
    and rows have "peak_bytes".
    """

    params: Any

    def request(self, **settings: Any) -> Any:
        """Request with these settings (`weight`, `classifier_weight`, `steps`, and those given to `sweep`)."""

    def generate(self, request: Any) -> UInt8[np.ndarray, "n h w c"]:
        """Images of a request."""


class Point(NamedTuple):
    """A setting of the sweep: "cfg" or "classifier" guidance, its weight, and the number of sampling steps."""

    method: str
    weight: float
    steps: int | str

    @property
    def file(self) -> str:
        """Name of the file of its images."""
        return f"{self.method}_w{weight_text(self.weight)}_n{self.steps}.npz"


def points(
    weight: Sequence[float | int] = (),
    classifier_weight: Sequence[float | int] = (),
    steps: Sequence[int | str] = (50,),
) -> list[Point]:
    """All points of a sweep, in an order in which few programs are compiled.

    Raises:
        InputError: there is no point, or a weight is not a finite number.
    """
    weights = {"cfg": weight, "classifier": classifier_weight}
    made = [Point(method, float(w), n) for method, ws in weights.items() for n in steps for w in ws]
    require(bool(made), "the sweep has no point; give weight or classifier_weight, and steps")
    require(all(np.isfinite(point.weight) for point in made), f"weights must be finite numbers: {weights}")
    return made


def sweep(
    pipe: Pipeline,
    scorer: Scorer,
    *,
    weight: Sequence[float | int] = (),
    classifier_weight: Sequence[float | int] = (),
    steps: Sequence[int | str] = (50,),
    request: Mapping[str, Any] | Callable[..., Any] | None = None,
    unguided_weight: float = -1.0,
    image_dir: epath.PathLike | None = None,
    verbose: bool = True,
) -> list[dict[str, Any]]:
    """Generates and scores images at each point.

    All weights and numbers of steps of a method run the same compiled program. CFG's weight 0 is therefore evaluated
    with both branches too, and its costs are those of the other weights; where no weight needs the second branch, there
    is one.

    Args:
        pipe: generates the images.
        scorer: scores them.
        weight: weights of classifier-free guidance.
        classifier_weight: weights of classifier guidance.
        steps: numbers of sampling steps.
        request: further settings of `pipe.request`, or a function that is called in place of it; by default all classes
            in turn, as many images as the scorer's held-out split has, up to 10,000.
        unguided_weight: CFG weight of the model that the classifier steers: -1 is the unconditional model, 0 the
            conditional one, for models without an unconditional branch.
        image_dir: folder for some images of each point (`Point.file`).
        verbose: print a table.

    Returns:
        One row per point: "method", "weight", "steps", the scores, and the cost per image: "seconds",
        "evaluations" of the network, "classifier_evaluations" (with gradient), "peak_bytes" of the program on each
        device, "parameters".

    Raises:
        InputError: as `points` and the pipeline do.
    """
    make = request if callable(request) else functools.partial(pipe.request, **default_request(scorer, request or {}))
    rows: list[dict[str, Any]] = []
    for point in points(weight, classifier_weight, steps):
        if point.method == "cfg":
            asked = make(weight=point.weight, steps=point.steps)
            asked = asked if any(weight) else asked.prune_branches()
        else:
            guided = {"classifier_weight": point.weight, "weight": unguided_weight, "steps": point.steps}
            asked = make(**guided).prune_branches()
        row, images = measure(pipe, asked, scorer)
        rows.append(point._asdict() | row)
        if image_dir is not None:
            _save(epath.Path(image_dir) / point.file, images, asked.labels)
        if verbose:
            print("\n".join([*(_head(rows[0]) if len(rows) == 1 else ()), _line(rows[-1], rows[0])]), flush=True)
    return rows


def default_request(scorer: Scorer, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with labels, all classes in turn, unless they already say what is generated."""
    if {"labels", "count", "prompt", "attributes"} & set(settings):
        return dict(settings)
    labels = np.arange(min(len(scorer.data), MOST), dtype=np.int32) % max(1, scorer.train.num_classes)
    return {**settings, "labels": labels}


def measure(pipe: Pipeline, request: Any, scorer: Scorer) -> tuple[dict[str, Any], UInt8[np.ndarray, "n h w c"]]:
    """Costs and scores of one request, and its images."""
    compiled = pipe.compile(request) if hasattr(pipe, "compile") else None
    start = time.perf_counter()
    images = pipe.generate(request)
    seconds = time.perf_counter() - start
    calls = request.num_steps * request.sampler.evaluations
    networks = jax.tree.leaves((pipe.params, [guide.log_prob for guide in request.guides]))
    conditioned = request.guides or any("label" in conditions for conditions in (*request.branches, request.null))
    return {
        "seconds": seconds / len(images),
        "evaluations": calls * (len(request.branches) + 1),
        "classifier_evaluations": calls * len(request.guides),
        "peak_bytes": None if compiled is None else peak_bytes(compiled),
        "parameters": sum(leaf.size for leaf in networks),
    } | scorer.scores(images, request.labels if conditioned else None), images


def peak_bytes(program: jax.stages.Compiled) -> int | None:
    """Bytes of a program as planned by XLA: arguments, results and temporaries; None if a backend does not tell."""
    memory: Any = program.memory_analysis()
    if memory is None:
        return None
    sizes = memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes
    return sum(sizes) - memory.alias_size_in_bytes


def _save(path: epath.Path, images: UInt8[np.ndarray, "n h w c"], labels: Int[np.ndarray, " n"] | None) -> None:
    """Saves the first images of each class."""
    labels = np.zeros(len(images), np.int32) if labels is None else np.asarray(labels)
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == c)[:IMAGES_PER_CLASS] for c in np.unique(labels)]))
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            np.savez(file, images[chosen], labels[chosen])


# --- the printed table


def _columns(row: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    """Name, heading and factor of each column: the metrics and costs that the first row has."""
    yield from ((m.name, m.title, 1) for m in METRICS.values() if row[m.name] is not None)
    yield from ((name, *column) for name, column in COSTS.items() if row[name])


def _head(row: Mapping[str, Any]) -> list[str]:
    about = f"{row['count']:,} images a point against {row['reference_count']:,}; features: {row['features']}"
    return [about, f"{'':24}" + "".join(f"{title:>12}" for _, title, _ in _columns(row))]


def _line(row: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    values = ["-" if row[name] is None else number(row[name] * factor) for name, _, factor in _columns(first)]
    return f"{row['method']} w={weight_text(row['weight'])} n={row['steps']}".ljust(24) + "".join(
        f"{v:>12}" for v in values
    )
