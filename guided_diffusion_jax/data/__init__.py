"""Data sets: arrays, folders, TFDS; preprocessing, augmentation, text encoders and Grain pipelines.

```python
data = gd.data.from_arrays(images, labels)  # uint8 [n h w c], int [n]
data = gd.data.load("cifar10", image_size=32)
data = gd.data.folder("photos", image_size=64, text="caption")
```

Only light modules are imported here; TFDS and Grain (`data.pipeline`) are not.
"""
# ruff: noqa: F401 (these names are the public ones)

from guided_diffusion_jax.data.arrays import from_arrays
from guided_diffusion_jax.data.dataset import Attribute, Columns, Dataset, DatasetInfo
from guided_diffusion_jax.data.sources import SOURCES, by_caption, folder, load
from guided_diffusion_jax.data.text import TEXT_ENCODERS, ByteTextEncoder, TextEncoder, encode_text, text_encoder
