"""Writes docs/commands.md's pages of `--help` as the program prints them: `python -m tests.write_pages`."""

import contextlib
import io
import re
from pathlib import Path

from guided_diffusion_jax.commands.cli import main

PAGE = Path(__file__).parent.parent / "docs" / "commands.md"


def printed(found: re.Match) -> str:
    """A block that begins with a command, with what the command prints."""
    with contextlib.redirect_stdout(io.StringIO()) as page:
        main(["main.py", *found[1].split()])
    return f"```\n$ python main.py{found[1]}\n{page.getvalue()}```\n"


if __name__ == "__main__":
    PAGE.write_text(re.sub(r"```\n\$ python main.py(.*)\n[^`]*```\n", printed, PAGE.read_text()))
