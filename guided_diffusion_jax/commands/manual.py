"""What `--help` prints: flags, modes, presets and every key of the configuration, with what each means and takes."""

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from guided_diffusion_jax import __version__, models
from guided_diffusion_jax.commands.arguments import FLAGS
from guided_diffusion_jax.errors import choose
from guided_diffusion_jax.experiment import config as configs
from guided_diffusion_jax.experiment.default import GROUPS, KEYS
from guided_diffusion_jax.experiment.keys import Key, guess
from guided_diffusion_jax.labels import class_list
from guided_diffusion_jax.training import run_files

WIDTH = 100


def usage(program: str, modes: Mapping[str, str]) -> str:
    """A few lines for those who give no arguments."""
    return f"""\
Train an image diffusion model, steer it and generate images.

  {program} --config=small --config.data.data_dir=PHOTOS --workdir=RUN   train on a folder of images
  {program} --workdir=RUN                                                go on with a run
  {program} --workdir=RUN --mode=sample                                  generate images

Modes: {", ".join(modes)}.
{textwrap.fill(f"Presets: {', '.join(configs.presets())}.", WIDTH, subsequent_indent="  ")}
{program} --help lists every flag and key; --help=sample one group of keys."""


def page(program: str, modes: Mapping[str, str], config: ConfigDict, group: str = "") -> str:
    """The whole page, or that of one group of keys, with the values of this configuration.

    Raises:
        InputError: there is no such group.
    """
    groups = {name: f"{name}: {about}" if name else about for name, about in GROUPS.items()}
    if group:
        choose({name: about for name, about in groups.items() if name}, group, "--help")
        return "\n".join([f"Keys {groups[group]}", *_keys(config, group)])
    lines = [
        f"guided_diffusion_jax {__version__}: train an image diffusion model, steer it and generate images.",
        "",
        f"  {program} --config=NAME --workdir=FOLDER [--mode=MODE] [--config.KEY=VALUE ...]",
        "",
        "Flags are written --name=value or --name value.",
        *(_entry(f"--{name}", key, key.default) for name, key in FLAGS.items()),
        "",
        "Modes:",
        *(f"  {name:<11}{about}" for name, about in modes.items()),
        "",
        textwrap.fill(f"Presets for --config: {', '.join(configs.presets())}", WIDTH, subsequent_indent="  "),
        "",
        "Keys of the config, with their values; --help=GROUP shows one group, --workdir=FOLDER a run's own values.",
    ]
    for name, about in groups.items():
        lines += ["", f"Keys {about}", *_keys(config, name)]
    return "\n".join(lines)


def classes(workdir: epath.Path) -> str:
    """What a run's labels may be, in one paragraph; nothing where there is no run."""
    description = run_files.read(workdir) if workdir.is_dir() else None
    if description is None:
        return ""
    if not models.num_classes(models.create(description["model"])):
        return f"{workdir}: this run has no classes\n"
    listed = class_list(description["data"]["class_names"], all_of_them=True)
    return textwrap.fill(f"Classes of {workdir}, for --config.sample.labels: {listed}", WIDTH) + "\n"


def _keys(config: ConfigDict, group: str) -> Iterator[str]:
    """Entries of a group: the table's in its order, then keys of the user's own."""
    values = dict(configs.flatten(config))
    for name in [*KEYS, *(name for name in values if name not in KEYS)]:
        if name in values and (name.partition(".")[0] if "." in name else "") == group:
            yield _entry(f"--config.{name}", KEYS.get(name) or guess(values[name]), values[name])


def _entry(name: str, key: Key, value: Any) -> str:
    shown = "" if value is None else ",".join(map(str, value)) if _is_flat(value) else str(value)
    about = f"{name}={shown}  {key.meaning} ({key.values.words})"
    return textwrap.fill(about, WIDTH, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False)


def _is_flat(value: Any) -> bool:
    return isinstance(value, tuple | list) and not any(isinstance(item, tuple | list) for item in value)
