"""Cost of a training step before it runs: against published counts, against arithmetic, and against XLA."""

import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks import scaling
from guided_diffusion_jax import profiling, sharding
from guided_diffusion_jax.commands import dry_run
from guided_diffusion_jax.commands.cli import main
from guided_diffusion_jax.experiment.config import preset

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


@pytest.mark.parametrize(("name", "millions"), MILLIONS.items())
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
    # XLA leaves out the products with the zeros around images (-) and counts elementwise operations (+).
    found = dry_run.profile(config(name, **{"train.batch_size": 1}), "train", 1)
    assert found.flops / 6e9 == pytest.approx(forward, rel=0.015)
