"""The folder of a fine-tuned run: what was learned, and which weights it changes."""

from collections.abc import Callable
from typing import Any, NamedTuple

from etils import epath

from guided_diffusion_jax import stable_diffusion
from guided_diffusion_jax.errors import InputError, choose, require
from guided_diffusion_jax.finetuning.zero_snr import with_zero_snr
from guided_diffusion_jax.interop.stable_diffusion import load_part, settings
from guided_diffusion_jax.models.registry import DTYPES
from guided_diffusion_jax.runtime.files import read_json
from guided_diffusion_jax.stable_diffusion import StableDiffusion

FILE = "finetuned.json"

Base = Callable[[], StableDiffusion]


class Result(NamedTuple):
    """What a kind of fine-tuning leaves in a run's folder.

    Attributes:
        name: of the file or folder that `FineTuner.save` writes.
        load: `(path, base, token, options)` to the pipeline; `base()` is that of the weights that were changed, `token`
            the new word.
    """

    name: str
    load: Callable[[epath.Path, Base, str | None, dict[str, Any]], StableDiffusion]


RESULTS: dict[str, Result] = {
    "lora": Result("lora.safetensors", lambda path, base, token, options: base().with_lora(path)),
    "full": Result("model", lambda path, base, token, options: stable_diffusion.load(path, **options)),
    "controlnet": Result(
        "controlnet", lambda path, base, token, options: base().with_controlnet(load_part(path, settings.controlnet))
    ),
    "textual_inversion": Result(
        "embeddings.safetensors", lambda path, base, token, options: base().with_embedding(path, token)
    ),
}
"""Of each kind of fine-tuning its result."""


def load(folder: epath.Path, **options: Any) -> StableDiffusion:
    """Pipeline of a fine-tuned run: its base with what was learned.

    Args:
        folder: of the run.
        options: of `stable_diffusion.load`; `dtype` is the run's by default.

    Raises:
        InputError: the run has not ended, or its base is gone.
    """
    file = folder / FILE
    require(file.exists(), f"{folder} has no {FILE}: its fine-tuning has not ended; go on with --mode=finetune")
    found = read_json(file)
    try:
        kind, base, more = found["kind"], epath.Path(found["base"]), dict(found["options"])
        zero_snr, token = bool(found["zero_snr"]), found.get("token")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file} is damaged: {type(error).__name__}: {error}") from None
    options = {"dtype": choose(DTYPES, found.get("dtype", "float32"), f"dtype in {file}"), **options}

    def pipeline() -> StableDiffusion:
        require(base.exists(), f"{base}, which {folder} was fine-tuned from, is gone; change base in {file}")
        pipe = stable_diffusion.load(base, **{**more, **options})
        return with_zero_snr(pipe) if zero_snr else pipe

    result = choose(RESULTS, kind, f"kind in {file}")
    return result.load(folder / result.name, pipeline, token, options)
