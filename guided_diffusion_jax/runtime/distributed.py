"""Processes of one run: start, wait for each other and end together, by `jax.distributed`.

Each process sees its own host's devices; `jax.devices()` is all of them. Process 0 is the main process: it alone prints
and writes files. If a process dies, JAX's coordination service ends all others within the heartbeat timeout.
"""

import contextlib
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
from etils import epath

from guided_diffusion_jax.errors import InputError, Missing, choose, require

FLAGS: dict[str, Any] = {
    "workdir": "", "distributed": "auto", "coordinator": "", "processes": None, "process": None,
    "startup_timeout": 600, "heartbeat": 100,
}  # fmt: skip
"""Command-line flags with their defaults: the arguments of `start`."""

COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES")
"""Environment variables with a number of processes, or of TPU slices."""

GRACE_S = 10
"""Seconds that a failed process waits for others that fail the same way, so that each can report its error."""

_barrier_timeout_s = 600

SHUTDOWN_S = 86400
"""Seconds that a finished process waits for the others, which may still be writing; dead ones are detected."""


def start(
    *,
    distributed: str = "auto",
    coordinator: str = "",
    processes: int | None = None,
    process: int | None = None,
    startup_timeout: int = 600,
    heartbeat: int = 100,
    workdir: epath.PathLike = "",
    handle_sigterm: bool = True,
) -> None:
    """Joins the processes of a run, before any device is used; silences stdout of all but process 0.

    Args:
        distributed: "auto" joins if `coordinator` is given or the environment names several processes (SLURM, Open MPI,
            TPU workers); "on" always calls `jax.distributed.initialize`, which detects clusters; "off" never does.
        coordinator: HOST:PORT of process 0.
        processes: number of processes, given with `coordinator`.
        process: index of this process, given with `coordinator`.
        startup_timeout: seconds to wait for the other processes, here and in `barrier`.
        heartbeat: seconds of silence after which a process counts as dead.
        workdir: shared folder through which processes learn which of them did not start; "" if there is none.
        handle_sigterm: leave SIGTERM to `preemption.requests`, which lets all processes save.

    Raises:
        InputError: invalid values, or no cluster found by "on".
    """
    choose(dict.fromkeys(("auto", "on", "off")), distributed, "--distributed")
    given = bool(coordinator) or processes is not None or process is not None
    if given:
        require(distributed != "off", "--distributed=off, but --coordinator, --processes or --process is given")
        _check(coordinator, processes, process)
    if distributed == "off" or not (given or distributed == "on" or _several()) or jax.distributed.is_initialized():
        return
    global _barrier_timeout_s
    _barrier_timeout_s = startup_timeout
    jax.config.update("jax_enable_preemption_service", handle_sigterm)
    if process == 0:
        _check_free(coordinator)
    with _startup_deadline(workdir, processes, process, startup_timeout):
        try:
            jax.distributed.initialize(
                coordinator or None,
                processes,
                process,
                cluster_detection_method="deactivate" if given else None,
                initialization_timeout=startup_timeout + 10 * GRACE_S,  # the deadline above comes first
                heartbeat_timeout_seconds=heartbeat,
                shutdown_timeout_seconds=SHUTDOWN_S,
            )
        except jax.errors.JaxRuntimeError as error:
            raise InputError(f"cannot listen at {coordinator or 'the coordinator port'}: {error}") from None
        except (ValueError, RuntimeError) as error:
            raise InputError(f"no cluster was detected ({error}); give --coordinator=HOST:PORT") from None
    if is_main_process():
        print(f"{jax.process_count()} processes", flush=True)
    else:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def is_main_process() -> bool:
    """Whether this is process 0, which prints and writes files."""
    return jax.process_index() == 0


def name() -> str:
    """Prefix of error messages, `"process 3 (host node7): "`; empty in a run of one process."""
    return f"process {jax.process_index()} (host {socket.gethostname()}): " if jax.distributed.is_initialized() else ""


def barrier(key: str) -> None:
    """Waits until all processes have called it with this key, for at most the startup timeout.

    Raises:
        Missing: the timeout has passed; JAX's message names the missing processes.
    """
    if jax.process_count() > 1:
        from orbax.checkpoint import multihost  # a second of imports that `--help` and one process do not need

        try:
            multihost.get_barrier_sync_fn()(key=key, timeout_ms=1000 * _barrier_timeout_s)
        except jax.errors.JaxRuntimeError as error:
            raise Missing(f"not all processes arrived at '{key}' within {_barrier_timeout_s} s: {error}") from None


def exit_with(run: Callable[[], int]) -> None:
    """Exits with the code that `run` returns, together with the other processes.

    A process that fails waits `GRACE_S` for others that fail as well, then exits; JAX ends those that are still running
    when its heartbeats stop.
    """
    try:
        code = run()
    except BaseException as error:
        if not jax.distributed.is_initialized() or isinstance(error, KeyboardInterrupt):
            raise
        traceback.print_exc()
        code = 1
    if jax.distributed.is_initialized():
        shutdown = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        shutdown.start()
        shutdown.join(None if code == 0 else GRACE_S)
        if shutdown.is_alive():
            _exit(code)
    sys.exit(code)


def _exit(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _check(coordinator: str, processes: int | None, process: int | None) -> None:
    if not coordinator or processes is None or process is None:
        raise InputError("--coordinator=HOST:PORT, --processes=COUNT and --process=INDEX belong together; give all")
    host, _, port = coordinator.rpartition(":")
    require(bool(host) and port.isdigit(), f"--coordinator={coordinator} must be HOST:PORT of process 0")
    require(processes >= 1, f"--processes={processes} must be at least 1")
    require(0 <= process < processes, f"--process={process} must be a number, 0 to {processes - 1}")


def _check_free(address: str) -> None:
    """Raises `InputError` where the port of process 0 is taken: JAX would end with a segmentation fault."""
    try:
        socket.create_server(("", int(address.rpartition(":")[2]))).close()
    except OSError as error:
        raise InputError(f"cannot listen at {address}: {error.strerror}") from None


def _several() -> bool:
    """Whether the environment names several processes."""
    counts = [os.environ.get(name, "") for name in COUNTS]
    return any(count.isdigit() and int(count) > 1 for count in counts) or "," in os.environ.get(
        "TPU_WORKER_HOSTNAMES", ""
    )


@contextlib.contextmanager
def _startup_deadline(
    workdir: epath.PathLike, processes: int | None, process: int | None, seconds: int
) -> Iterator[None]:
    """Exits with a one-line error if the block takes longer; JAX itself would abort the process with a stack trace.

    While it waits each process touches `workdir/.processes/INDEX`, which shows the others that it has started.
    """
    folder, own = epath.Path(workdir) / ".processes", str(process if process is not None else os.getpid())
    joined, started = threading.Event(), {own}
    deadline = time.monotonic() + seconds + (GRACE_S if process == 0 else 0)  # the others report first

    def watch() -> None:
        while not joined.wait(1):
            if workdir:
                with contextlib.suppress(OSError):  # only the message depends on it
                    folder.mkdir(parents=True, exist_ok=True)
                    (folder / own).write_text("")
                    now = (folder / own).stat().mtime
                    started.update(file.name for file in folder.iterdir() if file.stat().mtime > now - 5)
            if time.monotonic() > deadline:
                missing = [str(i) for i in range(processes or 0) if str(i) not in started]
                which = f"; missing: process {', '.join(missing)}" * bool(workdir and missing)
                count = f"{len(started)} of {processes or 'the'}" if workdir else f"not all {processes or ''}"
                print(f"error: {count} processes joined within {seconds} s{which}", file=sys.stderr)
                _exit(1)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        joined.set()
        watcher.join()
        with contextlib.suppress(OSError, ValueError):  # ValueError: not empty yet
            if workdir:
                (folder / own).unlink(missing_ok=True)
                folder.rmdir()
