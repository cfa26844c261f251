"""Many processes as one: started together, waiting for each other by name, and ended together.

Each process sees its own host's devices and `jax.devices()` is all of them. Process 0 leads: it alone prints and writes
files. In a run of one process everything here does nothing.
"""

import contextlib
import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

# Not public (jax 0.10): the clusters, to ask how many processes there are before joining them; and, in `_client`, the
# coordination service, whose barriers have timeouts, unlike jax.experimental.multihost_utils.sync_global_devices.
from jax._src.clusters import ClusterEnv

from guided_diffusion_jax.errors import InputError, Missing, choose, require
from guided_diffusion_jax.runtime import rollcall

FLAGS = ("distributed", "coordinator", "processes", "process", "patience", "heartbeat")
"""What `start` takes as text, for the command line."""

PATIENCE_S = 600
"""How long one process waits for another, in seconds: data may be prepared, a big checkpoint be read."""

HEARTBEAT_S = 100
"""A process that is silent for so many seconds is dead, and JAX ends all others."""

END_S = 86400.0
"""How long a process that is done waits for the others, which may be writing: the dead and the failed are known."""

POLL_S, GRACE_S = 2.0, 10.0
"""How often a process looks whether another one failed, and how long it then has to fail by itself."""


class Place(NamedTuple):
    """A process among all: HOST:PORT of process 0, how many there are, its number, its devices (None is all)."""

    coordinator: str
    processes: int
    process: int
    devices: Sequence[int] | None = None


def start(
    *,
    distributed: str = "auto",
    coordinator: str = "",
    processes: str = "",
    process: str = "",
    patience: str = "",
    heartbeat: str = "",
    trains: bool = True,
) -> None:
    """Joins this process with the others, once, before anything touches a device; silences stdout of all but process 0.

    Args:
        distributed: "auto" joins what `coordinator` names, or the tasks of a TPU pod, of SLURM or Open MPI if there are
            several; "on" insists that there are others (which finds Kubernetes jobs as well); "off" stays alone.
        coordinator: HOST:PORT of process 0.
        processes: how many there are, given with `coordinator`.
        process: the number of this one, given with `coordinator`.
        patience: how long to wait for others, in seconds.
        heartbeat: after how many seconds of silence a process is dead.
        trains: whether SIGTERM is kept for `preemption.requests`, which makes all processes save.

    Raises:
        InputError: a value that cannot be, or "on" and there is no cluster.
        Missing: another process did not come.
    """
    choose(dict.fromkeys(("auto", "on", "off")), distributed, "--distributed")
    seconds = _whole(patience or str(PATIENCE_S), "--patience", 1)
    silence = _whole(heartbeat or str(HEARTBEAT_S), "--heartbeat", 1)
    if coordinator or processes or process:
        require(distributed != "off", "--distributed=off, but --coordinator, --processes or --process is given")
        place: Place | None = _given(coordinator, processes, process)
    else:
        place = None if distributed == "off" else _detected(distributed == "on", seconds)
    if place is None or jax.distributed.is_initialized():
        return
    hosts = rollcall.call(place.coordinator, place.processes, place.process, float(seconds))
    jax.config.update("jax_enable_preemption_service", trains)
    jax.distributed.initialize(
        place.coordinator,
        num_processes=place.processes,
        process_id=place.process,
        local_device_ids=place.devices,
        cluster_detection_method="deactivate",
        initialization_timeout=seconds,
        heartbeat_timeout_seconds=silence,
        shutdown_timeout_seconds=silence,
    )
    _team.hosts, _team.process, _team.patience_s = hosts, place.process, float(seconds)
    _team.watch = threading.Thread(target=_watch, daemon=True)
    _team.watch.start()
    if place.process:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    else:
        print(f"{len(hosts)} processes: {', '.join(f'{i} on {host}' for i, host in enumerate(hosts))}", flush=True)


def is_main_process() -> bool:
    """Whether this is process 0, which prints and writes for all."""
    return jax.process_index() == 0


def name() -> str:
    """`"process 3 (host node7): "`, to begin an error with; nothing in a run of one process."""
    return f"{_called(_team.process)}: " if _team.hosts else ""


def barrier(at: str, timeout_s: float | None = None) -> None:
    """Waits until all processes are here.

    Args:
        at: what for; the same in all processes.
        timeout_s: None is the patience that `start` was given.

    Raises:
        Missing: `"process 3 (host node7) did not arrive at 'the first step' within 600 s"`.
    """
    if not _team.hosts:
        return
    timeout_s = _team.patience_s if timeout_s is None else timeout_s
    client, mine = _client(), f"arrived/{at}/{_team.process}"
    client.key_value_set(mine, "", allow_overwrite=True)
    try:
        client.wait_at_barrier(at, int(1000 * timeout_s))
    except jax.errors.JaxRuntimeError:
        arrived = {int(key.rsplit("/", 1)[1]) for key, _ in client.key_value_dir_get(f"arrived/{at}/")}
        missing = [_called(number) for number in range(len(_team.hosts)) if number not in arrived]
        late = f"the others did not wait at '{at}' for more than {timeout_s:g} s"
        raise Missing(
            f"{', '.join(missing)} did not arrive at '{at}' within {timeout_s:g} s" if missing else late
        ) from None
    client.key_value_delete(mine)


def agreed(code: int) -> int:
    """The exit code that it is given, of a process that did not fail: all end now."""
    _team.agreed = True
    return code


def exit_with(run: Callable[[], int]) -> None:
    """Ends the process with the code that `run` returns, when all others end.

    A process that fails tells the others, which else would wait for it in the next sum over all devices; they end
    with code 1 within `POLL_S + GRACE_S` seconds, process 0 as the last one.
    """
    try:
        code = run()
    except BaseException:
        if not _team.hosts:
            raise
        traceback.print_exc()
        code = 1
    if _team.hosts:
        code = _leave(code)
    sys.exit(code)


class _Team:
    hosts: tuple[str, ...] = ()  # of all processes; empty where `start` found no others
    process = 0
    patience_s = float(PATIENCE_S)
    agreed = False  # that all end now
    leaving = threading.Event()
    watch: threading.Thread


_team = _Team()


def _client() -> Any:
    from jax._src.distributed import global_state

    return global_state.client


def _called(number: int) -> str:
    return f"process {number} (host {_team.hosts[number]})"


def _given(coordinator: str, processes: str, process: str) -> Place:
    require(
        bool(coordinator and processes and process),
        "--coordinator=HOST:PORT, --processes=COUNT and --process=NUMBER belong together; give all three",
    )
    host, _, port = coordinator.rpartition(":")
    require(bool(host) and port.isdigit(), f"--coordinator={coordinator} must be HOST:PORT of process 0")
    count = _whole(processes, "--processes", 1)
    return Place(coordinator, count, _whole(process, "--process", 0, count - 1))


def _whole(text: str, flag: str, low: int, high: int | None = None) -> int:
    limit = f"{low} or more" if high is None else f"{low} to {high}"
    fits = text.isdigit() and low <= int(text) and (high is None or int(text) <= high)
    require(fits, f"{flag}={text} must be a number, {limit}")
    return int(text)


def _detected(insist: bool, patience_s: int) -> Place | None:
    """The cluster that JAX finds this process in; unless `insist`, only one of several processes.

    A single task of SLURM stays alone: joined, JAX would give it one device of the host.
    """
    kinds = [kind for kind in ClusterEnv._cluster_types if not kind.opt_in_only_method]
    if not insist:  # any container of Kubernetes looks like one, be it part of a job or not
        kinds = [kind for kind in kinds if kind.__name__ != "K8sCluster"]
    try:
        found = next((kind for kind in kinds if kind.is_env_present()), None)
        if found is None:
            require(
                not insist, "--distributed=on, but there is no cluster that JAX knows; give --coordinator=HOST:PORT"
            )
            return None
        if not insist and found.get_process_count() == 1:
            return None
        place: Any = ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, found.name or None, patience_s
        )
        coordinator, processes, process, devices = place
        if "JAX_LOCAL_DEVICE_IDS" in os.environ:  # which JAX reads itself
            devices = None
        return Place(coordinator, processes, process, devices)
    except InputError:
        raise
    except Exception as error:  # each cluster has its own
        require(not insist, f"--distributed=on, but the cluster does not tell its processes: {error}")
        print(f"no other processes: {error}; --distributed=on would insist", file=sys.stderr)
        return None


def _watch() -> None:
    """Ends this process when another one has failed, unless it is about to end by itself."""
    while not _team.leaving.wait(POLL_S):
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # no such key: nobody failed
            failed = _client().key_value_try_get("failed")
            if _team.leaving.wait(_grace_s()):
                return
            print(f"{name()}ends, because {failed} failed", file=sys.stderr, flush=True)
            os._exit(1)


def _grace_s() -> float:
    """Process 0 outlives the others, for without it JAX aborts them, whatever they were about to say."""
    return GRACE_S if _team.process else GRACE_S + 2 * POLL_S


def _leave(code: int) -> int:
    """Leaves the others, if they come as well; if not, the process ends here, for JAX would wait and then abort it."""
    failed = code != 0 and not _team.agreed
    _team.leaving.set()
    _team.watch.join()
    try:
        if failed:
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # another one failed before
                _client().key_value_set("failed", _called(_team.process))
        barrier("the end", _grace_s() if failed else END_S)
        jax.distributed.shutdown()
    except (Missing, jax.errors.JaxRuntimeError) as error:
        if code < 2:  # wrong input was told
            print(f"{name()}{error}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 1)
    return code
