"""Train and sample from a checkout: `python main.py --config=configs/digits.py --workdir=runs/digits`; see --help."""

import sys

try:
    from guided_diffusion_jax.commands.cli import entry_point, main
except ModuleNotFoundError as error:
    if (error.name or "").startswith("guided_diffusion_jax"):
        raise
    remedy = "activate the environment (source .venv/bin/activate), or install into this one: pip install -e ."
    print(f"error: {sys.executable} has no package '{error.name}'; {remedy}", file=sys.stderr)
    sys.exit(2)

__all__ = ["main"]

if __name__ == "__main__":
    entry_point()
