"""Fine-tuning of Stable Diffusion: all parameters, LoRA, ControlNets, new words; with class images as in DreamBooth.

```python
pipe = gd.load("stable-diffusion-v1-5")
tuner = gd.finetuning.lora(pipe, gd.data.folder("foxes", image_size=512, text="caption"), rank=8)
tuner.fit(steps=500, batch_size=4)
images = tuner.pipeline()(prompt="a red fox in the snow")
tuner.save("fox.safetensors")
```
"""

import importlib
from typing import Any

_NAMES = {
    "LAYERS": "methods",
    "FineTuner": "tuner",
    "account": "accounts",
    "class_images": "data",
    "controlnet": "tuner",
    "encode": "data",
    "full": "tuner",
    "lora": "tuner",
    "textual_inversion": "tuner",
    "with_zero_snr": "zero_snr",
}

__all__ = list(_NAMES)


def __getattr__(name: str) -> Any:
    """Imports what a name stands for when it is first used: a run that was fine-tuned needs no trainer to be loaded."""
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return __all__
