"""Checks of the jaxtyping annotations are on in all tests; random bits and matmuls are what they are on a laptop.

What one test compiled, another one of the same process, or of one that it starts, finds in a cache.
"""

import json
import os
import signal
import tempfile
from importlib import metadata
from pathlib import Path

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a shell's background; programs of the tests would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# XLA compiles in half the time; programs run slower. A version that lacks a flag would end the process.
FAST_COMPILER = "--xla_cpu_use_fusion_emitters=false" * metadata.version("jaxlib").startswith("0.10.")
os.environ.setdefault("XLA_FLAGS", f"--xla_backend_optimization_level=0 {FAST_COMPILER}")
COMPILED = tempfile.TemporaryDirectory(prefix="compiled")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", COMPILED.name)  # the first process's, for all that it starts
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("guided_diffusion_jax", "beartype.beartype")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

GOLDEN = Path(__file__).parent / "golden"

LONGEST = ("test_parallel", "test_processes", "test_mixed_runs", "test_commands", "test_docs", "test_sd_trajectories")
"""Files that begin first, so that at the end no process waits for another one's."""


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem not in LONGEST)


class Golden:
    """One file of reference arrays: `golden[key]`, and `golden.config`, its settings."""

    def __init__(self, name: str):
        self.arrays = np.load(GOLDEN / f"{name}.npz", allow_pickle=False)
        self.config = json.loads(str(self.arrays["config"]))

    def __getitem__(self, key: str) -> np.ndarray:
        return self.arrays[key]


@pytest.fixture
def golden():
    return Golden


@pytest.fixture
def strict_ranks():
    """For the tests of the mathematics: only arrays of one rank, or a scalar, may meet."""
    with jax.numpy_rank_promotion("raise"):
        yield


def relative_error(a, reference) -> float:
    """R of golden/README.md: the worst sample's maximal difference over its maximal value."""
    a, reference = np.asarray(a, np.float64), np.asarray(reference, np.float64)
    assert a.shape == reference.shape, (a.shape, reference.shape)
    worst = 0.0
    for mine, theirs in zip(a, reference, strict=True):
        difference, scale = np.abs(mine - theirs).max(), np.abs(theirs).max()
        if scale == 0:
            assert difference <= 1e-7, difference
        else:
            worst = max(worst, difference / scale)
    return worst
