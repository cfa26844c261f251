"""All files of `hostile_weights`, and random damage of valid ones, each read in a process of its own.

    python tests/fuzz_weights.py [RANDOM]

RANDOM is the number of damaged files, 60 by default. Says which file was not refused in one line, and the largest
time and memory. Exit code 1 where a file crashed the reader, took longer than 5 s or more than 1.5 times its size and
500 MB, or was refused in more than a line.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import hostile_weights
import numpy as np
import torch_files

SECONDS, MEMORY = 5, 500 * 2**20
SETTINGS = {"image_size": 8, "head_width": 32}


def valid(folder):
    """A tiny network in both formats."""
    import jax
    import jax.numpy as jnp

    import guided_diffusion_jax as gd
    from guided_diffusion_jax.interop import adm

    unet = gd.models.UNet(
        width=32, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(), head_width=32, num_classes=0
    )
    shapes = jax.eval_shape(lambda: gd.models.init_params(unet, jax.random.key(0), (8, 8, 3)))
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
    weights = adm.state_dict_from_params(unet, params, image_size=8, attention_order="legacy")
    for ending, write in ((".pt", torch_files.write), (".safetensors", hostile_weights.write_safetensors)):
        write(folder / f"valid{ending}", {name: np.asarray(array) for name, array in weights.items()})
        yield folder / f"valid{ending}"


def read(path):
    """Reads one file, in a process that has imported all that it needs; prints what happened as JSON."""
    sys.path.insert(0, os.fspath(Path(__file__).parents[1]))
    import jax

    from guided_diffusion_jax.errors import InputError
    from guided_diffusion_jax.interop import adm

    warnings.simplefilter("ignore")
    jax.block_until_ready(jax.numpy.zeros(1))
    for child in path:
        pid = os.fork()
        if pid == 0:
            before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
            try:
                adm.load(child, **SETTINGS)
                said, code = "", 0
            except InputError as error:
                said, code = f"error: {error}", 2
            except BaseException as error:
                said, code = f"{type(error).__name__}: {error}"[:500], 1
            seconds = time.process_time() - start
            memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
            print(json.dumps([child, code, said, seconds, memory]), flush=True)
            os._exit(0)
        os.waitpid(pid, 0)


def main(count):
    """Exit code."""
    faults, slowest, largest, accepted, total = [], (0.0, ""), (0, ""), [], 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        names = {os.fspath(path): name for name, path in hostile_weights.files(root)}
        for original in valid(root):
            content = original.read_bytes()
            for seed in range(count // 2):
                path = root / f"mutated{seed}{original.suffix}"
                path.write_bytes(hostile_weights.mutated(content, seed))
                names[os.fspath(path)] = f"damage {seed} of {original.name}"
        run = subprocess.run(
            [sys.executable, __file__, "--read", *names], capture_output=True, text=True, timeout=1800, check=False
        )
        seen = set()
        for line in run.stdout.splitlines():
            path, code, said, seconds, memory = json.loads(line)
            name, total = names[path], total + 1
            seen.add(path)
            size = os.path.getsize(path) if os.path.isfile(path) else 0
            beyond = memory - 1.5 * size
            slowest, largest = max(slowest, (seconds, name)), max(largest, (beyond, name))
            bad = code == 1 or len(said) > 300 or not said.isprintable() or seconds > SECONDS or beyond > MEMORY
            if bad:
                faults.append(f"{name}: code {code}, {seconds:.1f} s, {memory / 2**20:.0f} MiB, {said[:300]!r}")
            if code == 0:
                accepted.append(name)
        faults += [f"{names[path]}: the process died" for path in names if path not in seen]
        faults += [f"{name}: accepted" for name in accepted if not name.startswith("damage")]
        if Path("/tmp/hostile_weights_ran").exists():
            faults.append("code of a file was run")
    print(f"{total} files; slowest {slowest[0]:.2f} s of CPU ({slowest[1]})")
    print(f"most memory beyond 1.5 times the file: {largest[0] / 2**20:.0f} MiB ({largest[1]})")
    print(f"damage that leaves a valid file: {len(accepted)}")
    print(*faults, sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--read"]:
        read(sys.argv[2:])
    else:
        sys.exit(main(int(sys.argv[1]) if sys.argv[1:] else 60))
