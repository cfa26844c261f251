"""The layers of the package, read from its sources; and every docstring's example."""

import ast
import doctest
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import guided_diffusion_jax

PACKAGE = "guided_diffusion_jax"
ROOT = Path(__file__).parent.parent
ORDER = (
    "errors", "checks", "labels", "runtime.files", "typing", "random", "dot_product", "trajectories", "schedules",
    "prediction", "gaussian", "codecs", "process", "runtime", "bundled", "export_format", "sharding", "data",
    "models", "conditions", "samplers", "guidance", "denoisers", "objectives", "generation", "interop", "profiling",
    "training", "inputs", "prompts", "scenes", "sampling_inputs", "guidance_inputs", "guides", "requests", "sweeps",
    "stepwise", "batching", "pipeline", "stable_diffusion", "finetuning", "loading", "evaluation", "lettering",
    "grids", "exported", "exporting", "serve", "experiment", "report", "commands",
)  # fmt: skip
"""From the bottom; a module imports only what stands before it, and its own folder."""

LAYERS = {name: layer for layer, name in enumerate(ORDER)}
ALLOWED = {
    ("models", "conditions"),  # `models` places what `conditions` lists, whose encoders are models
    ("pipeline", "serve"),  # a method that starts the page, imported when it is called
}
MATHEMATICS = {
    "trajectories",
    "schedules",
    "prediction",
    "gaussian",
    "process",
    "guidance",
    "samplers",
    "random",
    "dot_product",
    "codecs",
}
NETWORKS_AND_PICTURES = {"models", "data"}
SOURCES = sorted((ROOT / PACKAGE).rglob("*.py"))
MODULES = [module.name for module in pkgutil.walk_packages(guided_diffusion_jax.__path__, f"{PACKAGE}.")]


def unit(name):
    """The row of the layer table that a dotted name belongs to; None for other packages and for ours as a whole."""
    parts = name.split(".")
    if parts[0] != PACKAGE or len(parts) == 1:
        return None
    return next((row for row in (".".join(parts[1:3]), parts[1]) if row in LAYERS), parts[1])


def imports(source, path):
    """Every dotted name that a source imports, wherever in it; `from a import b` may mean the module a.b."""
    for node in ast.walk(ast.parse(source, str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def complaints(path, source):
    """What is wrong with the imports of one file, one line each."""
    mine = unit(".".join(path.with_suffix("").parts))
    if mine == "__init__":  # the public names are imported when they are used
        return [f"{path} imports {name}" for name in imports(source, path) if name not in ("importlib", "typing.Any")]
    if mine not in LAYERS:
        return [f"{path}: '{mine}' has no layer; add it to ORDER here"]
    found = []
    for name in imports(source, path):
        top, other = name.split(".")[0], unit(name)
        if top in {"torch", "tensorflow"}:
            found.append(f"{path} imports {top}, which is no part of the run time")
        if top == "flax" and mine in MATHEMATICS:
            found.append(f"{path} imports flax, but is mathematics")
        if top == PACKAGE and other not in (None, "__version__") and other not in LAYERS:
            found.append(f"{path} imports {name}, which is in no layer")
        elif other in LAYERS and other != mine and (mine, other) not in ALLOWED:
            if LAYERS[other] == LAYERS[mine]:
                found.append(f"{path} imports its sibling {name}")
            elif LAYERS[other] > LAYERS[mine]:
                found.append(f"{path} imports {name}, which is above it")
            elif mine in MATHEMATICS and other in NETWORKS_AND_PICTURES:
                found.append(f"{path} imports {name}, but is mathematics")
    return found


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_only_to_lower_layers(file):
    assert not complaints(file.relative_to(ROOT), file.read_text())


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("samplers/ddim.py", "from guided_diffusion_jax.generation import Request", "above"),
        ("samplers/ddim.py", "def f():\n    import guided_diffusion_jax.training.step", "above"),
        ("guidance/cfg.py", "from guided_diffusion_jax.models.unet import UNet", "mathematics"),
        ("guidance/cfg.py", "import flax.linen as nn", "mathematics"),
        ("data/images.py", "import tensorflow as tf", "run time"),
        ("new.py", "", "no layer"),
        ("commands/a.py", "from guided_diffusion_jax.new import f", "no layer"),
        ("samplers/ddim.py", "from guided_diffusion_jax.samplers import base", None),
        ("generation.py", "from guided_diffusion_jax.denoisers import f\nimport tensorflow_datasets", None),
    ],
)
def test_the_test_above_sees_what_it_is_for(path, source, complaint):
    found = complaints(Path(PACKAGE) / path, source)
    assert (len(found) == 1 and complaint in found[0]) if complaint else not found


def test_files_are_short_and_named_for_what_they_hold():
    assert not [file for file in SOURCES if "util" in file.stem or "helper" in file.stem]
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in SOURCES}
    assert not {file: length for file, length in lengths.items() if length > 420}
    assert len((ROOT / "main.py").read_text().splitlines()) < 20


def test_the_commands_load_neither_tensorflow_nor_torch():
    code = f"import sys, {PACKAGE}.commands; print({{'tensorflow', 'torch'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_give_what_they_show(name):
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    assert doctest.testmod(importlib.import_module(name), optionflags=flags).failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    tests = [test for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(tests) >= 5


def test_no_function_below_experiment_takes_a_configuration():
    upper = {"experiment", "commands"}
    below = [file for file in SOURCES if file.relative_to(ROOT).parts[1] not in upper]
    assert not [file for file in below if "ConfigDict" in file.read_text() or "ml_collections" in file.read_text()]


PRIVATE_WORDS = {
    "Artist", "Wanted", "spared", "kinds", "told", "said", "Small", "rollcall", "leads", "whole", "cut", "here",
    "placed", "filled", "SPREADS", "Across", "film", "Controlled", "judge", "obey", "board", "heap", "Fit", "networks",
    "noised", "smallest_variance", "usual_norm", "spike", "inject",
}  # fmt: skip


def test_no_private_word_names_a_function_a_class_or_a_module():
    """Names of the first edition that a reader of JAX and diffusers could not have known."""
    found = []
    for file in SOURCES:
        names = {file.stem} | {
            node.name
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
        }
        found += [f"{file.relative_to(ROOT)}: {name}" for name in sorted(names & PRIVATE_WORDS)]
    assert not found
