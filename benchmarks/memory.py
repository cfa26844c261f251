"""What fits: memory and work of a training step of each ImageNet config, as `--dry_run` accounts for them.

`python -m benchmarks.memory` prints the Markdown tables of docs/scaling.md; `--configs=imagenet64` some of them.
"""

import argparse
import runpy
import sys

from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from benchmarks.report import markdown
from guided_diffusion_jax import sharding
from guided_diffusion_jax.commands import dry_run
from guided_diffusion_jax.training import cost
from guided_diffusion_jax.training.accelerators import ACCELERATORS, GIB, USABLE

MODELS = ("imagenet64", "imagenet128", "imagenet256", "imagenet512", "imagenet64_256", "imagenet128_512")
CLASSIFIERS = ("imagenet64", "imagenet128", "imagenet256", "imagenet512")
SHARDS = 8
ROOMS = (16, 32, 40, 80)


def main(arguments: list[str]) -> int:
    """Exit code 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description="What fits.")
    parser.add_argument("--configs", default=",".join(MODELS))
    parser.add_argument("--parts", default="train,classifier")
    options = parser.parse_args(arguments)
    chosen = options.configs.split(",")
    parts = options.parts.split(",")
    cases = [(name, part) for part in parts for name in chosen if part == "train" or name in CLASSIFIERS]
    sizes, speeds = [], []
    for name, part in cases:
        print(f"{name} {part}", file=sys.stderr, flush=True)
        size, speed = rows(name, part)
        print(*size, *speed, sep=" | ", file=sys.stderr, flush=True)
        sizes.append(size)
        speeds.append(speed)
    rooms = [f"most images in {room} GiB" for room in ROOMS]
    head = ("config", "parameters", "state, GB", f"by fsdp over {SHARDS}, GB", "activations an image, GB", *rooms)
    print(markdown(head, sizes))
    print()
    print(markdown(("config", "GFLOP an image", *(accelerator.name for accelerator in ACCELERATORS)), speeds))
    return 0


def rows(name: str, part: str) -> tuple[list[str], list[str]]:
    """Lines of the two tables; what depends on `remat` stands as without / with."""
    plain, remat = (dry_run.account(resolved(name, part, remat=choice), part, 1) for choice in (False, True))
    shapes = dry_run.program(resolved(name, part, remat=False), part).state
    cut = sharding.abstract_with_sharding(
        (shapes.params, shapes.ema, shapes.opt_state), AbstractMesh((1, SHARDS), sharding.AXES)
    )
    label = name if part == "train" else f"{name}, classifier"
    size = [
        label,
        f"{sum(plain.parameters.values()) / 1e6:.0f}M",
        f"{sum(plain.state.values()) / 1e9:.2f}",
        f"{cost.on_device(cut) / 1e9:.2f}",
        f"{plain.each / 1e9:.2f} / {remat.each / 1e9:.2f}",
        *(" / ".join(str(each.largest(int(USABLE * room * GIB))) for each in (plain, remat)) for room in ROOMS),
    ]
    speeds = [f"{digits(a.rate(plain.flops))} / {digits(a.rate(remat.flops))}" for a in ACCELERATORS]
    return size, [label, f"{plain.flops / 1e9:,.0f} / {remat.flops / 1e9:,.0f}", *speeds]


def digits(value: float) -> str:
    """Three of them."""
    return f"{float(f'{value:.3g}'):,g}"


def resolved(name: str, part: str, *, remat: bool) -> ConfigDict:
    """A config of configs/ with one image in a batch."""
    config = runpy.run_path(f"configs/{name}.py")["get_config"]()
    config["model" if part == "train" else part].remat = remat
    config[part].batch_size = 1
    return dry_run.resolved(config)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
