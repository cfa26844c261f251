"""The short form of `make torture`: real runs, killed, damaged, starved of disk and stopped, end as if nothing was."""

import pytest
from torture import torture

COUNTS = dict(kills=4, corruptions=2, full_disks=1, sigterms=1)


@pytest.mark.slow  # the quick tier kills, stops and damages runs in test_resume.py and test_checkpoints.py
def test_runs_end_the_same_whatever_befalls_them(tmp_path):
    said = []
    try:
        figures = torture(tmp_path, **COUNTS, seed=1, steps=40, save_every=10, say=said.append)
    except AssertionError as error:
        pytest.fail("\n".join([*said, str(error)]))
    assert [figures[kind] for kind in ("kill", "corruption", "full_disk", "sigterm")] == list(COUNTS.values())
    assert figures["runs_equal_to_the_undisturbed_one"] >= 1
