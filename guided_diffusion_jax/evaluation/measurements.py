"""`evaluate.json`: every measurement of a run, one for each metric, checkpoint and set of settings.

```
{
  "run": "runs/digits", "checkpoint_step": 1000, "count": 297, "evaluate": {...},     of the last call
  "metrics": {"bpd": {...}, "scores": {...}},            the last measurement of each metric at that checkpoint
  "measurements": [
    {"metric": "bpd", "checkpoint_step": 1000, "settings": {"evaluate.split": "test", ...}, "values": {...}}, ...
  ]
}
```

A measurement takes the place of an older one only where metric, checkpoint and settings are the same.
"""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from guided_diffusion_jax.runtime.files import write_json


class Measurement(NamedTuple):
    """What was measured, how, and what came out.

    Attributes:
        metric: name in `evaluate.metrics`.
        checkpoint_step: of the run; None for images that no run of ours made.
        settings: every key of the configuration on which the values depend.
        values: the results.
    """

    metric: str
    checkpoint_step: int | None
    settings: Mapping[str, Any]
    values: Any


def add(path: epath.Path, new: Sequence[Measurement], **call: Any) -> tuple[dict[str, Any], list[str]]:
    """Writes measurements beside those that the file holds, and returns its content and what is to be said of it.

    A file that cannot be read is renamed and stays.

    Args:
        path: of the file.
        new: what has been measured, of one checkpoint.
        call: further entries about this call; JSON-able.
    """
    new = [Measurement(*json.loads(json.dumps(one))) for one in new]  # as it is read back: tuples become lists
    old, said = _read(path)
    replaced = [one for one in old if any(one[:3] == other[:3] for other in new)]
    said += [
        f"{path}: {one.metric} was measured before with the same settings, with other values, which are replaced"
        for one in replaced
        if not any(one == other for other in new)
    ]
    measurements = [*(one for one in old if one not in replaced), *new]
    step = new[-1].checkpoint_step
    latest = {one.metric: one.values for one in measurements if one.checkpoint_step == step}
    content = {**call, "metrics": latest, "measurements": [one._asdict() for one in measurements]}
    write_json(path, content)
    return content, said


def add_points(path: epath.Path, rows: Sequence[Mapping[str, Any]], **made: Any) -> list[str]:
    """Writes the points of a sweep after those of other sweeps in the file, and returns what is to be said of it.

    A point takes the place of an older one only where method, weight, steps and all of `made` are the same.

    Args:
        path: of the file, a list of rows.
        rows: the points.
        made: what else they depend on, JSON-able.
    """
    new = json.loads(json.dumps([{**row, **made} for row in rows]))
    key = ("method", "weight", "steps", *made)
    taken = [[row[name] for name in key] for row in new]
    old, said = _load(path, lambda stored: [dict(row) for row in stored])
    write_json(path, [*(row for row in old or () if [row.get(name) for name in key] not in taken), *new])
    return said


def _read(path: epath.Path) -> tuple[list[Measurement], list[str]]:
    """The measurements of a file, and a line about one that cannot be read."""
    found, said = _load(path, _measurements)
    return found or [], said


def _measurements(stored: Any) -> list[Measurement]:
    if "measurements" in stored:
        return [Measurement(**one) for one in stored["measurements"]]
    # Version 0.2 wrote the metrics of the last call alone.
    settings = {f"evaluate.{key}": value for key, value in stored["evaluate"].items()}
    step = stored.get("checkpoint_step")
    return [Measurement(metric, step, settings, values) for metric, values in stored["metrics"].items()]


def _load(path: epath.Path, use: Callable[[Any], Any]) -> tuple[Any, list[str]]:
    """What `use` makes of a JSON file; None without one, or where it is damaged, which is renamed and said."""
    if not path.exists():
        return None, []
    try:
        return use(json.loads(path.read_text())), []
    except (ValueError, TypeError, KeyError, AttributeError):
        damaged = _free(path.with_name(f"{path.stem}.damaged{path.suffix}"))
        path.rename(damaged)
        return None, [f"{path} could not be read, and is now {damaged}"]


def _free(path: epath.Path) -> epath.Path:
    """The path, or one with a number that is not taken."""
    numbered = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(2))
    return path if not path.exists() else next(one for one in numbered if not one.exists())
