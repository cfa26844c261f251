"""Whole trajectories of Stable Diffusion against diffusers' latents after every step (golden_sd/README.md).

The network is compiled once a model; the steps around it run as they are, so that the draws can be the stored ones.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import relative_error
from golden_sd_arrays import GOLDEN, arrays, nchw, nhwc

import guided_diffusion_jax as gd
from guided_diffusion_jax import batching, random
from guided_diffusion_jax.generation import Generator, Start
from guided_diffusion_jax.samplers import visited

KEYWORDS = {
    "num_inference_steps": "steps", "negative_prompt": "negative", "negative_prompt_2": "negative_2",
    "crops_coords_top_left": "crop", "negative_crops_coords_top_left": "negative_crop",
    "controlnet_conditioning_scale": "control_scale",
}  # fmt: skip
"""diffusers' keywords that have another name here."""

NAMES = ("sd1", "sd2v", "sdxl", "img2img", "inpaint", "controlnet")
STORED = {name: arrays(f"traj_{name}") for name in NAMES}
CASES = [(name, case) for name in NAMES for case in json.loads(str(STORED[name]["config"]))]


@functools.cache
def pipeline(name):
    """The model of a file of trajectories."""
    if name == "inpaint_nine":
        return gd.load(GOLDEN / "sd1", unet=GOLDEN / "sd1_inpaint/unet")
    if name in ("sd2v", "sdxl"):
        return gd.load(GOLDEN / f"{name}_single.safetensors", config=GOLDEN / name)
    return gd.load(GOLDEN / "sd1", **({"controlnet": GOLDEN / "controlnet"} if name == "controlnet" else {}))


@functools.cache
def network(name):
    return jax.jit(pipeline(name).apply)


@functools.cache
def decoder(name):
    return jax.jit(pipeline(name).codec.decode)


def states(name, request, params=None):
    """The state after each step."""
    pipe = pipeline(name)
    params = pipe.params if params is None else params
    generator = Generator(network(name), pipe.process, pipe.codec)
    on_devices = batching.on_devices(request, np.arange(request.size), pipe.mesh)
    sampler, evaluate, keys, x, levels = generator._prepare(params, on_devices)
    memory, found = sampler.init(x, levels), []
    for i in range(request.num_steps):
        now, nxt = (jax.tree.map(lambda column, row=row: jnp.asarray(column)[row], levels) for row in (i, i + 1))
        x, memory = sampler.step(evaluate, random.fold(keys, i + 1), x, now, nxt, memory)
        found.append(np.asarray(x))
    return np.stack(found)


def request_of(name, case, data, settings):
    call = {KEYWORDS.get(key, key): value for key, value in settings["call"].items()}
    pipe = pipeline("inpaint_nine" if case.startswith("nine") else name)
    begin, end = call.pop("control_guidance_start", 0.0), call.pop("control_guidance_end", 1.0)
    if name == "controlnet":
        call |= {"control_image": np.asarray(nhwc(data["hint"])), "control_window": (begin, end)}
    size = call.pop("height", None), call.pop("width", None)
    pipe = pipe if None in size else pipe.at_size(*size)
    if name in ("img2img", "inpaint"):
        call["image"] = np.asarray(nhwc(data["image01"])) * 2 - 1
    if name == "inpaint":
        call["inpaint_mask"] = np.asarray(nhwc(data["mask"]))
    latents = nhwc(data[f"{case}/init"]) if f"{case}/init" in data.files else None
    request = pipe.request(scheduler=settings["scheduler"], latents=latents, **call).prune_branches()
    noises = [nhwc(data[f"{case}/noise/vae/{k}"]) for k in range(2) if f"{case}/noise/vae/{k}" in data.files]
    if name == "img2img":
        return request._replace(
            start=Start(nhwc(data[f"{case}/noise/img2img/0"]), sampled(pipe, data["image01"], noises[0]))
        )
    if name == "inpaint":
        return with_stored_draws(pipe, request, case, data, noises)
    return with_sizes_as_repeated(request) if "negative_crop" in call else request


def with_sizes_as_repeated(request):
    """The sizes as diffusers hands them to a batch of two.

    It repeats the pair (negative, positive) for the doubled batch, which gives it to (null of the first image, null of
    the second), and to their conditional halves likewise. Of one image it is right, as ours is in every batch.
    """
    (branch,), null = request.branches, request.null
    first, second = null["text_time"][0, -6:], branch["text_time"][1, -6:]
    sizes = np.stack([first, second])

    def with_sizes(conditions):
        told = np.concatenate([conditions["text_time"][:, :-6], sizes], axis=1)
        return {**conditions, "text_time": told}

    return request._replace(branches=(with_sizes(branch),), null=with_sizes(null))


def with_stored_draws(pipe, request, case, data, noises):
    """The latents of the images as diffusers drew them, where ours are the means."""
    whole = sampled(pipe, data["image01"], noises[0])
    if f"{case}/noise/inpaint/0" in data.files:
        request = request._replace(start=Start(nhwc(data[f"{case}/noise/inpaint/0"]), whole))
    if not case.startswith("nine"):
        return request._replace(inpaint=request.inpaint._replace(images=whole))
    coder = pipe.parts.autoencoder.model
    np.testing.assert_allclose(
        request.null["control_image"][:1, ..., 1:], nhwc(data["masked_image_mean"]) * coder.scaling_factor, atol=1e-3
    )
    masked = (nhwc(data["masked_image_mean"]) + nhwc(data["masked_image_std"]) * noises[-1]) * coder.scaling_factor
    beside = jnp.concatenate([nhwc(data["mask_latent"]), masked], axis=-1).repeat(request.size, axis=0)
    branches = tuple({**branch, "control_image": beside} for branch in request.branches)
    return request._replace(branches=branches, null={**request.null, "control_image": beside})


def sampled(pipe, image01, noise):
    part = pipe.parts.autoencoder
    posterior = part.model.apply({"params": part.params}, nhwc(image01) * 2 - 1, method="encode")
    latents = (posterior.mean + jnp.exp(posterior.logvar / 2) * noise) * part.model.scaling_factor
    return jnp.broadcast_to(latents, (2, *latents.shape[1:]))


@pytest.mark.parametrize(("name", "case"), CASES, ids=lambda value: value)
def test_a_trajectory(name, case, monkeypatch):
    data = STORED[name]
    settings = json.loads(str(data["config"]))[case]
    request = request_of(name, case, data, settings)
    draws = [
        nhwc(data[key])
        for key in data.files
        if key.startswith(f"{case}/noise/") and key.split("/")[2] in ("euler_a", "dpm")
    ]
    if draws:
        monkeypatch.setattr(
            random, "standard_normal", lambda keys, shape: draws.pop(0) if draws else jnp.zeros((2, *shape))
        )
    check_levels(request, data, case)
    model = "inpaint_nine" if case.startswith("nine") else name
    mine = np.moveaxis(states(model, request), -1, -3)
    theirs = data[f"{case}/latents"]
    if settings["init_noise_sigma"] != 1:  # their state is x / alpha
        alpha = np.asarray(visited(request.sampler, request.levels).alpha)[1 : len(mine) + 1]
        mine = mine / alpha[:, None, None, None, None]
    if request.sampler.evaluations == 2:
        theirs = np.append(theirs[1:-1:2], theirs[-1:], axis=0)
    assert relative_error(mine, theirs) <= 2e-4
    if f"{case}/image" in data.files:
        decoded = nchw(decoder(model)(nhwc(mine[-1, :1])))
        assert relative_error(decoded, data[f"{case}/image"]) <= 1e-3


def check_levels(request, data, case):
    """The times that the network is told, and the ratios sigma / alpha, fewer where an image is begun with."""
    levels, each, steps = visited(request.sampler, request.levels), request.sampler.evaluations, request.num_steps
    time, ratio = (np.asarray(column) for column in (levels.time, levels.sigma / levels.alpha))
    calls = np.repeat(np.arange(steps), each)[each - 1 :]
    np.testing.assert_allclose(time[calls], data[f"{case}/timesteps"], rtol=1e-6)
    if f"{case}/sigmas" in data.files:
        mine = ratio[np.append(calls, steps)]
        np.testing.assert_allclose(mine, data[f"{case}/sigmas"][-len(mine) :], rtol=1e-4)


def test_a_trajectory_with_a_lora():
    """Of the U-Net and of the text encoder, scale 0.5."""
    data = arrays("lora")
    settings = json.loads(str(data["config"]))["traj"]
    prompts, negatives = zip(*settings["pairs"], strict=True)
    pipe = pipeline("sd1").with_lora(GOLDEN / "lora/kohya.safetensors", settings["lora_scale"])
    request = pipe.request(
        prompt=prompts, negative=negatives, guidance_scale=settings["guidance_scale"], sampler="ddim",
        steps=settings["steps"], latents=nhwc(data["traj/init"]),
    )  # fmt: skip
    np.testing.assert_array_equal(np.asarray(request.levels.time)[: settings["steps"]], data["traj/timesteps"])
    mine = np.moveaxis(states("sd1", request.prune_branches(), pipe.params), -1, -3)
    assert relative_error(mine, data["traj/latents"]) <= 2e-4
