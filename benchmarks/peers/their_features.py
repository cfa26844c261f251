"""Their side of `benchmarks.peers.features`: the same layers in torch."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.peers.worker import FEATURES, Built, Prepared, serve


class Mixed(nn.Module):
    """Branches that read the same; their channels are joined."""

    def __init__(self, branches: list[nn.Module]):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The joined map."""
        return torch.cat([branch(x) for branch in self.branches], 1)


def stack(layers: list[Any], channels: int) -> tuple[nn.Sequential, int]:
    """Layers one after the other, from fields of `inception.LAYERS`, and the channels that come out."""
    modules = nn.Sequential()
    for layer in layers:
        made, channels = module(layer, channels)
        modules.append(made)
    return modules, channels


def module(layer: Any, channels: int) -> tuple[nn.Module, int]:
    """One layer; a list is of layers that read the same."""
    branches = [[one] for one in layer] if isinstance(layer, list) else layer.get("branches")
    if branches:
        made, counts = zip(*(stack(branch, channels) for branch in branches), strict=True)
        return Mixed(list(made)), sum(counts)
    same = layer["padding"] == "SAME"
    if kind := layer.get("kind"):
        pool = nn.MaxPool2d(3, layer["stride"], int(same))
        mean = nn.AvgPool2d(3, layer["stride"], int(same), count_include_pad=False)
        return pool if kind == "max" else mean, channels
    padding = tuple(size // 2 * same for size in layer["kernel"])
    convolution = nn.Conv2d(channels, layer["features"], layer["kernel"], layer["stride"], padding)
    return nn.Sequential(convolution, nn.ReLU(inplace=True)), layer["features"]


def build(layers: list[Any], images: int, threads: int) -> Built:
    """Builds the network."""
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = stack(layers, 3)[0].eval().to(device)
    pixels = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8, device=device)

    @torch.inference_mode()
    def features() -> torch.Tensor:
        enlarged = F.interpolate(pixels.float(), size=(299, 299), mode="bilinear", align_corners=False)
        return network((enlarged - 128) / 128).mean((2, 3))

    wait = (lambda _: torch.cuda.synchronize()) if device.type == "cuda" else (lambda _: None)
    about = {"parameters": sum(parameter.numel() for parameter in network.parameters())}
    return Built(about, {FEATURES: lambda: Prepared(features, {})}, wait, dict)


if __name__ == "__main__":
    serve(build)
