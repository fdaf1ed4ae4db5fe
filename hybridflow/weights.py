"""Where the weight files lie: the folder ``checkpoints/``, in an installed wheel ``hybridflow.checkpoints``."""

from importlib import resources
from pathlib import Path

from hybridflow.errors import CheckpointError

DECODERS = ("fidelity", "perceptual")
"""What turns a file into pixels: the second lies in a weight file of its own, and invents texture."""


def weights_folder() -> Path:
    """The installed folder or, when the package runs from a checkout that is not installed, the one beside it."""
    try:
        return Path(str(resources.files("hybridflow.checkpoints")))
    except ModuleNotFoundError:
        return Path(__file__).resolve().parent.parent / "checkpoints"


def perceptual_file(checkpoint: Path) -> Path:
    """Where the perceptual decoder of a checkpoint lies: beside `NAME.safetensors`, `NAME-perceptual.safetensors`."""
    return checkpoint.with_name(f"{checkpoint.stem}-perceptual.safetensors")


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
