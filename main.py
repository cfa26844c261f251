"""Train and sample: `python main.py --config=configs/digits.py --workdir=runs/digits [--mode=...] [--config.KEY=...]`.

--workdir=FOLDER   Of the run; may be gs://... It holds its own config: --config=FILE is for starting one.
--mode=MODE        train (the default; or goes on), classifier, sample, evaluate, report, demo, import, export.
--dry_run [--devices=N]   Only say what training would take on each of N devices, and where it fits; reads no data.
--out=FOLDER       Where sample writes, if not samples/. --import_path=.pt, .safetensors. --export_path=.safetensors
--distributed=MODE, --coordinator=HOST:PORT, --processes=N, --process=I, --patience=S, --heartbeat=S: docs/scaling.md
"""

import sys

from absl import flags
from ml_collections import config_flags

from configs.default import get_config
from guided_diffusion_jax.commands import TRAINING, chosen
from guided_diffusion_jax.commands import config as configs
from guided_diffusion_jax.errors import InputError, report, require
from guided_diffusion_jax.training import distributed, heap, stop


def main(arguments: list[str]) -> int:
    """Exit code: 0 done, 2 wrong input, 1 anything else."""
    if "--help" in arguments:
        print(__doc__, *configs.describe(get_config()), sep="\n")
        return 0
    try:
        given, config = parse(arguments)
        run = chosen(given)
        heap.limit()
        distributed.start(trains=given.mode in TRAINING, **{name: given[name].value for name in distributed.FLAGS})
        run(config)
    except stop.Stopped as stopped:
        print(f"{distributed.name()}{stopped}; the same command goes on from there", file=sys.stderr)
        return distributed.agreed(0 if stopped.by_system else 1)
    except Exception as error:
        return report(error, (InputError, flags.Error), distributed.name())
    return 0


def parse(arguments: list[str]):
    """The flags, and the config of --config=FILE or else of the run's folder, with the overrides."""
    file = next((a.removeprefix("--config=") for a in arguments if a.startswith("--config=")), "")
    rest = [argument for argument in arguments if not argument.startswith("--config=")]
    require("--config" not in rest, "flags are written --name=value, so --config=FILE")
    given = flags.FlagValues()
    flags.DEFINE_boolean("dry_run", False, "", flag_values=given)
    for name in ("workdir", "mode", "out", "devices", "import_path", "export_path", *distributed.FLAGS):
        flags.DEFINE_string(name, {"mode": "train", "distributed": "auto"}.get(name, ""), "", flag_values=given)
    given([argument for argument in rest if not argument.startswith("--config.")])
    config = configs.load(file, given.workdir, get_config())
    configs.check_keys(config, rest)
    holder = config_flags.DEFINE_config_dict("config", config, sys_argv=rest, flag_values=given)
    require(not (left := given(rest)[1:]), f"{' '.join(left)}: flags are written --name=value")
    return given, holder.value


if __name__ == "__main__":
    distributed.exit_with(lambda: main(sys.argv))
