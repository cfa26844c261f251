"""Checks of the jaxtyping annotations; random bits and matmuls are what they are on a laptop.

What one test compiled, another one of the same process, or of one that it starts, finds in a cache.
"""

import dataclasses
import functools
import inspect
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
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import jaxtyping  # noqa: E402

CHECKED = {"shapes": True, "types": False}
"""Annotations that are checked now, in calls of functions with jaxtyping's arrays and of all others."""


def lazily(*, typechecker, checking=jaxtyping.jaxtyped):
    """`jaxtyping.jaxtyped`, but that a function is prepared when it is first checked: most never are."""

    def decorate(function):
        if inspect.isclass(function):
            if dataclasses.is_dataclass(function) and "__init__" in vars(function):
                function.__init__ = decorate(function.__init__)
            return function
        if not function.__annotations__:
            return function
        kind, prepared = "shapes" if "jaxtyping." in repr(function.__annotations__) else "types", []

        @functools.wraps(function)
        def call(*arguments, **keywords):
            if not CHECKED[kind]:
                return function(*arguments, **keywords)
            if not prepared:
                prepared.append(checking(function, typechecker=typechecker))
            return prepared[0](*arguments, **keywords)

        return call

    return decorate


jaxtyping.jaxtyped = lazily
jaxtyping.install_import_hook("guided_diffusion_jax", "beartype.beartype")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

GOLDEN = Path(__file__).parent / "golden"

LONGEST = (
    "test_commands", "test_mixed_runs", "test_parallel", "test_docs", "test_sd_trajectories", "test_latents",
    "test_finetuning", "test_resume", "test_import", "test_processes", "test_scoring", "test_dry_run",
)  # fmt: skip
"""Files that begin first, so that at the end no process waits for another one's."""

RUNS = (
    "test_api", "test_asking", "test_bundled", "test_checkpoints", "test_commands", "test_docs", "test_dry_run",
    "test_exported", "test_extending", "test_finetune_command", "test_finetuning", "test_first_training",
    "test_fuzz_keys", "test_help", "test_imagenet_configs", "test_import", "test_interop", "test_latents",
    "test_lora_runs", "test_mixed_runs", "test_parallel", "test_pictures", "test_power_ema", "test_report",
    "test_resume", "test_scoring", "test_sd_counts", "test_sd_pipeline", "test_sd_trajectories", "test_sd_weights",
    "test_serve", "test_serve_app", "test_sweep",
)  # fmt: skip
"""Files whose tests go through whole runs and pipelines.

Checking shapes is a good part of their time; the quick tier leaves it to the tests of what they are made of, and types
to mypy. `make test-all` checks everything everywhere.
"""


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    quick = item.config.getoption("markexpr") == "not slow"
    CHECKED.update(shapes=not quick or item.path.stem not in RUNS, types=not quick)


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
