"""Every key of a configuration with its default: a U-Net for 32x32 images of any data set."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """Returns the default configuration, with all keys."""
    c = ConfigDict()
    c.seed = 0

    c.data = ConfigDict()
    c.data.name = "folder"  # "folder", "digits", "shapes/16", or the name of any TFDS image data set
    c.data.data_dir = ""  # the folder of images; or where prepared TFDS data sets are ("" is TFDS's own place)
    c.data.image_size = 32  # pixels
    c.data.channels = 0  # 1: grey, 3: RGB; 0: as the images are
    c.data.labels = ""  # where the classes come from: a feature; for a folder "folder", "filename" or a table's column
    c.data.flip = True  # mirror half of the training images
    c.data.low_res_size = 0  # pixels of the small image that a super-resolution model enlarges
    c.data.null_label = placeholder(int)  # for --mode=import: row of the class embedding that is a trained null class
    # Further conditions: features of the data set; empty is none.
    c.data.attributes = ()  # with named values, e.g. ("colour", "size")
    c.data.text = ""  # the caption; for a folder the column of a table, such as "caption"
    c.data.reference_image = ""  # an image of the same style
    c.data.control_image = ""  # a spatial map; for a folder the folder of maps

    c.model = ConfigDict()
    c.model.name = "unet"  # "unet", "super_resolution", "controlnet" (needs pretrained and data.control_image)
    c.model.width = 128
    c.model.channel_mult = (1, 2, 2, 2)
    c.model.num_res_blocks = 2
    c.model.attention_resolutions = (16, 8)  # in pixels
    c.model.head_width = 64  # channels a head; 0: num_heads heads
    c.model.num_heads = 4
    c.model.dropout = 0.1
    c.model.use_labels = True  # False ignores the classes of the data
    c.model.class_fusion = "add"  # of time and class embedding: "add", "concat"
    c.model.time_injection = "scale_shift"  # of the embedding into the blocks: "scale_shift", "add"
    c.model.resample = "block"  # "conv", "block"
    c.model.dtype = "float32"  # of convolutions and matmuls; "bfloat16" on accelerators
    c.model.inpainting = False  # train to complete images: the model sees them with a part masked
    c.model.text_encoder = "bytes"  # trained with the U-Net; or a frozen one: a name or path for transformers
    c.model.text_length = 64  # bytes, or tokens of a frozen encoder, that are read
    c.model.text_width = 128
    c.model.text_depth = 2  # layers of the byte encoder's Transformer
    c.model.reference_width = 128  # the same as text_width where a model has both
    c.model.reference_depth = 3  # how often the reference image is halved on the way to its tokens
    # Where conditions enter, e.g. (("control_image", (16,)), ("text", (16, 8))): resolutions of feature maps in pixels.
    # By default: label and attributes by the embedding, text and reference image where there is attention, a control
    # image beside the input.
    c.model.condition_resolutions = ()
    c.model.attention_order = "legacy"  # of qkv in guided-diffusion's files, for --mode=import: "legacy", "new"
    c.model.remat = False  # on accelerators less memory for more time; on a CPU only more time

    c.pretrained = ""  # folder of a run whose parameters training begins with; the frozen base of a ControlNet

    c.diffusion = ConfigDict()
    c.diffusion.schedule = "cosine"  # "linear", "scaled_linear", "cosine", "sigmoid", "rectified_flow"
    c.diffusion.num_steps = 1000  # T
    c.diffusion.prediction = "eps"  # "eps", "x0", "v", "velocity"
    c.diffusion.variance = "fixed_small"  # "fixed_small", "fixed_large", "learned_range"

    c.train = ConfigDict()
    c.train.loss = "mse"  # learned_range: with L_vlb ("rescaled_mse": T/1000 of it); "kl", "rescaled_kl": L_vlb alone
    c.train.timesteps = "uniform"  # "loss_second_moment": more often those where the loss is large
    c.train.cfg_dropout = 0.1  # of all conditions together, p_uncond; 0: purely conditional, 1: unconditional
    c.train.per_condition_dropout = ConfigDict(
        dict(label=0.0, attributes=0.0, text=0.0, reference_image=0.0, control_image=0.0, masked_image=0.0)
    )
    c.train.batch_size = 128  # over all devices
    c.train.steps = 200_000
    c.train.optimizer = "adamw"  # "adamw", "radam", "lion", "sgd"
    c.train.learning_rate = 2e-4
    c.train.lr_schedule = "constant"  # after the warm-up: "constant", "cosine" (to 0), "inverse_sqrt"
    c.train.decay_steps = 0  # length of "cosine", start of "inverse_sqrt"; 0 is train.steps
    c.train.warmup_steps = 1000
    c.train.weight_decay = 0.0
    c.train.grad_clip = 1.0  # 0 is none
    c.train.ema_decay = 0.9999  # 0 turns EMA off
    c.train.ema_warmup = True  # the decay grows from 0.1 at the start
    c.train.log_every = 100
    c.train.save_every = 5000
    c.train.sample_every = 5000
    c.train.keep = 3  # checkpoints
    c.train.verify = "auto"  # checksums of checkpoints: "auto" (of local folders), "on", "off"
    c.train.on_full_disk = "stop"  # "go_on" leaves out what finds no room, and tries again at the next save
    c.train.parallel = "data_parallel"  # the whole state on every device; "fsdp": sharded, for models that outgrow one
    c.train.shards = 0  # of fsdp: devices that hold a state together; 0 is all, up to 64
    c.train.accumulate = 1  # parts of a device's batch that come one after the other; more is less memory
    c.train.bad_step = "stop"  # at a loss or gradient that is not finite, or a spike; "skip" leaves such steps out
    c.train.grad_spike = 0.0  # a gradient norm of so many times the usual is a spike; 0: none is

    c.sample = ConfigDict()
    c.sample.count = 100
    c.sample.batch_size = 500  # images generated at a time
    c.sample.labels = ("all",)  # classes in turn, by number or name; all: none where anything else is asked for
    c.sample.attributes = ()  # e.g. (("colour", "red"), ("size", "large"))
    c.sample.prompt = ""  # text; "a red circle AND striped AND NOT large" is composed of three
    c.sample.negative = ""  # text to steer away from (negative prompt)
    c.sample.reference_image = ""  # file of an image whose style is wanted
    c.sample.control_image = ""  # file of a spatial map
    c.sample.regions = ()  # for each part of the prompt the file of a mask that is white where it holds
    c.sample.image = ""  # file of an image to complete
    c.sample.inpaint_mask = ""  # file that is white where sample.image shall be drawn anew
    c.sample.soft_mask = False  # keep the grey values of the mask's file; else it is black or white everywhere
    c.sample.low_res = ""  # for super-resolution: an .npz like samples.npz of the small images
    c.sample.seed = 0
    c.sample.sampler = "ddim"  # "ddim", "ddpm", "heun", "dpmpp_2m"
    c.sample.steps = 50
    c.sample.sections = ()  # instead of steps: numbers of steps in equal sections, e.g. (10, 20, 30)
    c.sample.spacing = "linspace"  # "linspace", "stride" (DDIM's), "logsnr"
    c.sample.eta = 0.0
    c.sample.clip = True  # keep predicted clean images within [-1, 1]
    c.sample.clip_order = "last"  # after all guidance; "before_classifier", as guided-diffusion does
    c.sample.frames = 10  # of the trajectory's image; 0 is none
    c.sample.png = False  # also each image as a PNG file, images/00012_cat.png: number and class
    c.sample.sequential = False  # branches of guidance one after the other: less memory, more time
    c.sample.guidance = ConfigDict()
    c.sample.guidance.rule = "cfg"
    c.sample.guidance.weight = 1.0  # w: 0 is the plain conditional model, -1 the unconditional one
    c.sample.guidance.guidance_scale = placeholder(float)  # 1 + w, as other libraries have it; replaces weight
    c.sample.guidance.weights = ()  # of conditions with a weight of their own, e.g. (("reference_image", 2.0),)
    c.sample.guidance.weight_schedule = ()  # pairs of time and w, e.g. ((0, 0.0), (999, 4.0)); replaces weight
    c.sample.guidance.interval = (0.0, 1000.0)  # first and last time at which any guidance acts
    c.sample.guidance.classifier_weight = 0.0  # w of the classifier that --mode=classifier trained; 0 uses none
    c.sample.guidance.classifiers = ()  # others: attribute, value and weight of each, e.g. (("ink", 1, 2.0),)
    c.sample.guidance.rematerialize = False  # classifiers in less memory for more time

    c.classifier = ConfigDict()  # --mode=classifier
    c.classifier.attribute = "label"  # what it predicts: the class, or for digits "ink", "parity"
    c.classifier.crop = 0  # pixels by which training images are shifted at random; ADM pairs it with data.flip
    c.classifier.model = ConfigDict(
        dict(
            width=64, channel_mult=(1, 2, 2, 2), num_res_blocks=2, attention_resolutions=(16, 8), head_width=64,
            num_heads=4, dropout=0.0, time_injection="scale_shift", resample="block", dtype="float32", remat=False,
            attention_order="legacy",
            pool="attention",  # "adaptive", "attention", "spatial", "spatial_v2"
        )
    )  # fmt: skip
    c.classifier.train = ConfigDict({key: c.train[key] for key in CLASSIFIER_TRAINING})
    c.classifier.train.update(
        batch_size=256, steps=50_000, learning_rate=3e-4, weight_decay=0.05, ema_decay=0.0, sample_every=0
    )

    c.evaluate = ConfigDict()
    c.evaluate.count = 0  # images; 0 is all of the split, and for scores as many, up to 10,000
    c.evaluate.batch_size = 100
    c.evaluate.split = "test"
    # "scores" generates images and compares them with the training split: FD, KID, precision, recall and others;
    # for shapes also "adherence": image analysis of whether images show what they were asked for.
    c.evaluate.metrics = ("bpd",)
    c.evaluate.conditions = ()  # that the images of "adherence" are generated with; () is all
    c.evaluate.bound_steps = 0  # of the variational bound; 0 is all T, the tightest
    c.evaluate.features = "own"  # of a small classifier, trained on the data set itself; "inception" is FID; "dinov2"
    c.evaluate.feature_weights = ""  # the file of Inception's or DINOv2's weights
    c.evaluate.reference = ""  # a VIRTUAL_*.npz or any file of images to compare with; "" is the training split
    c.evaluate.samples = ""  # an .npz like samples.npz to be scored, and nothing else; "" generates
    # Instead of the metrics: scores and cost at each of these values, e.g. (0.0, 0.5, 1.0, 2.0); () is none.
    c.evaluate.sweep = ConfigDict()
    c.evaluate.sweep.weight = ()  # of CFG
    c.evaluate.sweep.classifier_weight = ()  # of the classifier that --mode=classifier trained
    c.evaluate.sweep.steps = ()  # numbers of steps, each with each weight; () is sample.steps

    c.report = ConfigDict()
    c.report.compare_methods = False  # also train three ways of steering, three times each, and compare them
    return c


CLASSIFIER_TRAINING = (
    "batch_size", "steps", "optimizer", "learning_rate", "lr_schedule", "decay_steps", "warmup_steps", "weight_decay",
    "grad_clip", "ema_decay", "ema_warmup", "log_every", "save_every", "sample_every", "keep", "verify",
    "on_full_disk", "parallel", "shards", "accumulate", "bad_step", "grad_spike",
)  # fmt: skip
"""Keys of `train` that a classifier has as well."""
