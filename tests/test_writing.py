"""Files are whole or not there."""

import errno
import json

import pytest
from etils import epath

from guided_diffusion_jax import writing
from guided_diffusion_jax.errors import DiskFull


def test_a_file_takes_its_place_only_when_it_is_whole(tmp_path):
    path = epath.Path(tmp_path) / "a.json"
    writing.as_json(path, {"a": [1, 2]})
    with pytest.raises(DiskFull, match=r"a\.json: .*No space"), writing.whole(path) as file:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert json.loads(path.read_text()) == {"a": [1, 2]}
    with writing.whole(path, "w") as first, writing.whole(path, "w") as second:
        first.write("1")
        second.write("2")
    assert path.read_text() == "1"  # the last to finish
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]
