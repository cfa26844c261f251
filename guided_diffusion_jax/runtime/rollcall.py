"""Who is there, before JAX is asked to join the processes: it ends a process that waits in vain, without a name.

Process 0 listens at the coordinator's port until all others have told it their number and host, tells everybody all
hosts, and gives the port up to JAX's coordination service. Whoever waits too long learns whom for.
"""

import contextlib
import json
import os
import socket
import time

from guided_diffusion_jax.errors import InputError, Missing

LINE_S = 5.0
"""Seconds that one connection may take to say its line."""


def call(coordinator: str, processes: int, process: int, patience_s: float) -> tuple[str, ...]:
    """The hosts of all processes, by number; returns in all of them at about the same time.

    Args:
        coordinator: HOST:PORT of process 0.
        processes: how many there are.
        process: the number of this one.
        patience_s: how long to wait, in seconds.

    Raises:
        InputError: the port cannot be listened at.
        Missing: somebody did not come; the message names who.
    """
    deadline = time.monotonic() + patience_s
    if process:
        return _answer(coordinator, process, deadline, patience_s)
    with _listen(coordinator) as server:
        connections, hosts = _gather(server, processes, deadline)
    missing = [number for number in range(processes) if number not in hosts]
    reply = {"missing": missing, "hosts": [hosts.get(number, "") for number in range(processes)]}
    for connection in connections.values():
        with connection, contextlib.suppress(OSError):
            connection.sendall(json.dumps(reply).encode() + b"\n")
            connection.recv(1)  # the other side closes first, which leaves the port free at once
    return _all_here(reply, coordinator, patience_s)


def _listen(coordinator: str) -> socket.socket:
    port = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", coordinator).rsplit(":", 1)[1]
    both = socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            ("", int(port)), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both, backlog=1024
        )
    except OSError as error:
        raise InputError(f"process 0 cannot listen at port {port}: {error.strerror}; choose another port") from None


def _gather(server: socket.socket, processes: int, deadline: float) -> tuple[dict[int, socket.socket], dict[int, str]]:
    """Connections and hosts by number; of two with one number the later counts, for the first may have died."""
    connections: dict[int, socket.socket] = {}
    hosts = {0: socket.gethostname()}
    while len(hosts) < processes and (left := deadline - time.monotonic()) > 0:
        server.settimeout(left)
        try:
            connection, _ = server.accept()
        except TimeoutError:
            break
        try:
            said = _read(connection, LINE_S)
            number, host = said["process"], str(said["host"])
            if number not in range(1, processes):
                raise ValueError(number)
        except (OSError, ValueError, KeyError, TypeError):  # no process of ours
            connection.close()
            continue
        if number in connections:
            connections[number].close()
        connections[number], hosts[number] = connection, host
    return connections, hosts


def _answer(coordinator: str, process: int, deadline: float, patience_s: float) -> tuple[str, ...]:
    host, port = coordinator.rsplit(":", 1)
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=min(left, LINE_S)) as connection:
                hello = {"process": process, "host": socket.gethostname()}
                connection.sendall(json.dumps(hello).encode() + b"\n")
                # Process 0 began to wait at another time: what it has to say may come a little late.
                return _all_here(_read(connection, left + LINE_S), coordinator, patience_s)
        except (OSError, ValueError):  # not there yet, or somebody else is
            time.sleep(min(0.5, max(0.0, deadline - time.monotonic())))
    raise Missing(f"process 0 did not answer at {coordinator} within {patience_s:g} s")


def _all_here(reply: dict, coordinator: str, patience_s: float) -> tuple[str, ...]:
    if reply["missing"]:
        who = ", ".join(map(str, reply["missing"]))
        raise Missing(f"process {who} of {len(reply['hosts'])} did not come to {coordinator} within {patience_s:g} s")
    return tuple(reply["hosts"])


def _read(connection: socket.socket, seconds: float) -> dict:
    connection.settimeout(seconds)
    with connection.makefile("rb") as file:
        return json.loads(file.readline(1024**2))
