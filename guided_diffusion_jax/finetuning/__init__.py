"""Fine-tuning of Stable Diffusion: all parameters, LoRA, ControlNets, new words; with class images as in DreamBooth.

```python
pipe = gd.load("stable-diffusion-v1-5")
tuner = gd.finetuning.lora(pipe, gd.data.folder("foxes", image_size=512, text="caption"), rank=8)
tuner.fit(steps=500, batch_size=4)
images = tuner.pipeline()(prompt="a red fox in the snow")
tuner.save("fox.safetensors")
```
"""

from etils import epy

with epy.lazy_api_imports(globals()):  # a run that was fine-tuned needs no trainer to be loaded
    from guided_diffusion_jax.finetuning.accounts import account
    from guided_diffusion_jax.finetuning.data import class_images, encode
    from guided_diffusion_jax.finetuning.methods import LAYERS
    from guided_diffusion_jax.finetuning.tuner import FineTuner, controlnet, full, lora, textual_inversion
    from guided_diffusion_jax.finetuning.zero_snr import with_zero_snr

__all__ = [
    "LAYERS", "FineTuner", "account", "class_images", "controlnet", "encode", "full", "lora", "textual_inversion",
    "with_zero_snr",
]  # fmt: skip
