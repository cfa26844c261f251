"""The drawn data set: groups of equal objects with every type of condition, as a TFDS builder."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from guided_diffusion_jax.data.images import to_png
from guided_diffusion_jax.data.shapes.captions import captions
from guided_diffusion_jax.data.shapes.draw import draw, edges, segmentation
from guided_diffusion_jax.data.shapes.scenes import ATTRIBUTES, BLOCK, draw_block, most_objects


@dataclasses.dataclass(kw_only=True)
class ShapesConfig(tfds.core.BuilderConfig):
    """Image size, and number of images in each split: multiples of `BLOCK`."""

    pixels: int = 32
    train: int = 50_000
    test: int = 5_000
    novel: int = 1_000


class Shapes(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """One to three equal objects on a plain background, drawn by rules, so that each condition can be checked exactly.

    `label` is the shape; `colour`, `size`, `place`, `count`, `texture` and `background` are the other attributes, and
    `caption` names some of them. `style` is a reference image with the same texture and background and other content,
    `segmentation` is 255 where an object covers at least half of a pixel, `edges` 255 on its inner boundary.
    The split `novel` has the pairs of shape and colour that the others never show (`scenes.is_novel`).
    The images of 16 pixels show one object each. Everything depends on `scenes.SEED` alone.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "8 shapes, 8 colours, 3 sizes, 9 places, 3 counts, 4 textures, 4 backgrounds."}  # noqa: RUF012 (TFDS declares it so)
    DEFAULT_BUILDER_CONFIG_NAME = "32"
    BUILDER_CONFIGS = [  # noqa: RUF012
        ShapesConfig(name="16", description="16x16 pixels, one object", pixels=16),
        ShapesConfig(name="32", description="32x32 pixels", pixels=32),
        ShapesConfig(name="64", description="64x64 pixels", pixels=64),
        ShapesConfig(
            name="small", description="16x16 pixels, few, to try out", pixels=16, train=2_000, test=500, novel=500
        ),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        pixels = self.builder_config.pixels

        def image(channels: int) -> tfds.features.Image:
            return tfds.features.Image(shape=(pixels, pixels, channels), encoding_format="png")

        attributes = {name: tfds.features.ClassLabel(names=values) for name, values in ATTRIBUTES.items()}
        return tfds.core.DatasetInfo(
            builder=self,
            description="Groups of equal objects, drawn by rules, with attributes, captions, styles and maps.",
            features=tfds.features.FeaturesDict(
                {
                    "image": image(3),
                    "label": attributes.pop("shape"),
                    **attributes,
                    "caption": tfds.features.Text(),
                    "style": image(3),
                    "segmentation": image(1),
                    "edges": image(1),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        config = self.builder_config
        sizes = {"train": config.train, "test": config.test, "novel": config.novel}
        return {split: self._generate_examples(split, size) for split, size in sizes.items()}

    def _generate_examples(self, split: str, size: int) -> Iterator[tuple[int, dict[str, Any]]]:
        for block in range(size // BLOCK):
            examples = draw_examples(split, block, self.builder_config.pixels)
            for index in range(BLOCK):
                example = {name: column[index] for name, column in examples.items()}
                # TFDS encodes an array with TensorFlow, but accepts PNG bytes.
                yield (
                    block * BLOCK + index,
                    {
                        name: to_png(value) if isinstance(value, np.ndarray) else value
                        for name, value in example.items()
                    },
                )


def draw_examples(split: str, block: int, pixels: int) -> dict[str, Any]:
    """The `BLOCK` examples of a block by feature: images uint8 `[n p p c]`, lists of values and captions."""
    scenes, references, random = draw_block(split, block, most_objects(pixels))
    drawing = draw(scenes, pixels)
    mask = segmentation(drawing.coverage)
    columns = {name: getattr(scenes, name).tolist() for name in ATTRIBUTES}
    return {
        "image": drawing.image,
        "label": columns.pop("shape"),
        **columns,
        "caption": captions(scenes, random),
        "style": draw(references, pixels).image,
        "segmentation": np.where(mask, np.uint8(255), np.uint8(0))[..., None],
        "edges": np.where(edges(mask), np.uint8(255), np.uint8(0))[..., None],
    }
