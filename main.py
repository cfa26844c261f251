"""Train and sample from a checkout: `python main.py --config=configs/digits.py --workdir=runs/digits`; see --help."""

from guided_diffusion_jax.commands import entry_point

if __name__ == "__main__":
    entry_point()
