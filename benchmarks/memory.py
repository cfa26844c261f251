"""Memory and work of a training step of each ImageNet preset, as `--dry_run` estimates them.

`python -m benchmarks.memory` prints the Markdown table of docs/scaling.md; `--configs=imagenet64` a part of it.
"""

import argparse
import sys

from ml_collections import ConfigDict

from benchmarks.report import markdown
from guided_diffusion_jax.commands import dry_run
from guided_diffusion_jax.experiment.config import preset
from guided_diffusion_jax.profiling import GIB, USABLE

MODELS = ("imagenet64", "imagenet128", "imagenet256", "imagenet512", "imagenet64_256", "imagenet128_512")
CLASSIFIERS = ("imagenet64", "imagenet128", "imagenet256", "imagenet512")
SHARDS = 8
MEMORIES = (16, 32, 40, 80)


def main(arguments: list[str]) -> int:
    """Exit code 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description="What fits.")
    parser.add_argument("--configs", default=",".join(MODELS))
    parser.add_argument("--parts", default="train,classifier")
    options = parser.parse_args(arguments)
    rows = []
    for part in options.parts.split(","):
        for name in options.configs.split(","):
            if part == "train" or name in CLASSIFIERS:
                rows.append(row(name, part))
                print(*rows[-1], sep=" | ", file=sys.stderr, flush=True)
    largest = [f"largest batch in {size} GiB" for size in MEMORIES]
    head = (
        "config",
        "parameters",
        "state, GB",
        f"by fsdp over {SHARDS}, GB",
        "GB per image",
        "GFLOP per image",
        *largest,
    )
    print(markdown(head, rows))
    return 0


def row(name: str, part: str) -> list[str]:
    """Row of the table; what depends on `remat` stands as without / with."""
    both = [dry_run.profile(config(name, part, remat=choice), part, 1) for choice in (False, True)]
    sharded = config(name, part, remat=False)
    training(sharded, part).update(parallel="fsdp", batch_size=SHARDS)
    plain = both[0]
    return [
        name if part == "train" else f"{name}, classifier",
        f"{sum(plain.parameters.values()) / 1e6:.0f}M",
        f"{sum(plain.state.values()) / 1e9:.2f}",
        f"{sum(dry_run.profile(sharded, part, SHARDS).state.values()) / 1e9:.2f}",
        " / ".join(f"{found.per_image / 1e9:.2f}" for found in both),
        " / ".join(f"{found.flops / 1e9:,.0f}" for found in both),
        *(" / ".join(str(found.largest_batch(int(USABLE * size * GIB))) for found in both) for size in MEMORIES),
    ]


def config(name: str, part: str, *, remat: bool) -> ConfigDict:
    """Preset with one image in a batch."""
    made = preset(name)
    (made.model if part == "train" else made.classifier.model).remat = remat
    training(made, part).batch_size = 1
    return made


def training(config: ConfigDict, part: str) -> ConfigDict:
    """Section of the training of a part, "train" or "classifier"."""
    return config.train if part == "train" else config.classifier.train


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
