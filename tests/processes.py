"""Several processes of `main.py` on this machine, which train together as hosts do, on simulated devices."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent


def free_port():
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Team:
    """Processes 0 .. n-1 of one command, started at once.

    Args:
        numbers: which of them are started.
        folder: where the output of each goes.
        flags: of `main.py`.
        count: how many they believe to be.
        devices: of each.
        environment: more variables.
        flags_of: further flags of some of them, by number.
    """

    def __init__(self, numbers, folder, flags, *, count=2, devices=2, environment=None, flags_of=None):
        folder.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), **(environment or {})}
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._folder, self.processes = folder, {}
        for number in numbers:
            joining = [f"--coordinator={self.address}", f"--processes={count}", f"--process={number}"]
            command = [
                sys.executable,
                "main.py",
                *flags,
                *(joining if count > 1 else []),
                *(flags_of or {}).get(number, []),
            ]
            with self._file(number, "out").open("w") as out, self._file(number, "err").open("w") as err:
                self.processes[number] = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=err)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes.values():
            process.kill()
            process.wait()

    def _file(self, number, stream):
        return self._folder / f"{number}.{stream}"

    def out(self, number):
        """What a process has written to stdout."""
        return self._file(number, "out").read_text()

    def err(self, number):
        """What a process has written to stderr."""
        return self._file(number, "err").read_text()

    def told(self):
        """All that all of them have written, to read where a test fails."""
        return "\n".join(f"== {n}:\n{self.out(n)[-2000:]}\n{self.err(n)[-4000:]}" for n in self.processes)

    def wait_for(self, text, seconds=200):
        """Until process 0 has written this to stdout."""
        deadline = time.monotonic() + seconds
        while text not in self.out(0):
            assert self.processes[0].poll() is None and time.monotonic() < deadline, self.told()
            time.sleep(0.02)

    def send(self, number, signal):
        """Sends a signal to one of them."""
        self.processes[number].send_signal(signal)

    def codes(self, seconds=200):
        """The exit codes by number, once all have ended."""
        deadline = time.monotonic() + seconds
        return {n: process.wait(max(0, deadline - time.monotonic())) for n, process in self.processes.items()}
