"""What can go wrong for a user. Every message is one line and names the mend; the command line prints it as it is."""


class HybridFlowError(ValueError):
    """Base of all errors that a user can mend: catch this one around any call of the package."""


class FormatError(HybridFlowError):
    """The bytes are not a whole, undamaged ``.hf`` file that this version reads."""


class ModelMismatchError(HybridFlowError):
    """The file was made by another checkpoint than the one loaded."""


class ImageError(HybridFlowError):
    """An input cannot be read as an image, or is refused (too large, empty, of an unknown layout)."""


class TrainingError(HybridFlowError):
    """A run cannot start as asked: a setting, its folder, its photos, or a package that is not installed."""


class CheckpointError(HybridFlowError):
    """A weight file is missing, foreign or incomplete."""
