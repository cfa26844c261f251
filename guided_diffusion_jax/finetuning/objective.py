"""The objective of fine-tuning: denoising of latents by a network, some of whose parameters are trained."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Bool, Int, Key

from guided_diffusion_jax.denoisers import conditional_denoiser
from guided_diffusion_jax.finetuning.data import PRIOR
from guided_diffusion_jax.interop.stable_diffusion.embeddings import TABLE
from guided_diffusion_jax.interop.stable_diffusion.prompts import context
from guided_diffusion_jax.models.clip import ClipText
from guided_diffusion_jax.models.controlnet import ControlledUNet
from guided_diffusion_jax.models.lora import adapted, from_params
from guided_diffusion_jax.objectives import Losses, Objective, merge, sample_latents
from guided_diffusion_jax.objectives.base import split_keys
from guided_diffusion_jax.objectives.denoising import denoising_losses
from guided_diffusion_jax.objectives.weightings import create as create_weighting
from guided_diffusion_jax.process import Process
from guided_diffusion_jax.random import PRIOR_STREAM, fold
from guided_diffusion_jax.typing import Conditions, Keys, Params

LORA, WORDS = "lora", "words"
"""Parts of the parameters beside those of the networks: factors by network, and new rows of the tables of tokens."""


class Networks(NamedTuple):
    """The networks of a step, whose parameters are a nested dict by their names.

    Attributes:
        unet: a `UNet`, or a `ControlledUNet` whose parts' parameters stand beside each other.
        encoders: text encoders that are part of the step, by name; none where captions are encoded before.
        sizes: the U-Net takes pooled text and sizes, as SDXL's.
        lora_scale: of the factors.
    """

    unet: nn.Module
    encoders: Mapping[str, ClipText] = {}
    sizes: bool = False
    lora_scale: float = 1.0

    def predict(self, params: Params, x: Array, time: Array, conditions: Conditions, **options: Any) -> Array:
        """The U-Net's output."""
        own = params if isinstance(self.unet, ControlledUNet) else params["unet"]
        with adapted(from_params(params.get(LORA, {}).get("unet", {})), self.lora_scale):
            found: Any = self.unet.apply({"params": own}, x, time, conditions, **options)
        return found

    def text(self, params: Params, tokens: Int[Array, "b k n"]) -> tuple[Array, Array | None]:
        """The context of captions and the pooled text of the last encoder."""
        states, pooled = [], None
        for i, (name, net) in enumerate(self.encoders.items()):
            own = flatten_dict(params[name])
            if name in params.get(WORDS, {}):
                rows = params[WORDS][name]
                own[TABLE] = own[TABLE].at[-len(rows) :].set(rows.astype(own[TABLE].dtype))
            with adapted(from_params(params.get(LORA, {}).get(name, {})), self.lora_scale):
                state, pooled = context(net, unflatten_dict(own), tokens[:, i], penultimate=self.sizes)
            states.append(state)
        return jnp.concatenate(states, axis=-1), pooled


def objective(
    networks: Networks,
    process: Process,
    init: Callable[[Key[Array, ""]], Params],
    absent: Conditions,
    *,
    scaling_factor: float,
    condition_dropout: float = 0.0,
    prior_weight: float = 1.0,
    loss_weighting: str = "none",
    loss_weighting_options: Mapping[str, float] | None = None,
) -> Objective:
    """Objective on batches of `data.encode`: the squared error of what the network predicts, at a random noise level.

    With class images beside the examples it is L(example) + prior_weight L(class image) (Ruiz et al. 2023, eq. 2).

    Args:
        networks: that are applied.
        process: of the model.
        init: fresh parameters of all parts; those of the base are replaced by `Trainer`'s `pretrained`.
        absent: without a caption: "text" (and the pooled text of "text_time"), `[1 ...]`; or "tokens" of the empty one.
        scaling_factor: of the latents.
        condition_dropout: probability that a sample loses its caption.
        prior_weight: lambda of the class images.
        loss_weighting: a key of `objectives.WEIGHTINGS`, such as "min_snr".
        loss_weighting_options: of that weighting.
    """
    target = process.parametrization.target
    weighting = create_weighting(loss_weighting, target, **(loss_weighting_options or {}))

    def losses(params: Params, ema: Params, frozen: Params, keys: Keys, batch: Any, t: Any = None) -> Losses:
        whole, count = merge(params, frozen), len(batch["image"])
        beside = {name: batch[PRIOR + name] for name in batch if PRIOR + name in batch}
        if beside:
            batch = {name: jnp.concatenate([batch[name], value]) for name, value in beside.items()}
            keys = jnp.concatenate([keys, fold(keys, PRIOR_STREAM)])
            t = None if t is None else jnp.concatenate([t, t])
        of_drop, of_network, of_loss = split_keys(keys, 3)
        x0 = sample_latents(batch["image"], keys, scaling_factor)
        dropped = jax.vmap(lambda key: jax.random.bernoulli(key, condition_dropout))(of_drop)
        conditions = _conditions(networks, whole, batch, dropped, absent)
        predict = functools.partial(networks.predict, whole, train=True, rngs={"dropout": of_network[0]})
        denoise = conditional_denoiser(predict, process)
        found = denoising_losses(denoise, of_loss, x0, conditions, process, t=t, weighting=weighting)
        if not beside:
            return found
        assert found.t is not None
        loss, prior = jnp.split(found.loss, 2)
        return Losses(loss + prior_weight * prior, found.t[:count], {"prior": prior})

    return Objective(init, losses)


def _conditions(
    networks: Networks, params: Params, batch: Any, dropped: Bool[Array, " b"], absent: Conditions
) -> dict[str, Array]:
    """What the U-Net reads of a batch."""

    def with_absent(name: str, value: Array) -> Array:
        if name not in absent:
            return value
        null = jnp.asarray(absent[name], value.dtype)
        null = jnp.broadcast_to(null, (len(value), *null.shape[1:]))
        null = jnp.concatenate([null, value[..., null.shape[-1] :]], axis=-1)  # sizes are never absent
        return jnp.where(dropped.reshape(-1, *[1] * (value.ndim - 1)), null, value)

    if networks.encoders:
        text, pooled = networks.text(params, with_absent("tokens", batch["tokens"]))
        found = {"text": text}
        if networks.sizes:
            assert pooled is not None
            found["text_time"] = jnp.concatenate([pooled, batch["sizes"]], axis=-1)
    else:
        found = {name: batch[name] for name in ("text", "text_time") if name in batch}
    found = {name: with_absent(name, value) for name, value in found.items()}
    if isinstance(networks.unet, ControlledUNet):
        count, (net,) = len(dropped), networks.unet.controlnets
        found["control_hints"] = (batch["control_image"][:, None] + 1) / 2
        found["control_scales"] = jnp.ones((count, 1, net.summands))
        found["control_times"] = jnp.broadcast_to(jnp.array([-jnp.inf, jnp.inf]), (count, 1, 2))
    return found
