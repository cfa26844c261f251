"""Feature extractors by name: networks from 8-bit images to features, all with one interface (`Extractor`)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from etils import epath
from jaxtyping import Array, UInt8

from guided_diffusion_jax.errors import choose, require
from guided_diffusion_jax.evaluation.features import pretrained
from guided_diffusion_jax.evaluation.features.extractor import Extractor, Features

__all__ = ["PRETRAINED", "Extractor", "Features", "check_extractor", "open_extractor"]

PRETRAINED: dict[str, Callable[[epath.PathLike], Extractor]] = {
    "inception": pretrained.inception,
    "dinov2": pretrained.dinov2,
}
"""Extractors that need a file of weights."""

PIXELS = "pixels"
PIXELS_SIDE = 16
"""Images are averaged down to this size for pixel features, so that covariances fit into memory."""

FeatureChoice = str | Extractor | Callable[[UInt8[Array, "b h w c"]], Array | Features]


def check_extractor(features: FeatureChoice, feature_weights: epath.PathLike = "") -> None:
    """Raises `InputError` unless `features` and `feature_weights` fit each other; reads no weights."""
    if not isinstance(features, str):
        return
    choose(dict.fromkeys((*PRETRAINED, PIXELS, "own")), features, "features")
    if features not in PRETRAINED:
        require(not feature_weights, f"feature_weights={feature_weights}, but features={features} has none")
        return
    require(
        bool(feature_weights),
        f"features={features} needs feature_weights, the file of its weights (nothing is downloaded); without one "
        f"use features={PIXELS} or a function from images to features",
    )
    require(epath.Path(feature_weights).is_file(), f"feature_weights={feature_weights} is no file")


def open_extractor(features: FeatureChoice, feature_weights: epath.PathLike = "") -> Extractor:
    """Extractor by name, or from a function of uint8 images `[b h w c]` to `[b d]` or `Features`.

    Args:
        features: "inception", "dinov2", "pixels", a jit-able function, or an `Extractor`, which is returned as it is.
        feature_weights: file of weights, for "inception" and "dinov2".

    Raises:
        InputError: an unknown name, or a file that is missing or has other tensors.
    """
    check_extractor(features, feature_weights)
    if isinstance(features, Extractor):
        return features
    if isinstance(features, str):
        require(features != "own", "features=own is a classifier trained on a data set; use Scorer(data, train)")
        return PRETRAINED[features](feature_weights) if features in PRETRAINED else Extractor(PIXELS, jax.jit(_pixels))
    function = features

    def apply(images: UInt8[Array, "b h w c"]) -> Features:
        output = function(images)
        return output if isinstance(output, Features) else Features(jnp.asarray(output))

    return Extractor(getattr(features, "__name__", "custom"), jax.jit(apply))


def _pixels(images: UInt8[Array, "b h w c"]) -> Features:
    """Grey levels in [-1, 1] of the image, at most 16 x 16 pixels."""
    b, h, w, c = images.shape
    shape = (b, min(h, PIXELS_SIDE), min(w, PIXELS_SIDE), c)
    return Features(jax.image.resize(images.astype(jnp.float32) / 127.5 - 1, shape, "linear").reshape(b, -1))
