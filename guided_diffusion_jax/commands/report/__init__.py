"""`--mode=report`: a run, or three ways of steering compared, as a page to read: `report.html` and `report.md`."""

import datetime
import importlib.metadata
import os
import platform
import sys

import jax
from etils import epath
from ml_collections import ConfigDict

from guided_diffusion_jax.commands import build
from guided_diffusion_jax.commands import config as configs
from guided_diffusion_jax.commands.evaluate import swept
from guided_diffusion_jax.commands.evaluate.scoring import Scorer
from guided_diffusion_jax.commands.report import approaches, contents, page, results
from guided_diffusion_jax.commands.report.parts import Page, Section, Table
from guided_diffusion_jax.commands.report.results import Results
from guided_diffusion_jax.errors import require


def run(config: ConfigDict, workdir: epath.Path) -> None:
    """Measures what was not measured yet and writes `report.html` and `report.md`, its pictures in `report/`.

    With `evaluate.approaches` it trains the three ways of steering in `approaches/` and compares them, and what else
    the report shows is of the first CFG run among them; otherwise it is of the run in `workdir`.

    Raises:
        InputError: there is no run, or the config asks for what cannot be.
    """
    require(jax.process_count() == 1, "--mode=report is for one process; use --distributed=off")
    config = build.resolve(config, build.source(config))
    if config.evaluate.approaches:
        approaches.check(config)
    else:
        require(
            swept.newest(workdir) is not None,
            f"{workdir} holds no trained run; train one, or compare three: --config.evaluate.approaches=True",
        )
    scorer = Scorer(config, build.source(config, config.evaluate.split), workdir)
    compared, subject, mine = {}, workdir, config
    if config.evaluate.approaches:
        keep_compiled(workdir / "compiled")
        compared = approaches.run(config, workdir, scorer)
        subject = approaches.place(workdir, "cfg", config.seed)
        mine = approaches.one(config, "cfg", config.seed)
        mine.evaluate.sweep.steps = config.evaluate.sweep.steps
        configs.save(config, workdir)
    found = results.collect(mine, subject, scorer, compared, workdir)
    written = page.write(made(found), workdir)
    print(*written, sep="\n", flush=True)


def keep_compiled(folder: epath.Path) -> None:
    """Lets trainings that differ in their seeds alone share compiled programs; JAX_COMPILATION_CACHE_DIR goes first."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", os.fspath(folder))


def made(found: Results) -> Page:
    """The page."""
    name, size = found.config.data.name, found.config.data.image_size
    steps, trainings = found.config.train.steps, max((p.trainings for p in found.weights), default=1)
    subtitle = (
        f"{found.run}: a diffusion model of {name}, {size}×{size} pixels, "
        f"at step {found.checkpoint_step:,} of {steps:,}"
        + (f"; curves are means over {trainings} trainings. " if trainings > 1 else ". ")
        + f"All figures are in the features of: {found.features}."
    )
    title = f"{'Three ways to steer' if found.compared else 'Steering'}: {name}"
    return Page(title, subtitle, *contents.facts(found), [*contents.sections(found), provenance(found)], found.warnings)


def provenance(found: Results) -> Section:
    """How to make all this again."""
    devices = jax.devices()
    rows = [
        ("run", str(found.run)),
        ("checkpoint step", f"{found.checkpoint_step:,}"),
        ("features", found.features),
        ("date", datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("command", " ".join(["python", *sys.argv])),
        ("guided_diffusion_jax", importlib.metadata.version("guided_diffusion_jax")),
        ("jax", jax.__version__),
        ("Python", f"{platform.python_version()}, {platform.system()} {platform.machine()}"),
        ("devices", f"{len(devices)} × {devices[0].device_kind} ({devices[0].platform})"),
    ]
    settings = [(key, str(value)) for key, value in configs.flatten(found.config)]
    return Section(
        "Settings and provenance",
        "The same command on the same kind of device makes the same pictures.",
        tables=[
            Table("Provenance", "What made this page.", ("what", "value"), rows),
            Table("Settings", "Every key of the config.", ("key", "value"), settings, folded=True),
        ],
    )
