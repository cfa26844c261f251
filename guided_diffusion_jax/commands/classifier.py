"""`--mode=classifier`: train the noise-aware classifier that steers a run's model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from guided_diffusion_jax import writing
from guided_diffusion_jax.commands import build, fit, networks
from guided_diffusion_jax.commands import config as configs
from guided_diffusion_jax.commands.pictures import curve
from guided_diffusion_jax.data.dataset import Dataset as Source
from guided_diffusion_jax.data.images import write_png
from guided_diffusion_jax.errors import require
from guided_diffusion_jax.evaluation.likelihood import numbered
from guided_diffusion_jax.losses import classification
from guided_diffusion_jax.samplers import sample_keys
from guided_diffusion_jax.training import distributed, parallel
from guided_diffusion_jax.typing import Params

POINTS = 20
"""Noise levels at which the held-out accuracy is measured at the end."""


def folder(workdir: epath.Path, attribute: str) -> epath.Path:
    """Where a run keeps the classifier of an attribute: `classifier/` for the class itself."""
    return workdir / ("classifier" if attribute == "label" else f"classifier_{attribute}")


def run(config: ConfigDict, workdir: epath.Path) -> None:
    """Trains to `classifier.steps`, then writes the held-out accuracy at each noise level.

    Leaves in the classifier's folder `config.json`, checkpoints, figures, `accuracy.json` and its plot `accuracy.png`.

    Raises:
        InputError: before anything is compiled, for whatever in the config cannot work.
    """
    fit.check(config, "classifier")
    optimizer = build.optimizer(config, "classifier")
    data = build.source(config)
    config = build.resolve(config, data)
    attribute = config.classifier.attribute
    data = data.with_label(attribute)
    require(data.num_classes >= 2, f"{data.name} has {data.num_classes} classes; a classifier needs at least 2")
    network = networks.classifier(config, data.num_classes)
    into = folder(workdir, attribute)
    configs.check_same(config, workdir, ("diffusion",))
    configs.check_same(config, into, ("diffusion",))

    def save() -> None:
        into.mkdir(parents=True, exist_ok=True)
        configs.save(config, into)

    trained = fit.Fit(
        folder=into,
        part="classifier",
        config=config,
        data=data,
        init=lambda frozen: networks.init_classifier(network, config),
        loss_function=build.classifier_loss(network, config),
        optimizer=optimizer,
    ).run(on_start=save)
    held_out = build.source(config, "test").with_label(attribute)
    accuracy = accuracy_by_time(network, trained.ema, held_out, config)
    if not distributed.leads():
        return
    writing.as_json(into / "accuracy.json", accuracy)
    title = f"{attribute}: held-out accuracy on noisy images"
    write_png(into / "accuracy.png", curve(accuracy["time"], accuracy["accuracy"], title, "t", 1 / data.num_classes))
    quarter = config.diffusion.num_steps / 4
    low_noise = np.mean([a for t, a in zip(accuracy["time"], accuracy["accuracy"], strict=True) if t < quarter])
    print(f"{into}: {low_noise:.1%} of {held_out.name} right at t < T/4", flush=True)


def accuracy_by_time(network, params: Params, data: Source, config: ConfigDict) -> dict[str, list[float]]:
    """The share of held-out images named rightly at each of `POINTS` noise levels, evenly spaced in t."""
    levels = build.table(config)
    times = np.linspace(0, len(levels.time) - 1, POINTS).round().astype(np.int32)

    mesh = build.mesh(config, "classifier")
    network_on = parallel.gathering(mesh)(networks.applied(network))

    @functools.partial(jax.jit, out_shardings=parallel.whole(mesh), compiler_options=parallel.compiler_options())
    def right(params, batch, t):
        keys = sample_keys(jax.random.fold_in(jax.random.key(config.seed), t), batch["number"])
        apply = functools.partial(network_on, params)
        at = jnp.full(len(batch["image"]), t)
        found = classification(apply, keys, batch["image"], batch["label"], levels, at)
        return found.figures["accuracy"] @ batch["weight"]

    totals = np.zeros(POINTS)
    size = parallel.filled(min(config.classifier.batch_size, len(data)), mesh.size)
    for batch in numbered(data, len(data), size, jax.process_index(), jax.process_count()):
        on_devices = parallel.put_batch(batch, mesh)
        totals += [right(params, on_devices, t) for t in times]
    return {"time": times.astype(float).tolist(), "accuracy": (totals / len(data)).tolist()}
