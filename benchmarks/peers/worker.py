"""A process that is told over a pipe what to build, prepare and run, one JSON object a line; both ends of the pipe.

It needs the standard library alone, because ours and theirs run in environments that have little else in common.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]

STEPS = 50
"""Of DDIM."""
TRAINING, FORWARD, MATMUL = "training step", "forward", "matmul"
DDIM, CFG, CLASSIFIER = f"DDIM-{STEPS}", f"DDIM-{STEPS}, CFG", f"DDIM-{STEPS}, classifier guidance"
LOADING = {"memory": "batches from memory", "files": "batches from PNG files"}
FEATURES = "features"
OURS, THEIRS = "ours", "theirs"
PROMPT, GUIDANCE_SCALE = "a red fox in the snow", 7.5
"""Of Stable Diffusion's pipelines."""
SCALE = 1.0
"""Weight w of both kinds of guidance: (1 + w) conditional - w unconditional, and w times the classifier's gradient."""


def matmul_size(device: str) -> tuple[int, int]:
    """Size of square matrices and length of a chain of their products, which measures the peak of "cpu" or another."""
    return (1024, 8) if device == "cpu" else (8192, 20)


class Prepared(NamedTuple):
    """A program: what is called again and again, and what is to be told about it."""

    call: Callable[[], Any]
    about: dict[str, Any]


class Built(NamedTuple):
    """What a side has built of a network.

    Attributes:
        about: sizes, for the other side and for the record.
        programs: by name, what compiles one.
        wait: waits until a call's result is there.
        describe: versions, operations and memory, asked for at the end.
    """

    about: dict[str, Any]
    programs: dict[str, Callable[[], Prepared]]
    wait: Callable[[Any], Any]
    describe: Callable[[], dict[str, Any]]


class WorkerError(RuntimeError):
    """What the other process could not do."""


class _Server:
    """Requests by name, as methods."""

    def __init__(self, build: Callable[..., Built]):
        self._build, self._calls = build, dict[str, Callable[[], Any]]()

    def hello(self) -> None:
        """Nothing: the imports are done when it is answered."""

    def build(self, **options: Any) -> dict[str, Any]:
        """Builds the network."""
        self._built = self._build(**options)
        return self._built.about

    def prepare(self, program: str) -> dict[str, Any]:
        """Compiles a program and calls it once."""
        call, about = self._built.programs[program]()
        self._calls[program] = call
        return about | {"first_call_seconds": self.run(program, 1)}

    def run(self, program: str, calls: int) -> float:
        """Seconds of so many calls, one after the other."""
        call = self._calls[program]
        start = time.perf_counter()
        for _ in range(calls):
            result = call()
        self._built.wait(result)
        return time.perf_counter() - start

    def describe(self) -> dict[str, Any]:
        """What is known at the end."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return self._built.describe() | {"host_peak_bytes": peak * (1 if sys.platform == "darwin" else 1024)}


def serve(build: Callable[..., Built]) -> None:
    """Answers the requests of standard input until it ends. What libraries print goes to standard error."""
    server, answers = _Server(build), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request, options = json.loads(line)
        try:
            answer = {"result": getattr(server, request)(**options)}
        except Exception as error:  # whatever it is, the other end has to know
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


class Worker:
    """The parent's end: a process and its requests.

    Args:
        command: arguments of the process.
        environment: variables beside those of this process.

    Attributes:
        imported: seconds from the start until the imports were done.
    """

    def __init__(self, command: Sequence[str], environment: dict[str, str] | None = None):
        self._begin, pipe = time.perf_counter(), subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT, env={**os.environ, **(environment or {})}
        )
        self.ask("hello")
        self.imported = self.age

    @property
    def age(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._begin

    def ask(self, request: str, **options: Any) -> Any:
        """Answer to a request.

        Raises:
            WorkerError: it could not be done, or the process has ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            print(json.dumps([request, options]), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"{request}: the process ended with {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{request} {options.get('program', '')}: {answer['error']}")
        return answer["result"]

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()
