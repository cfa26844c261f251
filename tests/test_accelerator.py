"""The accelerator's command: its data, that a part fails alone, and, slowly, all of it on a CPU."""

import io
import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.accelerator import packed
from benchmarks.accelerator.run import Run

ROOT = Path(__file__).parent.parent


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("encoded", [False, True])
def test_packed_images_come_back(tmp_path, encoded):
    examples = packed.drawn(7)
    files = [png(image) for image in examples.images]
    images = {"images": examples.images}
    if encoded:
        images = {"encoded": np.frombuffer(b"".join(files), np.uint8), "ends": np.cumsum([len(file) for file in files])}
    np.savez(tmp_path / "data.npz", **images, labels=examples.labels.astype(np.uint8))
    found = packed.read(tmp_path / "data.npz")
    np.testing.assert_array_equal(found.images, examples.images)
    np.testing.assert_array_equal(found.labels, examples.labels)


def test_a_part_fails_or_is_skipped_alone_and_the_record_is_on_disk_after_each(tmp_path):
    run = Run(Namespace(out=str(tmp_path), rehearse=True, width=0, seconds=100.0), "command")

    def record():
        return json.loads((tmp_path / "accelerator.json").read_text())

    def broken(run):
        assert record()["running"] == "broken"
        run.progress("broken", {"half": 1})
        raise ValueError("no")

    run.part("broken", broken, 1.0)
    run.part("fine", lambda run: {"value": np.float32(1)}, 1.0)
    run.part("late", lambda run: {}, 0.0)
    parts = record()["parts"]
    assert {name: part["ok"] for name, part in parts.items()} == {"broken": False, "fine": True, "late": None}
    assert parts["broken"]["error"] == "ValueError: no"
    assert parts["broken"]["result"] == {"half": 1}
    assert record()["running"] is None


@pytest.mark.slow
def test_all_parts_are_well_in_a_rehearsal(tmp_path):
    command = [sys.executable, "-m", "benchmarks.accelerator", "--rehearse", "--seconds=1500", f"--out={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    found = json.loads((tmp_path / "accelerator.json").read_text())
    assert {name: part.get("error") for name, part in found["parts"].items() if not part["ok"]} == {}
    assert done.returncode == 0, done.stderr
    assert found["finished"]
    checks = {"bfloat16_training", "fsdp_on_one_device", "sampler_ddim", "control_branch", "adm_import", "exact_resume"}
    assert found["parts"].keys() >= checks | {"matmul_peak", "ddim_cfg_float32", "training"}
    assert {path.name for path in tmp_path.iterdir()} >= {"samples.png", "samples.npz", "weights.npz"}
