"""Files are whole or not there."""

import errno
import json

import pytest
from etils import epath

from guided_diffusion_jax.errors import DiskFull
from guided_diffusion_jax.runtime import files


def test_a_file_takes_its_place_only_when_it_is_whole(tmp_path):
    path = epath.Path(tmp_path) / "a.json"
    files.write_json(path, {"a": [1, 2]})
    with pytest.raises(DiskFull, match=r"a\.json: .*No space"), files.atomic_write(path) as file:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert json.loads(path.read_text()) == {"a": [1, 2]}
    with files.atomic_write(path, "w") as first, files.atomic_write(path, "w") as second:
        first.write("1")
        second.write("2")
    assert path.read_text() == "1"  # the last to finish
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]
