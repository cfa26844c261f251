"""How well a run's pictures show what was asked for, told by image analysis; for the drawn data set."""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from guided_diffusion_jax.commands import ask, kinds, networks
from guided_diffusion_jax.commands.draw import Artist
from guided_diffusion_jax.data.dataset import Dataset as Source
from guided_diffusion_jax.data.shapes.scenes import ATTRIBUTES
from guided_diffusion_jax.data.sources import load
from guided_diffusion_jax.errors import choose, require
from guided_diffusion_jax.evaluation import judge as judges
from guided_diffusion_jax.typing import Params

STYLE = ("texture", "background")
"""What a reference picture has in common with the one that it stands for."""


def judge(config: ConfigDict, params: Params, data: Source, count: int) -> dict[str, Any]:
    """Draws pictures with the conditions of the first examples and has them read.

    For each kind of condition that they are drawn with, the share of pictures that show what it says: of label and
    attributes every one that the network was given, of text all that the caption names, of style texture and
    background; of a map the mean intersection over union (IoU) of the objects' areas. Beside them the share of each
    attribute alone, asked for or not.

    Raises:
        InputError: as `check` does.
    """
    chosen = check(config)
    wanted = ask.for_examples(config, data, np.arange(count), chosen)
    drawn = Artist(networks.network(config), config).images(params, wanted.spared())
    truth = answers(config, count)
    found = judges.read(drawn)
    right = {name: found[name] == truth[name] for name in ATTRIBUTES}
    shares = {f"{name} right": float(of_it.mean()) for name, of_it in right.items()}
    asked = [*(["shape"] if "label" in chosen else []), *(config.data.attributes if "attributes" in chosen else [])]
    if asked:
        shares["all given attributes right"] = float(np.all([right[name] for name in asked], axis=0).mean())
    if "text" in chosen:
        shares["all named attributes right"] = float(judges.obeyed(list(truth["text"]), found).mean())
    if "style" in chosen:
        shares["style right"] = float(np.all([right[name] for name in STYLE], axis=0).mean())
    if "map" in chosen:
        shares["map IoU"] = float(judges.iou(judges.foreground(drawn, found), truth["map"][..., 0] > 127).mean())
    print(f"{count} pictures, w = {config.sample.guidance.weight:g}, drawn with {', '.join(chosen)}:")
    for name, share in shares.items():
        print(f"  {name}: {share:.3f}" if name == "map IoU" else f"  {name}: {share:.1%}")
    return {"kinds": chosen, "shares": shares}


def check(config: ConfigDict) -> tuple[str, ...]:
    """The kinds of conditions that the judged pictures are drawn with.

    Raises:
        InputError: the data are others than `shapes`, or the run does not have one of the kinds.
    """
    name, there = config.data.name, kinds.names(config)
    require(
        name.startswith("shapes"),
        f"evaluate.metrics=judge reads the pictures of shapes, not of data.name={name!r}; use evaluate.metrics=bpd",
    )
    chosen = tuple(filter(None, config.evaluate.kinds.split("+")))
    for kind in chosen:
        choose(dict.fromkeys(there), kind, "evaluate.kinds")
    return chosen or tuple(kind for kind in there if kind != "known")


def answers(config: ConfigDict, count: int) -> dict[str, np.ndarray]:
    """What the first examples show: each attribute, whatever of it is a condition, caption and area of the objects."""
    d = config.data
    others = tuple(name for name in ATTRIBUTES if name != "shape")
    source = load(
        d.name,
        split=config.evaluate.split,
        image_size=d.image_size,
        data_dir=d.data_dir,
        attributes=others,
        text="caption",
        control_image="segmentation",
        memory_limit=0,
    )
    batch = source.read(np.arange(count))
    attributes = {name: batch["attributes"][:, i] - 1 for i, name in enumerate(others)}
    return {"shape": batch["label"], "text": batch["text"], "map": batch["control_image"], **attributes}
