"""Checkpoints of a run: the train state and the place in the data, written together in the background by Orbax."""

import contextlib
import dataclasses
import os
import shutil
import time
from typing import Any, NoReturn

import grain
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from guided_diffusion_jax.errors import DiskFull, InputError, disk_full, require
from guided_diffusion_jax.objectives.partition import AUXILIARY, split
from guided_diffusion_jax.runtime import checksums, distributed
from guided_diffusion_jax.runtime.disk import hide_abandoned_writes
from guided_diffusion_jax.training import leaves
from guided_diffusion_jax.training.state import TrainState
from guided_diffusion_jax.typing import Params

PART = 4 * 1024**2
"""Bytes of each of the files that weights alone are written to: Orbax holds as much as it fills, beside the weights."""

OPTIONAL = "grad_norm_ema"
"""The leaf of a state that a continued run may begin or end."""

UNFINISHED = ".orbax-checkpoint-tmp"
"""In the name of a folder until all of it is written."""


class Checkpoints:
    """The checkpoints in a folder, the newest `keep` of them. Half-written ones are removed on opening.

    Opening looks for damage, from the newest one back to the first that is whole. Damaged ones are named on stderr and
    renamed to `damaged_STEP`, where they are in nobody's way and somebody may still look at them.

    Args:
        folder: created if missing; anything that `epath` takes.
        keep: how many stay.
        read_only: touch nothing: a process that trains may be writing there.
        verify: write checksums and check them on opening. None: for local folders, but not for `gs://`, where it would
            read everything back.

    Raises:
        InputError: there are checkpoints and all are damaged; then none is renamed.
    """

    def __init__(self, folder: epath.PathLike, keep: int = 3, *, read_only: bool = False, verify: bool | None = None):
        self.folder = epath.Path(folder)
        self._local = not os.fspath(folder).startswith("gs://")
        self._verify = self._local if verify is None else verify
        self._keep, self._read_only = keep, read_only
        self._saving, self._size = -1, 0  # step and bytes of the last save
        with contextlib.ExitStack() as opened:
            opened.callback(logging.set_verbosity, logging.get_verbosity())
            logging.set_verbosity(logging.FATAL)  # Orbax logs the errors that it raises
            opened.enter_context(hide_abandoned_writes())
            self._manager = self._open()
            opened.callback(self._close)
            if not read_only:
                self._sweep()
            self._newest = self._newest_good()
            self._opened = opened.pop_all()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._opened, contextlib.nullcontext() if kind is None else contextlib.suppress(Exception):
            self.wait()

    @property
    def latest(self) -> int | None:
        """The newest complete checkpoint's step; None before the first."""
        return self._newest if self._read_only else self._manager.latest_step()

    def save(self, step: int, state: TrainState, iterator: grain.DatasetIterator) -> None:
        """Copies the state to the host and returns; it is written in the background.

        Args:
            step: its number.
            state: what to save.
            iterator: whose position belongs to it.

        Raises:
            DiskFull: there was no room, for this one or for the one before, which `wait` would have told. What was half
                written is removed, the earlier ones are as they were, and another call may find room.
        """
        if self.latest == step:
            return
        self.wait()
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state), iterator_state=ocp.args.JsonSave(iterator.get_state())
        )
        self._save(step, state, items)

    @property
    def steps(self) -> list[int]:
        """Of all complete checkpoints, rising."""
        return sorted(self._manager.all_steps())

    def save_tree(self, step: int, tree: Any) -> None:
        """Writes a tree of arrays alone, and waits; nothing if the step is there.

        Raises:
            DiskFull: there is no room.
        """
        if step not in self.steps:
            self._save(step, tree, ocp.args.Composite(state=ocp.args.PyTreeSave(tree)))
            self.wait()

    def restore_tree(self, step: int, like: Any) -> Any:
        """The tree that `save_tree` wrote at a step; `like` says shapes and places.

        Raises:
            InputError: it has other leaves or shapes.
        """
        self._check(step, self._shapes(step), like)
        return self._manager.restore(step, args=ocp.args.Composite(state=_restore_args(like))).state

    def save_weights(self, params: Params, source: str) -> None:
        """Writes averaged parameters alone as step 0 and waits: what `restore_ema` reads, with nothing to go on from.

        Args:
            params: what to save.
            source: where they come from, which the checkpoint's metadata keep.

        Raises:
            DiskFull: there is no room.
        """
        state = ocp.args.PyTreeSave({"ema": params}, ocdbt_target_data_file_size=PART)
        self._save(0, params, ocp.args.Composite(state=state), custom_metadata={"source": source})
        self.wait()

    @property
    def source(self) -> str | None:
        """Where the newest checkpoint's parameters come from if it is `save_weights`'s; else None."""
        if self.latest is None:
            return None
        return (self._manager.metadata(self.latest).custom_metadata or {}).get("source")

    def wait(self) -> None:
        """Until all that was saved is on disk.

        Raises:
            DiskFull: there was no room for the last one, see `save`.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._give_up(error)

    def restore(self, like: TrainState, iterator: grain.DatasetIterator) -> TrainState:
        """The newest state; moves `iterator` to its position.

        No leaf is dropped and none invented, except `grad_norm_ema`, which begins or ends with the search for spikes.

        Args:
            like: `jax.ShapeDtypeStruct`s of the same structure, whose `sharding` says where each leaf goes.
            iterator: of the same data.

        Raises:
            InputError: the checkpoint has other leaves or shapes, or holds parameters alone.
        """
        step = self._some()
        require(
            self.source is None,
            f"{self.folder} holds the parameters of {self.source} alone, without an optimizer's state and a position "
            "in the data; use another --workdir to train.",
        )
        shapes, norm = self._shapes(step), like.grad_norm_ema
        begins, ends = norm is not None and OPTIONAL not in shapes, norm is None and OPTIONAL in shapes
        if begins:
            like = dataclasses.replace(like, grad_norm_ema=None)
        self._check(step, {name: shape for name, shape in shapes.items() if not (ends and name == OPTIONAL)}, like)
        arguments = ocp.args.Composite(state=_restore_args(like, partial_restore=ends))
        state = self._manager.restore(step, args=arguments).state
        if begins:
            state = dataclasses.replace(state, grad_norm_ema=jnp.zeros(norm.shape, norm.dtype, device=norm.sharding))
        position = self._manager.restore(step, args=ocp.args.Composite(iterator_state=ocp.args.JsonRestore()))
        iterator.set_state(position.iterator_state)
        return state

    def restore_ema(self, like: Params, step: int | None = None) -> tuple[Params, Params, int]:
        """Averaged parameters and those that are frozen, without the optimizer's state; and their step.

        Args:
            like: `jax.ShapeDtypeStruct`s of the whole network, with where they go.
            step: one of those kept; None is the newest.

        Raises:
            InputError: there is no checkpoint, none of this step, or one of another architecture.
        """
        if step is None:
            step = self._some()
        elif step not in (kept := self._manager.all_steps()):
            raise InputError(f"{self.folder} holds no checkpoint of step {step}; it keeps {', '.join(map(str, kept))}")
        try:
            saved = self._shapes(step).items()
            shapes = {
                name: shape
                for name, shape in saved
                if name.startswith(("ema/", "frozen/")) and not name.startswith(f"ema/{AUXILIARY}/")
            }
            ema, frozen = split(like, lambda path: f"frozen/{'/'.join(path)}" not in shapes)
            target = {"ema": ema} | ({"frozen": frozen} if frozen else {})
            self._check(step, shapes, target)
            arguments = ocp.args.Composite(state=_restore_args(target, partial_restore=True))
            state = self._manager.restore(step, args=arguments).state
        except Exception:
            if not self._read_only or (self.folder / str(step)).exists():
                raise
            self._newest = self._newest_good()  # the run that trains has removed it for a newer one
            return self.restore_ema(like)
        return state["ema"], state.get("frozen", {}), step

    def _open(self) -> ocp.CheckpointManager:
        # Named here, so that a fresh manager can tell what a checkpoint holds before it restores any of it.
        handlers = {"state": ocp.PyTreeCheckpointHandler(), "iterator_state": ocp.JsonCheckpointHandler()}
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.LatestN(self._keep),
            enable_async_checkpointing=True,
            async_options=ocp.options.AsyncOptions(
                post_finalization_callback=self._seal,
                barrier_sync_fn=self._barrier if jax.process_count() > 1 else None,
            ),
            read_only=self._read_only,
        )
        return ocp.CheckpointManager(self.folder.resolve(), options=options, item_handlers=handlers)

    def _sweep(self) -> None:
        """Removes what saves have left unfinished. Orbax would do so in a thread, which outlives a quick end badly."""
        whole = self._manager.all_steps()
        if distributed.is_main_process():
            for path in list(self.folder.iterdir()):
                unfinished = path.name.isdigit() and int(path.name) not in whole
                if unfinished or UNFINISHED in path.name:
                    with contextlib.suppress(OSError):  # something may still be writing there
                        path.rmtree(missing_ok=True)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("unfinished checkpoints are removed")

    def _newest_good(self) -> int | None:
        self._manager.reload()
        steps = self._manager.all_steps()
        if not self._verify:
            return max(steps, default=None)
        newest = checksums.newest_good(self.folder, steps, set_aside=not self._read_only)
        if newest is None and steps:  # a run that trains has replaced all of them meanwhile
            return self._newest_good()
        self._manager.reload()
        return newest

    def _some(self) -> int:
        step = self.latest
        if step is None:
            raise InputError(f"{self.folder} holds no checkpoint; train the run first.")
        return step

    def _save(self, step: int, state: Any, items: ocp.args.Composite, **options: Any) -> None:
        self._saving, self._size = step, sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        local = self._local and jax.process_count() == 1
        if local and self.latest is not None:  # measures the format's overhead and compression
            self._size = checksums.size(self.folder / str(self.latest))
        if local and self.latest is not None and shutil.disk_usage(self.folder).free < self._size:
            raise self._no_room()
        try:
            saved = self._manager.save(step, args=items, **options)
        except Exception as error:
            self._give_up(error)
        if not saved:
            raise RuntimeError(f"Orbax does not save step {step} in {self.folder}, whose newest is {self.latest}")

    def _seal(self) -> None:
        """What Orbax calls when all of a checkpoint is written, before the folder gets its name or the mark of it."""
        checksums.seal(self._unfinished(), self._verify)

    def _barrier(self, *, key: str, timeout_ms: int) -> None:
        """Orbax's barrier among processes; before the one after its own writes each process checksums them."""
        if self._verify and "async_write_complete" in key:
            checksums.seal_process(self._unfinished())
        ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)

    def _unfinished(self) -> epath.Path:
        places = [self.folder / str(self._saving), *self.folder.glob(f"{self._saving}.*")]
        return next(place for place in places if place.exists())

    def _give_up(self, error: Exception) -> NoReturn:
        """Raises what an error in a save comes to; for a full disk leaves no trace of the save."""
        if not disk_full(error):
            raise error
        if jax.process_count() == 1:
            self._clean()
        raise self._no_room() from error

    def _no_room(self) -> DiskFull:
        free = shutil.disk_usage(self.folder).free
        kept = "none was saved before" if self.latest is None else f"the newest checkpoint is step {self.latest}"
        return DiskFull(
            f"{self.folder}: no room for the checkpoint of step {self._saving}, about {self._size / 1e6:.2f} MB, with "
            f"{free / 1e6:.2f} MB free on its disk; {kept}. Make room, and the same command goes on from there."
        )

    def _clean(self) -> None:
        """Removes what a failed save has written, and makes a manager that knows nothing of it."""
        self._close()
        self._manager = self._open()
        for _ in range(20):  # TensorStore's other threads may still be writing
            self._sweep()
            if not list(self.folder.glob(f"{self._saving}.*")):
                return
            time.sleep(0.05)

    def _close(self) -> None:
        with contextlib.suppress(Exception):  # it repeats what `wait` has raised
            self._manager.close()

    def _shapes(self, step: int) -> dict[str, Any]:
        """Of all arrays in a checkpoint, by name."""
        return leaves.shapes(self._manager.item_metadata(step).state)

    def _check(self, step: int, saved: dict[str, Any], like: Any) -> None:
        leaves.check(saved, like, f"the checkpoint at step {step} in {self.folder.parent}")


def _restore_args(target: Any, **options: bool) -> ocp.args.PyTreeRestore:
    return ocp.args.PyTreeRestore(
        item=target, restore_args=ocp.checkpoint_utils.construct_restore_args(target), **options
    )


def latest_step(run: epath.Path) -> int | None:
    """Step of the newest checkpoint in a run's folder; None where there is none."""
    if not (run / "checkpoints").exists():
        return None
    with Checkpoints(run / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.latest
