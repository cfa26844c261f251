"""Train and sample: `python main.py --config=configs/digits.py --workdir=runs/digits [--mode=...] [--config.KEY=...]`.

--workdir=FOLDER   Of the run; may be gs://... It holds its own config: --config=FILE is for starting one.
--mode=MODE        train (the default; goes on where it stopped), classifier, sample, evaluate, demo, import, export.
--out=FOLDER       Where --mode=sample writes, if not into the run's samples/.
--import_path=FILE, --export_path=FILE   The .pt or .safetensors of guided-diffusion that these modes read or write.
"""

import sys

from absl import flags
from etils import epath
from ml_collections import config_flags

from configs.default import get_config
from guided_diffusion_jax.commands import MODES
from guided_diffusion_jax.commands import config as configs
from guided_diffusion_jax.errors import InputError, choose, require
from guided_diffusion_jax.training.stop import Stopped


def main(arguments: list[str]) -> int:
    """Exit code: 0 done, 2 wrong input, 1 anything else."""
    if "--help" in arguments:
        print(__doc__, *configs.describe(get_config()), sep="\n")
        return 0
    try:
        given, config = parse(arguments)
        mode = choose(MODES, given.mode, "--mode")
        require(bool(given.workdir), "--workdir is missing: the folder of the run, e.g. --workdir=runs/digits")
        mode(config, epath.Path(given.workdir), given)
    except (InputError, flags.Error) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"{stopped}; the same command goes on from there", file=sys.stderr)
        return 0 if stopped.by_system else 1
    return 0


def parse(arguments: list[str]):
    """The flags, and the config of --config=FILE or else of the run's folder, with the overrides."""
    file = next((a.removeprefix("--config=") for a in arguments if a.startswith("--config=")), "")
    rest = [argument for argument in arguments if not argument.startswith("--config=")]
    require("--config" not in rest, "flags are written --name=value, so --config=FILE")
    given = flags.FlagValues()
    for name in ("workdir", "mode", "out", "import_path", "export_path"):
        flags.DEFINE_string(name, "train" if name == "mode" else "", "", flag_values=given)
    given([argument for argument in rest if not argument.startswith("--config.")])
    config = configs.load(file, given.workdir, get_config())
    configs.check_keys(config, rest)
    holder = config_flags.DEFINE_config_dict("config", config, sys_argv=rest, flag_values=given)
    left = given(rest)[1:]
    require(not left, f"{' '.join(left)}: flags are written --name=value")
    return given, holder.value


if __name__ == "__main__":
    sys.exit(main(sys.argv))
