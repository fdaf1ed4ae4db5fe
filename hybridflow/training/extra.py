"""Packages that only training needs: the extra `train`."""

from importlib import import_module
from types import ModuleType

from hybridflow.errors import TrainingError


def needed(module: str) -> ModuleType:
    """Import a module of the extra.

    Raises:
        TrainingError: its package is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise TrainingError(f'training needs {error.name}: pip install "hybridflow[train]"') from None
