"""Checkpoints of a run: the train state and the place in the data, written together in the background by Orbax."""

import contextlib
from collections.abc import Iterator
from typing import Any

import grain
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.sharding import Mesh
from orbax.checkpoint import checkpoint_managers

from guided_diffusion_jax.errors import InputError, require
from guided_diffusion_jax.training.parallel import replicated
from guided_diffusion_jax.training.state import TrainState
from guided_diffusion_jax.typing import Params

PART = 4 * 1024**2
"""Bytes of each of the files that weights alone are written to: Orbax holds as much as it fills, beside the weights."""


class Checkpoints:
    """The checkpoints in a folder, the newest `keep` of them. Half-written ones are removed on opening.

    Args:
        folder: created if missing; anything that `epath` takes.
        keep: how many stay.
        read_only: touch nothing: a process that trains may be writing there.
    """

    def __init__(self, folder: epath.PathLike, keep: int = 3, *, read_only: bool = False):
        self.folder = epath.Path(folder)
        # Named here, so that a fresh manager can tell what a checkpoint holds before it restores any of it.
        handlers = {
            "state": ocp.PyTreeCheckpointHandler(),
            "data": grain.checkpoint.CheckpointHandler(),
            "order": ocp.JsonCheckpointHandler(),
        }
        with _only_errors():  # Orbax warns of what read_only implies
            options = ocp.CheckpointManagerOptions(
                cleanup_tmp_directories=not read_only,
                preservation_policy=checkpoint_managers.LatestN(keep),
                enable_async_checkpointing=True,
                read_only=read_only,
            )
            self._manager = ocp.CheckpointManager(self.folder.resolve(), options=options, item_handlers=handlers)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    @property
    def latest(self) -> int | None:
        """The newest complete checkpoint's step; None before the first."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, iterator: grain.DatasetIterator, order: dict[str, Any]) -> None:
        """Copies the state to the host and returns; the writing goes on in the background.

        Args:
            step: its number.
            state: what to save.
            iterator: whose place belongs to it.
            order: what the place depends on beside (data set, seed, batch size, ...); `restore` compares it.
        """
        if self.latest == step:
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(state),
                data=grain.checkpoint.CheckpointSave(iterator),
                order=ocp.args.JsonSave(order),
            ),
        )

    def save_weights(self, params: Params, source: str) -> None:
        """Writes averaged parameters alone as step 0 and waits: what `restore_ema` reads, with nothing to go on from.

        Args:
            params: what to save.
            source: where they come from, which the checkpoint's metadata keep.
        """
        state = ocp.args.PyTreeSave({"ema": params}, ocdbt_target_data_file_size=PART)
        arguments = ocp.args.Composite(state=state)
        self._manager.save(0, args=arguments, custom_metadata={"source": source})
        self.wait()

    @property
    def source(self) -> str | None:
        """Where the newest checkpoint's parameters come from if it is `save_weights`'s; else None."""
        if self.latest is None:
            return None
        return (self._manager.metadata(self.latest).custom_metadata or {}).get("source")

    def wait(self) -> None:
        """Until all that was saved is on disk."""
        self._manager.wait_until_finished()

    def restore(
        self, like: TrainState, iterator: grain.DatasetIterator, order: dict[str, Any], mesh: Mesh
    ) -> TrainState:
        """The newest state, on every device of the mesh; moves `iterator` to its place.

        Args:
            like: a state of the same structure; shapes suffice.
            iterator: of the same data.
            order: as it is now.
            mesh: the devices.

        Raises:
            InputError: the checkpoint's parameters have other names or shapes, its data came in another order, or it
                holds parameters alone.
        """
        step = self.latest
        require(
            self.source is None,
            f"{self.folder} holds the parameters of {self.source} alone, without an optimiser's state and a place in "
            "the data; use another --workdir to train.",
        )
        saved = self._manager.restore(step, args=ocp.args.Composite(order=ocp.args.JsonRestore())).order
        for key, value in order.items():
            require(
                saved.get(key) == value,
                f"{key}={value!r}, but the run in {self.folder.parent} goes on in data ordered by "
                f"{key}={saved.get(key)!r}; use that, or another --workdir.",
            )
        self._check_shapes(step, like)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                # Partial: a state from before some part of it came into being, or with one that is off now, goes on.
                state=_restore_args(_abstract(like, mesh), partial_restore=True),
                data=grain.checkpoint.CheckpointRestore(iterator),
            ),
        )
        return restored.state

    def restore_ema(self, like: Params, mesh: Mesh, frozen: Params | None = None) -> tuple[Params, int]:
        """The newest averaged parameters, and those that are frozen, without the optimiser's state; and their step.

        Args:
            like: the averaged ones' shapes.
            mesh: the devices.
            frozen: the frozen ones' shapes.

        Raises:
            InputError: there is no checkpoint, or one of another architecture.
        """
        step = self.latest
        if step is None:
            raise InputError(f"{self.folder} holds no checkpoint; train the run first.")
        target = _abstract({"ema": like} | ({"frozen": frozen} if frozen else {}), mesh)
        self._check_shapes(step, target)
        arguments = ocp.args.Composite(state=_restore_args(target, partial_restore=True))
        state = self._manager.restore(step, args=arguments).state
        return (state["frozen"] | state["ema"] if frozen else state["ema"]), step

    def _check_shapes(self, step: int | None, like: Any) -> None:
        """Orbax tells of a mismatch deep inside a restore and in its own words; this names the first one."""
        metadata = self._manager.item_metadata(step).state
        saved = {_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(metadata)}
        for path, leaf in jax.tree_util.tree_leaves_with_path(like):
            name = _name(path)
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                continue
            if name in saved and saved[name] is not None and tuple(saved[name]) == tuple(leaf.shape):
                continue
            there = f"has shape {tuple(saved[name])}" if name in saved else "is missing"
            raise InputError(
                f"the checkpoint at step {step} in {self.folder.parent} belongs to another architecture: {name} {there}"
                f" there and has shape {tuple(leaf.shape)} here; use the run's own config or another --workdir."
            )


@contextlib.contextmanager
def _only_errors() -> Iterator[None]:
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _name(path: tuple) -> str:
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def _restore_args(target: Any, **options: bool) -> ocp.args.PyTreeRestore:
    return ocp.args.PyTreeRestore(
        item=target, restore_args=ocp.checkpoint_utils.construct_restore_args(target), **options
    )


def _abstract(tree: Any, mesh: Mesh) -> Any:
    """Shapes and types with their place; without it Orbax would ask for the very devices that saved."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=replicated(mesh)), tree)
