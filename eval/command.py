"""What the commands of this package share: their parser, errors told in one line, and the count of skipped images."""

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

from hybridflow.cli import named_path, positive
from hybridflow.errors import HybridFlowError
from hybridflow.precision import require_device
from hybridflow.saving import require_writable
from hybridflow.weights import DEFAULT

P = ParamSpec("P")


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """The parser of `python -m eval.NAME`; its help is laid out as the description is."""
    return argparse.ArgumentParser(
        prog=f"python -m eval.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_checkpoint(parser: argparse._ActionsContainer) -> None:
    """`--checkpoint`, as `hybridflow.load` takes it, to a parser or a group of one."""
    parser.add_argument("--checkpoint", default=DEFAULT, help="a preset's name or a .safetensors file (%(default)s)")


def add_device(parser: argparse.ArgumentParser) -> None:
    """`--device`, cpu or cuda; cuda is refused where there is none."""

    def device(text: str) -> str:
        try:
            require_device(text)
        except HybridFlowError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return text

    parser.add_argument("--device", type=device, default="cpu", help="cpu or cuda (%(default)s)")


def add_data(parser: argparse.ArgumentParser, what: str = "folder of images") -> None:
    """`--data`, which has to be given."""
    parser.add_argument("--data", type=named_path, required=True, metavar="DIR", help=what)


def add_workers(parser: argparse.ArgumentParser) -> None:
    """`--workers`, the number of processes that measure side by side."""
    what = "of one thread each (%(default)s)"
    parser.add_argument("--workers", type=positive(int), default=1, metavar="N", help=what)


def file_to_write(text: str) -> Path:
    """An argument's type: the path of a file, refused before the work if it is a folder or cannot be written."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder: name a file in it")
    try:
        require_writable(path.parent)
    except HybridFlowError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return path


def one_line_errors(main: Callable[P, int]) -> Callable[P, int]:
    """A command whose errors that a user can mend are a line on standard error, and the exit code 2."""

    @functools.wraps(main)
    def command(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return main(*args, **kwargs)
        except (HybridFlowError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2

    return command


def exit_code(listed: int, used: int) -> int:
    """0 if every listed image was used; 1, having said how many were not, if some could not be read."""
    if used == listed:
        return 0
    print(f"skipped {listed - used} of {listed} images: they could not be read", file=sys.stderr)
    return 1
