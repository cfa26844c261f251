"""`load`: a pipeline from a run's folder, or from a file of weights.

What only one kind of them needs is imported for that kind: Orbax alone takes as long as half of JAX.
"""

import os
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
from etils import epath
from jax.sharding import Mesh

from guided_diffusion_jax import bundled, checks, models, sharding
from guided_diffusion_jax.data.dataset import DatasetInfo
from guided_diffusion_jax.data.text import text_encoder
from guided_diffusion_jax.errors import InputError, choose, hint, require
from guided_diffusion_jax.guides import GuidingClassifier, guiding_classifier
from guided_diffusion_jax.interop import stable_diffusion as interop
from guided_diffusion_jax.objectives.partition import merge
from guided_diffusion_jax.pipeline import Pipeline
from guided_diffusion_jax.process import Process
from guided_diffusion_jax.schedules import SCHEDULES
from guided_diffusion_jax.training import compact, latents, run_files
from guided_diffusion_jax.typing import Params

WEIGHT_FILES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")


def load(
    path: epath.PathLike,
    *,
    mesh: Mesh | None = None,
    step: int | None = None,
    ema: float | None = None,
    **options: Any,
) -> Pipeline:
    """Pipeline of a trained run, of Stable Diffusion, or of a file of guided-diffusion's weights.

    Args:
        path: folder of a run; a folder of Stable Diffusion in diffusers' layout, or its single file; a `.pt` or
            `.safetensors` file with the names of OpenAI's guided-diffusion; or "digits", a small model that comes with
            the package, where no folder has this name.
        mesh: devices; None is all of them. A run that was trained with FSDP is loaded sharded with `mesh=` of
            `sharding.mesh(shards)`.
        step: of a run, the training step of the checkpoint, one of those kept; None is the newest.
        ema: length sigma_rel of the average of a run's parameters, in (0, 0.28], where it was trained with
            `power_ema`; any length can be made (see `training.power_ema`). None is the exponential average.
        options: for Stable Diffusion, and runs of its fine-tuning, those of `stable_diffusion.load`; for a file of
            guided-diffusion's, what cannot be told from it: see `interop.adm.load` and `adm_pipeline`.

    Raises:
        InputError: there is no such run or file, or it cannot be read.
    """
    require(
        isinstance(path, str | os.PathLike),
        f"load takes the folder of a run or a file of weights, and got {checks.shown(path)}",
    )
    source = bundled.find(path)
    is_file, is_sd = source.name.endswith(WEIGHT_FILES) and not source.is_dir(), interop.is_stable_diffusion(source)
    if is_file or is_sd:
        require(step is None, f"step={step} is of the checkpoints of a run, and {source} holds weights")
        require(ema is None, f"ema={ema} is for runs, and {source} holds weights")
        if not is_sd:
            return adm_pipeline(source, mesh=mesh, **options)
        from guided_diffusion_jax import stable_diffusion

        return stable_diffusion.load(source, mesh=mesh, **options)
    known = bundled.names()
    require(
        source.is_dir(),
        f"{source} is no folder of a run, no file of weights ({', '.join(WEIGHT_FILES)}) and no model that comes with "
        f"the package ({', '.join(known)}){hint(str(path), known)}",
    )
    description = run_files.read(source)
    if description is None:
        raise InputError(
            f"{source} holds no {run_files.FILE}: it is no run. One of version 0.1 is converted by its weights: "
            "--mode=export --export_path=model.safetensors with version 0.1, then --mode=import here"
        )
    if "fine_tuning" in description:
        require(step is None and ema is None, f"step and ema are not for {source}, a run of fine-tuning")
        from guided_diffusion_jax.finetuning import results

        return results.load(source, mesh=mesh, **options)
    require(not options, f"{', '.join(options)}: options are for weights of others, and {source} holds none")
    return from_run(source, description, sharding.mesh() if mesh is None else mesh, step, ema)


def from_run(
    folder: epath.Path,
    description: Mapping[str, Any],
    mesh: Mesh,
    step: int | None = None,
    ema: float | None = None,
) -> Pipeline:
    """Pipeline of a run with the averaged parameters of a step, or the newest; `ema` is `load`'s."""
    with run_files.named_errors(folder):
        model, info = models.create(description["model"]), DatasetInfo.from_dict(description["data"])
        process = Process.from_description(description["process"])
        encoder = description.get("text_encoder") or None
        reader = None if encoder is None else text_encoder(encoder["name"], encoder["length"])
        lengths = () if ema is None else tuple(map(float, description.get("power_ema") or ()))
    require(
        not isinstance(model, models.AutoencoderKL),
        f"{folder} holds an autoencoder alone; train a model of its latents with --config.model.autoencoder={folder}",
    )
    autoencoder = latents.of_run(folder, description)
    shape = latents.latent_shape(autoencoder, info.image_shape)
    params, step = restore(folder, model, shape, mesh, step, ema, lengths)
    return Pipeline(
        model,
        params,
        process,
        info=info,
        codec=None if autoencoder is None else latents.codec(autoencoder, info.image_shape, mesh),
        text_encoder=reader,
        load_classifier=lambda attribute: load_classifier(folder, attribute, mesh),
        mesh=mesh,
        step=step,
        workdir=folder,
        null_trained=null_trained(description),
    )


def null_trained(description: Mapping[str, Any]) -> bool:
    """Whether a run was trained with conditions left out; a frozen base, or an objective of one's own, may be."""
    if "source" in description:  # imported weights that have not been trained since are guided-diffusion's
        return description.get("null_label") is not None
    objective = description.get("objective") or {"name": "unknown"}
    if objective["name"] != "denoising" or description["model"]["name"] in ("controlnet", "lora"):
        return True
    return objective["condition_dropout"] > 0 or any(objective["per_condition_dropout"].values())


def restore(
    folder: epath.Path,
    model: nn.Module,
    image_shape: tuple[int, int, int],
    mesh: Mesh,
    step: int | None = None,
    ema: float | None = None,
    lengths: tuple[float, ...] = (),
) -> tuple[Params, int]:
    """Averaged parameters of a run's whole network, of a step or the newest, and their step.

    `lengths` are those of the power-function averages that it tracked.
    """
    like = jax.eval_shape(lambda: models.init_params(model, jax.random.key(0), image_shape))
    if compact.is_compact(folder):
        require(step is None and ema is None, f"{folder} holds one average of one step alone; leave step and ema out")
        return compact.read(folder, sharding.abstract_with_sharding(like, mesh))
    checkpoints = folder / "checkpoints"
    require(checkpoints.exists(), f"{checkpoints} does not exist; train first")
    from guided_diffusion_jax.training import snapshots
    from guided_diffusion_jax.training.checkpoint import Checkpoints

    with Checkpoints(checkpoints, read_only=True) as saved:
        averaged, frozen, step = saved.restore_ema(sharding.abstract_with_sharding(like, mesh), step)
    if ema is not None:
        averaged = snapshots.reconstruct(folder, lengths, ema, step, averaged)
    return merge(averaged, frozen), step


def classifier_folder(workdir: epath.Path, attribute: str) -> epath.Path:
    """Where a run keeps the classifier of an attribute: `classifier/` for the class itself."""
    return workdir / ("classifier" if attribute == "label" else f"classifier_{attribute}")


def load_classifier(workdir: epath.Path, attribute: str, mesh: Mesh) -> GuidingClassifier:
    """The classifier of an attribute that a run has trained.

    Raises:
        InputError: it has trained none.
    """
    folder = classifier_folder(workdir, attribute)
    description = run_files.read(folder)
    if description is None:
        raise InputError(
            f"{folder} does not exist; train it: --mode=classifier --config.classifier.attribute={attribute}, or do "
            "without: classifier_weight=0, classifiers=()"
        )
    with run_files.named_errors(folder):
        model, info = models.create(description["model"]), DatasetInfo.from_dict(description["data"])
    params, _ = restore(folder, model, info.image_shape, mesh)
    return guiding_classifier(model, params, info.class_names, mesh)


def adm_pipeline(
    file: epath.Path,
    *,
    process: Process | None = None,
    image_size: int | None = None,
    class_names: tuple[str, ...] = (),
    classifier: epath.PathLike | None = None,
    null_label: int | None = None,
    mesh: Mesh | None = None,
    **options: Any,
) -> Pipeline:
    """Pipeline of a file of guided-diffusion's weights.

    Args:
        file: `.pt` or `.safetensors`.
        process: None is that of the published networks (T = 1000, eps), with the linear schedule for others.
        image_size: pixels, where the file does not tell.
        class_names: of the model's classes; numbers by default.
        classifier: a file of the noise-aware classifier's weights.
        null_label: row of the class embedding that was trained as the null class, which classifier-free guidance needs.
        mesh: devices; None is all of them.
        options: of `interop.adm.load`.
    """
    from guided_diffusion_jax.interop import adm  # only here: a run needs none of it

    loaded = adm.load(file, image_size=image_size, null_label=null_label, **options)
    require(loaded.kind != "classifier", f"{file} is a classifier; give the diffusion model, and it as classifier=")
    size = loaded.image_size
    if process is None:
        schedule = choose(SCHEDULES, loaded.schedule or "linear", "schedule")
        process = Process(schedule(1000), variance=loaded.variance or "fixed_small")
    classes = models.num_classes(loaded.model)
    names = tuple(class_names) or tuple(map(str, range(classes)))
    require(len(names) == classes, f"class_names has {len(names)} names for {classes} classes")
    devices = sharding.mesh() if mesh is None else mesh

    def classifier_of(attribute: str) -> GuidingClassifier:
        require(attribute == "label" and classifier is not None, f"no classifier of {attribute}; give classifier=FILE")
        guide = adm.load(classifier, image_size=size)
        return guiding_classifier(guide.model, guide.params, names, devices)

    info = DatasetInfo(name=file.name, length=0, image_shape=(size, size, 3), class_names=names)
    return Pipeline(
        loaded.model,
        loaded.params,
        process,
        info=info,
        load_classifier=classifier_of,
        mesh=devices,
        null_trained=null_label is not None,
    )
