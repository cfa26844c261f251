"""Settings of a training that its result does not depend on, and numbers of a step."""

import dataclasses

import jax

from guided_diffusion_jax import sharding
from guided_diffusion_jax.errors import choose, require
from guided_diffusion_jax.runtime.disk import POLICIES
from guided_diffusion_jax.training import power_ema


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """Settings of a training that its result does not depend on, and numbers of `train_step`.

    Attributes:
        ema_decay: of the average of the parameters, in [0, 1); 0 turns it off.
        ema_warmup: let the decay grow from 0.1 at the start.
        parallel: "data_parallel" (state replicated) or "fsdp" (state sharded).
        shards: devices that hold a state together, for fsdp; 0 is all, up to 64.
        accumulate: parts of a device's batch whose gradients are computed one after the other.
        bad_step: at a loss or gradient that is not finite, or a spike: "stop", or "skip" the update.
        grad_spike: a gradient norm of so many times the usual is a spike; 0: none is.
        power_ema: lengths sigma_rel of averages with power functions as profiles, e.g. (0.05, 0.1), from which any
            length can be made afterwards (`load(run, ema=0.07)`).
        power_ema_keep: snapshots of them, one with each checkpoint.
        keep: checkpoints.
        verify: checksums of checkpoints are verified; None: of local folders.
        on_full_disk: "stop", or "go_on" without what finds no room.
        part: section of a configuration that errors name.
    """

    ema_decay: float = 0.9999
    ema_warmup: bool = True
    parallel: str = "data_parallel"
    shards: int = 0
    accumulate: int = 1
    bad_step: str = "stop"
    grad_spike: float = 0.0
    power_ema: tuple[float, ...] = ()
    power_ema_keep: int = 100
    keep: int = 3
    verify: bool | None = None
    on_full_disk: str = "stop"
    part: str = "train"

    def __post_init__(self) -> None:
        part = self.part
        require(0 <= self.ema_decay < 1, f"{part}.ema_decay={self.ema_decay} must lie in [0, 1); 0 turns EMA off.")
        require(
            self.grad_spike == 0 or self.grad_spike > 1,
            f"{part}.grad_spike={self.grad_spike} must be above 1, or 0 for none",
        )
        power_ema.check(self.power_ema, f"{part}.power_ema")
        require(self.power_ema_keep >= 1, f"{part}.power_ema_keep={self.power_ema_keep} must be at least 1")
        require(self.keep >= 1, f"{part}.keep={self.keep} must be at least 1")
        choose(sharding.STRATEGIES, self.parallel, f"{part}.parallel")
        choose(dict.fromkeys(("stop", "skip")), self.bad_step, f"{part}.bad_step")
        choose(dict.fromkeys(POLICIES), self.on_full_disk, f"{part}.on_full_disk")
        require(
            self.on_full_disk == "stop" or jax.process_count() == 1,
            f"{part}.on_full_disk='go_on' is for one process; with {jax.process_count()} use 'stop'",
        )

    def mesh(self) -> jax.sharding.Mesh:
        """All devices, grouped as `parallel` and `shards` say."""
        return sharding.mesh(sharding.shards(self.parallel, self.shards, jax.device_count(), self.part))
