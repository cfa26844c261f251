"""One small run in several layouts, on all devices: `python -m tests.parallel_runs FOLDER LAYOUT...`.

Trains through the commands, samples, and leaves in FOLDER/LAYOUT what `--mode=train` does, the pictures, and the bytes
of parameters that a device holds; for test_parallel.py.
"""

import json
import sys

import jax
import numpy as np
from etils import epath

from guided_diffusion_jax.commands import train
from guided_diffusion_jax.experiment import runs, sampling
from guided_diffusion_jax.experiment.config import preset

STEPS = 30
LAYOUTS = {
    "one": {"parallel": "data_parallel"},
    "data_parallel": {"parallel": "data_parallel"},
    "fsdp": {"parallel": "fsdp"},
    "accumulated": {"parallel": "fsdp", "shards": 4, "accumulate": 2},
}


def run(folder: epath.Path, name: str) -> None:
    """Trains and samples one layout."""
    (folder / name).mkdir(parents=True)
    config = preset("digits")
    config.train.update(LAYOUTS[name], steps=STEPS, log_every=1, save_every=0, sample_every=0, batch_size=16)
    # Small steps: Adam divides each gradient by its own size, so that rounding alone would part the runs.
    config.train.update(learning_rate=1e-4, warmup_steps=5)
    config.model.update(channel_mult=(1,), attention_resolutions=())
    config.sample.update(steps=5, count=20, batch_size=16)
    train.run(config, folder / name)
    pipe = runs.pipeline(config, folder / name)
    request = runs.request(config, pipe).prune_branches()
    np.save(folder / name / "images.npy", pipe.generate(request, **sampling.program_settings(config)))
    leaves = jax.tree.leaves(pipe.params)
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    (folder / name / "bytes.json").write_text(json.dumps({"all": sum(a.nbytes for a in leaves), "held": held}))


if __name__ == "__main__":
    for layout in sys.argv[2:]:
        run(epath.Path(sys.argv[1]), layout)
