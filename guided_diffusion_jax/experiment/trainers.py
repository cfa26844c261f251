"""Trainers from a configuration, and what they begin with and show while they train."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from guided_diffusion_jax import loading, models, objectives
from guided_diffusion_jax.conditions import check_rates
from guided_diffusion_jax.data.dataset import Dataset
from guided_diffusion_jax.errors import InputError, require
from guided_diffusion_jax.experiment import build, runs, sampling, sheets
from guided_diffusion_jax.experiment import config as configs
from guided_diffusion_jax.experiment.keys import pairs
from guided_diffusion_jax.interop.stable_diffusion import Part
from guided_diffusion_jax.objectives.timesteps import Timesteps
from guided_diffusion_jax.objectives.timesteps import create as create_timesteps
from guided_diffusion_jax.pipeline import Pipeline
from guided_diffusion_jax.process import Process
from guided_diffusion_jax.training import latents, optimizers, run_files
from guided_diffusion_jax.training.state import TrainState
from guided_diffusion_jax.training.trainer import Trainer
from guided_diffusion_jax.typing import Params

PREVIEW_CLASSES = 10


def trainer(
    config: ConfigDict,
    workdir: epath.Path | None,
    data: Dataset,
    *,
    network: nn.Module | None = None,
    pretrained: Any = None,
    coder: Part | None = None,
) -> Trainer:
    """Trainer of `--mode=train`.

    Args:
        config: the configuration.
        workdir: the run's folder.
        data: the data set.
        network: instead of `build.model`: one of `build.ADDITIONS`, whose U-Net is its base's.
        pretrained: parameters to begin with, or a function that loads them.
        coder: instead of the autoencoder that `model.autoencoder` names.
    """
    t, made, how = config.train, network, build.process(config)
    coder = build.autoencoder(config, workdir) if coder is None else coder
    made = build.model(config, data.info, latents.latent_shape(coder, data.image_shape)) if made is None else made
    drawn = dict(pairs(t.timestep_options, "train.timestep_options", 2))
    rates = dict(t.per_condition_dropout)
    check_rates(rates, "train.per_condition_dropout")
    return Trainer(
        made,
        how,
        data,
        condition_dropout=t.cfg_dropout,
        workdir=workdir,
        loss=t.loss,
        per_condition_dropout={name: rate for name, rate in rates.items() if rate},
        **weighting(t),
        timesteps=timesteps(t, how),
        text_encoder=build.reader(config),
        autoencoder=coder,
        trainable=is_added if config.model.name in build.ADDITIONS else None,
        pretrained=pretrained,
        identity={"timesteps": t.timesteps, **({"timestep_options": drawn} if drawn else {})},
        **alike(config, t, "train"),
    )


def alike(config: ConfigDict, section: ConfigDict, part: str) -> dict[str, Any]:
    """What every trainer takes of the configuration and its section, `config.train` or that of another part."""
    return {
        "optimizer": optimizer(section, part), "settings": build.settings(section, part), "seed": config.seed,
        "flip": config.data.flip,
    }  # fmt: skip


def classifier_trainer(config: ConfigDict, folder: epath.Path | None, data: Dataset) -> Trainer:
    """Trainer of `--mode=classifier`, for a data set whose labels are what the classifier predicts."""
    require(data.num_classes >= 2, f"{data.name} has {data.num_classes} classes; a classifier needs at least 2")
    c, how = config.classifier, build.process(config)
    made = build.classifier_model(config, data.num_classes, data.image_shape)
    return Trainer(
        made,
        how,
        data,
        workdir=folder,
        objective=objectives.classifier(made, how, data.image_shape, crop=c.crop),
        identity={"crop": c.crop, "attribute": c.attribute},
        **alike(config, c.train, "classifier.train"),
    )


def autoencoder_trainer(config: ConfigDict, folder: epath.Path | None, data: Dataset) -> Trainer:
    """Trainer of `--mode=autoencoder`."""
    a, how = config.autoencoder, Process.create("cosine", 1)  # there is no noise
    made = build.autoencoder_model(config, data.image_shape)
    return Trainer(
        made,
        how,
        data,
        workdir=folder,
        objective=objectives.autoencoder(made, how, data.image_shape, kl_weight=a.kl_weight, loss=a.loss),
        identity={"kl_weight": a.kl_weight, "loss": a.loss},
        **alike(config, a.train, "autoencoder.train"),
    )


def fit(trainer: Trainer, section: ConfigDict, config: ConfigDict, folder: epath.Path, **options: Any) -> TrainState:
    """Trains as a section of a configuration says, such as `config.train`, and saves the configuration when it begins.

    Args:
        trainer: of that section.
        section: steps, batch size, and how often it logs and saves.
        config: the whole configuration, which goes into the folder.
        folder: of the run, or of its part.
        **options: further ones of `Trainer.fit`.
    """
    return trainer.fit(
        section.steps,
        section.batch_size,
        log_every=section.log_every,
        save_every=section.save_every,
        on_start=functools.partial(configs.save, config, folder),
        **options,
    )


def optimizer(section: ConfigDict, part: str) -> Any:
    """Optimizer of `config.train` or `config.classifier.train`."""
    return optimizers.create(
        section.optimizer,
        learning_rate=section.learning_rate,
        lr_schedule=section.lr_schedule,
        decay_steps=section.decay_steps or section.steps,
        warmup_steps=section.warmup_steps,
        weight_decay=section.weight_decay,
        grad_clip=section.grad_clip,
        part=part,
    )


def weighting(section: ConfigDict) -> dict[str, Any]:
    """The weighting of the loss of `config.train`, as keywords of a trainer."""
    numbers = dict(pairs(section.loss_weighting_options, "train.loss_weighting_options", 2))
    return {"loss_weighting": section.loss_weighting, "loss_weighting_options": numbers}


def timesteps(section: ConfigDict, process: Process) -> Timesteps | None:
    """How `config.train` draws noise levels; None is uniformly."""
    drawn = dict(pairs(section.timestep_options, "train.timestep_options", 2))
    made = create_timesteps(section.timesteps, process.levels, **drawn)
    return None if section.timesteps == "uniform" else made


def is_added(path: tuple[str, ...]) -> bool:
    """Whether a parameter is not of the U-Net on which a network of `build.ADDITIONS` is built, which is frozen."""
    return path[0] != "unet"


def on_pretrained(config: ConfigDict, data: Dataset, workdir: epath.Path) -> tuple[Any, Any]:
    """Network on the U-Net of the run `config.pretrained`, and a function that loads its parameters to begin with.

    A run that has begun holds its base itself, which may be gone.

    Raises:
        InputError: there is no such run, or its U-Net cannot be a base.
    """
    begun = run_files.read(workdir)
    if begun is not None:
        return models.create(begun["model"]), {}
    base = epath.Path(config.pretrained)
    name = config.model.name
    require(bool(config.pretrained), f"model.name={name!r} needs pretrained: the folder of a trained run")
    description = run_files.read(base) if base.is_dir() else None
    require(description is not None, f"pretrained={base} holds no {run_files.FILE}; give the folder of a trained run")
    assert description is not None
    unet = models.create(description["model"])
    if not isinstance(unet, models.UNet):
        raise InputError(f"pretrained={base} is a {type(unet).__name__}; give the run of a U-Net")
    autoencoder = latents.of_run(base, description)
    require(
        autoencoder is None or bool(config.model.autoencoder),
        f"pretrained={base} is a model of latents; add --config.model.autoencoder={base}",
    )
    shape = latents.latent_shape(autoencoder, data.image_shape)
    made = build.ADDITIONS[name](unet, config, data)
    models.check(made, shape)

    def load() -> Params:
        params, step = loading.restore(base, unet, shape, runs.mesh(config))
        print(f"pretrained={base}: frozen as it is at step {step}", flush=True)
        begun = {"controlnet": {"encoder": params["encoder"]}} if name == "controlnet" else {}
        return {"unet": params, **begun}

    return made, load


@runs.named_keys()
def preview(
    config: ConfigDict, trainer: Trainer, text_encoder: Any = None
) -> Callable[[int, Params], dict[str, np.ndarray]]:
    """Callback of training: up to ten classes, some images of each.

    Where a model takes other conditions than the class, those of the first examples, each below its real image, with
    its caption and the images that it was made from.
    """
    data = trainer.data
    like = jax.eval_shape(trainer.init).network()
    null_trained = config.train.cfg_dropout > 0 or any(config.train.per_condition_dropout.values())
    pipe = Pipeline(
        trainer.model, like, trainer.process, info=data.info, codec=trainer.codec, text_encoder=text_encoder,
        mesh=trainer.mesh, place=False, null_trained=null_trained,
    )  # fmt: skip
    weight = runs.given_weight(config.sample.guidance.weight) if null_trained else None
    how = {"weight": weight if pipe.specs else None, **sampling.solver_wishes(config)}
    program = sampling.program_settings(config)
    if set(pipe.specs) <= {"label"}:
        classes = max(1, len(data.class_names)) if "label" in pipe.specs else 1
        labels = np.repeat(
            np.linspace(0, classes - 1, min(PREVIEW_CLASSES, classes)).round().astype(int), preview_images()
        )
        asked = pipe.request(labels=labels.tolist() if "label" in pipe.specs else None, count=len(labels), **how)
        beside: dict[str, Any] = {}
    else:
        numbers = np.arange(min(5 * preview_images(), len(data)))
        asked, examples = pipe.request_for(data, numbers, **how), (data.raw or data).read(numbers)
        beside = {"given": {"real": examples["image"]}}
        if "text" in pipe.specs and "text" in examples:
            beside["captions"] = examples["text"].tolist()

    def generated(step: int, params: Params) -> dict[str, np.ndarray]:
        images = pipe.with_params(params).generate(asked, **program)
        return {"samples": sheets.page(pipe, asked, images, title=f"step {step}", **beside)}

    return generated


def preview_images() -> int:
    """Images of a class in a preview: few on a CPU, where a preview must not cost more than the training around it."""
    return 4 if jax.default_backend() == "cpu" else 8
