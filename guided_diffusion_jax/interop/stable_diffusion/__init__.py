"""Stable Diffusion 1, 2 and XL: anybody's weights as our networks, and back."""

from etils import epath

from guided_diffusion_jax.interop import files
from guided_diffusion_jax.interop.stable_diffusion import convert, folder, lora, names, settings, single
from guided_diffusion_jax.interop.stable_diffusion.convert import params_from_tensors, tensors_from_params
from guided_diffusion_jax.interop.stable_diffusion.folder import Loaded, Part, is_folder, load_part
from guided_diffusion_jax.interop.stable_diffusion.presets import CONTROLNETS, PRESETS, Preset
from guided_diffusion_jax.interop.stable_diffusion.saving import save, save_autoencoder, save_controlnet
from guided_diffusion_jax.interop.stable_diffusion.single import is_single_file

__all__ = [
    "CONTROLNETS", "PRESETS", "Loaded", "Part", "Preset", "convert", "folder", "is_folder", "is_single_file",
    "is_stable_diffusion", "load",
    "load_part", "lora", "names", "params_from_tensors", "save", "save_autoencoder", "save_controlnet", "settings",
    "single", "tensors_from_params",
]  # fmt: skip


def is_stable_diffusion(path: epath.PathLike) -> bool:
    """Whether this is a folder or a file of Stable Diffusion's weights."""
    path = epath.Path(path)
    if path.is_dir() or not path.exists():
        return is_folder(path)
    return path.suffix in files.READERS and is_single_file(path)


def load(path: epath.PathLike, **options: object) -> Loaded:
    """The parts of a folder in diffusers' layout (`folder.load`) or of a single original file (`single.load`).

    Args:
        path: the folder or the file.
        options: `dtype`; for a file also what it does not tell, see `single.load`.
    """
    return (folder.load if epath.Path(path).is_dir() else single.load)(path, **options)  # type: ignore[arg-type]
