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
LAYERS = {
    "typing": 0, "errors": 0, "writing": 0,
    "schedules": 1, "prediction": 1, "gaussian": 1, "conditions": 1, "models": 1, "data": 1,
    "guidance": 2, "samplers": 2, "losses": 2,
    "denoisers": 3, "generation": 3, "interop": 3,
    "profiling": 4, "training": 4, "evaluation": 4,
    "report": 5,
    "commands": 6,
}  # fmt: skip
ALLOWED = {("generation", "denoisers"), ("writing", "errors")}  # between siblings
MATHEMATICS = {"schedules", "prediction", "gaussian", "conditions", "guidance", "samplers", "losses"}
NETWORKS_AND_PICTURES = {"models", "data"}
SOURCES = sorted((ROOT / PACKAGE).rglob("*.py"))
MODULES = [module.name for module in pkgutil.walk_packages(guided_diffusion_jax.__path__, f"{PACKAGE}.")]


def unit(name):
    """The row of the layer table that a dotted name belongs to; None for other packages and for ours as a whole."""
    parts = name.split(".")
    return parts[1] if parts[0] == PACKAGE and len(parts) > 1 else None


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
    mine = path.with_suffix("").parts[1]
    if mine == "__init__":
        return [f"{path} imports {name}" for name in imports(source, path)]
    if mine not in LAYERS:
        return [f"{path}: '{mine}' has no layer; add it to DESIGN.md's table and to LAYERS here"]
    found = []
    for name in imports(source, path):
        top, other = name.split(".")[0], unit(name)
        if top in {"torch", "tensorflow"}:
            found.append(f"{path} imports {top}, which is no part of the run time")
        if top == "flax" and mine in MATHEMATICS:
            found.append(f"{path} imports flax, but is mathematics")
        if top == PACKAGE and other not in LAYERS:
            found.append(f"{path} imports {name}, which is in no layer")
        elif other and other != mine and (mine, other) not in ALLOWED:
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
        ("samplers/ddim.py", "def f():\n    import guided_diffusion_jax.training.loop", "above"),
        ("samplers/ddim.py", "from guided_diffusion_jax import guidance", "sibling"),
        ("gaussian.py", "from guided_diffusion_jax.schedules import at", "sibling"),
        ("losses.py", "from guided_diffusion_jax.models.unet import UNet", "mathematics"),
        ("guidance.py", "import flax.linen as nn", "mathematics"),
        ("data/images.py", "import tensorflow as tf", "run time"),
        ("new.py", "", "no layer"),
        ("commands/a.py", "from guided_diffusion_jax.new import f", "no layer"),
        ("samplers/ddim.py", "from guided_diffusion_jax.samplers import noise", None),
        ("generation.py", "from guided_diffusion_jax.denoisers import f\nimport tensorflow_datasets", None),
    ],
)
def test_the_test_above_sees_what_it_is_for(path, source, complaint):
    found = complaints(Path(PACKAGE) / path, source)
    assert (len(found) == 1 and complaint in found[0]) if complaint else not found


def test_files_are_short_and_named_for_what_they_hold():
    assert not [file for file in SOURCES if "util" in file.stem or "helper" in file.stem]
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in SOURCES}
    assert not {file: length for file, length in lengths.items() if length > 330}
    assert len((ROOT / "main.py").read_text().splitlines()) < 60


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
