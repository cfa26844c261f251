"""`--mode=serve`: a local web page to play with a run, or with Stable Diffusion."""

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from guided_diffusion_jax import bundled
from guided_diffusion_jax.commands import arguments
from guided_diffusion_jax.experiment import config as configs
from guided_diffusion_jax.experiment import runs
from guided_diffusion_jax.sampling_inputs import NATIVE
from guided_diffusion_jax.serve import serve


def run(config: ConfigDict, workdir: epath.Path, host: str, port: int) -> None:
    """Serves the page until Ctrl-C.

    Args:
        config: of the run; the page begins with its steps, sampler, spacing, eta and seed.
        workdir: the run.
        host: address that is listened on.
        port: its port.

    Raises:
        InputError: there is no such run, the port is taken, or the extra `serve` is not installed.
    """
    pipe, s = runs.pipeline(config, workdir), config.sample
    defaults = {"steps": s.steps, "sampler": s.sampler, "spacing": s.spacing, "eta": s.eta, "seed": s.seed}
    if pipe.scheduler is None and NATIVE in (s.sampler, s.spacing):
        defaults = {}
    weight = runs.given_weight(s.guidance.weight)
    if weight is not None and pipe.null_trained:
        defaults["weight"] = weight
    own = dict(configs.flatten(s))
    last = pipe.process.num_steps - 1
    own["guidance.interval"] = tuple(np.clip(own["guidance.interval"], 0, last).tolist())
    name = bundled.name_of(workdir) or str(workdir)
    serve(pipe, host, port, name=name, defaults=defaults, program=arguments.program(), own=own)
