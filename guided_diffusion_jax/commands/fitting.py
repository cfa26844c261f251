"""Changes that make a training step fit into a device's memory: the fewest that do, found by trying them.

In the order in which they are named, the one that changes least first:

- `accumulate`: the batch in parts, one after the other. The same training.
- `remat`: activations computed again in the backward pass. The same training, about a third more work.
- `bfloat16`: convolutions and matrix products in half the bytes.
- more devices, each with a smaller share of the batch; with `fsdp` they also divide the state among them.
- a smaller batch. Another training.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

MOST_DEVICES = 256
"""More devices are not proposed."""

MOST_SETS = 3
"""Sets of changes that are named for one size of memory."""


class Plan(NamedTuple):
    """How a step is computed, as far as its memory depends on it.

    Attributes:
        accumulate: number of parts of a device's batch.
        remat: whether activations are computed again.
        dtype: of convolutions and matrix products.
        devices: number of devices.
        parallel: "data_parallel" or "fsdp".
        batch_size: images on all devices.
    """

    accumulate: int
    remat: bool
    dtype: str
    devices: int
    parallel: str
    batch_size: int


Change = Callable[[Plan], Iterator[Plan]]
"""All values of a plan's part that need less memory, the nearest to the plan's own first."""


def _accumulate(plan: Plan) -> Iterator[Plan]:
    parts = _divisors(plan.batch_size // plan.devices)
    yield from (plan._replace(accumulate=number) for number in parts if number > plan.accumulate)


@functools.cache
def _divisors(number: int) -> list[int]:
    small = [divisor for divisor in range(1, math.isqrt(number) + 1) if number % divisor == 0]
    return sorted({*small, *(number // divisor for divisor in small)})


def _remat(plan: Plan) -> Iterator[Plan]:
    yield from () if plan.remat else (plan._replace(remat=True),)


def _bfloat16(plan: Plan) -> Iterator[Plan]:
    yield from () if plan.dtype == "bfloat16" else (plan._replace(dtype="bfloat16"),)


def _devices(plan: Plan) -> Iterator[Plan]:
    ways = ("fsdp",) if plan.parallel == "fsdp" else ("data_parallel", "fsdp")
    number = plan.devices
    while number <= MOST_DEVICES and plan.batch_size % (number * plan.accumulate) == 0:
        wanted = (plan._replace(devices=number, parallel=parallel) for parallel in ways if number > 1)
        yield from (one for one in wanted if one != plan)
        number *= 2


def _batch_size(plan: Plan) -> Iterator[Plan]:
    parts = plan.devices * plan.accumulate
    each = plan.batch_size // parts
    while each := each // 2:
        yield plan._replace(batch_size=each * parts)


CHANGES: tuple[Change, ...] = (_accumulate, _remat, _bfloat16, _devices, _batch_size)


def fewest_changes(plan: Plan, memory: Callable[[Plan], int], room: int) -> list[Plan]:
    """Plans that fit, each by one of the smallest sets of changes that suffice, at most `MOST_SETS`; none may.

    Args:
        plan: that does not fit.
        memory: bytes that a plan needs on a device.
        room: bytes that a device has.
    """
    for size in range(1, len(CHANGES) + 1):
        tried = (_first_fit(plan, changes, memory, room) for changes in itertools.combinations(CHANGES, size))
        if found := [fit for fit in tried if fit is not None]:
            return found[:MOST_SETS]
    return []


def _first_fit(plan: Plan, changes: Sequence[Change], memory: Callable[[Plan], int], room: int) -> Plan | None:
    """The first plan with all of these changes that fits; the last of them changes as little as possible."""
    if not changes:
        return plan if memory(plan) <= room else None
    *others, last = changes
    return next((fit for wanted in last(plan) if (fit := _first_fit(wanted, others, memory, room))), None)


def describe(before: Plan, after: Plan, section: str, model: str) -> str:
    """The changes from one plan to another as keys of a configuration with their values.

    Args:
        before: the plan that does not fit.
        after: the plan that does.
        section: of the training, "train" or "classifier.train".
        model: of the network, "model" or "classifier.model".

    >>> plan = Plan(1, False, "float32", 1, "data_parallel", 64)
    >>> describe(plan, plan._replace(remat=True, devices=8, parallel="fsdp"), "train", "model")
    'model.remat=True and train.parallel=fsdp over 8 devices'
    """
    found = [
        f"{part}.{key}={getattr(after, key)}"
        for part, key in ((section, "accumulate"), (model, "remat"), (model, "dtype"))
        if getattr(after, key) != getattr(before, key)
    ]
    if after.parallel != before.parallel:
        found.append(f"{section}.parallel={after.parallel} over {after.devices} devices")
    elif after.devices != before.devices:
        found.append(f"{after.devices} devices")
    if after.batch_size != before.batch_size:
        found.append(f"{section}.batch_size={after.batch_size}")
    return " and ".join(found)
