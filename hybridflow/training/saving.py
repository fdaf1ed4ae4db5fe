"""Files that a kill in the middle of a save cannot spoil."""

import os
from collections.abc import Callable
from pathlib import Path


def replace_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a file beside `path`, then let it take the place of `path`, on the disk as in memory: a kill at
    any moment leaves the last good file."""
    partial = path.with_name(path.name + ".partial")
    write(partial)
    _sync(partial)
    os.replace(partial, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
