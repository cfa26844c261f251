"""A local web page to play with a pipeline.

What the page offers is read off the pipeline (`controls`); the values of its widgets become keywords of `Pipeline`
(`forms`), these become images (`pictures`) and texts that reproduce them (`texts`). `app` is the web server.
"""

from guided_diffusion_jax.serve.app import serve

__all__ = ["serve"]
