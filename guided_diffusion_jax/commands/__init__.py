"""What the modes of the command line do: flags in, files out."""

from guided_diffusion_jax.runtime import interrupts


def entry_point() -> None:
    """The console script `guided-diffusion-jax`, and `main.py`. Ctrl-C ends it with one line from its first moment."""
    with interrupts.ends_process():
        from guided_diffusion_jax.commands import cli  # seconds of imports
        from guided_diffusion_jax.runtime import distributed

        distributed.exit_with(cli.main)
