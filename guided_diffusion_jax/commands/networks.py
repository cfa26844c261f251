"""From a resolved config to its networks, checked before anything expensive starts, and to their fresh parameters."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array
from ml_collections import ConfigDict

from guided_diffusion_jax.commands import kinds
from guided_diffusion_jax.errors import choose, require
from guided_diffusion_jax.gaussian import VARIANCES
from guided_diffusion_jax.models.classifier import Classifier
from guided_diffusion_jax.models.classifier import check as check_classifier
from guided_diffusion_jax.models.control import Controlled, branch_from
from guided_diffusion_jax.models.control import check as check_control
from guided_diffusion_jax.models.image_encoder import ImageEncoder
from guided_diffusion_jax.models.plan import SETTINGS
from guided_diffusion_jax.models.super_resolution import SuperResolution
from guided_diffusion_jax.models.text import ByteEncoder, FeatureEncoder
from guided_diffusion_jax.models.unet import UNet
from guided_diffusion_jax.models.unet import check as check_unet
from guided_diffusion_jax.typing import Params

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def network(config: ConfigDict) -> UNet | SuperResolution | Controlled:
    """What a run samples with: `unet`; around it a branch for `control.base`, or an upsampler for `data.low_res_size`.

    Raises:
        InputError: settings that cannot work.
    """
    d, base = config.data, config.control.base
    small, size = d.low_res_size, d.image_size
    require(0 <= small < size, f"data.low_res_size={small} must lie in [0, data.image_size={size}); 0 is no upsampler")
    require(not (small and base), f"control.base={base} with data.low_res_size={small}; an upsampler has no branch")
    if small:
        return SuperResolution(unet(config))
    if not base:
        return unet(config)
    controlled = Controlled(unet(config), map_channels=d.map_channels)
    check_control(controlled, size)
    return controlled


def unet(config: ConfigDict) -> UNet:
    """The U-Net, checked against the size of the images."""
    m, d, diffusion = config.model, config.data, config.diffusion
    choose(VARIANCES, diffusion.variance, "diffusion.variance")
    outputs = d.channels * (2 if diffusion.variance == "learned_range" else 1)
    made = UNet(
        num_classes=m.num_classes,
        attribute_sizes=tuple(len(values) for values in d.attribute_values),
        text=_text(config) if d.text else None,
        style=_style(config) if d.style else None,
        map_channels=0 if config.control.base else d.map_channels,
        known_channels=d.channels if m.known else 0,
        inject=_inject(m.inject),
        fusion=m.fusion,
        out_channels=outputs,
        **_backbone(config, "model"),
    )
    check_unet(made, d.image_size)
    return made


def _inject(mapping: str) -> tuple[tuple[int, tuple[str, ...]], ...]:
    """What `Conditioned.inject` has, of "16:text+map,8:text"."""
    pairs = []
    for entry in filter(None, mapping.replace(" ", "").split(",")):
        pixels, _, entering = entry.partition(":")
        require(
            pixels.isdecimal() and bool(entering),
            f"model.inject={mapping!r}: {entry!r} must be a height and kinds, as 8:text+label",
        )
        pairs.append((int(pixels), tuple(entering.split("+"))))
    return tuple(pairs)


def _text(config: ConfigDict) -> nn.Module:
    m, dtype = config.model, _dtype(config, "model")
    if m.text_encoder == "bytes":
        return ByteEncoder(width=m.text_width, depth=m.text_depth, length=m.text_length, dtype=dtype)
    features = kinds.reader(config).encode([""]).shape[-1]
    return FeatureEncoder(features=features, width=m.text_width, dtype=dtype)


def _style(config: ConfigDict) -> nn.Module:
    m, dtype = config.model, _dtype(config, "model")
    return ImageEncoder(channels=config.data.channels, width=m.style_width, depth=m.style_depth, dtype=dtype)


def classifier(config: ConfigDict, num_classes: int) -> Classifier:
    """The noise-aware classifier of a resolved config, checked against the size of the images."""
    made = Classifier(num_classes=num_classes, pool=config.classifier.pool, **_backbone(config, "classifier"))
    check_classifier(made, config.data.image_size)
    return made


def _backbone(config: ConfigDict, part: str) -> dict[str, Any]:
    """The settings of `models.plan.Backbone`, which "model" and "classifier" both have."""
    return {key: config[part][key] for key in SETTINGS} | {"dtype": _dtype(config, part)}


def _dtype(config: ConfigDict, part: str) -> Any:
    return choose(DTYPES, config[part].dtype, f"{part}.dtype")


def image_shape(config: ConfigDict) -> tuple[int, int, int]:
    """(h, w, c) of the pictures."""
    return config.data.image_size, config.data.image_size, config.data.channels


def init(made: nn.Module, config: ConfigDict) -> Params:
    """Fresh parameters from the config's seed; under `jax.eval_shape` their shapes alone."""
    example, conditions = jnp.zeros((1, *image_shape(config))), jax.tree.map(jnp.asarray, kinds.null(config, 1))
    return made.init(jax.random.key(config.seed), example, jnp.zeros(1), conditions)["params"]


def init_classifier(made: Classifier, config: ConfigDict) -> Params:
    """Fresh parameters from the config's seed."""
    return made.init(jax.random.key(config.seed), jnp.zeros((1, *image_shape(config))), jnp.zeros(1))["params"]


def trained(made: nn.Module, params: Params) -> tuple[Params, Params]:
    """The parameters that training changes, and those that stay: a base with a control branch stays as it is."""
    names = {"branch"} if isinstance(made, Controlled) else set(params)
    return {k: v for k, v in params.items() if k in names}, {k: v for k, v in params.items() if k not in names}


def begin(made: nn.Module, config: ConfigDict, frozen: Params) -> Params:
    """What training begins with, given what stays as it is: a control branch begins as its base's encoder."""
    fresh, _ = trained(made, init(made, config))
    return {"branch": branch_from(frozen["unet"], fresh["branch"])} if frozen else fresh


def applied(made: nn.Module) -> Callable[..., Array]:
    """The network as a function of its bare parameters and its inputs, for use, not for training."""

    def apply(params, *inputs):
        return made.apply({"params": params}, *inputs)

    return apply
