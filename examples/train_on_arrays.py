"""Train a class-conditional model on NumPy arrays, go on with it, sample with two weights, and measure FD.

python examples/train_on_arrays.py        # two minutes on 2 CPU cores; STEPS=100 to try it
"""

# %% Data: any uint8 images [n h w c], with labels [n] or without.
import os

import numpy as np
import optax
from sklearn.datasets import load_digits

import guided_diffusion_jax as gd

STEPS, RUN = int(os.environ.get("STEPS", "1000")), os.environ.get("RUN", "runs/arrays")
digits = load_digits()
images = np.round(digits.images[..., None] * (255 / 16)).astype(np.uint8)  # [1797 8 8 1]
train, test = gd.data.from_arrays(images[:1500], digits.target[:1500]), images[1500:]

# %% Model, process, trainer. The model predicts v on a cosine schedule of 1000 steps.
model = gd.models.UNet(
    width=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,), head_width=32, num_classes=10,
    out_channels=1,
)  # fmt: skip
process = gd.Process(gd.schedules.cosine(1000), prediction="v")
settings = gd.TrainSettings(ema_decay=0.995)
trainer = gd.Trainer(
    model, process, train, optimizer=optax.adamw(1e-3), condition_dropout=0.1, workdir=RUN, settings=settings
)

# %% Train. The same call goes on where the run stopped: to half of the steps, and then to all of them.
trainer.fit(steps=STEPS // 2, batch_size=64)
for metrics in trainer.steps(steps=STEPS, batch_size=64, log_every=max(1, STEPS // 5)):
    print(f"step {metrics['step']}: loss {metrics['loss']:.3f}")

# %% Sample: the run's folder holds all that is needed. Another weight compiles nothing.
pipe = gd.load(RUN)
labels = np.arange(len(test)) % 10
weak, strong = (pipe(labels=labels.tolist(), weight=weight, steps=20, seed=0) for weight in (0.0, 2.0))

# %% Frechet distance of pixels to held-out images (lower is better), without any downloaded weights.
for name, samples in (("w = 0", weak), ("w = 2", strong)):
    print(f"{name}: FD {gd.metrics.fid(samples, test, features='pixels'):.3f}")
