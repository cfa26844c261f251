"""FD after equal minutes of training, ours beside diffusers: one network, one data set, one machine.

    python -m benchmarks.peers.quality --config=cifar10_latent --data_dir=TFDS --workdir=runs/cifar10_latent \
        --minutes=5,10,20

Needs the autoencoder that `--mode=autoencoder` trained in `--workdir`, and the environment of `make peers`. Both sides,
one after the other, see the same latents, learning rates, batches and averages. Minutes count from the start of
training, compiling included. Ours is a run like any other: the command of the preset goes on with it. Images are
sampled without guidance by DDIM.
"""

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from benchmarks import machine
from benchmarks.peers.ours import NETWORK, TRAIN
from benchmarks.peers.suite import require_peers
from benchmarks.peers.worker import ROOT
from benchmarks.report import markdown
from guided_diffusion_jax.commands.evaluate import make_scorer, open_split
from guided_diffusion_jax.data.dataset import Dataset
from guided_diffusion_jax.data.images import to_uint8
from guided_diffusion_jax.errors import InputError, require
from guided_diffusion_jax.experiment import build, trainers
from guided_diffusion_jax.experiment import config as configs
from guided_diffusion_jax.interop.stable_diffusion import Part
from guided_diffusion_jax.pipeline import Pipeline
from guided_diffusion_jax.runtime.preemption import Stopped
from guided_diffusion_jax.training.latents import codec, encode_images
from guided_diffusion_jax.training.trainer import Trainer
from guided_diffusion_jax.typing import Params

BATCH = 100
"""Images sampled at a time."""


def main(arguments: list[str]) -> int:
    """Exit code: 0 done, 2 wrong input."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.quality", description=__doc__)
    parser.add_argument("--config", default="cifar10_latent", help="preset or file of a model of latents with classes")
    parser.add_argument("--data_dir", default="", help="where prepared TFDS data sets are")
    parser.add_argument("--workdir", type=epath.Path, default=epath.Path("runs/cifar10_latent"))
    parser.add_argument("--minutes", default="5,10,20", help="of training, at each of which images are scored")
    parser.add_argument("--count", type=int, default=2500, help="images that are scored")
    parser.add_argument("--sampling_steps", type=int, default=20, help="of DDIM")
    parser.add_argument("--python", type=Path, default=Path(".venv-peers/bin/python"))
    parser.add_argument("--out", type=Path, default=Path("runs/quality.json"))
    given = parser.parse_args(arguments)
    config = configs.load(given.config, "")
    config.data.data_dir = given.data_dir
    try:
        rows = measure(config, given, tuple(map(float, given.minutes.split(","))))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found = {"command": " ".join(arguments), "machine": machine.describe(), "rows": rows}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=1))
    print(f"{table(rows)}\n\nwritten to {given.out}")
    return 0


def measure(config: ConfigDict, given: argparse.Namespace, minutes: tuple[float, ...]) -> list[dict[str, Any]]:
    """Trains both sides and scores what each had learned at each budget."""
    require_peers(given.python.absolute())
    coder = build.autoencoder(config, given.workdir)
    require(
        coder is not None, f"--config={given.config} is a model of pixels; the benchmark compares models of latents"
    )
    assert coder is not None
    data = build.dataset(config)
    latents = encode_images(data, coder, flip=config.data.flip, cache_dir=given.workdir)
    trainer = trainers.trainer(config, given.workdir, data)
    averages = train(trainer, config, given.workdir, minutes)
    decoder = codec(coder, data.image_shape)
    decode = jax.jit(decoder.decode)
    labels = np.arange(given.count) % data.num_classes
    images: dict[tuple[str, float], tuple[int, np.ndarray]] = {}
    with tempfile.TemporaryDirectory() as folder:
        request_theirs(Path(folder), config, given, latents, coder, minutes)
        print("diffusers trains", file=sys.stderr, flush=True)
        command = [given.python.absolute(), "-m", "benchmarks.peers.their_training", folder]
        subprocess.run(command, cwd=ROOT, check=True)
        for budget in minutes:
            with np.load(Path(folder) / f"{budget}.npz") as stored:
                parts = np.split(stored["images"], range(BATCH, given.count, BATCH))
                shown = np.concatenate([to_uint8(np.asarray(decode(part))) for part in parts])
                images["diffusers", budget] = int(stored["step"]), shown
    for budget, (step, params) in averages.items():
        pipe = Pipeline(trainer.model, params, trainer.process, info=data.info, codec=decoder)
        images["ours", budget] = (
            step,
            pipe(
                labels=labels,
                weight=0.0,
                sampler="ddim",
                steps=given.sampling_steps,
                batch_size=BATCH,
                seed=config.seed,
            ),
        )
    scorer = make_scorer(config, open_split(config), given.workdir)
    return [
        {"side": side, "minutes": budget, "step": step, "count": given.count, **scorer.scores(made, labels)}
        for (side, budget), (step, made) in images.items()
    ]


def train(
    trainer: Trainer, config: ConfigDict, workdir: epath.Path, minutes: tuple[float, ...]
) -> dict[float, tuple[int, Params]]:
    """Trains ours to the last budget; step and averaged parameters at each."""
    begin, waiting, found = time.monotonic(), list(minutes), dict[float, tuple[int, Params]]()

    def keep(step: int, params: Params) -> None:
        if waiting and time.monotonic() - begin >= 60 * waiting[0]:
            found[waiting.pop(0)] = step, jax.device_get(params)
            if not waiting:
                signal.raise_signal(signal.SIGTERM)  # stops as a scheduler stops it: with a checkpoint

    with contextlib.suppress(Stopped):
        trainers.fit(trainer, config.train, config, workdir, callback=keep, callback_every=10)
    require(not waiting, f"train.steps={config.train.steps} were over before {minutes[-1]:g} minutes")
    return found


def request_theirs(
    folder: Path,
    config: ConfigDict,
    given: argparse.Namespace,
    latents: Dataset,
    coder: Part,
    minutes: tuple[float, ...],
) -> None:
    """Writes what the other side needs."""
    read = latents.read(np.arange(len(latents)))
    variants = [read[name] for name in ("image", "mirrored") if name in read]
    np.savez(folder / "latents.npz", images=np.stack(variants, 1).astype(np.float16), labels=read["label"])
    task = {
        **{name: config.model[name] for name in NETWORK},
        **{name: config.train[name] for name in (*TRAIN, "steps", "warmup_steps")},
        "image_size": latents.image_shape[0],
        "channels": latents.image_shape[2],
        "classes": latents.num_classes,
        "num_steps": config.diffusion.num_steps,
        "scaling_factor": coder.model.scaling_factor,  # type: ignore[attr-defined]
        "minutes": minutes,
        "count": given.count,
        "sampling_steps": given.sampling_steps,
        "sampled_at_once": BATCH,
        "threads": machine.cores(),
        "seed": config.seed,
    }
    (folder / "task.json").write_text(json.dumps(task))


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown table of the scores."""
    ordered = sorted(rows, key=lambda row: (row["minutes"], row["side"]))
    return markdown(
        ("minutes", "side", "steps", "FD", "accuracy"),
        [[f"{r['minutes']:g}", r["side"], f"{r['step']:,}", f"{r['fd']:.3f}", f"{r['accuracy']:.1%}"] for r in ordered],
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
