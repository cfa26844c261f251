"""The autoencoder of latent diffusion (Rombach et al. 2022, section 3.1), made of a U-Net's parts."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from guided_diffusion_jax.codecs import Codec
from guided_diffusion_jax.errors import require
from guided_diffusion_jax.models.checks import check_backbone, check_whole
from guided_diffusion_jax.models.encoder import Encoder, norm_of, run_stage
from guided_diffusion_jax.models.layers import conv3x3, dense
from guided_diffusion_jax.models.placement import BlockConditioning
from guided_diffusion_jax.models.plan import Backbone, decoder_plan, level_channels, middle_plan, resolutions
from guided_diffusion_jax.typing import Images, Params


class Posterior(NamedTuple):
    """N(mean, exp(logvar)) of the latents of images: the encoder's output, `[b h w z]` each."""

    mean: Float[Array, "b h w z"]
    logvar: Float[Array, "b h w z"]

    @property
    def std(self) -> Float[Array, "b h w z"]:
        """Standard deviation."""
        return jnp.exp(self.logvar / 2)

    def sample(self, key: Key[Array, ""]) -> Float[Array, "b h w z"]:
        """Mean plus standard deviation times normal noise."""
        return self.mean + self.std * jax.random.normal(key, self.mean.shape, self.mean.dtype)

    def kl(self) -> Float[Array, " b"]:
        """KL divergence from N(0, 1), in nats, the sum over an image (Kingma & Welling 2014, appendix B)."""
        return 0.5 * jnp.sum(self.mean**2 + jnp.exp(self.logvar) - 1 - self.logvar, axis=(1, 2, 3))


class LatentEncoder(nn.Module):
    """Images to twice the latents' channels: a U-Net's first half without time, norm, SiLU and a convolution."""

    settings: Backbone
    channels: int

    @nn.compact
    def __call__(self, images: Images, *, train: bool) -> Float[Array, "b h2 w2 {self.channels}"]:
        h, _ = Encoder(self.settings, name="encoder")(images, unconditioned(self.settings, images), train=train)
        return _output(self.settings, h, self.channels)


class LatentDecoder(nn.Module):
    """Latents to images: a convolution, the middle, and a U-Net's second half without skips, time and attention."""

    settings: Backbone
    channels: int

    @nn.compact
    def __call__(self, z: Float[Array, "b h w z"], *, train: bool) -> Float[Array, "b h2 w2 {self.channels}"]:
        net, size = self.settings, z.shape[1] << (len(self.settings.channel_mult) - 1)
        conditioning = dict.fromkeys(resolutions(net, size), BlockConditioning())
        h = conv3x3(level_channels(net)[-1], dtype=net.dtype, name="input_conv")(z)
        for stage in (*middle_plan(net, size), *decoder_plan(net, size)):
            h = run_stage(net, stage, h, conditioning, train=train)
        return _output(net, h, self.channels)


def unconditioned(settings: Backbone, images: Images) -> dict[int, BlockConditioning]:
    """Nothing for the blocks of each resolution."""
    return dict.fromkeys(resolutions(settings, images.shape[1]), BlockConditioning())


def _output(settings: Backbone, h: Array, channels: int) -> Array:
    h = nn.silu(norm_of(settings)(name="output_norm")(h))
    return conv3x3(channels, dtype=settings.dtype, name="output_conv")(h).astype(jnp.float32)


class AutoencoderKL(nn.Module):
    """Variational autoencoder whose latents are smaller by a factor of two a level beyond the first.

    Attributes:
        width: channels at multiplier 1.
        channel_mult: each level's multiple of `width`.
        num_res_blocks: of a level of the encoder; the decoder has one more.
        latent_channels: of the latents.
        channels: of the images.
        scaling_factor: what a diffusion model sees is the latents times this number.
        norm_groups: of the group normalisations, whose eps is 1e-6.
        dtype: of convolutions and matmuls; parameters, norms and softmax stay float32.
        remat: compute the blocks again in the backward pass instead of keeping their activations.
    """

    width: int = 128
    channel_mult: tuple[int | float, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    latent_channels: int = 4
    channels: int = 3
    scaling_factor: float = 0.18215
    norm_groups: int = 32
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @property
    def backbone(self) -> Backbone:
        """Settings of the blocks of both halves."""
        return Backbone(
            width=self.width,
            channel_mult=self.channel_mult,
            num_res_blocks=self.num_res_blocks,
            attention_resolutions=(),
            head_width=0,
            num_heads=1,
            time_injection="add",
            resample="conv_same",
            norm_groups=self.norm_groups,
            norm_eps=1e-6,
            dtype=self.dtype,
            remat=self.remat,
        )

    @property
    def factor(self) -> int:
        """Pixels of an image for a latent, in height and in width."""
        return 2 ** (len(self.channel_mult) - 1)

    def setup(self) -> None:
        self.encoder = LatentEncoder(self.backbone, 2 * self.latent_channels)
        self.decoder = LatentDecoder(self.backbone, self.channels)
        self.moments = dense(2 * self.latent_channels, dtype=self.dtype)
        self.from_latents = dense(self.latent_channels, dtype=self.dtype)

    def __call__(
        self, images: Float[Array, "b h w c"], key: Key[Array, ""] | None = None, *, train: bool = False
    ) -> tuple[Float[Array, "b h w c"], Posterior]:
        """Reconstructions, of a sample of the posterior or without a key of its mean, and the posterior."""
        posterior = self.encode(images, train=train)
        return self.decode(posterior.mean if key is None else posterior.sample(key), train=train), posterior

    def encode(self, images: Float[Array, "b h w c"], *, train: bool = False) -> Posterior:
        """The posterior of images in [-1, 1], float32, without the scaling factor; logvar is kept in [-30, 20]."""
        moments = self.moments(self.encoder(images, train=train)).astype(jnp.float32)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return Posterior(mean, jnp.clip(logvar, -30.0, 20.0))

    def decode(self, z: Float[Array, "b h w z"], *, train: bool = False) -> Float[Array, "b h2 w2 c"]:
        """Images of latents without the scaling factor, float32, not clipped."""
        return self.decoder(self.from_latents(z), train=train)

    @nn.nowrap
    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raises `InputError` for settings that cannot work with images `(h, w, c)`, before any compilation."""
        for key in ("latent_channels", "channels"):
            check_whole(getattr(self, key), f"autoencoder.{key}", least=1)
        check_backbone(self.backbone, image_shape, part="autoencoder")
        require(
            image_shape[2] == self.channels,
            f"the images have {image_shape[2]} channels, but autoencoder.channels={self.channels}.",
        )


def init_params(autoencoder: AutoencoderKL, key: Key[Array, ""]) -> Params:
    """Fresh parameters; under `jax.eval_shape` their shapes alone."""
    size = autoencoder.factor
    return autoencoder.init(key, jnp.zeros((1, size, size, autoencoder.channels)))["params"]


def latent_codec(autoencoder: AutoencoderKL, params: Params, image_size: int | tuple[int, int]) -> Codec:
    """Codec between images in [-1, 1] and the posterior's mean times the scaling factor.

    Args:
        autoencoder: the network.
        params: its parameters, which travel with the functions as inputs of compiled programs.
        image_size: height and width in pixels, or one number for both; multiples of `autoencoder.factor`.

    Raises:
        InputError: a size that the autoencoder cannot make smaller.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    factor, image_shape = autoencoder.factor, (height, width, autoencoder.channels)
    autoencoder.check(image_shape)
    shape = (height // factor, width // factor, autoencoder.latent_channels)
    encode, decode = (functools.partial(function, autoencoder) for function in (_scaled_latents, _decoded_images))
    return Codec(Partial(encode, params), Partial(decode, params), shape, None, image_shape)


def _scaled_latents(autoencoder: AutoencoderKL, params: Params, images: Images) -> Float[Array, "b h2 w2 z"]:
    posterior: Any = autoencoder.apply({"params": params}, images, method="encode")
    return posterior.mean * autoencoder.scaling_factor


def _decoded_images(
    autoencoder: AutoencoderKL, params: Params, latents: Float[Array, "b h w z"]
) -> Float[Array, "b h2 w2 c"]:
    images: Any = autoencoder.apply({"params": params}, latents / autoencoder.scaling_factor, method="decode")
    return images
