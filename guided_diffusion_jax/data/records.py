"""TFDS data sets, prepared as array_record where missing and read without TensorFlow."""

import contextlib
import os
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from guided_diffusion_jax.data.dataset import NO_COLUMNS, Columns, Dataset, pool
from guided_diffusion_jax.data.images import decode, decode_map, to_png
from guided_diffusion_jax.data.understood import Understood
from guided_diffusion_jax.errors import InputError, choose, hint, require

IMAGE_COLUMNS = ("reference_image", "control_image")

SMALL_FILE = 16 * 1024
"""Bytes of an encoded image below which decoding is mostly Python, where threads do not help."""


def open_tfds(
    name: str,
    *,
    builder: type | None = None,
    split: str,
    image_size: int,
    data_dir: str = "",
    columns: Columns = NO_COLUMNS,
) -> Dataset:
    """A TFDS data set, prepared on first use, decoded while it is read.

    Args:
        name: what `tfds.builder` takes: "cifar10", "cifar10:3.0.2", "name/config"; or "name" or "name/config" of the
            given builder.
        builder: a TFDS builder class; None for one of TFDS's own.
        split: "train", "test[:500]" or any other expression of TFDS.
        image_size: height and width in pixels after `centre_crop`; the channels are the data set's, 1 or 3.
        data_dir: where prepared data sets lie; empty for TFDS's own folder.
        columns: the features that become conditions.

    Raises:
        InputError: the data set cannot be prepared, lacks the split or a column, or holds no images.
        tfds.core.DatasetNotFoundError: TFDS does not know the name.
    """
    ready = prepared(name, data_dir, builder)
    features = ready.info.features
    image_key = _feature(ready, tfds.features.Image)
    label_key = columns.labels or _feature(ready, tfds.features.ClassLabel)
    if image_key is None:
        raise InputError(f"data.name={name!r} holds no images; its features are {', '.join(features)}")
    _check_columns(name, features, columns)
    records = _records(ready, name, split)
    # Keys of `Dataset.read` that hold images, and their features.
    images = {"image": image_key, **{key: getattr(columns, key) for key in IMAGE_COLUMNS}}
    channels = {key: 1 if features[f].shape[-1] == 1 else 3 for key, f in images.items() if f}
    if "reference_image" in channels:  # the reference encoder takes the channels of the image
        channels["reference_image"] = channels["image"]

    decoders = {"control_image": decode_map}

    def decode_one(record: Mapping[str, Any]) -> dict[str, np.ndarray]:
        return {
            key: decoders.get(key, decode)(
                record[images[key]], name=f"{key} of {name} ({split})", size=image_size, channels=c
            )
            for key, c in channels.items()
        }

    def read(indices: np.ndarray) -> dict[str, np.ndarray]:
        chosen = records.__getitems__([int(index) for index in indices])
        labels = [int(record[label_key]) if label_key else 0 for record in chosen]
        require(min(labels) >= 0, f"split {split!r} of {name!r} has examples without a label; use another split")
        small = sum(len(record[image_key]) for record in chosen) < SMALL_FILE * len(chosen)
        decoded = list(map(decode_one, chosen) if small else pool().map(decode_one, chosen))
        batch = {key: np.stack([one[key] for one in decoded]) for key in channels}
        batch["label"] = np.array(labels, np.int32)
        if columns.attributes:  # TFDS marks an unknown value by -1
            batch["attributes"] = np.array([[r[key] for key in columns.attributes] for r in chosen], np.int32) + 1
        if columns.text:
            batch["text"] = np.array([bytes(r[columns.text]).decode("utf-8", "replace") for r in chosen], object)
        return batch

    return Dataset(
        name=f"{name} ({split})",
        length=len(records),
        image_shape=(image_size, image_size, channels["image"]),
        class_names=tuple(features[label_key].names) if label_key else (),
        read=read,
        attributes=tuple((key, tuple(features[key].names)) for key in columns.attributes),
        control_channels=channels.get("control_image", 0),
        has_reference=bool(columns.reference_image),
        home=epath.Path(ready.data_path),
        understood=_understood(ready, split, image_key, columns),
    )


def _understood(builder: Any, split: str, image_key: str, columns: Columns) -> Understood:
    """What the data set's description says."""
    height, width = builder.info.features[image_key].shape[:2]
    return Understood(
        split=split,
        splits={name: info.num_examples for name, info in builder.info.splits.items()},
        classes_from=f"feature {columns.labels!r}" if columns.labels else "",
        sizes=((width, height), (width, height)) if height and width else None,
        text=f"feature {columns.text!r}" if columns.text else "",
        control=f"feature {columns.control_image!r}" if columns.control_image else "",
    )


def _check_columns(name: str, features: Any, columns: Columns) -> None:
    """Raises `InputError` unless every column is a feature of the type that it must be."""
    wanted = [("attributes", key, tfds.features.ClassLabel) for key in columns.attributes]
    wanted += [("labels", columns.labels, tfds.features.ClassLabel), ("text", columns.text, tfds.features.Text)]
    wanted += [(part, getattr(columns, part), tfds.features.Image) for part in IMAGE_COLUMNS]
    for part, key, kind in wanted:
        if part != "attributes" and not key:
            continue
        fitting = [known for known, feature in features.items() if type(feature) is kind]
        require(
            key in fitting,
            f"data.{part}={key!r} is no {kind.__name__} of {name}; it has {', '.join(fitting) or 'none'}"
            f"{hint(key, fitting)}",
        )


def prepared(name: str, data_dir: str = "", kind: type | None = None) -> Any:
    """The TFDS builder of a data set in `data_dir`, prepared there if need be; arguments as for `open_tfds`.

    Several processes may do so at once: the first to finish wins, and the others use its files.

    Raises:
        InputError: the data set cannot be prepared, or the builder has no such config.
        tfds.core.DatasetNotFoundError: TFDS does not know the name.
    """
    builder = _builder(name, data_dir, kind)
    if _is_prepared(builder):
        return builder
    _encode_without_tensorflow(builder)
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    failure: Exception | None = None
    try:
        # TFDS prints to stdout, which belongs to the program.
        with contextlib.redirect_stdout(sys.stderr):
            builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # downloads, disks and missing packages each fail in their own way
        failure = error
    # Built again, because the files may be another process's, which the first builder has not read.
    builder = _builder(name, data_dir, kind)
    if not _is_prepared(builder):
        where = os.fspath(builder.data_path)
        reason = _first_line(failure) if failure else "the folder lacks dataset_info.json; remove it and try again"
        raise InputError(
            f"data.name={name!r} is not prepared in {where}, and preparing it failed: {reason[:200]}; "
            "set data.data_dir to a folder that holds it prepared as array_record, or that it can be written to"
        )
    return builder


def _builder(name: str, data_dir: str, kind: Any) -> Any:
    own, _, config = name.partition("/")
    if kind is not None:
        if config:
            choose(kind.builder_configs, config, f"data.name={own}/...")
        return kind(data_dir=data_dir or None, config=config or None)
    try:
        return tfds.builder(name, data_dir=data_dir or None)
    except tfds.core.DatasetNotFoundError:
        raise
    except (ValueError, AssertionError, TypeError) as error:
        raise InputError(f"data.name={name!r} is no data set of TFDS: {_first_line(error)}") from error


def _is_prepared(builder: Any) -> bool:
    return (builder.data_path / "dataset_info.json").exists()


def _encode_without_tensorflow(builder: Any) -> None:
    """Makes the builder encode image arrays as PNG here; TFDS itself would need TensorFlow."""
    features = builder.info.features
    image_keys = _images(features)
    encode = features.encode_example

    def encode_example(example: Mapping[str, Any]) -> Any:
        arrays = [key for key in image_keys if isinstance(example[key], np.ndarray)]
        return encode({**example, **{key: to_png(example[key]) for key in arrays}})

    features.encode_example = encode_example


def _images(features: Any) -> list[str]:
    return [key for key, feature in features.items() if type(feature) is tfds.features.Image]


def _feature(builder: Any, kind: type) -> str | None:
    """The key of the data set's feature of this type; of several, the one among its supervised keys."""
    keys = [key for key, feature in builder.info.features.items() if type(feature) is kind]
    preferred = [key for key in builder.info.supervised_keys or () if key in keys]
    return next(iter(preferred + keys), None)


def _records(builder: Any, name: str, split: str) -> Any:
    """The records of the split with random access, their images still encoded."""
    try:
        decoders = {key: tfds.decode.SkipDecoding() for key in _images(builder.info.features)}
        return builder.as_data_source(split=split, decoders=decoders)
    except NotImplementedError as error:
        raise InputError(
            f"{builder.data_path} holds {name} in a format without random access; "
            "give another data.data_dir, and it is prepared there as array_record"
        ) from error
    except (ValueError, KeyError) as error:
        known = ", ".join(builder.info.splits)
        raise InputError(f"data set {name!r} has no split {split!r} with examples; its splits are {known}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
