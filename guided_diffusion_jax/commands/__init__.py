"""What the modes of the command line do: flags in, files out."""

import sys
import threading

from guided_diffusion_jax.runtime import interrupts

REMEDY = "activate the environment (source .venv/bin/activate), or install into this one: pip install -e ."


def entry_point() -> None:
    """The console script `guided-diffusion-jax`, and `main.py`. Ctrl-C ends it with one line from its first moment."""
    with interrupts.ends_process():
        slow = threading.Timer(3, print, ["starting ..."], {"file": sys.stderr, "flush": True})
        slow.daemon = True
        if sys.stderr.isatty():
            slow.start()
        with interrupts.ends_at_once():
            try:
                from guided_diffusion_jax.commands import cli  # seconds of imports
                from guided_diffusion_jax.runtime import distributed
            except ModuleNotFoundError as error:
                if (error.name or "").startswith(__package__.split(".")[0]):
                    raise
                print(f"error: {sys.executable} has no package '{error.name}'; {REMEDY}", file=sys.stderr)
                sys.exit(2)
        slow.cancel()
        distributed.exit_with(cli.main)
