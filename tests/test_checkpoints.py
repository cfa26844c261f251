"""A checkpoint that is damaged or finds no room is named, and the one before takes its place; one process writes."""

import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from test_commands import TINY

from guided_diffusion_jax.commands.cli import main
from guided_diffusion_jax.data import from_arrays
from guided_diffusion_jax.data.pipeline import batches
from guided_diffusion_jax.errors import DiskFull, InputError, disk_full
from guided_diffusion_jax.runtime import checksums
from guided_diffusion_jax.runtime.disk import tolerate_full
from guided_diffusion_jax.runtime.lock import exclusive
from guided_diffusion_jax.training import state
from guided_diffusion_jax.training.checkpoint import Checkpoints
from guided_diffusion_jax.training.metrics import Writer
from guided_diffusion_jax.training.tensorboard import TensorBoard

STEPS = (10, 20, 30)
ONE_DEVICE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def made(step):
    params = {"a": jnp.arange(3000.0) + step, "b": {"c": jnp.full((2, 2), step, jnp.bfloat16)}}
    return state.TrainState(jnp.int32(step), params, params, (jnp.int32(step),), jax.random.key(step))


LIKE = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=ONE_DEVICE), made(0))


def at(step):
    """An iterator at the place of a step."""
    iterator = iter(batches(from_arrays(np.zeros((4, 2, 2, 1), np.uint8)), batch_size=2, seed=0))
    iterator.set_state({"next_index": step})
    return iterator


def save(folder, *steps):
    with Checkpoints(folder) as checkpoints:
        for step in steps:
            checkpoints.save(step, made(step), at(step))


def restored(folder):
    """The step that a run goes on from, after checking all that is restored."""
    with Checkpoints(folder) as checkpoints:
        iterator = at(0)
        found = checkpoints.restore(LIKE, iterator)
        step = int(found.step)
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(*map(as_array, (a, b))), found, made(step))
        assert iterator.get_state() == {"next_index": step} and checkpoints.latest == step
    return step


def as_array(a):
    return np.asarray(jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three") / "checkpoints"
    save(folder, *STEPS)
    return folder


@pytest.fixture
def copy(three, tmp_path):
    return shutil.copytree(three, tmp_path / "checkpoints")


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file):
    os.truncate(file, file.stat().st_size // 2)


def test_what_was_saved_is_restored(three):
    assert restored(three) == 30


def test_spikes_may_be_looked_for_from_some_step_on_and_no_more(three, tmp_path):
    norm = jax.ShapeDtypeStruct((), jnp.float32, sharding=ONE_DEVICE)
    with Checkpoints(three, read_only=True) as checkpoints:
        found = checkpoints.restore(dataclasses.replace(LIKE, grad_norm_ema=norm), at(0))
    assert int(found.step) == 30 and found.grad_norm_ema.dtype == jnp.float32 and float(found.grad_norm_ema) == 0
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(30, dataclasses.replace(found, grad_norm_ema=jnp.float32(2)), at(30))
        checkpoints.wait()
        again = checkpoints.restore(dataclasses.replace(LIKE, grad_norm_ema=norm), at(0))
        assert float(again.grad_norm_ema) == 2
    assert restored(tmp_path / "checkpoints") == 30


def test_no_file_can_change_shrink_or_vanish_unnoticed(copy):
    folder = epath.Path(copy / "30")
    assert checksums.damage(folder) is None
    files = [p for p in (copy / "30").rglob("*") if p.is_file() and p != copy / "30" / "commit_success.txt"]
    assert len(files) > 10
    for file in files:
        content = file.read_bytes()
        places = {0, len(content) // 3, content.find(b"commit_timestamp") - 9} if file.name == checksums.METADATA else {
            int(i) for i in np.linspace(0, len(content) - 1, 9)
        }  # fmt: skip
        for place in places:
            for bit in (0, 7):
                changed = bytearray(content)
                changed[place] ^= 1 << bit
                file.write_bytes(changed)
                assert file.name in checksums.damage(folder), (file, place, bit)
        file.write_bytes(content[:-1])
        assert file.name in checksums.damage(folder)
        file.unlink()
        assert checksums.damage(folder) == f"{file.relative_to(copy / '30')} is missing"
        file.write_bytes(content)
    assert checksums.damage(folder) is None


def test_verification_can_be_off(tmp_path, three):
    with Checkpoints(tmp_path / "unverified", verify=False) as checkpoints:
        checkpoints.save(10, made(10), at(10))
    assert json.loads((tmp_path / "unverified" / "10" / checksums.FILE).read_text())["files"] == {}
    assert restored(tmp_path / "unverified") == 10  # which verifies: there is nothing to compare
    copy = shutil.copytree(three, tmp_path / "checkpoints")
    truncate(copy / "30" / checksums.FILE)
    with Checkpoints(copy, read_only=True, verify=False) as checkpoints:
        assert checkpoints.latest == 30


def test_a_process_lists_its_own_files_and_the_main_process_all_others(copy):
    folder = epath.Path(copy / "30")
    before = json.loads((folder / checksums.FILE).read_text())["files"]
    checksums.seal_process(folder)
    own = json.loads((folder / f"{checksums.PART}0.json").read_text())
    assert own and all(name.startswith("state/ocdbt.process_0/") for name in own)
    checksums.seal(folder)
    after = json.loads((folder / checksums.FILE).read_text())["files"]
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) <= {"commit_success.txt"}  # which Orbax adds last
    assert checksums.damage(folder) is None


@pytest.mark.parametrize("harm", [flip, truncate, os.remove])
@pytest.mark.parametrize("name", ["state/ocdbt.process_0/d/*", "state/_METADATA", "iterator_state/metadata"])
def test_the_one_before_takes_the_place_of_a_damaged_one(copy, capsys, harm, name):
    file = max((copy / "30").glob(name), key=lambda file: file.stat().st_size)
    harm(file)
    with Checkpoints(copy, read_only=True) as checkpoints:
        params, frozen, step = checkpoints.restore_ema(LIKE.ema)
    assert not frozen
    np.testing.assert_array_equal(params["a"], made(20).ema["a"])
    assert step == 20 and (copy / "30").exists(), "reading changed what is there"
    assert restored(copy) == 20
    said = capsys.readouterr().err
    assert f"{copy / '30'} is damaged: {file.relative_to(copy / '30')}" in said and "going on from step 20" in said
    assert sorted(os.listdir(copy)) == ["10", "20", "damaged_30"]
    save(copy, 30)  # Orbax would refuse the number in silence if it were still there
    assert restored(copy) == 30 and not capsys.readouterr().err


def test_empty_and_half_written_folders_are_no_checkpoints(copy, capsys):
    (copy / "40").mkdir()
    (copy / "50.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    assert restored(copy) == 30
    assert f"{copy / '40'} is damaged: {checksums.FILE} is missing" in capsys.readouterr().err
    assert sorted(os.listdir(copy)) == ["10", "20", "30", "damaged_40"]


def test_several_damaged_ones_are_all_named(copy, capsys):
    for step in (20, 30):
        os.remove(copy / str(step) / "state" / "manifest.ocdbt")
    assert restored(copy) == 10
    assert capsys.readouterr().err.count("is damaged: state/manifest.ocdbt is missing; going on from step 10") == 2


@pytest.mark.parametrize("read_only", [False, True])
def test_a_run_without_a_whole_checkpoint_does_not_begin_again(copy, read_only):
    for step in STEPS:
        flip(copy / str(step) / "iterator_state" / "metadata")
    for _ in range(2):
        with pytest.raises(
            InputError, match=r"no checkpoint is whole: .*30 is damaged: iterator_state/metadata has changed; .*20"
        ):
            Checkpoints(copy, read_only=read_only)
    assert sorted(os.listdir(copy)) == ["10", "20", "30"]


def test_no_leaf_is_dropped_or_invented(three, tmp_path):
    """A leaf of the checkpoint that the state does not have is an error, and so is one that it has beside."""
    more = {"a": LIKE.params["a"], "b": LIKE.params["b"], "d": LIKE.params["a"]}
    less = {"a": LIKE.params["a"]}
    with Checkpoints(three, read_only=True) as checkpoints:
        problems = ((more, "params/d is missing there"), (less, "params/b/c .* is no part of the model here"))
        for params, problem in problems:
            with pytest.raises(InputError, match=f"another architecture: .*{problem}"):
                checkpoints.restore(dataclasses.replace(LIKE, params=params), at(0))
        with pytest.raises(InputError, match=r"ema/b/c .* is no part of the model here"):
            checkpoints.restore_ema(less)


def test_a_reader_goes_to_a_newer_one_when_its_own_is_removed_by_the_run_that_trains(copy):
    with Checkpoints(copy, read_only=True) as checkpoints:
        assert checkpoints.latest == 30
        save(copy, 40, 50, 60)
        assert sorted(os.listdir(copy)) == ["40", "50", "60"]
        assert checkpoints.restore_ema(LIKE.ema)[2] == 60


@pytest.fixture
def limited():
    """Calls what it is given while no file can grow past some bytes, which is how a full disk feels."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def call(action, size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            return action()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    yield call
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_save_without_room_says_so_leaves_nothing_and_can_be_tried_again(copy, limited, capfd):
    with Checkpoints(copy) as checkpoints:

        def fail():
            checkpoints.save(40, made(40), at(40))
            checkpoints.wait()

        with pytest.raises(
            DiskFull, match=r"checkpoint of step 40, about 0\.\d\d MB, with .* the newest checkpoint is step 30"
        ):
            limited(fail, 1000)
        assert sorted(os.listdir(copy)) == ["10", "20", "30"] and checkpoints.latest == 30
        checkpoints.wait()  # has nothing to say any more
        checkpoints.save(50, made(50), at(50))
    assert "Traceback" not in capfd.readouterr().err
    assert sorted(os.listdir(copy)) == ["20", "30", "50"]
    assert restored(copy) == 50


def test_a_late_error_is_not_lost_when_the_checkpoints_are_closed(copy, limited):
    def fail():
        with Checkpoints(copy) as checkpoints:
            checkpoints.save(40, made(40), at(40))

    with pytest.raises(DiskFull):
        limited(fail, 1000)
    assert sorted(os.listdir(copy)) == ["10", "20", "30"]


def test_figures_without_room_are_left_out_whole(tmp_path, limited):
    with Writer(tmp_path, 0, 100) as writer:
        writer.scalars(1, {"loss": 1.0})
        with pytest.raises(OSError, match="File too large") as caught:
            limited(lambda: writer.scalars(2, {"loss": 2.0}), 40)
        assert disk_full(caught.value)
        writer.scalars(3, {"loss": 3.0})
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 3]


def test_metrics_and_images_go_to_further_writers(tmp_path):
    other, image = mock.Mock(), np.zeros((2, 2, 3), np.uint8)
    with Writer(tmp_path, 0, 10, writers=[other]) as writer:
        writer.scalars(1, {"loss": 1.0, "nothing": np.nan})
        writer.image(1, "samples", image)
    other.scalars.assert_called_once_with(1, {"loss": 1.0})
    other.image.assert_called_once_with(1, "samples", image)
    other.close.assert_called_once_with()
    assert (tmp_path / "samples" / "step_0000001.png").exists()


def test_tensorboard_without_room_neither_hangs_nor_stays_broken(tmp_path, limited):
    board = TensorBoard(epath.Path(tmp_path), 1)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for _ in range(15):
        with pytest.raises(OSError, match="File too large"):
            limited(lambda: board.image(1, "noise", noise), 1000)
    board.scalars(2, {"loss": 0.5})
    board.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(tmp_path))
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("loss")] == [(2, 0.5)]


HOLD = "import sys, time; from etils import epath; from guided_diffusion_jax.runtime.lock import exclusive\n"
HOLD += "with exclusive(epath.Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"


def test_the_lock_names_its_holder_and_goes_with_it_even_by_kill(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        held = rf"being written by process {holder.pid} on .* since \d{{4}}-"
        with pytest.raises(InputError, match=held), exclusive(epath.Path(tmp_path)):
            pytest.fail("two hold it")
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    mine = f"process {os.getpid()} on"
    with exclusive(epath.Path(tmp_path)), pytest.raises(InputError, match=mine), exclusive(epath.Path(tmp_path)):
        pytest.fail("two hold it")
    with exclusive(epath.Path(tmp_path / "new" / "folder")):
        assert (tmp_path / "new" / "folder").is_dir()


def test_a_full_disk_stops_what_it_may_stop_and_names_the_folder(tmp_path, capsys):
    folder = epath.Path(tmp_path)
    for error in (
        OSError(28, "No space left on device"),
        ValueError("RESOURCE_EXHAUSTED: No space left on device [..]"),
    ):
        with tolerate_full("go_on", folder):
            raise error
        assert f"warning: {folder}: " in capsys.readouterr().err
        with pytest.raises(DiskFull, match=f"{folder}: .*No space left"), tolerate_full("stop", folder):
            raise error
    with pytest.raises(PermissionError), tolerate_full("go_on", folder):
        raise PermissionError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """`run(workdir, *flags)`: a tiny training run in this process, to its exit code."""
    data = tmp_path_factory.mktemp("tfds")
    flags = ["--config=configs/digits.py", f"--config.data.data_dir={data}", *TINY, "--config.train.sample_every=0"]
    return lambda workdir, *more: main(["main.py", *flags, f"--workdir={workdir}", *more])


def test_a_run_is_refused_while_another_process_writes_to_its_folder(run, tmp_path, capsys):
    with exclusive(epath.Path(tmp_path)):
        assert run(tmp_path) == 2
    assert f"{tmp_path} is being written by process {os.getpid()}" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["training.lock"]


@pytest.mark.parametrize("policy", ["stop", "go_on"])
def test_a_run_whose_disk_is_full_for_a_while(run, tmp_path, capsys, monkeypatch, limited, policy):
    really = Checkpoints.save

    def save(self, step, *arguments):
        def fail():
            really(self, step, *arguments)
            self.wait()

        return limited(fail, 1000) if step == 2 else really(self, step, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save)
        code = run(tmp_path, f"--config.train.on_full_disk={policy}")
    said = capsys.readouterr().err
    assert f"{tmp_path / 'checkpoints'}: no room for the checkpoint of step 2" in said and "Traceback" not in said
    if policy == "stop":
        assert code == 1 and "error: " in said and not os.listdir(tmp_path / "checkpoints")
        assert run(tmp_path) == 0  # from the first step again
    else:
        assert code == 0 and "the run goes on" in said
    assert os.listdir(tmp_path / "checkpoints")[-1:] == ["4"]


def test_the_last_save_must_find_room_whatever_the_policy(run, tmp_path, monkeypatch, limited, capsys):
    really = Checkpoints.save

    def save(self, *arguments):
        def fail():
            really(self, *arguments)
            self.wait()

        return limited(fail, 1000)

    monkeypatch.setattr(Checkpoints, "save", save)
    assert run(tmp_path, "--config.train.on_full_disk=go_on") == 1
    assert "error: " in capsys.readouterr().err
