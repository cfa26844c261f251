"""`--mode=classifier`: train the noise-aware classifier that steers a run's model."""

import shlex

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from guided_diffusion_jax import grids
from guided_diffusion_jax.commands.arguments import program
from guided_diffusion_jax.data.images import write_png
from guided_diffusion_jax.errors import require
from guided_diffusion_jax.evaluation.accuracy import accuracy_by_time
from guided_diffusion_jax.experiment import build, trainers
from guided_diffusion_jax.experiment import config as configs
from guided_diffusion_jax.loading import classifier_folder
from guided_diffusion_jax.runtime import distributed
from guided_diffusion_jax.runtime.files import write_json

OTHER_SECTIONS = ("model.", "train.", "classifier.", "autoencoder.")
"""Keys that the folder of the run's model may have with other values."""


def run(config: ConfigDict, workdir: epath.Path) -> None:
    """Trains to `classifier.train.steps`, then writes the held-out accuracy at each noise level.

    Leaves in the classifier's folder `config.json`, checkpoints, metrics, `accuracy.json` and its plot `accuracy.png`.

    Raises:
        InputError: before anything is compiled, for whatever in the configuration cannot work.
    """
    require(
        not config.model.autoencoder,
        f"model.autoencoder={config.model.autoencoder}: classifiers of latents are not supported; steer by "
        "classifier-free guidance, or by a function of latents (log_prob= in Python)",
    )
    attribute, t = config.classifier.attribute, config.classifier.train
    folder = classifier_folder(workdir, attribute)
    configs.check_same(config, workdir, OTHER_SECTIONS)
    configs.check_same(config, folder, ("model.", "train.", "autoencoder."))
    data = build.dataset(config).with_label(attribute)
    trainer = trainers.classifier_trainer(config, folder, data)
    state = trainers.fit(trainer, t, config, folder)
    held_out = build.dataset(config, "test").with_label(attribute)
    accuracy = accuracy_by_time(
        trainer.model, state.network(), held_out, trainer.process, batch_size=t.batch_size, seed=config.seed,
        mesh=trainer.mesh,
    )  # fmt: skip
    if not distributed.is_main_process():
        return
    write_json(folder / "accuracy.json", {**accuracy, "count": len(held_out)})
    title = f"{attribute}: held-out accuracy on noisy images"
    plot = grids.curve(accuracy["time"], accuracy["accuracy"], title, "t", 1 / data.num_classes)
    write_png(folder / "accuracy.png", plot)
    quarter = trainer.process.num_steps / 4
    low_noise = np.mean([a for t, a in zip(accuracy["time"], accuracy["accuracy"], strict=True) if t < quarter])
    steered = "classifier_weight=2" if attribute == "label" else f"classifiers='((\"{attribute}\", 0, 2.0),)'"
    print(
        f"{folder}: step {t.steps}; {low_noise:.1%} of {held_out.name} right at t < T/4, by noise level in "
        f"{folder / 'accuracy.png'}; checkpoints in {folder / 'checkpoints'}; next: {program()} "
        f"--workdir={shlex.quote(str(workdir))} --mode=sample --config.sample.guidance.{steered}",
        flush=True,
    )
