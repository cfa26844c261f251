"""Their side: diffusers' UNet2DModel of the same sizes, trained as in its example scripts, sampled as in its pipelines.

It runs in an environment with torch and diffusers (requirements.txt), which needs nothing of ours.
"""

import functools
from typing import Any

import diffusers
import torch
from diffusers.training_utils import EMAModel
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.peers.worker import (
    CFG,
    CLASSIFIER,
    DDIM,
    FORWARD,
    MATMUL,
    SCALE,
    STEPS,
    TRAINING,
    Built,
    Prepared,
    matmul_size,
    serve,
)

BLOCKS = {
    "conv": ("DownBlock2D", "UpBlock2D", "conv"),
    "block": ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D", "resnet"),
}
"""By `model.resample`: blocks without attention, and how those with it change the size."""
INJECTIONS = {"scale_shift": "scale_shift", "add": "default"}
"""By `model.time_injection`."""


def network(work: dict[str, Any]) -> diffusers.UNet2DModel:
    """U-Net of our settings, with one more class for classifier-free guidance."""
    down, up, resample = BLOCKS[work["resample"]]
    attended = [
        work["image_size"] >> level in work["attention_resolutions"] for level in range(len(work["channel_mult"]))
    ]
    return diffusers.UNet2DModel(
        sample_size=work["image_size"],
        in_channels=work["channels"],
        out_channels=work["channels"],
        block_out_channels=[int(work["width"] * mult) for mult in work["channel_mult"]],
        layers_per_block=work["num_res_blocks"],
        down_block_types=["AttnDownBlock2D" if here else down for here in attended],
        up_block_types=["AttnUpBlock2D" if here else up for here in reversed(attended)],
        downsample_type=resample,
        upsample_type=resample,
        attention_head_dim=work["head_width"],
        norm_num_groups=work["norm_groups"],
        attn_norm_num_groups=work["norm_groups"],
        resnet_time_scale_shift=INJECTIONS[work["time_injection"]],
        num_class_embeds=work["classes"] + 1,
    )


class Classifier(torch.nn.Module):
    """First half of the U-Net, the mean over its positions and a matrix: diffusers has no such classifier."""

    def __init__(self, work: dict[str, Any]):
        super().__init__()
        self.encoder = network(work)
        del self.encoder.up_blocks, self.encoder.class_embedding, self.encoder.conv_norm_out, self.encoder.conv_out
        channels = self.encoder.config.block_out_channels[-1]
        self.norm = torch.nn.GroupNorm(work["norm_groups"], channels)
        self.logits = torch.nn.Linear(channels, work["classes"])

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        e = self.encoder
        emb = e.time_embedding(e.time_proj(time.expand(len(x))).to(x.dtype))
        h = e.conv_in(x)
        for block in e.down_blocks:
            h, _ = block(hidden_states=h, temb=emb)
        h = e.mid_block(h, emb)
        return self.logits(F.silu(self.norm(h)).mean((2, 3)))


def build(work: dict[str, Any], compiled: bool, threads: int) -> Built:
    """Builds the network.

    Args:
        work: of our side.
        compiled: by `torch.compile`, else in eager mode.
        threads: of torch on a CPU.
    """
    diffusers.utils.logging.set_verbosity_error()  # a warning of any cast, also to the same dtype
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high")  # TF32 where there is one, as JAX's default
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, work["dtype"])
    cast = functools.partial(torch.autocast, device.type, dtype, enabled=dtype != torch.float32)
    trained = network(work).to(device)
    sampled = network(work).to(device, dtype).eval()
    judging = Classifier(work).to(device, dtype).eval().requires_grad_(False)
    made = functools.partial(torch.compile, dynamic=False) if compiled else lambda module: module
    training_model, model, judge = made(trained), made(sampled), made(judging)
    count, classes, size = work["batch_size"], work["classes"], work["image_size"]
    shape = (work["channels"], size, size)
    images = torch.rand(count, *shape, device=device) * 2 - 1
    labels = torch.arange(count, device=device) % classes
    schedule = {"num_train_timesteps": work["num_steps"], "beta_schedule": "squaredcos_cap_v2"}

    def training() -> Prepared:
        params = list(trained.parameters())
        optimizer = torch.optim.AdamW(params, work["learning_rate"], weight_decay=work["weight_decay"], fused=True)
        ema = EMAModel(params, work["ema_decay"], use_ema_warmup=True, foreach=True)
        scheduler = diffusers.DDPMScheduler(**schedule)
        trained.train()

        def call():
            noise = torch.randn_like(images)
            time = torch.randint(0, work["num_steps"], (count,), device=device)
            noisy = scheduler.add_noise(images, noise, time)
            dropped = torch.rand(count, device=device) < work["cfg_dropout"]
            with cast():
                predicted = training_model(noisy, time, class_labels=torch.where(dropped, classes, labels)).sample
            loss = F.mse_loss(predicted.float(), noise)
            loss.backward()
            if work["grad_clip"]:
                torch.nn.utils.clip_grad_norm_(params, work["grad_clip"])
            optimizer.step()
            optimizer.zero_grad()
            ema.step(params)
            return loss.detach()

        return Prepared(call, {})

    @torch.no_grad()
    def forward() -> torch.Tensor:
        return model(images.to(dtype), torch.full((count,), 500, device=device), class_labels=labels).sample

    def gradient(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            chosen = F.log_softmax(judge(x, time).float(), -1)[torch.arange(len(x)), labels[: len(x)]]
            return torch.autograd.grad(chosen.sum(), x)[0]

    @torch.no_grad()
    def sample(scale: float = 0.0, classifier_scale: float = 0.0) -> torch.Tensor:
        n = work["images"]
        scheduler = diffusers.DDIMScheduler(**schedule)
        scheduler.set_timesteps(STEPS)
        latents = torch.randn(n, *shape, device=device, dtype=dtype)
        wanted = labels[:n]
        if scale:
            wanted = torch.cat([wanted, torch.full_like(wanted, classes)])
        for time in scheduler.timesteps:
            twice = torch.cat([latents, latents]) if scale else latents
            noise = model(scheduler.scale_model_input(twice, time), time.to(device), class_labels=wanted).sample
            if scale:
                conditional, unconditional = noise.chunk(2)
                noise = unconditional + (1 + scale) * (conditional - unconditional)
            if classifier_scale:
                std = (1 - scheduler.alphas_cumprod[time]) ** 0.5
                noise = noise - std * classifier_scale * gradient(latents, time.to(device))
            latents = scheduler.step(noise, time, latents).prev_sample
        return ((latents / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()

    def matmuls() -> Prepared:
        n, length = matmul_size(device.type)
        a, b = (torch.randn(n, n, device=device, dtype=dtype) / n**0.5 for _ in range(2))
        return Prepared(lambda: functools.reduce(lambda x, _: x @ b, range(length), a), {})

    def describe() -> dict[str, Any]:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            sampled(images[:1].to(dtype), 500, class_labels=labels[:1])
        return {
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "threads": torch.get_num_threads(),
            "flops_per_image": {FORWARD: counter.get_total_flops()},
            "device_peak_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
        }

    programs = {
        TRAINING: training,
        FORWARD: lambda: Prepared(forward, {}),
        DDIM: lambda: Prepared(sample, {}),
        CFG: lambda: Prepared(lambda: sample(scale=SCALE), {}),
        CLASSIFIER: lambda: Prepared(lambda: sample(classifier_scale=SCALE), {}),
        MATMUL: matmuls,
    }
    about = {"parameters": count_parameters(trained), "classifier_parameters": count_parameters(judging)}
    wait = (lambda _: torch.cuda.synchronize()) if device.type == "cuda" else (lambda _: None)
    return Built(about, programs, wait, describe)


def count_parameters(module: torch.nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


if __name__ == "__main__":
    serve(build)
