"""`python main.py --config=configs/digits.py --workdir=runs/digits [--mode=MODE] [--config.KEY=VALUE ...]`."""

import sys

from absl import flags
from etils import epath
from ml_collections import config_flags

from guided_diffusion_jax.commands import MODES
from guided_diffusion_jax.commands import config as configs
from guided_diffusion_jax.errors import InputError, choose, require
from guided_diffusion_jax.training.stop import Stopped

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", "", "Folder of the run; may be gs://...")
flags.DEFINE_string("mode", "train", f"One of {', '.join(MODES)}.")
flags.DEFINE_string("out", "", "Where --mode=sample writes; samples/ in the run's folder if empty.")


def main(arguments: list[str]) -> int:
    """Exit code: 0 done, 2 wrong input, 1 anything else."""
    try:
        config = parse(arguments)
        mode = choose(MODES, FLAGS.mode, "--mode")
        require(bool(FLAGS.workdir), "--workdir is missing: the folder of the run, e.g. --workdir=runs/digits")
        mode(config, epath.Path(FLAGS.workdir), FLAGS.out)
    except (InputError, flags.Error) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"{stopped}; the same command goes on from there", file=sys.stderr)
        return 0 if stopped.by_system else 1
    return 0


def parse(arguments: list[str]):
    """Reads the flags; the config comes from --config=FILE, or without it from the run's folder."""
    given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    config = configs.load(given.get("--config", ""), given.get("--workdir", ""))
    configs.check_keys(config, arguments)
    rest = [argument for argument in arguments if not argument.startswith("--config=")]
    holder = config_flags.DEFINE_config_dict("config", config, sys_argv=rest)
    unknown = FLAGS(rest)[1:]
    require(not unknown, f"{' '.join(unknown)}: flags are written --name=value")
    return holder.value


if __name__ == "__main__":
    sys.exit(main(sys.argv))
