"""Losses, their gradients and bits per dimension against OpenAI's guided-diffusion at golden/README.md's tolerances."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Golden, relative_error
from golden_processes import VARIANCES, Synthetic, from_previous, nchw, nhwc, process

from guided_diffusion_jax import guidance, objectives
from guided_diffusion_jax import random as noise
from guided_diffusion_jax.evaluation import likelihood
from guided_diffusion_jax.gaussian import posterior_coefficients, posterior_mean
from guided_diffusion_jax.prediction import PREDICTIONS, from_eps, from_x0

Z = Golden("diffusion_losses")
LOSSES = {"MSE": "mse", "RESCALED_MSE": "rescaled_mse", "KL": "kl", "RESCALED_KL": "rescaled_kl"}


def parts(output, noisy, kind, variance):
    """A stored model output to a prediction and what its squared error is measured in."""
    fraction = None
    if variance == "LEARNED_RANGE":
        output, fraction = jnp.split(output, 2, axis=-1)
        fraction = (fraction + 1) / 2
    if kind == "PREVIOUS_X":
        made = from_previous(noisy.x, output, noisy.now, posterior_coefficients(noisy.now, noisy.nxt))
        target = lambda x0, eps, level: posterior_mean(noisy.x, x0, noisy.now, noisy.nxt)  # noqa: E731
    else:
        made = {"EPSILON": from_eps, "START_X": from_x0}[kind](noisy.x, output, noisy.now)
        target = PREDICTIONS[{"EPSILON": "eps", "START_X": "x0"}[kind]].target
    return made._replace(variance_fraction=fraction), target


def close(mine, reference, least, name):
    print(name, np.abs(mine - reference).max(), (np.abs(mine - reference) / (1e-4 * np.abs(reference) + least)).max())
    np.testing.assert_allclose(mine, reference, rtol=1e-4, atol=least, err_msg=name)


@functools.cache
def example(name):
    """The noisy images of a process, and its number of steps."""
    table = process(Z.config["processes"][name])
    x0, eps, t = nhwc(Z[f"{name}/x_start"]), nhwc(Z[f"{name}/noise"]), jnp.asarray(Z[f"{name}/t"])
    return jax.jit(objectives.add_noise)(x0, eps, t, table), len(table.time)


@functools.partial(jax.jit, static_argnums=(0, 1))
def everything(kind, variance, output, noisy, steps):
    """Every loss with its gradient, the squared error and the term of the bound."""

    def of_all(output):
        made, target = parts(output, noisy, kind, variance)
        values = [objectives.LOSSES[name](made, noisy, target, VARIANCES[variance], steps) for name in LOSSES.values()]
        terms = objectives.squared_error(made, noisy, target), objectives.vlb_term(made, noisy, VARIANCES[variance])
        return jnp.stack(values).sum(axis=1), (jnp.stack(values), *terms)

    gradients, (values, mse, vb) = jax.jacrev(of_all, has_aux=True)(output)
    return dict(zip(LOSSES, zip(gradients, values, strict=True), strict=True)), mse, vb


@pytest.mark.parametrize("name", Z.config["processes"])
def test_noisy_images(name):
    noisy, _ = example(name)
    np.testing.assert_allclose(nchw(noisy.x), Z[f"{name}/x_t"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(noisy.now.time, Z[f"{name}/model_t"], rtol=1e-6)


@pytest.mark.parametrize("name", Z.config["processes"])
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("kind", ["EPSILON", "START_X", "PREVIOUS_X"])
def test_losses_and_their_gradients(kind, variance, name):
    noisy, steps = example(name)
    output = nhwc(Z[f"{name}/model_output/{kind}"])
    if variance == "LEARNED_RANGE":
        output = jnp.concatenate([output, nhwc(Z[f"{name}/model_output/var"])], axis=-1)
    found, mse, vb = everything(kind, variance, output, noisy, jnp.float32(steps))
    for of, (gradient, values) in found.items():
        key = f"{name}/{of}/{kind}/{variance}"
        close(values, Z[f"{key}/loss"], 3e-6 * (steps if of == "RESCALED_KL" else 1), f"{key}/loss")
        if "MSE" in of:
            close(mse, Z[f"{key}/mse"], 3e-6, f"{key}/mse")
            if variance == "LEARNED_RANGE":
                scale = steps / 1000 if of == "RESCALED_MSE" else 1.0
                close(scale * vb, Z[f"{key}/vb"], 3e-6, f"{key}/vb")
        error = relative_error(nchw(gradient), Z[f"{key}/grad_model_output"])
        print(key, "gradient", error)
        assert error <= 1e-3, f"{key}: {error:.2e}"


def bpd_cases():
    return [key.removesuffix("/total_bpd") for key in Z.arrays if key.endswith("/total_bpd")]


@pytest.mark.parametrize("case", bpd_cases())
def test_bits_per_dimension(case, monkeypatch):
    """A stored noise is found by the key that the bound hands to the step."""
    name, kind, variance, clip = case.split("/")
    table = process(Z.config["bpd_processes"][name])
    x0, eps = nhwc(Z[f"{name}/x_start"]), nhwc(Z[f"{name}/noise"])[::-1]
    keys = jax.random.split(jax.random.key(0), len(x0))
    known = jnp.stack([jax.random.key_data(noise.fold(keys, t)[0]) for t in range(len(eps))])

    def stored(keys, shape):
        return eps[jnp.argmax(jnp.all(known == jax.random.key_data(keys[0]), axis=-1))]

    monkeypatch.setattr(noise, "standard_normal", stored)
    denoise = Synthetic(Z.config["constants"]).denoiser(kind, variance)
    denoise = guidance.clip_x0(denoise) if clip == "clip" else denoise
    bound = jax.jit(likelihood.bits_per_dimension, static_argnums=(0, 4))(denoise, keys, x0, table, VARIANCES[variance])
    close(bound.total, Z[f"{case}/total_bpd"], 1e-5, "total")
    close(bound.prior, Z[f"{case}/prior_bpd"], 1e-5, "prior")
    # The reference's columns go from the noisiest step down.
    for field, key in {"vb": "vb", "x0_mse": "xstart_mse", "eps_mse": "mse"}.items():
        close(getattr(bound, field)[:, ::-1], Z[f"{case}/{key}"], 1e-5, key)
