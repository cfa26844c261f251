"""What metrics compare pictures by: networks from 8-bit pictures to features, all of one shape (`extractor`)."""

from guided_diffusion_jax.evaluation.features.extractor import Extractor, Features

__all__ = ["Extractor", "Features"]
