"""The code in the documents runs."""

import re
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_the_examples_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEPS", "10")
    exec(compile(smaller(path.read_text()), path.name, "exec"), {"__name__": "__main__"})


def test_links_lead_somewhere():
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"
