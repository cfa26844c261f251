"""A sweep whose figures are kept, and made again only when something that they depend on has changed."""

import json
from collections.abc import Callable
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from guided_diffusion_jax.commands import classifier
from guided_diffusion_jax.commands.evaluate import sweep
from guided_diffusion_jax.commands.evaluate.scoring import Scorer
from guided_diffusion_jax.runtime import distributed, files
from guided_diffusion_jax.training.checkpoint import Checkpoints

Rows = list[dict[str, Any]]


def rows(
    name: str,
    config: ConfigDict,
    workdir: epath.Path,
    scorer: Scorer,
    measure: Callable[[ConfigDict, epath.Path, Scorer], Rows] = sweep.run,
) -> Rows:
    """What `measure` gives, from `sweep/NAME.json` where it stands there already.

    Args:
        name: of this sweep among those of the run.
        config: resolved, the run's.
        workdir: the run's.
        scorer: for this config.
        measure: of a run with its config; the sweep that the config asks for.
    """
    steps = {part: newest(folder) for part, folder in _trained(workdir).items()}
    parts = {part: config[part].to_dict() for part in ("sample", "evaluate")}
    # Through JSON, as what it is compared with: of a tuple that makes a list.
    settings = json.loads(json.dumps({"checkpoint_steps": steps, "features": scorer.name, **parts}))
    file = workdir / "sweep" / f"{name}.json"
    if file.exists():
        kept = json.loads(file.read_text())
        if kept["settings"] == settings:
            return kept["rows"]
    found = measure(config, workdir, scorer)
    if distributed.is_main_process():
        file.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(file, {"settings": settings, "rows": found})
    return found


def newest(folder: epath.Path) -> int | None:
    """The step of the newest checkpoint in a run's or a classifier's folder; None where there is none."""
    if not (folder / "checkpoints").exists():
        return None
    with Checkpoints(folder / "checkpoints", read_only=True) as kept:
        return kept.latest


def _trained(workdir: epath.Path) -> dict[str, epath.Path]:
    return {"model": workdir, "classifier": classifier.folder(workdir, "label")}
