"""Writes torch_fidelity.npz beside this file: what torch-fidelity says of fixed random features; see README.md."""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np

KID = {"kid_subsets": 7, "kid_subset_size": 50, "rng_seed": 2020}
SPLITS = 10
NEIGHBOURS = 3


def inputs() -> dict[str, np.ndarray]:
    """Features that are not negative, as Inception's, of two sets that differ, and logits."""
    random = np.random.RandomState(0)
    mix = random.randn(12, 24)
    features = {
        "features_1": np.maximum(random.randn(130, 12) @ mix * 0.30 + 0.5, 0),
        "features_2": np.maximum(random.randn(150, 12) @ mix * 0.27 + 0.5 + 0.6 * random.rand(24), 0),
        "logits": 3 * random.randn(203, 10),
    }
    return {name: array.astype(np.float32) for name, array in features.items()}


def results(arrays: dict[str, np.ndarray]) -> dict[str, float]:
    """Features 1 are the generated ones, 2 the real ones."""
    import torch
    from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc

    one, two, logits = (torch.from_numpy(arrays[name]) for name in ("features_1", "features_2", "logits"))
    statistics = (metric_fid.fid_features_to_statistics(features.double()) for features in (one, two))
    return {
        **metric_fid.fid_statistics_to_metric(*statistics, verbose=False),
        **metric_kid.kid_features_to_metric(one.double(), two.double(), verbose=False, **KID),
        **metric_prc.prc_features_to_metric(one, two, prc_neighborhood=NEIGHBOURS, verbose=False),
        **metric_isc.isc_features_to_metric(logits, SPLITS),
    }


def main() -> None:
    """Writes the file."""
    versions = {name: version(name) for name in ("torch-fidelity", "torch", "numpy")}
    arrays = inputs()
    config = {**KID, "splits": SPLITS, "neighbours": NEIGHBOURS, "versions": versions, "results": results(arrays)}
    np.savez_compressed(Path(__file__).with_name("torch_fidelity.npz"), config=json.dumps(config), **arrays)
    print(json.dumps(config, indent=1))


if __name__ == "__main__":
    main()
