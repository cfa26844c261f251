"""All that the accelerator's command takes from the package, imported where it is used, so that a part fails alone."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

CLASSES = 10
DATA_PARALLEL, FSDP = "pmap", "fsdp"
SHORT_RUN = {"learning_rate": 2e-4, "warmup_steps": 200}
"""Of a training of minutes; the configuration's are for hours."""


def cifar10_config() -> Any:
    """configs/cifar10.py, with the learning rate of a short run."""
    from configs import cifar10

    config = cifar10.get_config()
    config.train.update(SHORT_RUN)
    return config


def make_unet(config: Any, **changes: Any) -> Any:
    """The U-Net of a configuration, of ten classes."""
    from guided_diffusion_jax.models.unet import UNet

    return UNet(num_classes=CLASSES, **_backbone(config, changes))


def make_classifier(config: Any, **changes: Any) -> Any:
    """A noise-aware classifier with the U-Net's settings."""
    from guided_diffusion_jax.models.classifier import Classifier

    return Classifier(num_classes=CLASSES, **_backbone(config, changes))


def _backbone(config: Any, changes: dict[str, Any]) -> dict[str, Any]:
    from guided_diffusion_jax.models.plan import SETTINGS

    settings = {key: config.model[key] for key in SETTINGS} | changes
    return settings | {"dtype": jnp.dtype(settings["dtype"])}


def make_control(unet: Any, base: Any, size: int) -> tuple[Any, Any]:
    """A control branch for images of one channel on a trained U-Net: the network and the branch's fresh parameters."""
    from guided_diffusion_jax.models.control import Controlled, branch_from

    network = Controlled(unet, map_channels=1)
    return network, {"branch": branch_from(base, init_params(network, size, conditions())["branch"])}


def control_params(base: Any, branch: Any) -> Any:
    """All parameters of a network with a control branch."""
    return {"unet": base, **branch}


def conditions(label: Any = None, control_image: Any = None) -> Any:
    """What a network is given beside the image and the time."""
    from guided_diffusion_jax.typing import Conditions

    return Conditions(label=label, map=control_image)


def init_params(network: Any, size: int, *inputs: Any) -> Any:
    """Fresh parameters. `inputs`: the conditions; nothing for a classifier."""
    key = jax.random.key(0, impl="unsafe_rbg")  # compiles several times faster than threefry
    init = functools.partial(jax.jit(network.init), key, jnp.zeros((1, size, size, 3)), jnp.zeros(1))
    return init(*inputs)["params"]


def make_training(network: Any, config: Any, parallel: str, frozen: Any = None) -> tuple[Callable, Any]:
    """`start(params)`, the state before the first update, and the jitted `step(state, batch)`."""
    from guided_diffusion_jax import losses, schedules
    from guided_diffusion_jax.conditions import drop, null_like
    from guided_diffusion_jax.denoisers import conditional_denoiser
    from guided_diffusion_jax.training import parallel as parallels
    from guided_diffusion_jax.training import state
    from guided_diffusion_jax.training.step import train_step

    t = config.train
    levels = schedules.SCHEDULES[config.diffusion.schedule](config.diffusion.num_steps)
    optimizer = state.adam(t.learning_rate, t.warmup_steps, t.weight_decay, t.grad_clip)

    def loss_function(params, keys, batch):
        of_drop, of_network, of_loss = jax.vmap(functools.partial(jax.random.split, num=3), out_axes=1)(keys)
        given = conditions(batch["label"], batch.get("control_image"))
        given = drop(of_drop, given, null_like(given, CLASSES), t.condition_dropout)
        apply = functools.partial(network.apply, {"params": params}, train=True, rngs={"dropout": of_network[0]})
        denoise = conditional_denoiser(apply, config.diffusion.prediction)
        return losses.objective(denoise, of_loss, batch["image"], given, levels, prediction=config.diffusion.prediction)

    step = functools.partial(
        train_step, loss_function=loss_function, optimizer=optimizer, ema_decay=t.ema_decay, num_steps=len(levels.time)
    )
    mesh = parallels.mesh(1)

    def start(params):
        fresh = state.create(params, optimizer, jax.random.key(0), frozen=frozen)
        return jax.device_put(jax.tree.map(jnp.copy, fresh), parallels.whole(mesh))

    return start, parallels.SPREADS[parallel](step, mesh)


def put_batch(batch: Any) -> Any:
    """A batch on the device, as `make_training`'s step takes it."""
    from guided_diffusion_jax.training import parallel as parallels

    return parallels.put_batch(batch, parallels.mesh(1))


def forward(network: Any, params: Any, x: Any, time: Any, label: Any) -> Any:
    """The network's raw output."""
    return network.apply({"params": params}, x, time, conditions(label))


def sampler_names() -> list[str]:
    """All samplers."""
    from guided_diffusion_jax.generation import SOLVERS

    return list(SOLVERS)


def make_sampler(network: Any, size: int, name: str, classifier: Any = None) -> Any:
    """A jitted `(params, request) -> images in about [-1, 1]`; the request is `make_request`'s."""
    from guided_diffusion_jax.generation import Generator

    def bound(module):
        return lambda params, *inputs: module.apply({"params": params}, *inputs)

    classifiers = () if classifier is None else (bound(classifier),)
    return jax.jit(Generator(bound(network), (size, size, 3), solver=name, classifiers=classifiers).images)


def make_request(
    labels: Any, steps: int, weight: float | None = None, *, numbers: Any = None, control: Any = None, guide: Any = None
) -> Any:
    """What to sample: a class each. `weight`: CFG's, None for none. `guide`: a classifier's parameters and weight."""
    from guided_diffusion_jax import schedules
    from guided_diffusion_jax.conditions import null_like
    from guided_diffusion_jax.generation import Request, Steering

    labels = jnp.asarray(labels, jnp.int32)
    given = conditions(labels, control)
    steering = () if guide is None else (Steering(guide[0], labels, jnp.float32(guide[1]), jnp.float32([0, 1000])),)
    return Request(
        key=jax.random.key(1),
        numbers=jnp.arange(len(labels)) if numbers is None else jnp.asarray(numbers),
        conditions=() if weight is None else (given,),
        null=given if weight is None else null_like(given, CLASSES),
        weights=() if weight is None else (jnp.float32(weight),),
        eta=jnp.float32(0),
        levels=jax.tree.map(jnp.asarray, schedules.trajectory(schedules.cosine(1000), str(steps))),
        steering=steering,
    )


def load_adm(path: Path, args: dict[str, Any]) -> tuple[Any, Any]:
    """A U-Net of guided-diffusion from a file, given the constructor arguments that its tensors do not tell."""
    from guided_diffusion_jax.interop import adm

    heads = args["num_head_channels"]
    chosen = {"num_heads": args["num_heads"]} if heads in (-1, None) else {"head_width": heads}
    order = "new" if args["use_new_attention_order"] else "legacy"
    model = chosen | {"attention_order": order}
    return adm.load(path, {"data": {"image_size": args["image_size"]}, "model": model})


def make_inception() -> tuple[Any, Callable]:
    """FID's network, and what makes its input of uint8 images."""
    from guided_diffusion_jax.evaluation.features import inception

    return inception.InceptionV3(), inception.see


def save_and_restore(folder: Path, state: Any) -> Any:
    """A train state, written as a checkpoint and read back."""
    from guided_diffusion_jax.training.checkpoint import Checkpoints

    class Place:
        def get_state(self):
            return {"next_index": 3}

        def set_state(self, state):
            assert state == self.get_state()

    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state)
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(3, state, Place(), {"seed": 0})
    with Checkpoints(folder) as checkpoints:
        return checkpoints.restore(like, Place(), {"seed": 0})
