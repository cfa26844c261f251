"""Compare three ways of steering from the same noise: class-conditional, classifier-free and classifier guidance.

python examples/three_ways.py        # three minutes on 2 CPU cores; STEPS=100 to try it
"""

# %% A small data set, and a network that is trained with labels that are sometimes dropped.
import os

import jax
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import guided_diffusion_jax as gd

STEPS = int(os.environ.get("STEPS", "1000"))
digits = load_digits()
images = np.round(digits.images[..., None] * (255 / 16)).astype(np.uint8)
data = gd.data.from_arrays(images, digits.target)
backbone = dict(width=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,), head_width=32)
process, settings = gd.Process(gd.schedules.cosine(1000), prediction="v"), gd.TrainSettings(ema_decay=0.995)
model = gd.models.UNet(**backbone, num_classes=10, out_channels=1)
trainer = gd.Trainer(model, process, data, optimizer=optax.adamw(1e-3), settings=settings)
params = trainer.fit(steps=STEPS, batch_size=64).network()

# %% A classifier that is trained on noisy images, at every noise level of the same process.
classifier = gd.models.Classifier(**backbone, num_classes=10, pool="attention")
objective = gd.objectives.classifier(classifier, process, data.image_shape)
guide = gd.Trainer(classifier, process, data, optimizer=optax.adamw(1e-3), objective=objective, settings=settings)
guide_params = guide.fit(steps=STEPS // 2, batch_size=64).network()

# %% The three ways. w = -1 leaves the label out, so that only the classifier steers.
labels = np.repeat(np.arange(10), 10)
pipe = gd.Pipeline(
    model, params, process, info=data.info,
    load_classifier=lambda attribute: gd.guides.guiding_classifier(classifier, guide_params, data.class_names),
)  # fmt: skip
ways = {
    "class-conditional": dict(weight=0.0),
    "classifier-free guidance, w = 2": dict(weight=2.0),
    "classifier guidance, w = 5": dict(weight=-1.0, classifier_weight=5.0),
}
made = {name: pipe(labels=labels.tolist(), steps=20, seed=0, **way) for name, way in ways.items()}

# %% Who obeys? A classifier that never saw a generated image says what it sees.
independent = LogisticRegression(max_iter=2000, C=0.1).fit(images.reshape(len(images), -1) / 255, digits.target)
for name, samples in made.items():
    right = independent.score(samples.reshape(len(samples), -1) / 255, labels)
    distance = gd.metrics.fid(samples, images, features="pixels")
    print(f"{name}: {right:.0%} show the class asked for, FD {distance:.2f}")
print(f"devices: {jax.device_count()} {jax.default_backend()}")
