"""The weights of InceptionV3 as FID means it, by torchvision's names, as parameters of ours."""

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict

from guided_diffusion_jax.evaluation.features import weights
from guided_diffusion_jax.evaluation.features.inception import InceptionV3
from guided_diffusion_jax.evaluation.features.weights import Loaded

STANDARD = "6726825d"
"""How the SHA-256 of the standard's weights begins, as the name `pt_inception-2015-12-05-6726825d.pth` says."""

NORM = ("weight", "bias", "running_mean", "running_var")
"""What each batch normalisation has in the file; its epsilon is 1e-3."""


def load(path: epath.PathLike) -> Loaded:
    """InceptionV3's parameters, with batch normalisation folded into the convolutions.

    Weights of the right shapes are loaded whatever their digest, since the same numbers may lie in another file;
    `standard` is then False, and results have to say so.

    Args:
        path: of `pt_inception-2015-12-05-6726825d.pth`, or of another file with the same names.

    Raises:
        InputError: the file cannot be read, or a tensor is missing, misshapen or unknown; it names the first.
    """
    digest = weights.sha256(path)
    advice = f"expected a file whose SHA-256 begins with {STANDARD}, this one's begins with {digest[:8]}"
    expected = shapes()
    with weights.opened(path) as tensors:
        weights.check(path, tensors, expected, unused=r".*\.num_batches_tracked", advice=advice)
        flat = {("fc", "kernel"): tensors["fc.weight"].read().T, ("fc_bias",): tensors["fc.bias"].read()}
        for name in (entry.removesuffix(".conv.weight") for entry in expected if entry.endswith(".conv.weight")):
            layer = tuple(name.split("."))
            norm = [tensors[f"{name}.bn.{part}"].read() for part in NORM]
            kernel, bias = _folded(tensors[f"{name}.conv.weight"].read(), *norm)
            flat |= {(*layer, "kernel"): kernel, (*layer, "bias"): bias}
        return Loaded(weights.parameters(flat), digest, digest.startswith(STANDARD))


def shapes() -> dict[str, tuple[int, ...]]:
    """The names and shapes of the file's tensors, in the names' order."""
    tree = jax.eval_shape(InceptionV3().init, jax.random.key(0), jnp.zeros((1, 75, 75, 3)))["params"]
    expected: dict[str, tuple[int, ...]] = {}
    for name, leaf in flatten_dict(tree, sep=".").items():
        if len(leaf.shape) == 4:
            h, w, sees, features = leaf.shape
            layer = name.removesuffix(".kernel")
            expected[f"{layer}.conv.weight"] = (features, sees, h, w)
            expected |= {f"{layer}.bn.{part}": (features,) for part in NORM}
    return expected | {"fc.weight": (1008, 2048), "fc.bias": (1008,)}


def _folded(
    weight: np.ndarray, scale: np.ndarray, shift: np.ndarray, mean: np.ndarray, variance: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The kernel and the bias of a convolution that does what one without bias and its normalisation did."""
    factor = scale / np.sqrt(variance.astype(np.float64) + 1e-3)
    return weight.transpose(2, 3, 1, 0) * factor, shift - mean * factor
