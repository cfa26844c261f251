"""Description of the machine that figures were measured on."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import flax
import jax
import jaxlib
import numpy as np
import psutil

NOTED = ("XLA_FLAGS", "GLIBC_TUNABLES")
"""Variables of the environment that change speed, beside JAX's own."""


def describe() -> dict[str, Any]:
    """Returns processor, memory, devices, versions, commit and load average, for the JSON."""
    devices = jax.devices()
    return {
        "cpu": _cpu(),
        "cores": cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "load_average": os.getloadavg(),
        "backend": jax.default_backend(),
        "device_kind": devices[0].device_kind,
        "devices": len(devices),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "flax": flax.__version__,
        "numpy": np.__version__,
        "environment": {k: v for k, v in sorted(os.environ.items()) if k in NOTED or k.startswith("JAX_")},
        "commit": _commit(),
    }


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu() -> str:
    """Name of the processor, from the kernel where it tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str | None:
    """Commit, with "-dirty" where files differ from it; None outside of a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        found = subprocess.run(
            command,
            cwd=Path(__file__).parent,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
