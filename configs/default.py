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
    c.model.remat = False  # on accelerators less memory for more time; on a CPU only more time

    c.diffusion = ConfigDict()
    c.diffusion.schedule = "cosine"  # "linear", "scaled_linear", "cosine", "sigmoid"
    c.diffusion.num_steps = 1000  # T
    c.diffusion.prediction = "eps"  # "eps", "x0", "v"
    c.diffusion.variance = "fixed_small"  # "fixed_small", "fixed_large"

    c.train = ConfigDict()
    c.train.batch_size = 128  # over all devices
    c.train.steps = 200_000
    c.train.learning_rate = 2e-4
    c.train.warmup_steps = 1000
    c.train.weight_decay = 0.0
    c.train.grad_clip = 1.0  # 0 is none
    c.train.ema_decay = 0.9999  # 0 turns EMA off
    c.train.condition_dropout = 0.1  # p_uncond; 0 is purely class-conditional, 1 unconditional
    c.train.log_every = 100
    c.train.save_every = 5000
    c.train.sample_every = 5000
    c.train.keep = 3  # checkpoints

    c.sample = ConfigDict()
    c.sample.count = 100
    c.sample.batch_size = 500  # drawn at a time
    c.sample.labels = ("all",)  # classes in turn, e.g. 3,7
    c.sample.seed = 0
    c.sample.solver = "ddim"  # "ddim", "ddpm"
    c.sample.steps = "50"  # "50", "ddim50", "10,20,30", "logsnr20"
    c.sample.eta = 0.0
    c.sample.clip = True
    c.sample.guidance = ConfigDict({"weight": 1.0})  # w: 0 is the plain conditional model
    c.sample.frames = 10  # of the picture of the denoising; 0 is none
    return c
