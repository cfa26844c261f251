"""What each mode of `main.py` does."""

from etils import epath

from guided_diffusion_jax.commands import demo, sample, train

MODES = {
    "train": lambda config, workdir, out: train.run(config, workdir),
    "sample": lambda config, workdir, out: sample.run(config, workdir, epath.Path(out) if out else workdir / "samples"),
    "demo": lambda config, workdir, out: demo.run(config, workdir),
}
