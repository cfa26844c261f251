"""Controllable image diffusion in JAX: `import guided_diffusion_jax as gd`.

Everything public is an attribute of this module, imported when it is first used, so that importing the package costs
little and brings in nothing that is not needed. The layers, from the bottom:

    typing, errors                                  shared types; wrong input
    trajectories, schedules, gaussian, process      mathematics of x = alpha x0 + sigma eps
    models, conditions, data                        networks, what they are conditioned on, data sets
    guidance, samplers, codecs                      steering, sampling, pixels or latents
    objectives, denoisers, generation               what is trained; one program from a request to samples
    interop, sharding, runtime, training            weights of others; devices, processes; the trainer
    pipeline, evaluation, experiment                what a user holds; metrics; configurations
    stable_diffusion, finetuning                    latent diffusion by others; changing it
    exporting, exported                             a sampler as one file; running it
    serve                                           a page to play with a pipeline
    report, commands                                the report; what main.py does

Imports point only down.
"""

import importlib
from typing import Any

__version__ = "0.2.0"

_MODULES = (
    "codecs", "conditions", "data", "denoisers", "exported", "finetuning", "gaussian", "generation", "guidance",
    "guides", "models", "objectives", "pipeline", "prediction", "samplers", "schedules", "trajectories",
)  # fmt: skip
_NAMES = {
    "Codec": "codecs",
    "Conditions": "typing",
    "Generator": "generation",
    "Guidance": "guidance",
    "InputError": "errors",
    "Level": "typing",
    "Objective": "objectives",
    "Pipeline": "pipeline",
    "Prediction": "typing",
    "Process": "process",
    "Request": "generation",
    "Sampler": "samplers",
    "StableDiffusion": "stable_diffusion",
    "export": "exporting",
    "finish_autoencoder": "evaluation.reconstruction",
    "TrainSettings": "training.trainer",
    "TrainState": "training.state",
    "Trainer": "training.trainer",
    "load": "loading",
    "load_autoencoder": "training.latents",
    "metrics": "evaluation.metrics",
}

__all__ = sorted([*_MODULES, *_NAMES, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value: Any = importlib.import_module(f"{__name__}.{name}")
    elif name == "metrics":
        value = importlib.import_module(f"{__name__}.{_NAMES[name]}")
    elif name in _NAMES:
        value = getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
