"""Models that come with the package, by name: runs with their weights alone (`training.compact`), a folder each.

`make bundled` trains and writes them anew.
"""

from etils import epath

FOLDER = epath.Path(__file__).parent


def names() -> list[str]:
    """Names of the models, as `load` and --workdir take them."""
    return sorted(file.parent.name for file in FOLDER.glob("*/run.json"))


def find(path: epath.PathLike) -> epath.Path:
    """The folder of a model of this name, where nothing of the name exists; else the path itself."""
    found = epath.Path(path).expanduser()
    return FOLDER / found.name if str(path) in names() and not found.exists() else found


def name_of(folder: epath.PathLike) -> str:
    """Name of the model that lies in a folder; "" of a folder that did not come with the package."""
    folder = epath.Path(folder)
    return folder.name if folder.parent == FOLDER else ""
