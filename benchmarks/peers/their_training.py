"""Their training: diffusers' UNet2DModel on given latents, as its example scripts train, until the minutes are over.

It runs in the environment of `theirs` and is started by `quality`, which writes `task.json` and `latents.npz` into a
folder; the samples of each budget go there too.
"""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.training_utils import EMAModel
from torch.nn import functional as F

from benchmarks.peers.theirs import network

SCHEDULE = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}


def main(folder: Path) -> None:
    """Trains, and samples the averaged parameters of each budget."""
    task = json.loads((folder / "task.json").read_text())
    with np.load(folder / "latents.npz") as stored:
        images, labels = (torch.from_numpy(stored[name]) for name in ("images", "labels"))
    torch.set_num_threads(task["threads"])
    torch.manual_seed(task["seed"])
    model = network(task)
    averages = train(model, images, labels.long(), task)
    for minutes, (step, average) in averages.items():
        average.copy_to(model.parameters())
        np.savez(folder / f"{minutes}.npz", images=sample(model, task), step=step)


def train(
    model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, task: dict[str, Any]
) -> dict[str, tuple[int, EMAModel]]:
    """Trains to the last budget. Returns step and averages at each, by its minutes.

    Args:
        model: is trained.
        images: float16 `[n variants h w 2z]`, mean and standard deviation of the latents and of the mirrored ones.
        labels: `[n]`.
        task: settings of both sides.
    """
    begin, found, step = time.monotonic(), dict[str, tuple[int, EMAModel]](), 0
    params = list(model.parameters())
    optimizer = torch.optim.AdamW(params, task["learning_rate"], weight_decay=task["weight_decay"], fused=True)

    def rate(step: int) -> float:
        return min(1, (step + 1) / task["warmup_steps"]) * (1 + math.cos(math.pi * min(1, step / task["steps"]))) / 2

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    ema = EMAModel(params, task["ema_decay"], foreach=True)
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=task["num_steps"], **SCHEDULE)
    count, classes, waiting = task["batch_size"], task["classes"], list(task["minutes"])
    model.train()
    while waiting:
        order = torch.randperm(len(images))
        for rows in order[: len(order) // count * count].split(count):
            variant = torch.randint(images.shape[1], (count,))
            mean, std = images[rows, variant].float().permute(0, 3, 1, 2).chunk(2, 1)
            clean = (mean + std * torch.randn_like(mean)) * task["scaling_factor"]
            noise, moment = torch.randn_like(clean), torch.randint(task["num_steps"], (count,))
            dropped = torch.rand(count) < task["cfg_dropout"]
            wanted = torch.where(dropped, classes, labels[rows])
            predicted = model(scheduler.add_noise(clean, noise, moment), moment, class_labels=wanted).sample
            loss = F.mse_loss(predicted, scheduler.get_velocity(clean, noise, moment))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(params, task["grad_clip"])
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            ema.step(params)
            step += 1
            if step % 100 == 0:
                print(f"diffusers: step {step}, loss {loss.item():.4f}", file=sys.stderr, flush=True)
            if time.monotonic() - begin >= 60 * waiting[0]:
                copied = EMAModel(params)
                copied.load_state_dict(ema.state_dict())
                found[str(waiting.pop(0))] = step, copied
                if not waiting:
                    break
    return found


@torch.no_grad()
def sample(model: torch.nn.Module, task: dict[str, Any]) -> np.ndarray:
    """Scaled latents of all classes in turn by DDIM, float32 `[n h w z]`, without guidance."""
    model.eval()
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=task["num_steps"], clip_sample=False, timestep_spacing="trailing", **SCHEDULE
    )
    scheduler.set_timesteps(task["sampling_steps"])
    labels, made = torch.arange(task["count"]) % task["classes"], []
    for wanted in labels.split(task["sampled_at_once"]):
        x = torch.randn(len(wanted), task["channels"], task["image_size"], task["image_size"])
        for moment in scheduler.timesteps:
            x = scheduler.step(model(x, moment, class_labels=wanted).sample, moment, x).prev_sample
        made.append(x.permute(0, 2, 3, 1).numpy())
    return np.concatenate(made)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
