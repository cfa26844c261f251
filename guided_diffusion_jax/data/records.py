"""TFDS data sets: ours and TFDS's own, prepared as array_record where missing, read without TensorFlow."""

import contextlib
import os
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from guided_diffusion_jax.data.digits import Digits
from guided_diffusion_jax.data.images import decode
from guided_diffusion_jax.data.source import Source, pool
from guided_diffusion_jax.errors import InputError, hint, require

BUILDERS: dict[str, type[tfds.core.GeneratorBasedBuilder]] = {"digits": Digits}
"""Our own data sets; any other name is TFDS's."""


def tfds_source(name: str, *, split: str, image_size: int, data_dir: str = "") -> Source:
    """A TFDS data set, prepared on first use, decoded while it is read.

    Args:
        name: a key of `BUILDERS`, or what `tfds.builder` takes: "cifar10", "cifar10:3.0.2", "name/config".
        split: "train", "test[:500]" and whatever else TFDS understands.
        image_size: height and width in pixels after `centre_crop`; the channels are the data set's, 1 or 3.
        data_dir: where prepared data sets lie; empty for TFDS's own folder.

    Raises:
        InputError: the data set is unknown, can be neither found nor prepared, lacks the split, or holds no images.
    """
    builder = prepared(name, data_dir)
    image_key = _feature(builder, tfds.features.Image)
    label_key = _feature(builder, tfds.features.ClassLabel)
    if image_key is None:
        raise InputError(f"data.name={name!r} holds no images; its features are {', '.join(builder.info.features)}")
    class_names = tuple(builder.info.features[label_key].names) if label_key else ()
    channels = 1 if builder.info.features[image_key].shape[-1] == 1 else 3
    records = _records(builder, name, split, image_key)

    def decode_one(record: Mapping[str, Any]) -> np.ndarray:
        return decode(record[image_key], name=f"an image of {name}", size=image_size, channels=channels)

    def read(indices: np.ndarray) -> dict[str, np.ndarray]:
        chosen = records.__getitems__([int(index) for index in indices])
        labels = [int(record[label_key]) if label_key else 0 for record in chosen]
        require(min(labels) >= 0, f"{name} has examples without a label in split {split!r}; use another split")
        images = list(pool().map(decode_one, chosen))
        return {"image": np.stack(images), "label": np.array(labels, np.int32)}

    return Source(
        name=f"{name} ({split})",
        length=len(records),
        image_shape=(image_size, image_size, channels),
        class_names=class_names,
        read=read,
    )


def prepared(name: str, data_dir: str = "") -> Any:
    """The builder of a data set that lies ready in `data_dir`, after preparing it there if need be.

    Several processes may do so at once: the first to finish wins, and the others use its files.

    Raises:
        InputError: the data set is unknown, or can be neither found nor prepared.
    """
    builder = _builder(name, data_dir)
    if builder.is_prepared():
        return builder
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        # TFDS announces itself on stdout, which belongs to the program.
        with contextlib.redirect_stdout(sys.stderr):
            builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # downloads, disks and missing packages fail in their own ways
        again = _builder(name, data_dir)
        if not again.is_prepared():
            where = os.fspath(builder.data_path)
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(
                f"data.name={name!r} was not found prepared in {where} and preparing it failed: {reason}"
            ) from error
        return again
    return builder


def _builder(name: str, data_dir: str) -> Any:
    if name in BUILDERS:
        return BUILDERS[name](data_dir=data_dir or None, file_format="array_record")
    try:
        return tfds.builder(name, data_dir=data_dir or None)
    except tfds.core.DatasetNotFoundError as error:
        where = f"data.data_dir={data_dir}" if data_dir else "TFDS's own folder"
        raise InputError(
            f"data.name={name!r} is neither one of folder, {', '.join(BUILDERS)}, nor known to TFDS, "
            f"nor prepared in {where}{hint(name, ['folder', *BUILDERS])}"
        ) from error


def _feature(builder: Any, kind: type) -> str | None:
    """The key of the data set's feature of this type; where it has several, the one it is meant to be learned from."""
    keys = [key for key, feature in builder.info.features.items() if type(feature) is kind]
    preferred = [key for key in builder.info.supervised_keys or () if key in keys]
    return next(iter(preferred + keys), None)


def _records(builder: Any, name: str, split: str, image_key: str) -> Any:
    decoders = {image_key: tfds.decode.SkipDecoding()}
    try:
        return builder.as_data_source(split=split, decoders=decoders)
    except (ValueError, KeyError) as error:
        known = ", ".join(builder.info.splits)
        raise InputError(f"data set {name!r} has no split {split!r}; it has {known}") from error
    except NotImplementedError as error:
        raise InputError(
            f"{builder.data_path} holds {name} in a format without random access; "
            "prepare it as array_record in another data.data_dir"
        ) from error
