"""`--mode=finetune`: fine-tune Stable Diffusion on own pictures, or go on from the newest checkpoint."""

import shlex
from collections.abc import Callable
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from guided_diffusion_jax import finetuning, stable_diffusion
from guided_diffusion_jax.commands.arguments import program
from guided_diffusion_jax.data.dataset import Dataset
from guided_diffusion_jax.errors import choose, require
from guided_diffusion_jax.experiment import build, trainers
from guided_diffusion_jax.experiment import config as configs
from guided_diffusion_jax.experiment.default import DTYPES
from guided_diffusion_jax.finetuning import FineTuner
from guided_diffusion_jax.finetuning.tuner import save_run
from guided_diffusion_jax.interop.stable_diffusion import PRESETS, is_stable_diffusion
from guided_diffusion_jax.runtime import distributed, notices
from guided_diffusion_jax.stable_diffusion import StableDiffusion

METHODS: dict[str, tuple[Callable[..., FineTuner], tuple[str, ...]]] = {
    "lora": (finetuning.lora, ("rank", "alpha", "layers", "text_encoder")),
    "full": (finetuning.full, ("text_encoder",)),
    "controlnet": (finetuning.controlnet, ()),
    "textual_inversion": (finetuning.textual_inversion, ("token", "initial", "vectors")),
}
"""Of each method its function, and the keys of `finetune` that are its options."""


def options(config: ConfigDict) -> dict[str, Any]:
    """Options of the method of a configuration."""
    return {name: config.finetune[name] for name in choose(METHODS, config.finetune.method, "finetune.method")[1]}


def run(config: ConfigDict, workdir: epath.Path) -> None:
    """Fine-tunes to `train.steps`, and writes what was learned into the run's folder (see `finetuning.results`).

    Raises:
        InputError: before anything is compiled, for whatever in the configuration cannot work.
    """
    f, t = config.finetune, config.train
    require(
        not is_stable_diffusion(workdir),
        f"--workdir={workdir} holds weights, and a run needs a folder of its own: --config.finetune.base={workdir} "
        "--config=stable_diffusion --workdir=runs/NAME",
    )
    require(f.base not in PRESETS, f"finetune.base={f.base!r} is for --dry_run; give the folder or file of its weights")
    if f.prompt:
        config.data.text = ""  # a folder then needs no captions
    configs.check_same(config, workdir)
    data = build.dataset(config, buckets=f.buckets)
    of_file = {name: config.weights[name] for name in ("config", "prediction_type") if config.weights[name]}
    with notices.working(f"opening {f.base}"):
        pipe = stable_diffusion.load(epath.Path(f.base).expanduser(), dtype=DTYPES[config.model.dtype], **of_file)
    pipe = finetuning.with_zero_snr(pipe) if f.zero_snr else pipe
    tuner = tuner_of(config, workdir, pipe, data.raw or data)
    trainers.fit(tuner, t, config, workdir)
    how = {"averaged": t.ema_decay > 0, "zero_snr": f.zero_snr, "dtype": config.model.dtype}
    path = save_run(tuner, workdir, f.base, **how, **of_file)
    if distributed.is_main_process():
        print(
            f"{workdir}: step {t.steps}; {path} holds what was learned; next: {program()} "
            f"--workdir={shlex.quote(str(workdir))} --mode=sample --config.sample.prompt=...",
            flush=True,
        )


def tuner_of(config: ConfigDict, workdir: epath.Path, pipe: StableDiffusion, data: Dataset) -> FineTuner:
    """The trainer that a configuration asks for."""
    f, t = config.finetune, config.train
    make: Any = choose(METHODS, f.method, "finetune.method")[0]
    prior = None
    if f.prior_prompt:
        height, width, _ = data.image_shape
        made = {"steps": config.sample.steps, "height": height, "width": width, "file": workdir / "class_images.npz"}
        prior = finetuning.class_images(pipe, f.prior_prompt, f.prior_count, **made)
    return make(
        pipe,
        data,
        **options(config),
        optimizer=trainers.optimizer(t, "train"),
        prompt=f.prompt or None,
        prior=prior,
        prior_weight=f.prior_weight,
        condition_dropout=t.cfg_dropout,
        **trainers.weighting(t),
        timesteps=trainers.timesteps(t, pipe.process),
        flip=config.data.flip,
        dtype=DTYPES[config.model.dtype],
        remat=config.model.remat,
        workdir=workdir,
        seed=config.seed,
        settings=build.settings(t, "train"),
    )
