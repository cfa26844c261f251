"""Training runs that are killed, damaged, starved of disk and asked to stop, at random, and must not notice.

    python -m tests.torture --kills=100 --corruptions=20 --full_disks=5 --sigterms=5 --seed=0

Each run is `main.py` with a tiny network on the digits, in a process of its own that is forked off one which has
imported everything. After whatever befell it the same command goes on, until it is done; then another run begins, until
all was done so often. What is asserted each time:

* it goes on from the newest checkpoint that was complete and not damaged, and names those that were;
* a full disk ends it with one line and exit code 1 and leaves no half-written checkpoint; SIGTERM ends it saved;
* in the end every array of the state and every step's loss are those of the undisturbed run, bit for bit; every step
  used the same examples whenever it was taken, and every epoch showed every example once.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from guided_diffusion_jax.runtime.checksums import FILE, METADATA

ROOT = Path(__file__).parent.parent
NETWORK = {
    "model.width": 8, "model.channel_mult": "(1,)", "model.num_res_blocks": 1, "model.attention_resolutions": "()",
    "model.head_width": 8, "train.batch_size": 16, "train.log_every": 1, "train.sample_every": 0,
}  # fmt: skip
DISK = 256 * 2**20
TEMPORARY = "orbax-checkpoint-tmp"
TIMEOUT = 900
DAMAGES = ("flip", "truncate", "delete", "empty", "leftover")


def trained(arguments, output, seen, cache, limit):
    """What a forked process does: it is `main.py`, and notes for every batch that a step gets what is in it."""
    os.chdir(ROOT)
    written = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(written, 1)
    os.dup2(written, 2)
    import jax

    from guided_diffusion_jax.commands.cli import main
    from guided_diffusion_jax.training import trainer

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    batches, notes = trainer.batches, os.open(seen, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def noted(source, **options):
        numbered = dataclasses.replace(source, read=lambda i: source.read(i) | {"number": i})
        return Noted(iter(batches(numbered, **options)), notes)

    trainer.batches = noted
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.exit(main(["main.py", *arguments]))


class Noted:
    """An iterator that writes down what it gives; a line is one `write`, so that no kill leaves half of one."""

    def __init__(self, iterator, notes):
        self.iterator, self.notes = iterator, notes
        self.get_state, self.set_state = iterator.get_state, iterator.set_state

    def __iter__(self):
        return self

    def __next__(self):
        batch = next(self.iterator)
        line = [self.get_state()["next_index"], batch.pop("number").tolist()]
        os.write(self.notes, f"{json.dumps(line)}\n".encode())
        return batch


class Torture:
    """One seed's worth of runs in a folder.

    Args:
        folder: for everything; runs lie on a small disk of their own where one can be mounted.
        seed: of all that is random.
        steps: of a run.
        save_every: steps.
        say: takes a line for each thing that was done.
    """

    def __init__(self, folder, seed, steps, save_every, say):
        self.folder, self.steps, self.save_every, self.say = Path(folder), steps, save_every, say
        self.random = random.Random(seed)
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["guided_diffusion_jax.commands.cli"])
        self.disk = self.folder / "disk"
        self.disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(self.disk)]
        self.mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
        self.full = "a full tmpfs, and " * self.mounted + "a limit on the size of files (RLIMIT_FSIZE)"
        self.workdir, self.number, self.damaged = self.disk / "straight", 0, set()
        self.process = None
        self.lost, self.startup, self.in_saves, self.runs = [], [], 0, 0
        self.done = dict.fromkeys(("kill", "corruption", "full_disk", "sigterm"), 0)

    def close(self):
        if self.process is not None:
            self.process.kill()
            self.process.join()
        if self.mounted:
            subprocess.run(["umount", str(self.disk)], check=True)

    def undisturbed(self):
        """The run that all others must equal."""
        begun = time.monotonic()
        process = self.start()
        process.join(TIMEOUT)
        assert process.exitcode == 0, self.output()
        self.straight = self.result()
        sizes = [file.stat().st_size for file in self.checkpoint(self.steps).rglob("*") if file.is_file()]
        self.size, self.largest = sum(sizes), max(sizes)
        self.say(
            f"undisturbed: {self.steps} steps in {time.monotonic() - begun:.1f} s, a checkpoint is {self.size} bytes"
        )

    def run(self, **counts):
        """Lets so many things of each kind happen."""
        left = [kind for kind, count in counts.items() for _ in range(count)]
        self.random.shuffle(left)
        self.fresh()
        while left:
            done = self.step(left[-1])
            if done:
                self.done[left.pop()] += 1
            elif len(left) > 1:  # what cannot be done now may be later
                left.insert(0, left.pop())
            if self.newest() == self.steps and self.sound() == self.steps:
                self.finish()
        self.finish(more=False)

    def finish(self, more=True):
        """The run to its end, which is compared."""
        begun = time.monotonic()
        process = self.start()
        self.await_start(process)
        process.join(TIMEOUT)
        assert process.exitcode == 0, self.output()
        assert self.result() == self.straight, "the run ended elsewhere than the undisturbed one"
        self.runs += 1
        self.say(f"run {self.number} ended as the undisturbed one did ({time.monotonic() - begun:.1f} s)")
        shutil.rmtree(self.workdir)
        if more:
            self.fresh()

    def fresh(self):
        self.number += 1
        self.workdir, self.damaged = self.disk / str(self.number), set()

    def step(self, kind):
        """Starts the run and lets something of this kind happen to it; tells whether it did."""
        if kind == "full_disk":
            return self.fill()
        process = self.start()
        if kind == "sigterm":
            return self.ask(process)
        self.kill(process)
        return kind == "kill" or self.corrupt()

    def kill(self, process):
        """SIGKILL: at any time, or from the middle of a save on."""
        if self.random.random() < 0.5:
            saves, seen = self.random.randint(1, 3), set()
            while process.is_alive() and len(seen) < saves:
                seen |= {name for name in self.names() if TEMPORARY in name}
                time.sleep(0.001)
            time.sleep(self.random.random() * 0.3)
        else:
            process.join(self.random.random() * 3 * self.typical())
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL), self.output()
        inside = [name for name in self.names() if TEMPORARY in name]
        self.in_saves += bool(inside)
        self.check_start()
        self.say(f"killed at step {self.reached()}, saved {self.sound()} {'while saving' if inside else ''}")
        self.lost.append(self.reached() - self.sound())
        assert self.lost[-1] <= 2 * self.save_every or self.damaged, "a completed save was lost"

    def ask(self, process):
        """SIGTERM."""
        self.await_start(process)
        process.join(self.random.random() * self.typical())
        process.terminate()
        process.join(TIMEOUT)
        stopped = re.search(r"stopped by SIGTERM at step (\d+), saved", self.output())
        if not stopped:  # it came before the first step or after the last
            assert process.exitcode in (0, -signal.SIGTERM), self.output()
            return False
        assert process.exitcode == 0 and self.sound() == int(stopped[1]), self.output()
        self.say(f"stopped at step {stopped[1]}")
        return True

    def fill(self):
        """No room for the next checkpoint, perhaps not even for the next figures."""
        if self.steps - self.sound() <= self.save_every:
            return False
        room, limited = int(self.random.random() * self.size), not self.mounted or self.random.random() < 0.5
        filler = self.disk / "filler"
        if not limited:
            with filler.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(self.disk).free - room)
        process = self.start(limit=self.random.randint(4096, self.largest) if limited else 0)
        process.join(TIMEOUT)
        filler.unlink(missing_ok=True)
        lines = [line for line in self.output().splitlines() if line.startswith(("error: ", "Traceback"))]
        assert process.exitcode == 1 and len(lines) == 1 and "Traceback" not in self.output(), self.output()
        assert f"error: {self.workdir}" in lines[0], lines
        assert not [name for name in self.names() if TEMPORARY in name], self.names()
        self.check_start()
        what = "a limit on files' size" if limited else f"a full disk with room for {room} bytes"
        self.say(f"{what}, reached {self.reached()}: {lines[0]}")
        return True

    def corrupt(self):
        """Damages one of the checkpoints, of which another one must be whole."""
        whole = self.whole()
        if len(whole) < 2:
            return False
        kind = self.random.choice(DAMAGES)
        step = self.random.choice([max(whole), self.random.choice(whole)])
        folder = self.checkpoint(step)
        files = sorted(
            p for p in folder.rglob("*") if p.is_file() and p.parent.name + p.name != f"{step}commit_success.txt"
        )
        file = self.random.choice(files)
        content = file.read_bytes()
        if kind == "leftover":
            (folder.parent / f"{step + 1}.{TEMPORARY}" / "state").mkdir(parents=True)
            self.say(f"left a half-written {step + 1}")
            return True
        if kind == "flip" and content:
            # The time at the end of METADATA may be any; JSON's own white space too, but not where checksums stand.
            stop = content.index(b"commit_timestamp") if file.name == METADATA else len(content)
            place = self.random.randrange(stop)
            file.write_bytes(
                content[:place] + bytes([content[place] ^ 1 << self.random.randrange(8)]) + content[place + 1 :]
            )
        elif kind == "truncate" and content:
            file.write_bytes(content[: self.random.randrange(len(content))])
        elif kind == "empty":
            shutil.rmtree(folder)
            folder.mkdir()
        else:
            kind = "delete"
            file.unlink()
        self.damaged.add(step)
        self.say(f"{kind} {step}/{file.relative_to(folder)} of {sorted(whole)}")
        return True

    def start(self, limit=0):
        """The run in a process; the state of things before it is kept for `check_start`."""
        self.expected = self.sound()
        # One that was killed as it began may already have set some aside.
        self.expected_damage = {
            step for step in self.damaged if step > self.expected and self.checkpoint(step).exists()
        }
        flags = NETWORK | {"train.steps": self.steps, "train.save_every": self.save_every}
        arguments = [f"--config.{key}={value}" for key, value in flags.items()]
        arguments += [f"--config.data.data_dir={self.folder / 'tfds'}", "--config=configs/digits.py"]
        arguments.append(f"--workdir={self.workdir}")
        self.out, self.notes = self.folder / "output.txt", self.folder / f"{self.workdir.name}.notes"
        self.out.write_text("")
        given = (arguments, self.out, self.notes, self.folder / "cache", limit)
        self.process = self.context.Process(target=trained, args=given)
        self.begun = time.monotonic()
        self.process.start()
        return self.process

    def await_start(self, process):
        while process.is_alive() and "from step" not in self.output():
            assert time.monotonic() < self.begun + TIMEOUT, self.output()
            time.sleep(0.005)
        self.startup.append(time.monotonic() - self.begun)
        self.check_start()

    def check_start(self):
        """It went on from where it should, if it came so far."""
        found = re.search(r"from step (\d+) to", self.output())
        if not found:
            return
        assert int(found[1]) == self.expected, (self.expected, self.output())
        for step in self.expected_damage:
            assert f"checkpoints/{step} is damaged" in self.output(), self.output()
            assert (self.checkpoint(step).parent / f"damaged_{step}").exists()
        self.damaged = {step for step in self.damaged if step < self.expected}

    def typical(self):
        return sum(self.startup) / len(self.startup) if self.startup else 5.0

    def output(self):
        return self.out.read_text(errors="replace")

    def names(self):
        folder = self.workdir / "checkpoints"
        return os.listdir(folder) if folder.exists() else []

    def checkpoint(self, step):
        return self.workdir / "checkpoints" / str(step)

    def newest(self):
        return max((int(name) for name in self.names() if name.isdigit()), default=0)

    def whole(self):
        # Of the fourth one a kill may have left half, while it was being removed.
        names = sorted((name for name in self.names() if name.isdigit()), key=int)[-3:]
        complete = {int(name) for name in names if (self.checkpoint(name) / FILE).exists()}
        return sorted(complete - self.damaged)

    def sound(self):
        """The step that the run must go on from."""
        return max(self.whole(), default=0)

    def reached(self):
        lines = self.notes.read_text().splitlines() if self.notes.exists() else []
        return json.loads(lines[-1])[0] if lines else 0

    def result(self):
        """Every array of the last step, every step's loss, and every step's examples, after checking these."""
        import numpy as np

        code = (
            "import sys, warnings, hashlib, jax, numpy as np, orbax.checkpoint as ocp\n"
            "warnings.simplefilter('ignore')\n"
            "state = ocp.PyTreeCheckpointer().restore(sys.argv[1])\n"
            "for path, a in jax.tree_util.tree_leaves_with_path(state):\n"
            "    is_key = jax.numpy.issubdtype(a.dtype, jax.dtypes.prng_key)\n"
            "    a = np.asarray(jax.random.key_data(a) if is_key else a)\n"
            "    print(jax.tree_util.keystr(path), a.dtype, a.shape, hashlib.sha256(a.tobytes()).hexdigest())\n"
        )
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-c", code, str(self.checkpoint(self.steps) / "state")]
        arrays = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        assert len(arrays) > 10
        lines = [json.loads(line) for line in (self.workdir / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == list(range(1, self.steps + 1)), "a step is missing or there twice"
        examples = {}
        for step, indices in map(json.loads, self.notes.read_text().splitlines()):
            assert examples.setdefault(step, indices) == indices, f"step {step} got other examples the second time"
        order = np.concatenate([examples[step] for step in range(1, self.steps + 1)])
        count = int(re.search(r"([\d,]+) images of", self.output())[1].replace(",", ""))
        for epoch in range(0, len(order), count):
            shown = order[epoch : epoch + count]
            assert len(set(shown)) == len(shown), "an example came twice in an epoch"
        return arrays, [line["loss"] for line in lines], order.tolist()

    def figures(self):
        lost = sorted(self.lost)
        return {
            **self.done,
            "kills_while_saving": self.in_saves,
            "runs_equal_to_the_undisturbed_one": self.runs,
            "steps_lost_a_kill_mean": round(sum(lost) / max(1, len(lost)), 1),
            "steps_lost_a_kill_most": lost[-1] if lost else 0,
            "save_every": self.save_every,
            "seconds_to_start_mean": round(self.typical(), 1),
            "full_disk_by": self.full,
        }


def torture(folder, *, kills, corruptions, full_disks, sigterms, seed=0, steps=400, save_every=20, say=print):
    """Does so many of each in `folder` and gives the figures; an `AssertionError` says what was lost."""
    case = Torture(folder, seed, steps, save_every, say)
    try:
        case.undisturbed()
        case.run(kill=kills, corruption=corruptions, full_disk=full_disks, sigterm=sigterms)
        return case.figures()
    finally:
        case.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in dict(kills=100, corruptions=20, full_disks=5, sigterms=5, seed=0, steps=400).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    given, begun = vars(parser.parse_args()), time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        told = torture(
            temporary, **given, say=lambda line: print(f"{time.monotonic() - begun:7.1f} s  {line}", flush=True)
        )
    print(json.dumps(told | {"seed": given["seed"], "minutes": round((time.monotonic() - begun) / 60, 1)}, indent=2))
