"""Files are written whole or not at all, and replaced only if that is wanted."""

import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hybridflow.errors import HybridFlowError


def replace_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then let it take the place of `path`, on the disk as in memory: a kill at
    any moment leaves the last good file. Who may read it is left to the umask, whatever `write` thinks (safetensors
    lets nobody else). A symbolic link stays one."""
    path = Path(os.path.realpath(path))
    partial = path.with_name(f".{path.name[:40]}.{uuid.uuid4().hex}.partial")  # a name may be as long as names may be
    try:
        partial.touch(exist_ok=False)
        mode = partial.stat().st_mode
        write(partial)
        if partial.stat().st_mode != mode:  # some mounts refuse to change what need not be changed
            partial.chmod(mode)
        _sync(partial, os.O_RDWR)  # Windows syncs nothing that is open for reading alone
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    with suppress(OSError):  # a folder that is not to be listed
        _sync(path.parent, os.O_RDONLY)


def write_atomic(path: str | os.PathLike, data: bytes, *, force: bool = False) -> None:
    """Write a file whole or not at all.

    Raises:
        HybridFlowError: the file exists and force is not set, or it cannot be written.
    """
    refuse_overwrite(path, force=force)
    try:
        replace_atomically(Path(path), lambda partial: partial.write_bytes(data))
    except OSError as error:
        raise _cannot_write(path, error) from None


def refuse_overwrite(path: str | os.PathLike, *, force: bool = False) -> None:
    """Raise HybridFlowError if something is at path that must not be replaced, or if nothing can be; call it before
    long work."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _cannot_write(path, error) from None
    if os.path.exists(path) and not os.path.isfile(path):
        raise HybridFlowError(f"{path} is not a file: choose another name")
    if not force:
        raise HybridFlowError(f"{path} exists: choose another name, or replace it with --force")


def require_writable(folder: Path) -> None:
    """Raise HybridFlowError if nothing can be written in a folder, or if it is not there and cannot be made; call it
    before long work. It leaves nothing behind."""
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists() or path.is_symlink())
        probe = there / f".{uuid.uuid4().hex}.partial"
        probe.touch(exist_ok=False)
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise _cannot_write(folder, error) from None


def _cannot_write(path: str | os.PathLike, error: OSError) -> HybridFlowError:
    return HybridFlowError(f"cannot write {path} ({error.strerror}): choose another place")


def _sync(path: Path, access: int) -> None:
    descriptor = os.open(path, access)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
