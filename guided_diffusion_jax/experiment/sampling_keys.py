"""Keys of `config.sample` and `config.weights`: how images are drawn, and with what beside a model's weights."""

from guided_diffusion_jax import samplers
from guided_diffusion_jax.experiment.keys import (
    ANYTHING,
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
from guided_diffusion_jax.generation import CLIPPING
from guided_diffusion_jax.guidance import GUIDANCE
from guided_diffusion_jax.sampling_inputs import NATIVE
from guided_diffusion_jax.training.power_ema import LONGEST
from guided_diffusion_jax.trajectories import SPACINGS

IMAGES = 10**7
"""Images of a set, at most."""

NUMBERS = "numbers, e.g. 0,1,2; nothing is none"
PIXELS = integer(1, 8192)
LABEL = Values("name or number of a class", lambda name, value: None, str)

SAMPLING = {
    "sample.count": Key(100, "images", integer(1, IMAGES)),
    "sample.batch_size": Key(500, "images generated at a time", integer(1, IMAGES)),
    "sample.labels": Key(
        ("all",),
        "classes, in turn; all: each of them, or none where anything else is asked for",
        several(LABEL, "all; or names or numbers of classes, e.g. cat,dog or 0,1"),
    ),
    "sample.attributes": Key(
        (),
        "attributes that are wanted",
        rows('name and value, e.g. (("colour", "red"), ("size", "large"))', text(), text()),
    ),
    "sample.prompt": Key("", "what is wanted", text('text, or parts: "a red circle AND striped AND NOT large"')),
    "sample.negative": Key("", "text to steer away from (negative prompt)", text()),
    "sample.reference_image": Key("", "image whose style is wanted", path("file; nothing is none")),
    "sample.control_image": Key("", "spatial map", path("file; nothing is none")),
    "sample.regions": Key(
        (), "where each part of the prompt holds", several(path(""), "files of masks, white where the part holds")
    ),
    "sample.image": Key("", "image to complete, or with sample.strength to begin with", path("file; nothing is none")),
    "sample.strength": Key(None, "share of the steps that is made from sample.image with noise", real(0, 1)),
    "sample.inpaint_mask": Key("", "where sample.image is drawn anew", path("file, white there; nothing is none")),
    "sample.soft_mask": Key(False, "keep the greys of the mask's file; else it is black or white everywhere", FLAG),
    "sample.low_res": Key("", "small images, for super-resolution", path(".npz like samples.npz; nothing is none")),
    "sample.ema": Key(
        None,
        "length of the average of the parameters, of a run with train.power_ema; nothing: the exponential one",
        real(0, LONGEST),
    ),
    "sample.seed": Key(0, "of the noise; image i depends on it and i alone", SEED),
    "sample.sampler": Key(
        "ddim", "solver; native: the one that came with the weights", choice((*samplers.SAMPLERS, NATIVE))
    ),
    "sample.sampler_options": Key((), "of the solver", rows('name and value, e.g. (("order", 3),)', text(), ANYTHING)),
    "sample.steps": Key(50, "steps of the solver", integer(1)),
    "sample.sections": Key(
        (),
        "instead of steps: numbers of steps in equal sections, the least noisy first",
        several(integer(1), "whole numbers, e.g. 10,20,30; nothing is none"),
    ),
    "sample.spacing": Key(
        "linspace",
        "of the steps' noise levels; stride is DDIM's; native: as the scheduler that came with the weights has it",
        choice((*SPACINGS, NATIVE)),
    ),
    "sample.scheduler": Key(
        (),
        "changes of the settings of that scheduler, as diffusers names them",
        rows('name and value, e.g. (("timestep_spacing", "trailing"),)', text(), ANYTHING),
    ),
    "sample.spacing_options": Key(
        (), "of the spacing", rows('name and value, e.g. (("rho", 7.0), ("end", "first_level"))', text(), ANYTHING)
    ),
    "sample.eta": Key(
        0.0, "noise of ddim and euler_ancestral: 0 is the ODE, 1 as noisy as DDPM; other solvers have none", real(0)
    ),
    "sample.clip": Key(True, "keep the predicted clean image within its range", FLAG),
    "sample.clip_order": Key(
        "last", "after all guidance; before_classifier: as guided-diffusion does", choice(CLIPPING)
    ),
    "sample.png": Key(False, "also each image as a PNG file, images/00012_cat.png: number and class", FLAG),
    "sample.frames": Key(10, "images of the trajectory from noise", integer(0, 10_000, "0 is none")),
    "sample.sequential": Key(False, "branches of guidance one after the other: less memory, more time", FLAG),
    "sample.tile": Key(
        0,
        "of a model of latents: pixels of the tiles that large images are decoded in, for less memory",
        integer(0, 8192, "0: an image at once"),
    ),
    "sample.sweep.count": Key(4, "images at each pair of values of a sweep", integer(1, IMAGES)),
    **section(
        "sample.sweep",
        {
            "weight": Key((), "instead of one set a grid over one or two of these", several(real(), NUMBERS)),
            "guidance_scale": Key((), "the same as 1 + w", several(real(), NUMBERS)),
            "classifier_weight": Key((), "of the classifier that --mode=classifier trained", several(real(), NUMBERS)),
            "steps": Key((), "of the solver", several(integer(1), "whole numbers, e.g. 10,50; nothing is none")),
            "sampler": Key((), "solvers", several(choice(samplers.SAMPLERS))),
            "eta": Key((), "noise of ddim", several(real(0), NUMBERS)),
            "interval": Key(
                (), "times at which guidance acts", rows("pairs, e.g. ((0, 1000), (200, 800))", real(), real())
            ),
            "seed": Key((), "of the noise", several(SEED, "whole numbers, e.g. 0,1,2; nothing is none")),
        },
    ),
    "weights.image_size": Key(
        (),
        "height and width of the images in pixels; nothing is what the network was trained on",
        several(PIXELS, "two numbers", length=2),
    ),
    "weights.controlnets": Key((), "ControlNets, which sample.control_image steers", several(path("folder"))),
    "weights.control_scale": Key(1.0, "factor of what ControlNets add", real()),
    "weights.guess_mode": Key(False, "ControlNets act on the conditional branch alone", FLAG),
    "weights.loras": Key(
        (),
        "files of LoRA, kohya's or diffusers'",
        rows('file and scale, e.g. (("ink.safetensors", 0.8),)', text(), real()),
    ),
    "weights.embeddings": Key(
        (), "files of textual inversion", several(path("file; its words stand in sample.prompt as the file names them"))
    ),
    "weights.clip_skip": Key(0, "layers at the end of the text encoder that are left out", integer(0, 64)),
    "weights.prompt_weights": Key(False, 'read "(word:1.3)" in prompts as a word of this weight', FLAG),
    "weights.config": Key(
        "",
        "for a single file: folder in diffusers' layout with settings and tokenizers",
        path("folder; nothing is none"),
    ),
    "weights.prediction_type": Key(
        "", "for a single file of Stable Diffusion 2", choice(("", "epsilon", "v_prediction"))
    ),
    "sample.guidance.rules": Key(
        ("cfg",),
        "what makes the guided prediction, in order: a combiner, then what changes its result",
        several(choice(GUIDANCE), f"some of {', '.join(GUIDANCE)}, with commas"),
    ),
    "sample.guidance.options": Key(
        (),
        "of the rules",
        rows('rule, option and value of each, e.g. (("rescale", "phi", 0.7),)', choice(GUIDANCE), text(), ANYTHING),
    ),
    "sample.guidance.autoguidance": Key(
        "", "worse model for the rule autoguidance", path("folder of a run, or weights; nothing is none")
    ),
    "sample.guidance.autoguidance_step": Key(0, "its training step, of those kept", integer(0, note="0 is the newest")),
    "sample.guidance.weight": Key(1.0, "w: 0 is the plain conditional model, -1 the unconditional one", real()),
    "sample.guidance.guidance_scale": Key(None, "1 + w, as other libraries have it; replaces weight", real()),
    "sample.guidance.weights": Key(
        (),
        "of conditions with a weight of their own",
        rows('condition and w, e.g. (("reference_image", 2.0),)', text(), real()),
    ),
    "sample.guidance.weight_schedule": Key(
        (),
        "a weight that changes with time; replaces weight",
        rows("time and w, e.g. ((0, 0.0), (999, 4.0))", real(), real()),
    ),
    "sample.guidance.interval": Key(
        (0.0, 1000.0),
        "first and last time at which any guidance acts",
        several(real(), "two numbers", length=2, empty=False),
    ),
    "sample.guidance.sigma_interval": Key(
        (),
        "lowest and highest noise sigma / alpha at which any guidance acts",
        several(real(0), "two numbers; nothing is everywhere", length=2),
    ),
    "sample.guidance.classifier_weight": Key(
        0.0, "w of the classifier that --mode=classifier trained", real(note="0 uses none")
    ),
    "sample.guidance.classifiers": Key(
        (),
        "further classifiers of the run",
        rows('attribute, value and w of each, e.g. (("ink", 1, 2.0),)', text(), integer(), real()),
    ),
    "sample.guidance.rematerialize": Key(False, "classifiers in less memory for more time", FLAG),
}
"""Of each key its default, what it means and which values it takes."""
