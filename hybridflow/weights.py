"""Where the weight files lie: the folder ``checkpoints/``, in an installed wheel ``hybridflow.checkpoints``."""

from importlib import resources
from pathlib import Path

from hybridflow.errors import CheckpointError

DEFAULT = "base"
"""The shipped preset that is taken where none is named."""

DECODERS = ("fidelity", "perceptual")
"""What turns a file into pixels: the second lies in a weight file of its own, and invents texture."""


def weights_folder() -> Path:
    """The installed folder or, when the package runs from a checkout that is not installed, the one beside it."""
    try:
        return Path(str(resources.files("hybridflow.checkpoints")))
    except ModuleNotFoundError:
        return Path(__file__).resolve().parent.parent / "checkpoints"


def available() -> list[str]:
    """Names of the presets whose weights are shipped."""
    names = sorted(path.stem for path in weights_folder().glob("*.safetensors"))
    return [name for name in names if not name.endswith(("-ablation", "-perceptual", "features"))]


def checkpoint_file(name: str | Path) -> Path:
    """Where a checkpoint lies: a shipped preset's, or one's own, whose path has a suffix or a folder.

    Raises:
        CheckpointError: no preset of that name is shipped.
    """
    if not isinstance(name, str) or Path(name).suffix or Path(name).name != name:
        return Path(name)
    if name not in available():
        shipped = " or ".join(available()) or "a file of your own"
        raise CheckpointError(f"no preset {name!r} is shipped: choose {shipped}")
    return weight_file(f"{name}.safetensors")


def perceptual_file(checkpoint: Path) -> Path:
    """Where the perceptual decoder of a checkpoint lies: beside `NAME.safetensors`, `NAME-perceptual.safetensors`."""
    return checkpoint.with_name(f"{checkpoint.stem}-perceptual.safetensors")


def ablation_file(checkpoint: Path) -> Path:
    """Where lies what only comparisons and training read of a checkpoint: beside it, `NAME-ablation.safetensors`."""
    return checkpoint.with_name(f"{checkpoint.stem}-ablation.safetensors")


def weight_file(name: str) -> Path:
    """Path of a shipped weight file such as ``"tiny.safetensors"``.

    Raises:
        CheckpointError: there is none of that name; the message names those that exist.
    """
    folder = weights_folder()
    path = folder / name
    if not path.is_file():
        there = ", ".join(sorted(file.name for file in folder.glob("*.safetensors"))) or "none"
        raise CheckpointError(f"no weights named {name} are shipped: choose one that is ({there})")
    return path
