"""Train and sample: `python main.py --config=configs/digits.py --workdir=runs/digits [--mode=...] [--config.KEY=...]`.

--workdir=FOLDER   Of the run; may be gs://... It holds its own config: --config=FILE is for starting one.
--mode=MODE        train (the default; or goes on), classifier, sample, evaluate, report, demo, import, export.
--dry_run [--devices=N]   Only say what training would take on each of N devices, and where it fits; reads no data.
--out=FOLDER       Where sample writes, if not into samples/. --import_path=FILE, --export_path=FILE: .pt, .safetensors
--distributed=MODE, --coordinator=HOST:PORT, --processes=N, --process=I, ...   docs/scaling.md
"""

import sys

from absl import flags
from ml_collections import config_flags

from configs.default import get_config
from guided_diffusion_jax.commands import TRAINING, chosen
from guided_diffusion_jax.commands import config as configs
from guided_diffusion_jax.errors import InputError, report, require
from guided_diffusion_jax.runtime import distributed, preemption


def main(arguments: list[str]) -> int:
    """Exit code: 0 done, 2 wrong input, 1 anything else."""
    if "--help" in arguments:
        print(__doc__, *configs.describe(get_config()), sep="\n")
        return 0
    try:
        given, config = parse(arguments)
        run = chosen(given)
        distributed.start(handle_sigterm=given.mode in TRAINING, **{n: given[n].value for n in distributed.FLAGS})
        run(config)
    except preemption.Stopped as stopped:
        print(f"{distributed.name()}{stopped}; the same command goes on from there", file=sys.stderr)
        return 0 if stopped.by_system else 1
    except Exception as error:
        return report(error, (InputError, flags.Error), distributed.name())
    return 0


def parse(arguments: list[str]):
    """The flags, and the config of --config=FILE or else of the run's folder, with the overrides."""
    file = next((a.removeprefix("--config=") for a in arguments if a.startswith("--config=")), "")
    rest = [argument for argument in arguments if not argument.startswith("--config=")]
    require("--config" not in rest, "flags are written --name=value, so --config=FILE")
    given = flags.FlagValues()
    texts = dict.fromkeys(("out", "devices", "import_path", "export_path"), "")
    for name, default in {"dry_run": False, "mode": "train", **texts, **distributed.FLAGS}.items():
        kind = {bool: "boolean", str: "string"}.get(type(default), "integer")
        getattr(flags, f"DEFINE_{kind}")(name, default, "", flag_values=given)
    given([argument for argument in rest if not argument.startswith("--config.")])
    config = configs.load(file, given.workdir, get_config())
    configs.check_keys(config, rest)
    holder = config_flags.DEFINE_config_dict("config", config, sys_argv=rest, flag_values=given)
    require(not (left := given(rest)[1:]), f"{' '.join(left)}: flags are written --name=value")
    return given, holder.value


if __name__ == "__main__":
    distributed.exit_with(lambda: main(sys.argv))
