"""Extractors with published weights, from files on disk."""

from typing import Any

from etils import epath
from jaxtyping import Array, UInt8

from guided_diffusion_jax.evaluation.features import dinov2 as vit
from guided_diffusion_jax.evaluation.features import dinov2_weights, inception_weights
from guided_diffusion_jax.evaluation.features import inception as v3
from guided_diffusion_jax.evaluation.features.extractor import Extractor, Features, bind
from guided_diffusion_jax.typing import Params


def inception(path: epath.PathLike, *, bias: bool = False) -> Extractor:
    """InceptionV3 as FID, sFID and the inception score mean it: `pool_3`, sFID's 2023 numbers and the logits.

    Args:
        path: of the weights; `pt_inception-2015-12-05-6726825d.pth` gives figures that compare with published ones.
        bias: whether the logits have it; published inception scores are without, in OpenAI's evaluator too.

    Returns:
        The extractor, whose name tells whether these are the standard's weights.

    Raises:
        InputError: as `inception_weights.load`.
    """
    loaded = inception_weights.load(path)
    which = "the FID standard" if loaded.standard else f"NOT the FID standard's {inception_weights.STANDARD}"
    name = f"InceptionV3, weights {loaded.digest[:8]} ({which}){', logits with bias' if bias else ''}"

    def features(params: Params, images: UInt8[Array, "b h w c"]) -> Features:
        out: Any = v3.InceptionV3().apply({"params": params}, v3.preprocess(images))
        return Features(out.pool, out.spatial, out.logits if bias else out.logits_unbiased)

    return Extractor(name, bind(features, loaded.params))


def dinov2(path: epath.PathLike) -> Extractor:
    """DINOv2's class token, for Frechet distances that agree better with people (Stein et al. 2023); nothing else.

    Raises:
        InputError: as `dinov2_weights.load`.
    """
    shape, loaded = dinov2_weights.load(path)
    size = vit.NAMES.get((shape.width, shape.depth), f"{shape.width}x{shape.depth}")

    def features(params: Params, images: UInt8[Array, "b h w c"]) -> Features:
        token: Any = vit.VisionTransformer(shape).apply({"params": params}, vit.preprocess(images))
        return Features(token)

    return Extractor(f"DINOv2 ViT-{size}/{shape.patch}, weights {loaded.digest[:8]}", bind(features, loaded.params))
