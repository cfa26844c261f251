"""What may change between two calls of a Stable Diffusion without compiling anything, counted by XLA's own events."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_sd
from flax.traverse_util import flatten_dict

from guided_diffusion_jax.finetuning import methods
from guided_diffusion_jax.models.lora import Factors

IMAGE = np.linspace(-1, 1, 64 * 64 * 3, dtype=np.float32).reshape(64, 64, 3)
RNG = np.random.default_rng(0)


@pytest.fixture
def compiles():
    """XLA's compilations while the test runs."""
    counted = []

    def listen(event, seconds, **_):
        counted.extend([event] * ("backend_compile" in event))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield counted
    jax.monitoring.unregister_event_duration_listener(listen)


def normal(shape):
    return RNG.normal(0, 0.2, shape).astype(np.float32)


def factors(part, rank):
    """A random change of the attention of a network."""
    kernels = {path: leaf for path, leaf in flatten_dict(part.params).items() if methods.LAYERS["attention"](path)}
    return {
        path: Factors(normal((*leaf.shape[:-1], rank)), normal((rank, leaf.shape[-1])))
        for path, leaf in kernels.items()
        if path[-1] == "kernel"
    }


@pytest.fixture(scope="module")
def pipe():
    """A pipeline with a ControlNet, and with two LoRA of the U-Net and the text encoder."""
    plain = tiny_sd.pipeline()
    kind = methods.controlnet(plain.parts, jnp.float32, False)
    shapes = jax.eval_shape(kind.init, jax.random.key(0))
    found = kind.finished(plain, jax.tree.map(lambda leaf: normal(leaf.shape), shapes))
    for rank in (2, 3):
        parts = {"unet": found.parts.unet, "text_encoder": found.parts.text_encoders[0]}
        found = found.with_lora({name: factors(part, rank) for name, part in parts.items()}, 0.5)
    return found


CHANGES = [
    {"prompt": "a dog"}, {"negative": "blurry"}, {"weight": 2.0}, {"seed": 1}, {"steps": 7},
    {"strength": 0.3}, {"strength": 0.9}, {"steps": 20, "strength": 0.25}, {"guidance_scale": 3.0},
    {"control_scale": 0.3}, {"control_scale": [0.0]}, {"control_window": (0.2, 0.7)}, {"control_window": [(0.5, 1.0)]},
    {"lora_scale": 0.1}, {"lora_scale": [1.0, 0.0]}, {"lora_scale": (0.3, -0.2)},
]  # fmt: skip


def test_numbers_compile_nothing(pipe, compiles):
    common = {"sampler": "ddim", "steps": 10, "prompt": "a cat", "negative": "a mat", "image": IMAGE, "strength": 0.5}
    common |= {"control_image": IMAGE / 2 + 0.5}
    first = pipe(**common)
    pipe(**common, lora_scale=[0.2, 0.3])
    counted = len(compiles)
    assert counted
    found = [pipe(**{**common, **change}) for change in CHANGES]
    assert len(compiles) == counted
    assert all((images != first).any() for images in found)
