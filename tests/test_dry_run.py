"""What a run would take, told beforehand: against published counts, against arithmetic, and against XLA."""

import importlib
import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks import scaling
from guided_diffusion_jax import sharding
from guided_diffusion_jax.commands import dry_run
from guided_diffusion_jax.training import cost
from main import main

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
    made = importlib.import_module(f"configs.{name}").get_config()
    made.update_from_flattened_dict({"model.dtype": "float32", **changes})
    return dry_run.resolved(made)


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
    return dry_run.account(tiny(), "train", 1)


@pytest.mark.parametrize(("name", "millions"), MILLIONS.items())
def test_parameters_and_state_are_the_published_networks(name, millions):
    shapes = dry_run.program(config(name), "train").state
    parameters = cost.count(shapes.params)
    assert round(parameters / 1e6) == millions
    # Parameters, their average and Adam's two moments, 4 bytes each, and a few counters.
    assert 0 <= cost.nbytes((shapes.params, shapes.ema, shapes.opt_state)) - 16 * parameters < 100


def test_a_matrix_product_and_a_convolution_cost_two_operations_a_multiplication():
    def function(x, kernel, matrix):
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return y @ matrix

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in [(cost.MARK, 8, 8, 3), (3, 3, 3, 5), (5, 7)]]
    assert cost.of(function, *shapes).flops == 2 * 8 * 8 * (5 * 9 * 3 + 7 * 5)


def test_what_the_backward_pass_reads_is_kept_and_rematerialisation_keeps_less():
    x, matrix = jax.ShapeDtypeStruct((cost.MARK, 10), jnp.float32), jax.ShapeDtypeStruct((10, 10), jnp.float32)

    def loss(block):
        def of(matrix, x):
            for _ in range(4):
                x = block(matrix, x)
            return x.sum()

        return jax.grad(of)

    def block(matrix, x):
        return jnp.sin(jnp.sin(x @ matrix) @ matrix) @ matrix

    kept = cost.of(loss(block), matrix, x)
    remat = cost.of(loss(jax.checkpoint(block)), matrix, x)
    rows = max(point.each for point in kept.live) / 40
    # Three matrix products a block: their inputs are needed again, and with each sine its slope, of which x is given.
    assert 4 * 3 - 1 <= rows <= 4 * 5 + 2
    assert max(point.each for point in remat.live) < 0.7 * 40 * rows
    assert remat.flops > kept.flops


def test_the_account_is_near_to_xlas_plan(plain):
    made = dry_run.program(tiny(), "train")
    lowered = jax.jit(made.step, donate_argnums=0).lower(made.state, made.batch(16))
    compiled = lowered.compile({"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True})
    assert plain.temporaries(16) == pytest.approx(compiled.memory_analysis().temp_size_in_bytes, rel=0.25)
    # XLA does not count the products with the zeros around a picture: at 8 x 8 pixels one in eight of a 3 x 3 kernel's.
    assert plain.flops * 16 == pytest.approx(compiled.cost_analysis()["flops"], rel=0.2)


def test_fsdp_cuts_the_state_and_keeps_the_work(plain):
    cut = dry_run.account(tiny(**{"train.parallel": "fsdp"}), "train", 8)
    assert sum(cut.state.values()) == pytest.approx(sum(plain.state.values()) / 8, rel=0.15)
    assert (cut.batch, cut.flops) == (2, plain.flops)


def test_bytes_on_a_device_are_those_of_its_shard():
    mesh = AbstractMesh((2, 4), sharding.AXES)
    shape = jax.ShapeDtypeStruct((6, 8), jnp.bfloat16, sharding=NamedSharding(mesh, P(None, "fsdp")))
    assert cost.on_device(shape) == 6 * 2 * 2


def test_the_largest_batch_fits_and_one_more_does_not(plain):
    room = 10**8
    most = plain.largest(room)
    assert plain.needs(most) <= room < plain.needs(most + 1)
    assert plain.largest(10) == 0


def test_the_command_prints_and_needs_neither_data_nor_workdir(capsys):
    assert main([*RUN, "--devices=8"]) == 0
    said = capsys.readouterr().out
    assert "model.width=32" in said and "on each of 8 device(s)" in said and "2 of 16 images" in said
    assert "GFLOP an image" in said and "fits in: TPU v5e" in said


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--devices=0"], "--devices=0"),
        (["--devices=3"], "use 15"),
        (["--mode=sample"], "--mode of a --dry_run"),
        (["--config.data.channels=0"], "--config.data.channels=3"),
        (["--config.model.num_classes=-1"], "--config.model.num_classes=1000"),
        (["--config.train.parallel=fsdp", "--config.train.shards=3", "--devices=8"], "shards=3"),
    ],
)
def test_what_cannot_be_told_is_wrong_input(flags, words, capsys):
    assert main([*RUN, *flags]) == 2
    assert words in capsys.readouterr().err


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
def test_the_work_is_three_times_the_published_forward_pass(name, forward):
    # Peebles & Xie 2023 (DiT), of ADM, in 10^9 multiplications with additions; the backward pass is two forward ones.
    found = dry_run.account(config(name, **{"train.batch_size": 1}), "train", 1)
    assert found.flops / 6e9 == pytest.approx(forward, rel=0.005)
