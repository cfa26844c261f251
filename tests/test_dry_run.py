"""Cost of a training step before it runs: against published counts, against arithmetic, and against XLA."""

import contextlib
import io
import math
import re
import shlex

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks import scaling
from guided_diffusion_jax import dot_product, profiling, sharding
from guided_diffusion_jax.commands import dry_run, fitting
from guided_diffusion_jax.commands.cli import main
from guided_diffusion_jax.experiment.config import preset
from guided_diffusion_jax.models import layers

TINY = [
    f"--config.{key}={value}"
    for key, value in {
        "model.width": 32,
        "model.head_width": 32,
        "model.channel_mult": "(1,)",
        "model.num_res_blocks": 1,
        "model.attention_resolutions": "()",
        "train.batch_size": 16,
    }.items()
]
RUN = ["main.py", "--config=configs/imagenet64.py", "--dry_run", *TINY]
MILLIONS = {"imagenet64": 296, "imagenet64_256": 312}  # Dhariwal & Nichol 2021, tables 11 and 13


def config(name="imagenet64", **changes):
    made = preset(name)
    made.update_from_flattened_dict({"model.dtype": "float32", **changes})
    return made


def tiny(**changes):
    shape = {
        "model.width": 64,
        "model.channel_mult": (1,),
        "model.num_res_blocks": 1,
        "model.attention_resolutions": (),
    }
    return config(**{"data.image_size": 8, "train.batch_size": 16, **shape, **changes})


@pytest.fixture(scope="module")
def plain():
    return dry_run.profile(tiny(), "train", 1)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("imagenet64", MILLIONS["imagenet64"]),
        # test_imagenet_configs.py counts the parameters of all
        pytest.param("imagenet64_256", MILLIONS["imagenet64_256"], marks=pytest.mark.slow),
    ],
)
def test_parameters_and_state_are_those_of_the_published_networks(name, millions):
    shapes = jax.eval_shape(dry_run.program(config(name), "train").trainer.init)
    parameters = profiling.count(shapes.params)
    assert round(parameters / 1e6) == millions
    # Parameters, EMA and Adam's two moments, 4 bytes each, and a few counters.
    assert 0 <= profiling.tree_bytes((shapes.params, shapes.ema, shapes.opt_state)) - 16 * parameters < 100


def test_a_matrix_product_and_a_convolution_cost_two_operations_a_multiplication():
    def function(x, kernel, matrix):
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return y @ matrix

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in [(4, 10, 10, 3), (3, 3, 3, 5), (5, 7)]]
    assert profiling.flops(function, *shapes) == 4 * 2 * 8 * 8 * (5 * 9 * 3 + 7 * 5)


def test_a_loop_costs_what_its_body_costs_as_often_as_it_runs():
    def inner(x):
        return jax.lax.scan(lambda x, _: (x @ x, None), x, length=5)[0]

    def function(x):
        return inner(jax.lax.map(lambda row: jnp.tile(jnp.sin(row) @ x, (8, 1)), jnp.stack([x] * 3))[0, :8])

    assert profiling.flops(inner, jax.ShapeDtypeStruct((8, 8), jnp.float32)) == pytest.approx(5 * 2 * 8**3, rel=0.01)
    work = 5 * 2 * 8**3 + 3 * 2 * 8**3
    assert profiling.flops(function, jax.ShapeDtypeStruct((8, 8), jnp.float32)) == pytest.approx(work, rel=0.01)


def test_attention_in_blocks_costs_what_it_costs_at_once(monkeypatch):
    monkeypatch.setattr(dot_product, "BLOCK_SCORES", 2 * 640 * 160)
    shapes = [jax.ShapeDtypeStruct((1, 640, 2, 16), jnp.float32)] * 3
    blocks = profiling.flops(lambda *x: dot_product.dot_product_attention(*x), *shapes)
    monkeypatch.setattr(dot_product, "FEW_SCORES", 2**40)
    whole = profiling.flops(lambda *x: dot_product.dot_product_attention(*x), *shapes)
    assert blocks == pytest.approx(whole, rel=0.01) and whole > 2 * 2 * 2 * 640**2 * 16


def test_activations_are_what_the_backward_pass_reads_and_rematerialisation_keeps_less():
    matrix = jax.ShapeDtypeStruct((10, 10), jnp.float32)

    def block(matrix, x):
        return jnp.sin(jnp.sin(x @ matrix) @ matrix) @ matrix

    def rows(block):
        def loss(matrix, x):
            for _ in range(4):
                x = block(matrix, x)
            return x.sum()

        return profiling.activation_bytes(loss, matrix, lambda n: jax.ShapeDtypeStruct((n, 10), jnp.float32)) / 40

    # Five rows a block: the inputs of three matrix products, the slopes of two sines.
    assert rows(block) == 4 * 5
    # The inputs of the four blocks, and five rows while one of them is computed again.
    assert 4 <= rows(jax.checkpoint(block)) <= 4 + 5


def test_the_estimate_lies_above_xlas_plan_by_at_most_40_percent(plain):
    made, batch = dry_run.program(tiny(), "train"), plain.batch
    lowered = jax.jit(made.trainer.step(), donate_argnums=0).lower(made.state, made.batch(batch))
    compiled = lowered.compile({"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True})
    estimate = plain.memory(batch) - sum(plain.state.values()) - profiling.tree_bytes(made.batch(batch))
    assert 1 <= estimate / profiling.temporary_bytes(compiled) <= 1.4
    # The work is XLA's count before optimisation.
    assert plain.flops * batch == pytest.approx(compiled.cost_analysis()["flops"], rel=0.02)


def test_a_compiled_step_gives_xlas_plan(plain):
    found = dry_run.profile(tiny(), "train", 1, compile_step=True)
    assert found.is_planned and not plain.is_planned
    assert found._replace(per_image=0, is_planned=False) == plain._replace(per_image=0)
    assert 1 <= plain.memory(16) / found.memory(16) <= 1.4


def test_fsdp_divides_the_state_and_keeps_the_work(plain):
    sharded = dry_run.profile(tiny(**{"train.parallel": "fsdp"}), "train", 8)
    assert sum(sharded.state.values()) == pytest.approx(sum(plain.state.values()) / 8, rel=0.15)
    # The update of the parameters is counted with fewer images a device.
    assert sharded.batch == 2 and sharded.flops == pytest.approx(plain.flops, rel=0.1)


def test_accumulation_keeps_the_work_and_needs_less_memory(plain):
    accumulated = dry_run.profile(tiny(**{"train.accumulate": 4}), "train", 1)
    assert accumulated.flops == pytest.approx(plain.flops, rel=0.1)
    assert accumulated.memory(16) < plain.memory(16)


def test_bytes_on_a_device_are_those_of_its_shard():
    mesh = AbstractMesh((2, 4), sharding.AXES)
    shape = jax.ShapeDtypeStruct((6, 8), jnp.bfloat16, sharding=NamedSharding(mesh, P(None, "fsdp")))
    assert profiling.device_bytes(shape) == 6 * 2 * 2


def test_the_largest_batch_fits_and_one_more_does_not(plain):
    memory = 10**8
    largest = plain.largest_batch(memory)
    assert plain.memory(largest) <= memory < plain.memory(largest + 1)
    assert plain.largest_batch(10) == 0


def test_the_command_prints_and_needs_neither_data_nor_workdir(capsys):
    assert main([*RUN, "--devices=8"]) == 0
    printed = capsys.readouterr().out
    assert "on each of 8 device(s), 2 of 16 images" in printed
    assert "GFLOP per image" in printed and "fits in: TPU v5e" in printed
    assert len(printed.splitlines()) <= 20


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--devices=0"], "--devices=0"),
        (["--devices=3"], "use 15"),
        (["--mode=sample"], "--mode of a --dry_run"),
        (["--config.data.control_image=edges"], "data.control_image needs --workdir"),
        (["--config.train.parallel=fsdp", "--config.train.shards=3", "--devices=8"], "shards=3"),
    ],
)
def test_what_cannot_be_determined_is_wrong_input(flags, words, capsys):
    assert main([*RUN, *flags]) == 2
    assert words in capsys.readouterr().err


# --- what would make it fit

PLAN = fitting.Plan(1, False, "float32", 1, "data_parallel", 64)


def needs(state, per_image):
    """Memory of a made-up network: fsdp divides the state, remat and bfloat16 halve the activations."""

    def memory(plan):
        images = plan.batch_size / plan.devices / plan.accumulate
        held = state / plan.devices if plan.parallel == "fsdp" else state
        return held + images * per_image * (0.5 if plan.remat else 1) * (0.5 if plan.dtype == "bfloat16" else 1)

    return memory


@pytest.mark.parametrize(
    ("state", "per_image", "changes"),
    [
        (10, 2, ["train.accumulate=2", "model.remat=True", "model.dtype=bfloat16"]),  # needs 138 of 100
        (10, 4, ["train.accumulate=4", "4 devices", "train.batch_size=16"]),  # 266: a half is not enough
        (300, 1, ["train.parallel=fsdp over 4 devices"]),  # the state alone is too large
        (2000, 150, ["model.remat=True and model.dtype=bfloat16 and train.parallel=fsdp over 64 devices"]),
        (10, 10_000, []),  # one image is too large
    ],
)
def test_the_fewest_changes_that_suffice_are_named(state, per_image, changes):
    memory = needs(state, per_image)
    plans = fitting.fewest_changes(PLAN, memory, 100)
    assert [fitting.describe(PLAN, plan, "train", "model") for plan in plans] == changes
    assert all(memory(plan) <= 100 for plan in plans)


@pytest.mark.parametrize(
    ("plan", "changes"),
    [
        (PLAN._replace(remat=True, dtype="bfloat16"), ["train.accumulate=2", "2 devices", "train.batch_size=32"]),
        (PLAN._replace(devices=8, parallel="fsdp", batch_size=512), ["train.accumulate=2", "model.remat=True"]),
        (PLAN._replace(batch_size=63), ["train.accumulate=3", "model.remat=True", "model.dtype=bfloat16"]),
        (PLAN._replace(accumulate=32, batch_size=64 * 32), ["train.accumulate=64", "model.remat=True"]),
    ],
)
def test_what_is_set_already_is_kept_and_parts_divide_the_batch(plan, changes):
    memory = needs(10, 8 if plan.remat else 2)
    found = [fitting.describe(plan, one, "train", "model") for one in fitting.fewest_changes(plan, memory, 100)]
    assert found[: len(changes)] == changes


HUGE = [flag.replace("batch_size=16", f"batch_size={2**12}") for flag in RUN]


@pytest.fixture(scope="module")
def remedies():
    """What is printed of a batch that fits nowhere, and the changes that it names for 16 GiB."""
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.redirect_stderr(io.StringIO()):
        assert main(HUGE) == 0
    lines = printed.getvalue().splitlines()
    (line,) = [line for line in lines if re.match(" +16 GiB would do with ", line)]
    return lines, line.partition("would do with ")[2].split(", or ")


def test_a_step_that_fits_nowhere_is_told_what_would_make_it_fit_in_20_lines(remedies):
    lines, changes = remedies
    assert "fits in: none of these as it is" in lines and len(lines) <= 20
    assert [line.split()[0] for line in lines if "would do with" in line] == ["16", "32", "40", "80", "95"]
    assert changes[0].startswith("train.accumulate=") and changes[-1].startswith("train.batch_size=")


@pytest.mark.slow  # a trace for each change; the search for them is tested above, on a made-up network
def test_the_changes_that_are_named_make_it_fit(remedies, capsys):
    for change in remedies[1]:
        devices = re.search(r"(\d+) devices", change)
        keys = re.findall(r"[\w.]+=[\w]+", change)
        flags = [*(f"--config.{key}" for key in keys), *([f"--devices={devices[1]}"] if devices else [])]
        assert main([*HUGE, *flags]) == 0
        assert "fits in: TPU v5e" in capsys.readouterr().out, change


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        ("--dry_run=full", 0),
        ("--dry_run full", 0),
        ("--dry_run=ful", 2),
        ("--dry_run=none", 2),
    ],
)
def test_the_whole_configuration_is_printed_when_it_is_asked_for(flags, code, plain, capsys, monkeypatch):
    monkeypatch.setattr(dry_run, "profile", lambda *_, **__: plain)
    given = [argument for argument in RUN if argument != "--dry_run"]
    assert main([*given, *shlex.split(flags)]) == code
    printed = capsys.readouterr()
    if code:
        assert "is not one of brief, full" in printed.err and printed.err.count("\n") == 1
    else:
        assert "train.batch_size = 16" in printed.out and "sample.guidance.interval = (0.0, 1000.0)" in printed.out
        assert "fits in: TPU v5e" in printed.out


@pytest.mark.parametrize(("name", "assumed"), [("folder", True), ("oxford_flowers102", True), ("cifar10", False)])
def test_a_number_of_classes_that_is_not_known_is_said_to_be_assumed(name, assumed, plain, capsys, monkeypatch):
    monkeypatch.setattr(dry_run, "profile", lambda *_, **__: plain)
    assert main([*RUN, f"--config.data.name={name}"]) == 0
    assert ("parameters (1000 classes assumed): " in capsys.readouterr().out) == assumed


def test_devices_belong_to_a_dry_run(capsys):
    assert main(["main.py", "--config=configs/imagenet64.py", "--devices=8", "--workdir=x"]) == 2
    assert "--dry_run" in capsys.readouterr().err


def test_collectives_are_read_off_a_program():
    program = """HloModule m

%body (p: (f32[4])) -> (f32[4]) {
  %p = (f32[4]) parameter(0)
  ROOT %all-reduce = f32[4]{0} all-reduce(%p), replica_groups={{0,1,2,3}}, to_apply=%add
}

ENTRY %main (a: f32[2,8], b: f32[8,16]) -> f32[2,16] {
  %a = f32[2,8]{1,0} parameter(0)
  %b = f32[2,16]{1,0} parameter(1)
  %gathered = f32[8,16]{1,0} all-gather(%b), replica_groups=mesh['x'=2,'y'=4] {'y'}, dimensions={0}
  %again = f32[8,16]{1,0} all-gather(%b), replica_groups=mesh['x'=2,'y'=4], device_ids=([4,2]T(1,0)) {'y'}
  %loop = (f32[4], /*index=1*/f32[4]) while(%a), condition=%always, body=%body
  ROOT %dot = f32[2,16]{1,0} dot(%a, %gathered), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""
    moved, sent = scaling.collectives(program)
    assert moved == {"all-gather": 2 * 8 * 16 * 4, "all-reduce": 16}
    assert math.isclose(sent, 2 * 512 * 3 / 4 + 16 * 2 * 3 / 4)
    assert scaling.products(program) == 2 * 2 * 16 * 8


@pytest.mark.slow
@pytest.mark.parametrize(("name", "forward"), [("imagenet256", 1120), ("imagenet512", 1983)])
def test_the_work_is_three_times_the_published_forward_pass(name, forward, monkeypatch):
    # The published networks convolve doubled maps pixel by pixel, and compute no scores anew.
    def convolve_doubled(x, *arguments, **options):
        return jax.lax.conv_general_dilated(layers.nearest_double(x), *arguments, **options)

    monkeypatch.setitem(layers.CONVOLUTIONS, "up", convolve_doubled)
    monkeypatch.setattr(dot_product, "FEW_SCORES", 2**40)
    # Peebles & Xie 2023 (DiT), of ADM, in 10^9 multiplications with additions; the backward pass is two forward ones.
    # XLA leaves out the products with the zeros around images (-) and counts elementwise operations (+).
    found = dry_run.profile(config(name, **{"train.batch_size": 1}), "train", 1)
    assert found.flops / 6e9 == pytest.approx(forward, rel=0.015)
