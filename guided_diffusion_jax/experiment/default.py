"""Every key of a configuration: its default, what it means and which values it takes.

`--help` prints this table, and every value is checked by it before anything is compiled. The defaults are a U-Net for
32x32 images of any data set.
"""

from types import MappingProxyType

import jax.numpy as jnp
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from guided_diffusion_jax import sharding
from guided_diffusion_jax.experiment.keys import (
    FLAG,
    SEED,
    Key,
    Values,
    choice,
    integer,
    path,
    real,
    rows,
    section,
    several,
    text,
)
from guided_diffusion_jax.experiment.sampling_keys import IMAGES, PIXELS, SAMPLING
from guided_diffusion_jax.finetuning.results import RESULTS
from guided_diffusion_jax.gaussian import VARIANCES
from guided_diffusion_jax.interop.layout import ORDERS, POOLS
from guided_diffusion_jax.interop.stable_diffusion import PRESETS as BASES
from guided_diffusion_jax.models import lora
from guided_diffusion_jax.models.encoder import RESAMPLERS
from guided_diffusion_jax.models.layers import TIME_INJECTIONS
from guided_diffusion_jax.models.placement import FUSIONS
from guided_diffusion_jax.objectives import LOSSES, TIMESTEPS, WEIGHTINGS
from guided_diffusion_jax.objectives.autoencoder import PIXEL_LOSSES
from guided_diffusion_jax.prediction import PREDICTIONS
from guided_diffusion_jax.runtime.disk import POLICIES
from guided_diffusion_jax.schedules import SCHEDULES
from guided_diffusion_jax.training.optimizers import LR_SCHEDULES, OPTIMIZERS
from guided_diffusion_jax.training.power_ema import LONGEST

GROUPS = {
    "": "of the whole run",
    "data": "the images, and what the model is conditioned on",
    "model": "the network",
    "diffusion": "the process of noise",
    "train": "training, --mode=train",
    "sample": "generating images, --mode=sample; also the previews of training",
    "weights": "what is loaded beside the weights of Stable Diffusion, where --workdir is its folder or file",
    "finetune": "fine-tuning of Stable Diffusion, --mode=finetune, with the keys of data and train",
    "autoencoder": "what makes latents of images, --mode=autoencoder",
    "classifier": "the noise-aware classifier that can steer the model, --mode=classifier",
    "evaluate": "metrics, --mode=evaluate",
    "report": "the report, --mode=report",
}
"""Sections of the configuration."""

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
NETWORKS = ("unet", "super_resolution", "controlnet", "lora")
VERIFY = {"auto": None, "on": True, "off": False}

CHANNELS, LAYERS, STEPS = integer(1, 65536), integer(1, 256), integer(1, 10**12)
FEATURE_MAPS = several(integer(1), "pixels of feature maps, e.g. 16,8; nothing is none")
FRACTION = real(0, 1)
NUMBERS = "numbers, e.g. 0,1,2; nothing is none"
LABEL = Values("name or number of a class", lambda name, value: None, str)

_MODEL = {
    "width": Key(128, "channels of the first level", CHANNELS),
    "channel_mult": Key(
        (1, 2, 2, 2), "factors of width, a level each; each further level halves the image", several(real(0, 1024))
    ),
    "num_res_blocks": Key(2, "residual blocks of a level", LAYERS),
    "attention_resolutions": Key((16, 8), "where there is attention", FEATURE_MAPS),
    "head_width": Key(64, "channels of an attention head", integer(0, note="0: num_heads heads")),
    "num_heads": Key(4, "attention heads where head_width is 0", integer(1)),
    "dropout": Key(0.1, "of activations", real(0, 1, below=True, note="0 turns dropout off")),
    "time_injection": Key("scale_shift", "how the embedding enters the blocks", choice(TIME_INJECTIONS)),
    "resample": Key("block", "how levels are joined", choice(RESAMPLERS)),
    "dtype": Key("float32", "of convolutions and matmuls; bfloat16 on accelerators", choice(DTYPES)),
    "attention_order": Key("legacy", "of qkv in guided-diffusion's files, for --mode=import", choice(ORDERS)),
    "remat": Key(False, "on accelerators less memory for more time; on a CPU only more time", FLAG),
}

_TRAIN = {
    "batch_size": Key(128, "images of a step, over all devices", integer(1, IMAGES)),
    "steps": Key(200_000, "the last step, counted from the beginning of the run", STEPS),
    "optimizer": Key("adamw", "update rule", choice(OPTIMIZERS)),
    "learning_rate": Key(2e-4, "after the warm-up", real(0)),
    "lr_schedule": Key("constant", "learning rate after the warm-up; cosine falls to 0", choice(LR_SCHEDULES)),
    "decay_steps": Key(0, "length of cosine, start of inverse_sqrt", integer(0, note="0 is steps")),
    "warmup_steps": Key(1000, "steps in which the learning rate grows to its value", integer()),
    "weight_decay": Key(0.0, "of the optimizer", real(0)),
    "grad_clip": Key(1.0, "largest norm of the gradient", real(0, note="0 is none")),
    "ema_decay": Key(
        0.9999, "of the average of the parameters that samples use", real(0, 1, below=True, note="0 turns EMA off.")
    ),
    "ema_warmup": Key(True, "the decay grows from 0.1 at the start", FLAG),
    "power_ema": Key(
        (), "averages with power functions as profiles, for sample.ema of any length; costs a copy of the model each",
        several(real(0, LONGEST), "lengths sigma_rel in (0, 0.28], e.g. 0.05,0.1; nothing is none"),
    ),
    "power_ema_keep": Key(100, "snapshots of these that are kept, one with each checkpoint", integer(1)),
    "log_every": Key(100, "steps between two lines of metrics; short runs log at least ten lines", STEPS),
    "save_every": Key(5000, "steps between two checkpoints", integer(0, note="0: at the end alone")),
    "sample_every": Key(
        5000, "steps between two grids of samples; there is one in the middle at least and one at the end",
        integer(0, note="0: none"),
    ),
    "keep": Key(3, "checkpoints that are kept", integer(1)),
    "verify": Key("auto", "checksums of checkpoints; auto: of local folders", choice(VERIFY)),
    "on_full_disk": Key("stop", "go_on leaves out what finds no room until the next save", choice(POLICIES)),
    "parallel": Key(
        "data_parallel", "the whole state on every device; fsdp: sharded, for models that outgrow one",
        choice(sharding.STRATEGIES),
    ),
    "shards": Key(0, "of fsdp: devices that hold a state together", integer(0, note="0 is all, up to 64")),
    "accumulate": Key(
        1, "parts of a device's batch that come one after the other; more is less memory", integer(1, IMAGES)
    ),
    "bad_step": Key(
        "stop", "at a loss or gradient that is not finite, or a spike; skip leaves such steps out",
        choice(("stop", "skip")),
    ),
    "grad_spike": Key(0.0, "a gradient norm of so many times the usual is a spike", real(0, note="0: none is")),
}  # fmt: skip
"""Keys of `train` that a classifier has as well."""

CLASSIFIER_TRAINING = tuple(_TRAIN)
"""Their names."""


KEYS: MappingProxyType[str, Key] = MappingProxyType({
    "seed": Key(0, "of parameters, noise and the order of the data", SEED),

    "data.name": Key(
        "folder", "data set",
        text("folder, digits, shapes/PIXELS, or the name of any TFDS image data set, such as cifar10"),
    ),
    "data.data_dir": Key("", "the folder of images; or where prepared TFDS data sets are", path("folder")),
    "data.image_size": Key(32, "pixels; images are cropped to the centre and scaled", PIXELS),
    "data.channels": Key(
        0, "of the images", integer(0, 3, "1: grey, 3: RGB; 0: as the images are")
    ),
    "data.labels": Key(
        "", "where the classes come from", text("a feature; for a folder: folder, filename or a table's column")
    ),
    "data.flip": Key(True, "mirror half of the training images", FLAG),
    "data.low_res_size": Key(
        0, "pixels of the small image that a super-resolution model enlarges", integer(0, 8192, "0: no such model")
    ),
    "data.null_label": Key(
        None, "for --mode=import: row of the class embedding that is a trained null class", integer()
    ),
    "data.attributes": Key(
        (), "features of the data set with named values that are conditions", several(text(), "names, e.g. colour,size")
    ),
    "data.text": Key(
        "", "feature that is the caption", text("name; for a folder the column of a table, such as caption")
    ),
    "data.caption_has": Key("", "keep only examples whose caption has this word", text("nothing keeps all")),
    "data.caption_lacks": Key("", "leave out examples whose caption has this word", text("nothing leaves none out")),
    "data.reference_image": Key("", "feature that is an image of the same style", text("name; nothing is none")),
    "data.control_image": Key(
        "", "feature that is a spatial map; for a folder the folder of maps", path("name or folder; nothing is none")
    ),

    "model.name": Key(
        "unet", "controlnet and lora need pretrained; controlnet also data.control_image", choice(NETWORKS)
    ),
    **section("model", _MODEL),
    "model.norm_groups": Key(
        32, "of the group normalisations; a group of one channel, as in networks of 32, loses that channel's mean",
        integer(1, 1024),
    ),
    "model.use_labels": Key(True, "False ignores the classes of the data", FLAG),
    "model.class_fusion": Key("add", "of time and class embedding", choice(FUSIONS)),
    "model.inpainting": Key(False, "train to complete images: the model sees them with a part masked", FLAG),
    "model.text_encoder": Key(
        "bytes", "what reads captions",
        path("bytes, trained with the model; or a name or path for transformers, frozen"),
    ),
    "model.text_length": Key(64, "bytes, or tokens of a frozen encoder, that are read", integer(1, 65536)),
    "model.text_width": Key(128, "channels of the text's tokens", CHANNELS),
    "model.text_depth": Key(2, "layers of the byte encoder's Transformer", integer(0, 256)),
    "model.reference_width": Key(128, "channels of its tokens; text_width where a model has both", CHANNELS),
    "model.reference_depth": Key(3, "how often the reference image is halved on the way to its tokens", integer(0, 16)),
    "model.condition_resolutions": Key(
        (), "where conditions enter, if not by default: label and attributes by the embedding, text and reference "
        "image where there is attention, a control image beside the input",
        rows('condition and pixels of feature maps, e.g. (("text", (16, 8)),)', text(), FEATURE_MAPS),
    ),

    "model.autoencoder": Key(
        "", "run or Stable Diffusion whose autoencoder makes the latents that the model sees",
        path("folder, also one in the run's own such as autoencoder; nothing is pixels"),
    ),

    "pretrained": Key(
        "", "run whose U-Net is the frozen base of model.name=controlnet or lora", path("folder; nothing is none")
    ),
    "model.lora_rank": Key(4, "of model.name=lora: of the change of each matrix", integer(1, 1024)),
    "model.lora_alpha": Key(0.0, "its changes are times alpha / rank", real(0, note="0: alpha is the rank")),
    "model.lora_layers": Key("attention", "which matrices it changes", choice(lora.LAYERS)),

    "diffusion.schedule": Key("cosine", "of noise", choice(SCHEDULES)),
    "diffusion.num_steps": Key(1000, "T, noise levels in training", integer(1, 10**6)),
    "diffusion.prediction": Key("eps", "what the network predicts", choice(PREDICTIONS)),
    "diffusion.shift": Key(
        1.0, "how many times the noise: about pixels / 64; with rectified_flow as in Stable Diffusion 3",
        real(0.001, 1000, note="1 is none"),
    ),
    "diffusion.zero_terminal_snr": Key(False, "end at pure noise; not with prediction=eps", FLAG),
    "diffusion.sigma_data": Key(0.5, "standard deviation of the images, for prediction=edm", real(0.001, 1000)),
    "diffusion.variance": Key("fixed_small", "of a step of DDPM", choice(VARIANCES)),

    "train.loss": Key(
        "mse", "with a learned variance mse adds L_vlb, rescaled_mse T/1000 of it; kl, rescaled_kl: L_vlb alone",
        choice(LOSSES),
    ),
    "train.timesteps": Key(
        "uniform", "noise levels of training; loss_second_moment: more often those where the loss is large",
        choice(TIMESTEPS),
    ),
    "train.timestep_options": Key(
        (), "numbers of timesteps: mean, std, uniform_share",
        rows('option and number, e.g. (("mean", -1.2), ("std", 1.2))', text(), real()),
    ),
    "train.loss_weighting": Key(
        "none", "of the squared error by noise level; learned: an uncertainty is trained along", choice(WEIGHTINGS)
    ),
    "train.loss_weighting_options": Key(
        (), "numbers of loss_weighting: gamma, k, bias, sigma_data",
        rows('option and number, e.g. (("gamma", 5.0),)', text(), real()),
    ),
    "train.cfg_dropout": Key(
        0.1, "share of samples that lose all conditions, for classifier-free guidance; 0: purely conditional, "
        "1: unconditional", FRACTION,
    ),
    **section("train.per_condition_dropout", {
        name: Key(0.0, "share of samples that lose this condition alone", FRACTION)
        for name in ("label", "attributes", "text", "reference_image", "control_image", "masked_image")
    }),
    **section("train", _TRAIN),

    **SAMPLING,

    "classifier.attribute": Key("label", "what it predicts", text('label, the class; or for digits "ink", "parity"')),
    "classifier.crop": Key(
        0, "pixels by which training images are shifted at random; ADM pairs it with data.flip", integer(0, 8192)
    ),
    **section("classifier.model", _MODEL, width=64, dropout=0.0),
    "classifier.model.pool": Key("attention", "from the feature map to the classes", choice(POOLS)),
    **section(
        "classifier.train", _TRAIN,
        batch_size=256, steps=50_000, learning_rate=3e-4, weight_decay=0.05, ema_decay=0.0, sample_every=0,
    ),

    "finetune.base": Key(
        "", "Stable Diffusion to begin with", path(f"its folder or file; for a dry run also {', '.join(BASES)}")
    ),
    "finetune.method": Key("lora", "what is trained", choice(RESULTS)),
    "finetune.rank": Key(8, "of LoRA", integer(1, 65536)),
    "finetune.alpha": Key(None, "of LoRA, whose changes are times alpha / rank; by default the rank", real(0)),
    "finetune.layers": Key("attention", "of the U-Net, that LoRA changes", choice(lora.LAYERS)),
    "finetune.text_encoder": Key(False, "of lora and full: the text encoders as well", FLAG),
    "finetune.token": Key("", "of textual_inversion: the new word", text("such as <fox>")),
    "finetune.initial": Key("", "of textual_inversion: the word that it begins as", text("such as fox")),
    "finetune.vectors": Key(1, "of textual_inversion: embeddings that stand for the word", integer(1, 75)),
    "finetune.prompt": Key("", "caption of all images in the place of their own", text()),
    "finetune.prior_prompt": Key(
        "", "of class images by the base itself, which keep what it knew (DreamBooth)", text("text; nothing is none")
    ),
    "finetune.prior_count": Key(200, "of these images", integer(1, IMAGES)),
    "finetune.prior_weight": Key(1.0, "of their loss", real(0)),
    "finetune.buckets": Key(
        0, "images of several aspect ratios, about as large as data.image_size: pixels that their sides are multiples "
        "of, usually 64", integer(0, 8192, "0: squares"),
    ),
    "finetune.zero_snr": Key(False, "noise levels that end at pure noise; for networks that predict v", FLAG),

    "autoencoder.loss": Key(
        "l1", "of the pixels; mse for drawings, whose plain ground decides l1", choice(PIXEL_LOSSES)
    ),
    "autoencoder.kl_weight": Key(1e-6, "of the latents' KL divergence, against the sum of the pixels' errors", real(0)),
    **section(
        "autoencoder.model",
        {key: _MODEL[key] for key in ("width", "channel_mult", "num_res_blocks", "dtype", "remat")},
        width=64, channel_mult=(1, 2, 4),
    ),
    "autoencoder.model.latent_channels": Key(4, "of the latents", CHANNELS),
    **section("autoencoder.train", _TRAIN, batch_size=32, steps=50_000, ema_decay=0.999, sample_every=0),

    "evaluate.count": Key(
        0, "images", integer(0, IMAGES, "0 is all of the split, and for scores as many, up to 10,000")
    ),
    "evaluate.batch_size": Key(100, "images at a time", integer(1, IMAGES)),
    "evaluate.split": Key("test", "of the data set", text("test, train or another of the data set's splits")),
    "evaluate.metrics": Key(
        ("bpd",), "bpd: bits per dimension; scores: generated images against the training split by FD, KID, precision, "
        "recall and others; adherence: for shapes, whether images show what they were asked for",
        several(text(), "bpd, adherence or scores, or several with commas"),
    ),
    "evaluate.conditions": Key(
        (), "what the images of adherence are generated with", several(text(), "names of conditions; nothing is all")
    ),
    "evaluate.bound_steps": Key(0, "of the variational bound", integer(0, note="0 is all T, the tightest")),
    "evaluate.features": Key(
        "own", "what scores compare; own: of a small classifier, trained on the data set itself; inception is FID",
        text("own, pixels, inception or dinov2"),
    ),
    "evaluate.feature_weights": Key("", "weights of Inception or DINOv2", path("file; nothing is none")),
    "evaluate.reference": Key(
        "", "what to compare with", path("a VIRTUAL_*.npz, any file or folder of images; nothing is the training split")
    ),
    "evaluate.samples": Key(
        "", "images to be scored, and nothing else", path("folder, or .npz like samples.npz; nothing generates images")
    ),
    "evaluate.sweep.weight": Key(
        (), "instead of metrics: scores and cost at each of these weights of CFG",
        several(real(), "numbers, e.g. 0,0.5,1,2; nothing is none"),
    ),
    "evaluate.sweep.classifier_weight": Key(
        (), "the same for the classifier that --mode=classifier trained", several(real(), "numbers; nothing is none")
    ),
    "evaluate.sweep.steps": Key(
        (), "numbers of steps, each with each weight", several(integer(1), "whole numbers; nothing is sample.steps")
    ),

    "report.compare_methods": Key(
        False, "also train three ways of steering, three times each, and compare them", FLAG
    ),
})  # fmt: skip
"""All keys of the configuration by name. A new key is an entry here."""


def get_config() -> ConfigDict:
    """Returns the default configuration, with all keys."""
    config = ConfigDict()
    for name, key in KEYS.items():
        *sections, last = name.split(".")
        section = config
        for part in sections:
            if part not in section:
                section[part] = ConfigDict()
            section = section[part]
        section[last] = placeholder(key.values.parse) if key.default is None else key.default
    return config
