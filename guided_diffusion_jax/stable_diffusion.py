"""Stable Diffusion as a pipeline: its parts put together, with LoRA, ControlNets and textual inversion."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jax.typing import DTypeLike

from guided_diffusion_jax import checks, guidance, sharding
from guided_diffusion_jax.data.dataset import DatasetInfo
from guided_diffusion_jax.errors import require
from guided_diffusion_jax.generation import Request
from guided_diffusion_jax.interop import files, schedulers
from guided_diffusion_jax.interop import stable_diffusion as interop
from guided_diffusion_jax.interop.stable_diffusion import Loaded, Part, embeddings, lora, settings
from guided_diffusion_jax.interop.stable_diffusion.prompts import ClipPrompts
from guided_diffusion_jax.models.controlnet import ControlledUNet, controlnet_of
from guided_diffusion_jax.models.lora import Lora, merge
from guided_diffusion_jax.pipeline import Pipeline
from guided_diffusion_jax.training import latents

ENCODERS = ("text_encoder", "text_encoder_2")
WEIGHT, WEIGHT_XL = 6.5, 4.0
"""w of guidance by default: guidance scales 7.5 and 5, as in diffusers."""

Paths = epath.PathLike | Sequence[epath.PathLike]


class StableDiffusion(Pipeline):
    """Stable Diffusion 1, 2 or XL, which `load` makes of a folder or a file.

    Beside the keywords of a `Pipeline`, a call and `request` take those of `ClipPrompts.read` (clip_skip,
    prompt_weights and SDXL's sizes) and `guidance_rescale`.

    Args:
        parts: the networks, tokenizers and the scheduler's settings.
        image_size: (height, width) in pixels; None is what the U-Net was trained on.
        controlnets: that act on the U-Net.
        loras: changes of the parts' parameters by name, see `with_lora`.
        lora_scale: of each of `loras`.
        dtype: of convolutions and matmuls; SDXL's autoencoder stays float32, where it would overflow in float16.
        mesh: devices; None is all of them.
        name: shown in messages.

    Attributes:
        parts: as given.
    """

    def __init__(
        self,
        parts: Loaded,
        *,
        image_size: tuple[int, int] | None = None,
        controlnets: tuple[Part, ...] = (),
        loras: tuple[Mapping[str, Lora], ...] = (),
        lora_scale: tuple[float, ...] = (),
        dtype: DTypeLike = jnp.float32,
        mesh: Mesh | None = None,
        name: str = "Stable Diffusion",
    ):
        mesh = sharding.mesh() if mesh is None else mesh
        self.parts, self._controlnets, self._loras, self._lora_scale = parts, controlnets, loras, lora_scale
        self._dtype = dtype
        self._sizes: dict[tuple[int, int], StableDiffusion] = {}
        large = parts.unet.model.text_time is not None
        coder = parts.autoencoder.model.clone(dtype=jnp.float32 if large else dtype)
        native = (parts.sample_size * coder.factor,) * 2
        size = native if image_size is None else image_size
        merged = self.fused
        unet, params = parts.unet.model.clone(dtype=dtype), merged.unet.params
        if controlnets:
            nets = tuple(net.model.clone(dtype=dtype) for net in controlnets)
            unet = ControlledUNet(unet, nets)
            params = {"unet": params} | {f"controlnets_{i}": net.params for i, net in enumerate(controlnets)}
        codec = latents.codec(Part(coder, parts.autoencoder.params), (*size, coder.channels), mesh)
        unet.check(codec.shape)
        _check_fit(parts)
        super().__init__(
            unet,
            params,
            schedulers.process(parts.scheduler),
            info=DatasetInfo(name=name, length=0, image_shape=(*size, 3), class_names=()),
            codec=codec,
            text_encoder=self._prompts(merged, size),
            mesh=mesh,
            scheduler=parts.scheduler,
            default_weight=WEIGHT_XL if large else WEIGHT,
        )

    def __call__(
        self,
        *,
        height: int | None = None,
        width: int | None = None,
        lora_scale: float | Sequence[float] | None = None,
        **wishes: Any,
    ) -> np.ndarray:
        """Generates images, see `Pipeline.__call__`.

        Args:
            height: in pixels; another size than the one before compiles a program of its own.
            width: likewise.
            lora_scale: of each LoRA, in the place of those that they were loaded with; numbers compile nothing.
            **wishes: keywords of a `Pipeline`.
        """
        size = self.info.image_shape
        pipe = self.at_size(size[0] if height is None else height, size[1] if width is None else width)
        pipe = pipe if lora_scale is None else pipe.with_lora_scale(lora_scale)
        return Pipeline.__call__(pipe, **wishes)

    @property
    def keywords(self) -> tuple[str, ...]:
        """What `request` takes."""
        return (*super().keywords, "guidance_rescale")

    def request(self, *, guidance_rescale: float = 0.0, **wishes: Any) -> Request:
        """Request with the keywords of a call; see `generate`.

        Args:
            guidance_rescale: share of the rescaled prediction, 0 to 1 (see `guidance.rescale`).
            **wishes: keywords of a `Pipeline`.
        """
        if guidance_rescale:
            given = wishes.get("guidance") or ()
            rules = given if isinstance(given, list | tuple) and not hasattr(given, "_fields") else (given,)
            wishes["guidance"] = [*rules, guidance.rescale(guidance_rescale, self.process.prediction)]
        return super().request(**wishes)

    def at_size(self, height: int, width: int) -> "StableDiffusion":
        """The same pipeline for images of another size, multiples of the autoencoder's factor."""
        size = checks.integer("height", height, 1), checks.integer("width", width, 1)
        if size == self.info.image_shape[:2]:
            return self
        if size not in self._sizes:
            self._sizes[size] = self._with(image_size=size)
        return self._sizes[size]

    def with_lora(
        self, source: epath.PathLike | Mapping[str, Lora], scale: float = 1.0, *, fuse: bool = False
    ) -> "StableDiffusion":
        """The pipeline with the changes of a file of LoRA, kohya's or diffusers'.

        Args:
            source: `.safetensors`, or one of torch's files; or the changes by the networks' names.
            scale: of the changes; `lora_scale` of a call replaces it.
            fuse: make them part of the weights, once and for all.

        Raises:
            InputError: the file fits another base; it names what does not fit.
        """
        changes = source if isinstance(source, Mapping) else lora.load(source, self._models)
        scale = checks.real("scale", scale)
        if not fuse:
            return self._with(loras=(*self._loras, changes), lora_scale=(*self._lora_scale, scale))
        return self._with(parts=_merged(self.parts, changes, scale))

    def with_parts(self, parts: Loaded) -> "StableDiffusion":
        """The pipeline with other networks or another scheduler, and without LoRA."""
        return self._with(parts=parts, loras=(), lora_scale=())

    def with_controlnet(self, controlnet: Part) -> "StableDiffusion":
        """The pipeline with one more ControlNet."""
        return self._with(controlnets=(*self._controlnets, controlnet))

    def with_lora_scale(self, scale: float | Sequence[float]) -> "StableDiffusion":
        """The pipeline with other scales of its LoRA: one for all, or one for each. It compiles nothing."""
        count = len(self._loras)
        scales = list(scale) if isinstance(scale, Sequence) else [scale] * count
        require(count > 0, "lora_scale is given, but no LoRA was loaded; use with_lora")
        require(len(scales) == count, f"lora_scale has {len(scales)} numbers for {count} files of LoRA")
        other = copy.copy(self)
        other._lora_scale = tuple(checks.real("lora_scale", one) for one in scales)
        other._sizes = {}
        merged = other.fused
        params = {**self.params, "unet": merged.unet.params} if self._controlnets else merged.unet.params
        other.params = jax.device_put(params, sharding.shardings(params, self.mesh))
        other.prompts = other.text_encoder = other._prompts(merged, self.info.image_shape[:2])
        return other

    def with_embedding(
        self, source: epath.PathLike | Sequence[np.ndarray], token: str | None = None
    ) -> "StableDiffusion":
        """The pipeline with words of textual inversion.

        Args:
            source: a file of learned embeddings; or those of each text encoder, `[k d]`.
            token: that stands for them in a prompt; None is the file's own.

        Raises:
            InputError: they are for another text encoder.
        """
        if isinstance(source, list | tuple):
            require(bool(token), "embeddings that are no file need token=, the word that stands for them")
            return self._with(parts=embeddings.extended(self.parts, source, str(token)))
        return self._with(parts=embeddings.load(self.parts, source, token))

    def save(self, path: epath.PathLike) -> None:
        """Writes a folder that diffusers loads, the LoRA fused."""
        interop.save(path, self.fused)

    @property
    def fused(self) -> Loaded:
        """The parts with all LoRA in their weights."""
        parts = self.parts
        for changes, scale in zip(self._loras, self._lora_scale, strict=True):
            parts = _merged(parts, changes, scale)
        return parts

    @property
    def _models(self) -> dict[str, Any]:
        texts = (part.model for part in self.parts.text_encoders)
        return {"unet": self.parts.unet.model, **dict(zip(ENCODERS, texts, strict=False))}

    def _with(self, **changed: Any) -> "StableDiffusion":
        settings: dict[str, Any] = {
            "parts": self.parts, "image_size": self.info.image_shape[:2], "controlnets": self._controlnets,
            "loras": self._loras, "lora_scale": self._lora_scale, "dtype": self._dtype, "mesh": self.mesh,
            "name": self.info.name,
        }  # fmt: skip
        return StableDiffusion(**{**settings, **changed})

    def _prompts(self, merged: Loaded, image_size: tuple[int, int]) -> ClipPrompts:
        texts = merged.text_encoders
        return ClipPrompts(
            tuple(part.model for part in texts),
            tuple(part.params for part in texts),
            self.parts.tokenizers,
            image_size,
            sizes=len(texts) > 1,
            zero_negative=len(texts) > 1 and self.parts.zero_negative,
        )


def load(
    path: epath.PathLike,
    *,
    controlnet: Paths = (),
    unet: epath.PathLike | None = None,
    vae: epath.PathLike | None = None,
    image_size: int | tuple[int, int] | None = None,
    dtype: DTypeLike = jnp.float32,
    mesh: Mesh | None = None,
    **options: Any,
) -> StableDiffusion:
    """Pipeline of a folder in diffusers' layout, or of a single file in the original one.

    Args:
        path: the folder or the file.
        controlnet: folder or file of a ControlNet, or of several.
        unet: folder or file of another U-Net, such as the one for inpainting.
        vae: folder or file of another autoencoder. A file has the settings of the network that it replaces.
        image_size: height and width in pixels; None is what the U-Net was trained on.
        dtype: of convolutions and matmuls; parameters stay as they are stored.
        mesh: devices; None is all of them.
        options: for a file, what it does not tell: see `interop.stable_diffusion.single.load`.

    Raises:
        InputError: another kind of model, or a part of it is missing.
    """
    parts = interop.load(path, **options)
    if unet is not None:
        parts = parts._replace(unet=_network(unet, settings.unet, parts.unet.model))
    if vae is not None:
        parts = parts._replace(autoencoder=_network(vae, settings.autoencoder, parts.autoencoder.model))
    sources: Sequence[Any] = controlnet if isinstance(controlnet, list | tuple) else [controlnet]
    branch = controlnet_of(parts.unet.model)
    controlnets = tuple(_network(source, settings.controlnet, branch) for source in sources)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    name = epath.Path(path).name
    return StableDiffusion(parts, image_size=size, controlnets=controlnets, dtype=dtype, mesh=mesh, name=name)


def _network(source: epath.PathLike, module_of: Any, module: Any) -> Part:
    """A network of a folder in diffusers' layout, or of a file, which has the settings of `module`."""
    source = epath.Path(source)
    if source.suffix in files.READERS and not source.is_dir():
        return interop.single.load_part(source, module)
    return interop.load_part(source, module_of)


def _check_fit(parts: Loaded) -> None:
    """Raises `InputError` where the text encoders do not give what the U-Net reads."""
    unet: Any = parts.unet.model
    texts: list[Any] = [part.model for part in parts.text_encoders]
    wanted = {"text": unet.text.features, "pooled text": unet.text_time.pooled if unet.text_time else 0}
    found = {"text": sum(net.width for net in texts), "pooled text": texts[-1].projection if unet.text_time else 0}
    for name, features in wanted.items():
        require(
            found[name] == features,
            f"the U-Net reads {features} features of {name}, and the text encoders give {found[name]}: they are of "
            "different models",
        )


_merge = jax.jit(merge, static_argnames="dtype")


def _merged(parts: Loaded, changes: Mapping[str, Lora], scale: float) -> Loaded:
    """Parts with the changes in their weights."""

    def changed(name: str, part: Part) -> Part:
        if name not in changes:
            return part
        model: Any = part.model
        dtype = jnp.float32 if model.dtype == jnp.float32 else None  # weights may be stored in half of the precision
        return part._replace(params=_merge(part.params, changes[name], np.float32(scale), dtype=dtype))

    texts = tuple(map(changed, ENCODERS, parts.text_encoders))
    return parts._replace(unet=changed("unet", parts.unet), text_encoders=texts)
