"""What benchmarks of two processes share: their arguments, and the processes."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from benchmarks.peers.suite import require_peers
from benchmarks.peers.worker import OURS, THEIRS, Worker
from guided_diffusion_jax.errors import InputError


def parse(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace | None:
    """Adds --budget and --python and parses. None, with a message, where the environment lacks something."""
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of rounds")
    parser.add_argument("--python", type=Path, default=Path(".venv-peers/bin/python"))
    given = parser.parse_args(arguments)
    try:
        require_peers(given.python)
    except InputError as error:
        print(error, file=sys.stderr)
        return None
    return given


@contextmanager
def two_sides(part: str, python: Path) -> Iterator[dict[str, Worker]]:
    """Our and their process for a part, `our_PART` in this environment and `their_PART` in that of `python`."""
    commands = {OURS: [sys.executable, "our"], THEIRS: [os.fspath(python), "their"]}
    with ExitStack() as stack:
        yield {
            side: stack.enter_context(closing(Worker([program, "-m", f"benchmarks.peers.{whose}_{part}"])))
            for side, (program, whose) in commands.items()
        }
