"""Steer with something of your own: any differentiable function of noisy images, and a guidance rule with memory.

python examples/own_energy.py        # two minutes on 2 CPU cores; STEPS=100 to try it
"""

# %% An unconditional model: no label at all.
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import guided_diffusion_jax as gd

STEPS = int(os.environ.get("STEPS", "1000"))
images = np.round(load_digits().images[..., None] * (255 / 16)).astype(np.uint8)
data = gd.data.from_arrays(images)
model = gd.models.UNet(
    width=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,), head_width=32, out_channels=1
)
process = gd.Process(gd.schedules.cosine(1000))
trainer = gd.Trainer(model, process, data, optimizer=optax.adamw(1e-3), settings=gd.TrainSettings(ema_decay=0.995))
pipe = gd.Pipeline(model, trainer.fit(steps=STEPS, batch_size=64).network(), process, info=data.info)


# %% An energy: more ink in the upper half than in the lower one. One number an image, higher is more wanted.
def top_heavy(x, level):
    return 50 * (x[:, :4].mean(axis=(1, 2, 3)) - x[:, 4:].mean(axis=(1, 2, 3))) * level.alpha


def ink(samples):
    return samples[:, :4].mean() - samples[:, 4:].mean()


for weight in (0.0, 1.0, 4.0):  # one compiled program
    samples = pipe(count=50, log_prob=top_heavy, classifier_weight=weight, steps=20, seed=0)
    print(f"w = {weight}: {ink(samples):+.1f} grey levels more ink in the upper half")


# %% A rule of your own: `combine` gets the branches; its memory goes from step to step. This one averages over steps.
def smooth(branches, x, level, memory):
    x0 = 0.5 * (memory + branches[-1].x0)
    return gd.prediction.from_x0(x, x0, level), x0


rule = gd.Guidance(init=jnp.zeros_like, combine=smooth)
samples = pipe(count=50, guidance=rule, steps=20, seed=0)
print(f"a rule with memory: {samples.shape}, mean grey level {samples.mean():.1f}")

# %% And below the pipeline: pure functions, to be jitted, vmapped and sharded by you.
generate = gd.Generator(
    lambda params, x, time, conditions: model.apply({"params": params}, x, time, conditions), process,
    gd.codecs.pixels(data.image_shape),
)  # fmt: skip
request = gd.generation.as_data(pipe.request(count=4, steps=10, sampler="dpmpp_2m"))
print(jax.jit(generate.images)(pipe.params, request).shape)
