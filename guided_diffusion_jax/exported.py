"""Exported samplers: a file that `exporting.export` has written, loaded and run without the package's models.

```
python -m guided_diffusion_jax.exported runs/digits/sampler.zip --labels=1,2,3 --out=x.png
```

Nothing of models, pipelines or Flax is imported here: NumPy, Pillow and JAX run a file.
"""

import argparse
import contextlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax import export as jax_export
from jaxtyping import UInt8

from guided_diffusion_jax import checks, export_format, grids, sharding
from guided_diffusion_jax.data.images import write_png
from guided_diffusion_jax.data.text import ByteTextEncoder
from guided_diffusion_jax.errors import InputError, choose, one_line, report, require
from guided_diffusion_jax.export_format import PRNG, PROGRAM, WEIGHTS, Header
from guided_diffusion_jax.labels import class_list, label_rows
from guided_diffusion_jax.runtime import npz

MOST_IMAGES = 10**7


class ExportedSampler:
    """A sampler out of a file; `load` makes one.

    Attributes:
        header: what the file says of itself: inputs, class names, sampler, steps, versions.
    """

    def __init__(self, header: Header, program: jax_export.Exported, params: Mapping[str, np.ndarray]):
        self.header = header
        self._params = jax.device_put(dict(params))
        self._call = jax.jit(program.call, compiler_options=sharding.compiler_options())

    def __call__(
        self,
        labels: Any = None,
        *,
        prompt: str | Sequence[str] | np.ndarray | None = None,
        negative: str | np.ndarray | None = None,
        conditions: Mapping[str, Any] | None = None,
        count: int | None = None,
        weight: float | Sequence[float] | None = None,
        classifier_weight: float | Sequence[float] | None = None,
        seed: int | Sequence[int] = 0,
        index: Sequence[int] | None = None,
        batch_size: int = 500,
    ) -> np.ndarray:
        """Generates images, `[n h w c]`, uint8 or as the header's "output" says.

        Each number of images in a batch is compiled once, and nothing else compiles anew.

        Args:
            labels: class of each image, by number or name, in turn; None for none.
            prompt: text, or one for each image; features `[n d]` or `[b n d]` where the file holds no text encoder.
            negative: text to steer away from.
            conditions: further inputs by name, as arrays `[n ...]` or `[...]` of the header's shapes.
            count: number of images; by default as many as there are labels or prompts, or 1.
            weight: w of guidance, or one for each image; the file has a default.
            classifier_weight: w of the classifier in the file, or one for each image.
            seed: image i is the pipeline's image i of this seed; or a seed for each image.
            index: i of each image, by default 0, 1, ..; with a seed and an index for each image, a batch may serve
                several people, each of whom gets the image that they would get alone.
            batch_size: images at a time.

        Raises:
            InputError: an input that the file does not have or that is missing, or a value that it cannot be.
        """
        rows = _count(labels, prompt, count)
        checks.integer("batch_size", batch_size, 1)
        given = {
            **(conditions or {}),
            "labels": labels,
            "prompt": prompt,
            "negative": negative,
            "weight": weight,
            "classifier_weight": classifier_weight,
        }
        inputs = self._inputs({name: value for name, value in given.items() if value is not None}, rows)
        inputs["seed"] = _words(seed, rows)
        inputs["index"] = _numbers("index", range(rows) if index is None else index, rows).astype(np.int32)
        size = min(batch_size, rows)
        made = []
        for start in range(0, rows, size):
            part = np.minimum(np.arange(start, start + size), rows - 1)  # the last is padded, to compile once
            images = self._call(self._params, {name: values[part] for name, values in inputs.items()})
            made.append(np.asarray(images)[: rows - start])
        return np.concatenate(made)

    def _inputs(self, given: dict[str, Any], rows: int) -> dict[str, np.ndarray]:
        """Rows of all inputs but seed and index."""
        made = {}
        entries = {name: entry for name, entry in self.header["inputs"].items() if name not in ("seed", "index")}
        for name, entry in entries.items():
            keyword = KEYWORDS.get(name, name)
            shape, value = tuple(entry["shape"]), given.pop(keyword, None)
            if value is None:
                require("default" in entry, f"{keyword} is missing: this sampler needs it")
                value = np.full((rows, *shape), entry["default"])
            elif name == "label":
                value = label_rows(value, rows, self.header["class_names"], entry["classes"])
            elif name in ("text", "negative") and len(shape) == 1:
                value = _text(keyword, value, shape[0], rows)
            else:
                value = _array(keyword, value, shape, rows)
            made[name] = value.astype(entry["dtype"])
        takes = ", ".join(KEYWORDS.get(name, name) for name in entries) or "nothing but count and seed"
        require(not given, f"{next(iter(given), '')} is no input of this sampler, which takes {takes}")
        return made


KEYWORDS = {"label": "labels", "text": "prompt"}
"""Inputs whose keyword has another name."""


def _count(labels: Any, prompt: Any, count: int | None) -> int:
    if count is not None:
        return checks.integer("count", count, 1, MOST_IMAGES)
    for several in (labels, prompt):
        if not isinstance(several, str | None) and np.ndim(several) == 1:
            return len(several)
    return 1


def _array(name: str, value: Any, shape: tuple[int, ...], rows: int) -> np.ndarray:
    values = checks.reals(name, value)
    require(
        values.shape in (shape, (1, *shape), (rows, *shape)),
        f"{name} has shape {values.shape}; it must be {shape}, or {(rows, *shape)} for {rows} images",
    )
    return np.broadcast_to(values, (rows, *shape))


def _numbers(name: str, value: Any, rows: int) -> np.ndarray:
    several = list(value)
    require(len(several) == rows, f"{name} has {len(several)} numbers for {rows} images; give one for each")
    return np.array([checks.integer(f"{name}[{i}]", one, 0, 2**31 - 1) for i, one in enumerate(several)])


def _words(seed: Any, rows: int) -> np.ndarray:
    """The key of each image as uint32 `[n 2]`: that of `jax.random.key(seed)`."""
    several = list(seed) if np.ndim(seed) else [seed]
    require(len(several) in (1, rows), f"seed has {len(several)} numbers for {rows} images; give one, or one for each")
    keys = [jax.random.key_data(jax.random.key(checks.seed("seed", one), impl=PRNG)) for one in several]
    return np.resize(np.array(keys), (rows, 2))


def _text(name: str, value: Any, length: int, rows: int) -> np.ndarray:
    texts = [value] if isinstance(value, str) else list(value)
    require(len(texts) in (1, rows), f"{name} has {len(texts)} texts for {rows} images; give one, or one for each")
    parts = any(" AND " in text or text.startswith("NOT ") for text in texts)
    require(not parts, f"{name}: an exported sampler reads one text an image, and composes none with AND or NOT")
    return np.resize(ByteTextEncoder(length).encode(texts), (rows, length))


# --- reading


def load(path: epath.PathLike) -> ExportedSampler:
    """Sampler out of a file; `sampler(labels=[1, 2], weight=2.0, seed=0)` gives uint8 `[n h w c]`.

    A file is a program: run only those of people whom you trust.

    Raises:
        InputError: it is no such file, it is cut or changed, or a newer version made it.
    """
    export_format.require_flatbuffers()
    header, contents = export_format.read(path, (PROGRAM, WEIGHTS))
    newest = jax_export.maximum_supported_calling_convention_version
    made_by = f"{path} was made by jax {header['jax']}, and this is jax {jax.__version__}"
    require(header["calling_convention"] <= newest, f"{made_by}, which cannot run it; install that version or newer")
    require(
        header["calling_convention"] >= jax_export.minimum_supported_calling_convention_version,
        f"{made_by}, which no longer runs it; export the sampler again",
    )
    from safetensors.numpy import load as tensors

    try:
        program, params = jax_export.deserialize(bytearray(contents[PROGRAM])), tensors(contents[WEIGHTS])
        return ExportedSampler(header, program, params)
    except Exception as error:  # whatever JAX says of a program that it cannot read
        raise InputError(f"{made_by}, which cannot read it: {one_line(error, 100)}") from error


# --- the command


def summary(header: Header) -> str:
    """What a file is, in a few lines."""
    h, w, c = header["output"]["shape"]
    names = header["class_names"]
    inputs = [KEYWORDS.get(name, name) for name in header["inputs"] if name != "index"]
    lines = [
        f"images    {h}x{w}, {'RGB' if c == 3 else 'grey' if c == 1 else f'{c} channels'}, {header['output']['dtype']}",
        f"sampler   {header['sampler']}, {header['steps']} steps, spacing {header['spacing']}",
        f"inputs    {', '.join(inputs)}",
        f"classes   {class_list(names)}" if names else "",
        f"size      {header['parameters']:,} parameters, of training step {header['checkpoint_step']}",
        f"runs on   {', '.join(header['platforms'])}; any batch size",
        f"made by   guided_diffusion_jax {header['package']}, jax {header['jax']}",
    ]
    return "\n".join(filter(None, lines))


def _save(out: epath.Path, header: Header, images: UInt8[np.ndarray, "n h w c"], labels: np.ndarray) -> None:
    names = [grids.class_name(int(label), header["class_names"]) for label in labels]
    if out.suffix == ".npz":
        out.parent.mkdir(parents=True, exist_ok=True)
        npz.write(out, images, labels)
    else:
        write_png(out, images[0] if len(images) == 1 else grids.sheet(images, names if any(names) else ()))
    print(f"{out}: {len(images):,} image{'s'[: len(images) > 1]}", flush=True)


OUT = {".png": "one image, or a page of several", ".npz": "arr_0 uint8 [n h w c], arr_1 labels"}


class _Arguments(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise InputError(f"{message}; see --help")


def _arguments() -> argparse.ArgumentParser:
    parser = _Arguments(
        prog="python -m guided_diffusion_jax.exported",
        description="Runs an exported sampler; with a file alone, says what it is.",
        allow_abbrev=False,
    )
    parser.add_argument("file", help="that --mode=export or gd.export has written")
    parser.add_argument("--out", help="; ".join(f"{ending}: {what}" for ending, what in OUT.items()))
    parser.add_argument("--labels", help="classes in turn, numbers or names with commas")
    parser.add_argument("--prompt", help="text, of a model that reads text")
    parser.add_argument("--negative", help="text to steer away from")
    parser.add_argument("--weight", type=float, help="w of guidance")
    parser.add_argument("--classifier_weight", type=float, help="w of the classifier in the file")
    parser.add_argument("--count", type=int, help="number of images; by default as many as labels, or 1")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--batch_size", type=int, default=500, help="images at a time")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 2 wrong input, 1 anything else."""
    try:
        given = vars(_arguments().parse_args(arguments))
        file, out = given.pop("file"), given.pop("out")
        header, _ = export_format.read(file)
        if out is None:
            print(summary(header), flush=True)
            return 0
        path = epath.Path(out)
        choose(OUT, path.suffix, "the ending of --out")
        require(header["output"]["dtype"] == "uint8", f"{file} puts out float32; use it from Python: exported.load")
        labels = given.pop("labels")
        several = None if labels is None else [name for part in labels.split(",") if (name := part.strip())]
        images = load(file)(several, **given)
        classes = header["inputs"].get("label", {}).get("classes", 0)
        _save(path, header, images, label_rows(several, len(images), header["class_names"], classes))
    except Exception as error:
        return report(error, (InputError,))
    return 0


if __name__ == "__main__":
    from guided_diffusion_jax.runtime import compilation_cache

    with contextlib.suppress(BrokenPipeError):
        compilation_cache.enable()
        sys.exit(main())
