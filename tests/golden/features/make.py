"""Makes inception.npz and dinov2.npz beside it, with torch-fidelity and transformers on the weights of `formula`.

Needs torch==2.13.0, torch-fidelity==0.4.0 (and its torchvision) and transformers==5.23.0, which the tests do not.
"""

import json
import tempfile
from pathlib import Path

import formula
import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

HERE = Path(__file__).parent
BLOCKS = FeatureExtractorInceptionV3.get_provided_features_list()


class Bare(FeatureExtractorInceptionV3):
    """Without its weights, to see the names and shapes."""

    def load_state_dict(self, state_dict):
        self.shapes = {name: tuple(t.shape) for name, t in self.state_dict().items() if "num_batches" not in name}


def nchw(images):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1)))


def inception(size, images):
    """What torch-fidelity gives for pictures that it resizes to `size` pixels, and Mixed_6d's first 7 channels."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        torch.save({}, path)
        shapes = Bare("bare", list(BLOCKS), feature_extractor_weights_path=path).shapes
        torch.save({name: torch.from_numpy(array) for name, array in formula.state_dict(shapes).items()}, path)
        network = FeatureExtractorInceptionV3("inception", list(BLOCKS), feature_extractor_weights_path=path)
    network.INPUT_IMAGE_SIZE = size
    spatial = []
    network.Mixed_6d.register_forward_hook(lambda module, inputs, output: spatial.append(output[:, :7]))
    with torch.no_grad():
        outputs = dict(zip(BLOCKS, network(nchw(images)), strict=True))
    return {**{key: out.numpy() for key, out in outputs.items()}, "spatial": np.moveaxis(spatial[0].numpy(), 1, -1)}


def make_inception():
    arrays, settings = {}, {"299": (299, 2, 150, 171), "139": (139, 2, 150, 171)}
    for key, (size, *shape) in settings.items():
        out = inception(size, formula.pictures("inception", *shape))
        arrays |= {f"{key}/{name}": array for name, array in out.items()}
    for h, w in ((8, 13), (32, 32), (64, 48)):
        images = nchw(formula.pictures("resize", 1, h, w, 1).astype(np.float32))
        out = interpolate_bilinear_2d_like_tensorflow1x(images, (47, 47), align_corners=False)
        arrays[f"resize/{h}x{w}"] = np.moveaxis(out.numpy(), 1, -1)
    np.savez_compressed(HERE / "inception.npz", config=json.dumps({"torch": torch.__version__}), **arrays)


def make_dinov2():
    network = transformers.Dinov2Model(transformers.Dinov2Config(**formula.DINOV2)).eval()
    with tempfile.TemporaryDirectory() as folder:
        # What lies in the file has the published names, which the network's own attributes have not.
        network.save_pretrained(folder)
        shapes = {name: tuple(t.shape) for name, t in load_file(Path(folder) / "model.safetensors").items()}
        tensors = {name: torch.from_numpy(array) for name, array in formula.state_dict(shapes).items()}
        save_file(tensors, Path(folder) / "model.safetensors", {"format": "pt"})
        network = transformers.Dinov2Model.from_pretrained(folder).eval()
    seen = formula.pictures("dinov2", 2, 224, 224)
    values = (seen / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with torch.no_grad():
        out = network(nchw(values.astype(np.float32)))
    config = {"transformers": transformers.__version__, "shapes": {name: list(shape) for name, shape in shapes.items()}}
    arrays = {"class_token": out.pooler_output.numpy()}
    np.savez_compressed(HERE / "dinov2.npz", config=json.dumps(config), **arrays)


if __name__ == "__main__":
    make_inception()
    make_dinov2()
