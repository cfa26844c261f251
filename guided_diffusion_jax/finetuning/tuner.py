"""`FineTuner`: a trainer that begins with a pipeline of Stable Diffusion and ends with a changed one."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike

from guided_diffusion_jax import sharding
from guided_diffusion_jax.data.dataset import Dataset
from guided_diffusion_jax.errors import require
from guided_diffusion_jax.finetuning import methods, results
from guided_diffusion_jax.finetuning.data import Prompt, absent, encode, prompts_of, with_prior
from guided_diffusion_jax.finetuning.methods import Kind, Layers
from guided_diffusion_jax.finetuning.objective import objective
from guided_diffusion_jax.interop.stable_diffusion.embeddings import TABLE
from guided_diffusion_jax.runtime import distributed
from guided_diffusion_jax.runtime.files import write_json
from guided_diffusion_jax.stable_diffusion import ENCODERS, StableDiffusion
from guided_diffusion_jax.training.trainer import Trainer
from guided_diffusion_jax.typing import Params


class FineTuner(Trainer):
    """Trainer of a pipeline's networks, or of what is added to them, which one of the functions here makes.

    Args:
        pipe: to begin with; it stays as it is.
        data: images uint8 of the size that is trained, or of several (`data.buckets`), and captions.
        kind: what is trained.
        learning_rate: of AdamW with decay 0.01 and gradients clipped to norm 1; a number or a schedule.
        optimizer: another optimizer than that.
        prompt: caption of all images in the place of their own, or several in turn.
        prior: class images with their captions, for prior preservation (see `class_images`).
        prior_weight: lambda of their loss (Ruiz et al. 2023, eq. 2).
        condition_dropout: probability that a sample loses its caption; what stands for none is what the pipeline uses.
        loss_weighting: a key of `objectives.WEIGHTINGS`, such as "min_snr".
        loss_weighting_options: of that weighting.
        flip: mirror half of the training images.
        workdir: of the run; latents and features go there where the data set's own folder cannot be written to.
        **options: of a `Trainer`: timesteps, seed, settings, writers.

    Raises:
        InputError: data without captions, or of a size that the networks cannot work with.
    """

    def __init__(
        self,
        pipe: StableDiffusion,
        data: Dataset,
        kind: Kind,
        *,
        learning_rate: optax.ScalarOrSchedule,
        optimizer: optax.GradientTransformation | None = None,
        prompt: Prompt | None = None,
        prior: Dataset | None = None,
        prior_weight: float = 1.0,
        condition_dropout: float = 0.0,
        loss_weighting: str = "none",
        loss_weighting_options: Mapping[str, float] | None = None,
        flip: bool = False,
        workdir: epath.PathLike | None = None,
        **options: Any,
    ):
        require(0 <= condition_dropout <= 1, f"condition_dropout={condition_dropout} must lie in [0, 1]")
        require(prior_weight >= 0, f"prior_weight={prior_weight} must not be negative")
        self.pipe, self.kind = pipe, kind
        in_step = bool(kind.networks.encoders)
        encoded = encode(pipe, data, prompt=prompt, tokens=in_step, flip=flip, cache_dir=workdir)
        if prior is not None:
            encoded = with_prior(encoded, encode(pipe, prior, tokens=in_step, cache_dir=workdir))
        weighting = {"loss_weighting": loss_weighting, "loss_weighting_options": dict(loss_weighting_options or {})}
        numbers = {"condition_dropout": condition_dropout, "prior_weight": prior_weight}
        said = {"prompt": prompt, "prior": None if prior is None else prior.fingerprint(), **numbers, **weighting}
        numbers["scaling_factor"] = pipe.parts.autoencoder.model.scaling_factor
        null: Any = absent(pipe.at_size(*data.image_shape[:2]), tokens=in_step)
        super().__init__(
            pipe.parts.unet.model,
            pipe.process,
            encoded,
            optimizer=adamw(learning_rate) if optimizer is None else optimizer,
            objective=objective(kind.networks, pipe.process, initial(kind), null, **numbers, **weighting),  # type: ignore[arg-type]
            trainable=kind.trainable,
            pretrained=lambda: stored(kind, kind.base),
            identity={"fine_tuning": {**kind.described, **said}},
            flip=flip,
            workdir=workdir,
            **options,
        )

    def learned(self, *, averaged: bool = False) -> Params:
        """The parameters of all parts after the last step, or their moving average, whole on every device."""
        require(self.state is not None, "nothing was trained yet; call fit(steps=, batch_size=)")
        assert self.state is not None
        whole = self.state.network(averaged=averaged)
        return jax.jit(lambda tree: tree, out_shardings=sharding.replicated(self.mesh))(whole)

    def pipeline(self, *, averaged: bool = False) -> StableDiffusion:
        """The pipeline with what was learned.

        Args:
            averaged: the moving average of the parameters, whose length `TrainSettings.ema_decay` says.
        """
        return self.kind.finished(self.pipe, self.learned(averaged=averaged))

    def save(self, path: epath.PathLike, *, averaged: bool = False) -> None:
        """Writes what was learned alone, as diffusers loads it.

        That is a `.safetensors` file of LoRA or of embeddings, a ControlNet's folder, or the whole model's.
        """
        self.kind.save(path, self.learned(averaged=averaged))


def adamw(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """The optimizer by default."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(learning_rate, weight_decay=0.01))


def initial(kind: Kind) -> Any:
    """`init(key)` of all parameters; those of the base are zeros until `stored` ones replace them."""
    shapes = jax.eval_shape(functools.partial(stored, kind), kind.base)
    return lambda key: {**jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes), **kind.init(key)}


def stored(kind: Kind, base: Params) -> Params:
    """The base's parameters as they are held: float32 where they are trained, kernels that are not as they are used."""
    unet: Any = kind.networks.unet
    dtype = getattr(unet, "dtype", None) or unet.unet.dtype

    def cast(path: tuple[str, ...], value: Any) -> Any:
        if kind.trainable(path):
            return value.astype(jnp.float32)
        return value.astype(dtype) if path[-1] == "kernel" else value

    return unflatten_dict({path: cast(path, value) for path, value in flatten_dict(base).items()})


def full(
    pipe: StableDiffusion,
    data: Dataset,
    *,
    text_encoder: bool = False,
    learning_rate: optax.ScalarOrSchedule = 1e-5,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
    **options: Any,
) -> FineTuner:
    """Trains all parameters of the U-Net; with `prior` as DreamBooth does (Ruiz et al. 2023).

    Args:
        pipe: to begin with.
        data: images and captions.
        text_encoder: train the text encoders as well.
        learning_rate: as of a `FineTuner`.
        dtype: of convolutions and matmuls; what is trained stays float32.
        remat: compute blocks again in the backward pass instead of keeping their activations.
        **options: of a `FineTuner`.
    """
    kind = methods.full(pipe.fused, dtype, remat, text_encoder=text_encoder)
    return FineTuner(pipe, data, kind, learning_rate=learning_rate, **options)


def lora(
    pipe: StableDiffusion,
    data: Dataset,
    *,
    rank: int = 8,
    alpha: float | None = None,
    layers: Layers = "attention",
    text_encoder: bool = False,
    learning_rate: optax.ScalarOrSchedule = 1e-4,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
    **options: Any,
) -> FineTuner:
    """Trains low-rank changes of matrices, W + alpha / rank * down @ up (Hu et al. 2022).

    Args:
        pipe: to begin with.
        data: images and captions.
        rank: of each change.
        alpha: None is the rank, so that the factor is 1.
        layers: a key of `LAYERS`, "attention", "transformer" or "all"; or a predicate on paths of the U-Net's kernels.
        text_encoder: change the attention of the text encoders as well.
        learning_rate: as of a `FineTuner`.
        dtype: of convolutions and matmuls; what is trained stays float32.
        remat: compute blocks again in the backward pass instead of keeping their activations.
        **options: of a `FineTuner`.
    """
    how: dict[str, Any] = {"rank": rank, "alpha": alpha, "layers": layers, "text_encoder": text_encoder}
    return FineTuner(pipe, data, methods.lora(pipe.fused, dtype, remat, **how), learning_rate=learning_rate, **options)


def controlnet(
    pipe: StableDiffusion,
    data: Dataset,
    *,
    learning_rate: optax.ScalarOrSchedule = 1e-5,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
    **options: Any,
) -> FineTuner:
    """Trains a new ControlNet beside the U-Net, which stays as it is (Zhang et al. 2023).

    Args:
        pipe: to begin with.
        data: images, captions and control images.
        learning_rate: as of a `FineTuner`.
        dtype: of convolutions and matmuls; what is trained stays float32.
        remat: compute blocks again in the backward pass instead of keeping their activations.
        **options: of a `FineTuner`.

    Raises:
        InputError: there are no control images.
    """
    require(data.control_channels > 0, f"{data.name} has no control images, which a ControlNet is trained on")
    kind = methods.controlnet(pipe.fused, dtype, remat, channels=data.control_channels)
    return FineTuner(pipe, data, kind, learning_rate=learning_rate, **options)


def textual_inversion(
    pipe: StableDiffusion,
    data: Dataset,
    token: str,
    *,
    initial: str,
    vectors: int = 1,
    learning_rate: optax.ScalarOrSchedule = 5e-4,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
    **options: Any,
) -> FineTuner:
    """Trains a new word, and nothing else (Gal et al. 2023).

    Args:
        pipe: to begin with.
        data: images, and captions that have the word; or give `prompt`, such as "a photo of <fox>".
        token: the word, such as "<fox>".
        initial: a word of the prompts' language whose embedding the new one begins with.
        vectors: number of embeddings that stand for it.
        learning_rate: as of a `FineTuner`.
        dtype: of convolutions and matmuls; what is trained stays float32.
        remat: compute blocks again in the backward pass instead of keeping their activations.
        **options: of a `FineTuner`.

    Raises:
        InputError: the word is a token already, or no caption has it.
    """
    require(vectors >= 1, f"vectors={vectors} must be 1 or more")
    rows = {}
    for name, part, tokenizer in zip(ENCODERS, pipe.parts.text_encoders, pipe.parts.tokenizers, strict=False):
        numbers = tokenizer.tokens(initial)
        require(bool(numbers), f"initial={initial!r} has no tokens; give a word, such as 'fox'")
        table = np.asarray(flatten_dict(part.params)[TABLE], np.float32)
        rows[name] = np.resize(table[numbers], (vectors, table.shape[1]))
    begun = pipe.with_embedding(list(rows.values()), token)
    kind = methods.textual_inversion(begun.fused, dtype, remat, token=token, rows=rows)
    tuner = FineTuner(begun, data, kind, learning_rate=learning_rate, **options)
    known = len(prompts_of(pipe).tokenizers[0].vocabulary)
    first = (tuner.data.parts or (tuner.data,))[0]
    tokens = first.read(np.arange(min(len(first), 64)))["tokens"]
    require(bool((tokens[:, 0] >= known).any()), f"no caption has {token!r}; give prompt='a photo of {token}'")
    return tuner


def save_run(
    tuner: FineTuner,
    folder: epath.PathLike,
    base: epath.PathLike,
    *,
    averaged: bool = False,
    zero_snr: bool = False,
    dtype: str = "float32",
    **options: Any,
) -> epath.Path:
    """Writes what was learned into the run's folder, and what `results.load` needs to find its base.

    Args:
        tuner: after its last step.
        folder: of the run.
        base: folder or file of the weights that it began with.
        averaged: the moving average of what was trained.
        zero_snr: the pipeline was made by `with_zero_snr`.
        dtype: of convolutions and matmuls when the run is loaded, a key of `models.registry.DTYPES`.
        options: that the base was loaded with, JSON-able.

    Returns:
        The file or the folder of what was learned.
    """
    described, place = tuner.kind.described, epath.Path(folder)
    path, learned = place / results.RESULTS[described["kind"]].name, tuner.learned(averaged=averaged)
    if distributed.is_main_process():
        tuner.kind.save(path, learned)
        where = str(epath.Path(base).expanduser().resolve())
        found = {"kind": described["kind"], "base": where, "options": options, "zero_snr": zero_snr, "dtype": dtype}
        write_json(place / results.FILE, found | {"token": described.get("token")})
    return path
