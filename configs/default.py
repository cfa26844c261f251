"""Every key of a configuration, with its default: a U-Net for 32x32 pictures of any data set.

`python main.py --config=configs/default.py --config.data.name=folder --config.data.data_dir=PICTURES --workdir=RUN`
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """All keys."""
    c = ConfigDict()
    c.seed = 0

    c.data = ConfigDict()
    c.data.name = "folder"  # a TFDS name, "digits", or "folder"
    c.data.data_dir = ""  # of the folder, or of prepared TFDS data sets ("" is TFDS's own place)
    c.data.image_size = 32  # pixels
    c.data.flip = True  # mirror half of the training images
    c.data.channels = 0  # 1 grey, 3 RGB; 0 is what the data has, which the run's config.json then says
    c.data.class_names = ()  # () is what the data says
    c.data.low_res_size = 0  # pixels of the small picture that an upsampler enlarges; 0 is no upsampler
    # Further conditions: features of the data set; empty is none.
    c.data.attributes = ()  # with named values, e.g. ("colour", "size")
    c.data.text = ""  # the sentence; "caption" for a folder with a captions.jsonl
    c.data.style = ""  # a picture of the same style
    c.data.map = ""  # a picture of what is where; for a folder the folder of maps
    c.data.attribute_values = ()  # () is what the data says
    c.data.map_channels = 0  # 0 is what the data has

    c.model = ConfigDict()
    c.model.width = 128
    c.model.channel_mult = (1, 2, 2, 2)
    c.model.num_res_blocks = 2
    c.model.attention_resolutions = (16, 8)  # in pixels
    c.model.head_width = 64  # channels a head; 0: num_heads heads
    c.model.num_heads = 4
    c.model.dropout = 0.1
    c.model.num_classes = -1  # -1 is what the data has; 0 ignores labels
    c.model.fusion = "add"  # of time and class: "add", "concat"
    c.model.injection = "scale_shift"  # into the blocks: "scale_shift", "add"
    c.model.resample = "block"  # "conv", "block"
    c.model.dtype = "float32"  # of convolutions and matmuls; "bfloat16" on accelerators
    c.model.known = False  # train to complete pictures: sees them with a part cut out
    c.model.text_encoder = "bytes"  # trained with the U-Net; or a frozen one: a name or path for transformers
    c.model.text_length = 64  # bytes, or tokens of a frozen encoder, that are read
    c.model.text_width = 128
    c.model.text_depth = 2  # layers of the bytes' Transformer
    c.model.style_width = 128  # the same as text_width where a run has both
    c.model.style_depth = 3  # how often the picture of a style is halved on the way to its tokens
    # Which conditions enter at which heights of feature maps, e.g. "16:text+map,8:text+label". One that is named
    # nowhere enters at its usual place: label, attributes by the embedding, text, style where there is attention, a map
    # beside the input.
    c.model.inject = ""
    c.model.remat = False  # on accelerators less memory for more time; on a CPU only more time

    c.control = ConfigDict()
    c.control.base = ""  # folder of a trained run: it stays as it is, and a branch learns to obey data.map

    c.diffusion = ConfigDict()
    c.diffusion.schedule = "cosine"  # "linear", "scaled_linear", "cosine", "sigmoid"
    c.diffusion.num_steps = 1000  # T
    c.diffusion.prediction = "eps"  # "eps", "x0", "v"
    c.diffusion.variance = "fixed_small"  # "fixed_small", "fixed_large", "learned_range"

    c.train = ConfigDict()
    c.train.loss = "mse"  # learned_range: with L_vlb ("rescaled_mse": T/1000 of it); "kl", "rescaled_kl": L_vlb alone
    c.train.timesteps = "uniform"  # "loss_second_moment": more often those where the loss is large
    c.train.batch_size = 128  # over all devices
    c.train.steps = 200_000
    c.train.learning_rate = 2e-4
    c.train.warmup_steps = 1000
    c.train.weight_decay = 0.0
    c.train.grad_clip = 1.0  # 0 is none
    c.train.ema_decay = 0.9999  # 0 turns EMA off
    c.train.condition_dropout = 0.1  # of all together, p_uncond; 0 is purely class-conditional, 1 unconditional
    c.train.drop = ConfigDict(dict(label=0.0, attributes=0.0, text=0.0, style=0.0, map=0.0, known=0.0))  # of each alone
    c.train.log_every = 100
    c.train.save_every = 5000
    c.train.sample_every = 5000
    c.train.keep = 3  # checkpoints
    c.train.on_full_disk = "stop"  # "go_on" leaves out what finds no room, and tries again at the next save
    c.train.parallel = "data_parallel"  # the state on every device; "fsdp": sharded, for models that outgrow one
    c.train.shards = 0  # of fsdp: devices that hold a state together; 0 is all, up to 64
    c.train.accumulate = 1  # parts of a device's batch that come one after the other; more is less memory
    c.train.bad_step = "stop"  # at a loss or gradient that is not finite, or a spike; "skip" leaves such steps out
    c.train.spike = 0.0  # a gradient's norm of so many times the usual is a spike; 0: none is

    c.sample = ConfigDict()
    c.sample.count = 100
    c.sample.batch_size = 500  # drawn at a time
    c.sample.labels = ("all",)  # classes in turn, e.g. 3,7; all is none where anything else is asked for
    c.sample.attributes = ""  # e.g. "colour=red,size=large"
    c.sample.prompt = ""  # a sentence; "a red circle AND striped AND NOT large" is composed of three
    c.sample.negative = ""  # a sentence to steer away from, in the place of none
    c.sample.style = ""  # a picture whose style is wanted
    c.sample.map = ""  # a picture of what shall be where
    c.sample.regions = ""  # "left.png,right.png": for each part of the prompt a picture that is white where it holds
    c.sample.image = ""  # a picture to change
    c.sample.inpaint = ""  # a picture that is white where sample.image shall be drawn anew
    c.sample.seed = 0
    c.sample.solver = "ddim"  # "ddim", "ddpm"
    c.sample.steps = "50"  # "50", "ddim50", "10,20,30", "logsnr20"
    c.sample.eta = 0.0
    c.sample.clip = True
    c.sample.guidance = ConfigDict()
    c.sample.guidance.weight = 1.0  # w of CFG: 0 is the plain conditional model, -1 the unconditional one
    c.sample.guidance.weights = ""  # of kinds that steer for themselves, e.g. "style=2,map=0"
    c.sample.guidance.classifier_weight = 0.0  # w of the classifier that --mode=classifier trained; 0 asks none
    c.sample.guidance.attributes = ()  # other classifiers that steer at once, e.g. ("ink",)
    c.sample.guidance.attribute_labels = ()  # the value that each shall have, e.g. (1,)
    c.sample.guidance.attribute_weights = ()  # and the weight of each, e.g. (2.0,)
    c.sample.guidance.interval = (0.0, 1000.0)  # first and last time at which classifiers steer
    c.sample.guidance.rematerialise = False  # classifiers in less memory for more time
    c.sample.low_res = ""  # for an upsampler: an .npz like samples.npz of the small pictures
    c.sample.frames = 10  # of the picture of the denoising; 0 is none

    c.classifier = ConfigDict()  # --mode=classifier
    c.classifier.attribute = "label"  # what it tells: the class, or for digits "ink", "parity"
    c.classifier.update(
        width=64, channel_mult=(1, 2, 2, 2), num_res_blocks=2, attention_resolutions=(16, 8), head_width=64,
        num_heads=4, dropout=0.0, injection="scale_shift", resample="block", dtype="float32", remat=False,
    )  # fmt: skip
    c.classifier.crop = 0  # pixels by which training images are shifted at random; ADM pairs it with data.flip
    c.classifier.pool = "attention"  # "adaptive", "attention", "spatial", "spatial_v2"
    c.classifier.update(
        batch_size=256, steps=50_000, learning_rate=3e-4, warmup_steps=1000, weight_decay=0.05, grad_clip=1.0,
        ema_decay=0.0, log_every=100, save_every=5000, sample_every=0, keep=3, parallel="data_parallel", shards=0,
        accumulate=1, bad_step="stop", spike=0.0, on_full_disk="stop",
    )  # fmt: skip

    c.evaluate = ConfigDict()
    c.evaluate.count = 0  # images; 0 is all of the split, and for scores as many, up to 10,000
    c.evaluate.batch_size = 100
    c.evaluate.split = "test"
    # "scores" draws, and compares with the training split: FD, KID, precision, recall and others; for shapes also
    # "judge": draws, and has the pictures read by image analysis.
    c.evaluate.metrics = ("bpd",)
    c.evaluate.kinds = ""  # conditions that the judged pictures are drawn with, e.g. "label+style"; "" is all
    c.evaluate.steps = ""  # of the bound, as sample.steps; "" is all T, the tightest
    c.evaluate.features = "own"  # of a small classifier, trained on the data set itself; "inception" is FID; "dinov2"
    c.evaluate.weights = ""  # the file of inception's or dinov2's weights
    c.evaluate.reference = ""  # a VIRTUAL_*.npz or any file of pictures to compare with; "" is the training split
    c.evaluate.samples = ""  # an .npz like samples.npz to be scored, and nothing else; "" draws
    # Instead of the metrics: scores and cost at each of these, e.g. "0,0.5,1,2,4,8"; "" is none.
    c.evaluate.sweep = ConfigDict()
    c.evaluate.sweep.weight = ""  # of CFG
    c.evaluate.sweep.classifier_weight = ""  # of the classifier that --mode=classifier trained
    c.evaluate.sweep.steps = ""  # numbers of steps, each with each weight; "" is sample.steps
    c.evaluate.approaches = False  # --mode=report also trains three ways of steering, three times each, and compares
    return c
