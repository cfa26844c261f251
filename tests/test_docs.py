"""The code in the documents runs."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from guided_diffusion_jax.commands import cli
from guided_diffusion_jax.training.step import Metrics
from guided_diffusion_jax.training.summaries import averages

ROOT = Path(__file__).parent.parent


def blocks(path):
    return "\n".join(re.findall(r"^```python\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL))


def smaller(code):
    """The same code, where it trains, with networks of one small size: they compile fast, once for all documents."""
    if "Trainer(" not in code:
        return code
    code = code.replace("channel_mult=(1, 2)", "channel_mult=(1,)").replace("resolutions=(4,)", "resolutions=()")
    return re.sub(r"batch_size=\d+", "batch_size=16", re.sub(r"width=\d+", "width=8", code))


WITH_CODE = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if blocks(path)]


@pytest.mark.parametrize("path", WITH_CODE, ids=lambda path: path.name)
def test_the_blocks_of_a_document_run_one_after_another(path, tmp_path, monkeypatch):
    """`run` is a folder that the document writes to; README writes below the working directory."""
    monkeypatch.chdir(tmp_path)
    exec(compile(smaller(blocks(path)), path.name, "exec"), {"run": "runs/docs"})


SLOW = ("own_energy.py", "three_ways.py", "train_on_arrays.py")
"""Examples of the slow tier: docs/python.md and test_api.py train, go on, steer and measure in the same words."""


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=pytest.mark.slow if path.name in SLOW else (), id=path.name)
        for path in sorted((ROOT / "examples").glob("*.py"))
    ],
)
def test_the_examples_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEPS", "10")
    exec(compile(smaller(path.read_text()), path.name, "exec"), {"__name__": "__main__"})


def test_links_lead_somewhere():
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


# --- Markdown


def lint(*arguments):
    """What the Markdown linter, with this project's settings, finds; empty if all is well."""
    linter = Path(sys.executable).with_name("rumdl")
    done = subprocess.run([linter, "check", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 1) and not done.stderr, done.stderr
    return done.stdout if done.returncode else ""


def test_the_documents_are_well_formed():
    assert not lint(".")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("| a | b |\n|---|---|\n| 1 | 2 |\n| 3 |\n", "MD056"),  # a cell is missing
        ("| a | b |\n|---|---|\n| 1 | 2 | 3 |\n", "MD056"),  # one too many
        ("See [there](#nowhere).\n", "MD051"),
        ("See (there)[https://example.org].\n", "MD011"),
        ("## One\n\n#### Three\n", "MD001"),
    ],
)
def test_the_linter_finds_what_is_broken(text, rule, tmp_path):
    (tmp_path / "page.md").write_text(f"# Page\n\n{text}")
    assert re.search(rule, lint("--no-exclude", f"--config={ROOT / 'pyproject.toml'}", str(tmp_path / "page.md")))


def test_no_table_of_results_leaves_a_cell_to_be_guessed():
    rows = [line for line in (ROOT / "docs/results.md").read_text().splitlines() if line.startswith("|")]
    assert len(rows) > 20 and not [row for row in rows if re.search(r"\|\s*\|", row)]


# --- what is printed, as the documents show it


def shown(path):
    """Commands of a document that stand in a block with what they print."""
    for block in re.findall(r"^```\n\$ (.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL):
        command, _, printed = block.partition("\n")
        yield command, printed


@pytest.mark.slow  # of a network of 296 million parameters; test_dry_run.py has the account of small ones
def test_a_dry_run_prints_what_the_document_shows(capsys):
    ((command, printed),) = [one for one in shown(ROOT / "docs/scaling.md") if "--dry_run" in one[0]]
    assert cli.main(command.removeprefix("python ").split()) == 0
    number = r"[0-9][0-9,.]*"
    found = capsys.readouterr().out
    assert re.sub(number, "N", found) == re.sub(number, "N", printed)
    values = [[float(n.strip(",.").replace(",", "")) for n in re.findall(number, text)] for text in (found, printed)]
    assert values[0] == pytest.approx(values[1], rel=0.05), "another version of JAX may count a little differently"


TERMS = (
    "step", "loss", "loss_q1", "loss_q2", "loss_q3", "loss_q4", "grad_norm", "param_norm", "images_per_second",
    "data_wait", "bad_steps", "accuracy", "weight", "guidance_scale", "classifier_weight", "FD", "FID", "KID",
    "precision", "recall", "density", "coverage", "EMA", "eps", "x0", "v", "DDIM", "DDPM", "null token",
)  # fmt: skip


@pytest.mark.parametrize("term", TERMS)
def test_the_glossary_explains(term):
    rows = [line.split("|")[1:3] for line in (ROOT / "docs/glossary.md").read_text().splitlines() if "|" in line]
    named = [text for names, text in rows if re.search(rf"(?<![\w]){re.escape(term)}(?![\w])", names)]
    assert named and all(len(text.split()) >= 5 for text in named)


def test_the_glossary_knows_everything_that_training_logs():
    one, quarters = np.float32(1), np.ones(4, np.float32)
    metrics = [
        Metrics(one, one, one, np.bool_(bad), {"loss": quarters, "accuracy": quarters}, quarters) for bad in (0, 1)
    ]
    names = re.findall(r"`(\w+)`", (ROOT / "docs/glossary.md").read_text())
    assert set(averages(metrics, 8, 1.0, 0.5)) - {"accuracy_q2", "accuracy_q3"} <= set(names)
