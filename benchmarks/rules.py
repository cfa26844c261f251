"""Every rule of guidance at its best weight on a run with classes: FD, precision, recall and class accuracy.

    python -m benchmarks.rules --workdir=runs/digits --out=runs/rules.json

A rule's best weight is that of the lowest FD with seed 100 and half as many images; the table is of seeds 0, 1 and 2 at
that weight, mean and standard deviation. Weights are data: a rule is one program. Autoguidance steers away from the
run's `--worse` step, and the classifier steers the unconditional model.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import guided_diffusion_jax as gd
from benchmarks.report import markdown
from guided_diffusion_jax.evaluation.scorer import Scorer
from guided_diffusion_jax.experiment import build
from guided_diffusion_jax.experiment import config as configs
from guided_diffusion_jax.guidance import autoguidance, pag, rescale, seg

WEIGHTS = (0.5, 1.0, 2.0)
RULES: dict[str, tuple[tuple[float, ...], Callable[[float], dict[str, Any]]]] = {
    "none": ((0.0,), lambda w: {"weight": w}),
    "cfg": (WEIGHTS, lambda w: {"weight": w}),
    "cfg, sigma_interval=(0.2, 5)": (WEIGHTS, lambda w: {"weight": w, "sigma_interval": (0.2, 5.0)}),
    "cfg, rescale(0.7)": (WEIGHTS, lambda w: {"weight": w, "guidance": ["cfg", rescale(0.7)]}),
    "cfg, dynamic_threshold": (WEIGHTS, lambda w: {"weight": w, "guidance": ["cfg", "dynamic_threshold"]}),
    "apg": (WEIGHTS, lambda w: {"weight": w, "guidance": "apg"}),
    "cfg_zero": (WEIGHTS, lambda w: {"weight": w, "guidance": "cfg_zero"}),
    "cfgpp": ((-0.7, -0.5, -0.3), lambda w: {"weight": w, "guidance": "cfgpp"}),
    "autoguidance": (WEIGHTS, lambda w: {"weight": 0.0, "guidance": [autoguidance(weight=w)]}),
    "pag": (WEIGHTS, lambda w: {"weight": 0.0, "guidance": [pag(w)]}),
    "seg": (WEIGHTS, lambda w: {"weight": 0.0, "guidance": [seg(w)]}),
    "classifier": ((1.0, 2.0, 5.0), lambda w: {"weight": -1.0, "classifier_weight": w}),
}
"""Name to the weights that are tried, and a weight to keywords of `Pipeline.__call__`."""

COLUMNS = {"fd": "FD", "precision": "precision", "recall": "recall", "accuracy": "class accuracy"}
TUNING, SEEDS, BATCH = 100, (0, 1, 2), 100


def main():
    """Prints the table, and writes all scores."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", default="runs/digits", help="a run with classes and a classifier")
    parser.add_argument("--worse", type=int, default=500, help="step of autoguidance's other network")
    parser.add_argument("--count", type=int, default=200, help="images a point")
    parser.add_argument("--steps", type=int, default=8, help="of dpmpp_2m, spaced evenly in logsnr")
    parser.add_argument("--out", default="rules.json", help="all scores")
    given = parser.parse_args()
    pipe, worse = gd.load(given.workdir), gd.load(given.workdir, step=given.worse)
    config = configs.load("", given.workdir)
    scorer = Scorer(build.dataset(config, "test"), build.dataset(config))
    labels = np.arange(given.count) % len(pipe.info.class_names)
    how = {"sampler": "dpmpp_2m", "steps": given.steps, "spacing": "logsnr",
           "spacing_options": {"sigma_max": 80.0, "sigma_min": 0.1}}  # fmt: skip

    def scores(name: str, weight: float, seed: int, count: int) -> dict[str, float]:
        other = {"autoguidance": worse} if name == "autoguidance" else {}
        wishes = {**how, **other, **RULES[name][1](weight)}
        request = pipe.request(labels=labels[:count].tolist(), seed=seed, **wishes).prune_branches()
        found = scorer.scores(pipe.generate(request, batch_size=BATCH, progress=False), labels[:count])
        return {key: found[key] for key in COLUMNS}

    rows, table = {}, []
    for name, (weights, _) in RULES.items():
        tried = {w: scores(name, w, TUNING, given.count // 2) for w in weights}
        best = min(tried, key=lambda w: tried[w]["fd"])
        found = [scores(name, best, seed, given.count) for seed in SEEDS]
        rows[name] = {"weight": best, "tried": tried, "scores": found}
        values = {key: np.array([one[key] for one in found]) for key in COLUMNS}
        table.append([f"`{name}`", f"{best:g}", *(f"{v.mean():.3f} ± {v.std(ddof=1):.3f}" for v in values.values())])
        print(*table[-1], flush=True)
        Path(given.out).write_text(json.dumps({"arguments": vars(given), "rules": rows}, indent=1))
    print(markdown(("rule", "w", *COLUMNS.values()), table))


if __name__ == "__main__":
    main()
