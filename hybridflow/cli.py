"""The command line: ``hybridflow encode | decode | info | compare``, and, to train, ``train | campaign | split |
average | freeze | export``.

Every subcommand is a function ``run(args) -> exit code``. What fails is told in one line on standard error.
"""

import argparse
import codecs
import functools
import io
import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from hybridflow import __version__
from hybridflow.container import QUALITIES, looks_like_file, unpack
from hybridflow.errors import HybridFlowError, ModelMismatchError
from hybridflow.image_io import encode_image, looks_like_image, read_image, writable_format, write_image
from hybridflow.saving import refuse_overwrite, write_atomic
from hybridflow.side_by_side import side_by_side
from hybridflow.weights import DECODERS, DEFAULT, available

TRAINING = {
    "train": "train one stage of a model",
    "campaign": "train the stages that come next",
    "split": "take parts out of a run's weights",
    "average": "take the mean of several runs' weights",
    "freeze": "turn what makes bits into integers, before refit",
    "export": "turn a run's weights into a checkpoint",
}
STREAM = "-"  # stands for standard input or output
INVENTED = ", texture is invented: text and faces may be wrong"
FOLDER = "/", os.sep  # what the name of a folder that is yet to be made ends in


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 if anything failed, 130 after Ctrl-C (argparse leaves with 2 on
    wrong usage).

    With HYBRIDFLOW_DEBUG=1 in the environment, errors are raised instead of told in one line.
    """
    argv = sys.argv[1:] if argv is None else argv
    shown = warnings.formatwarning
    if os.environ.get("HYBRIDFLOW_DEBUG") != "1":
        warnings.formatwarning = _warning_line
    if isinstance(sys.stdout, io.TextIOWrapper):
        codecs.register_error("as_they_are", _as_they_are)
        sys.stdout.reconfigure(errors="as_they_are")
    try:
        try:
            args = _parser(with_training=bool(argv) and argv[0] in TRAINING).parse_args(argv)
            return args.run(args)
        finally:
            warnings.formatwarning = shown
            if sys.stdout is not None:
                with _standard_output():
                    sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read standard output has enough
        return 1
    except Exception as error:
        _complain(error)
        return 1


# --- the commands ---------------------------------------------------------------------------------------------------


def _encode(args: argparse.Namespace) -> int:
    jobs = _plan(args, ".hf", looks_like_image)
    codec = _load(args, _weights(args, DEFAULT))

    def encode(source: str, target: str) -> None:
        _refuse(target, args.force, source)
        if not _looks_encoded(Path(target)) and looks_like_image(target):
            raise HybridFlowError(f"{target} is the name of a picture: name one that ends in .hf")
        image = _read_picture(source, _read(source))
        target_rate = {"quality": args.quality, "bpp": args.bpp, "max_bytes": args.bytes}
        data = codec.encode(image, **target_rate, schedule=args.schedule, effort=args.effort)
        _write(target, data, args.force)
        header, _ = unpack(data)
        rate = f"{len(data)} bytes, {_bpp(data, image):.4f} bpp"
        _say(f"{target}: {rate}, quality {header.quality}, schedule {header.schedule}", target)

    return _each(jobs, encode)


def _decode(args: argparse.Namespace) -> int:
    jobs = _plan(args, ".png", _looks_encoded)
    check = not (args.preview or args.salvage)
    codec_of = _codec_of(args, args.decoder, check)
    warning = INVENTED if args.decoder == "perceptual" else ""

    def decode(source: str, target: str) -> None:
        data = _read(source)
        unpack(data, check=check)  # what is wrong with it is told before what follows
        _refuse(target, args.force, source)
        suffix = ".png" if target == STREAM else Path(target).suffix
        writable_format(suffix)
        with _warnings_of(source):
            image = codec_of(data).decode(data, preview=args.preview, salvage=args.salvage)
        _write(target, encode_image(image, suffix), args.force)
        _say(f"{target}: {image.width} x {image.height}{warning}", target)

    return _each(jobs, decode)


def _info(args: argparse.Namespace) -> int:
    codec_of = _codec_of(args)

    def info(source: str) -> None:
        data = _read(source)
        codec = codec_of(data)
        facts = {"name": source, **codec.info(data)}
        _say(json.dumps(facts) if args.json else _table(facts, codec.name))

    return _each([(source,) for source in _expand(args, _looks_encoded)], info)


def _compare(args: argparse.Namespace) -> int:
    if args.original == args.decoded == STREAM:
        args.usage_error("- (standard input) can be one of the two only")
    if args.output == "":
        args.usage_error("-o has an empty name: give a file")
    if args.output:
        _refuse(args.output, args.force, args.original, args.decoded)
        writable_format(Path(args.output).suffix)

    codec_of, warning = _codec_of(args, args.decoder), ""

    def read(source: str) -> tuple[Image.Image, bytes]:
        nonlocal warning
        data = _read(source)
        if source.endswith(".hf") or looks_like_file(data):
            warning = INVENTED if args.decoder == "perceptual" else ""
            return codec_of(data).decode(data), data
        return _read_picture(source, data), data

    (original, _), (decoded, data) = _named(args.original, read), _named(args.decoded, read)

    from hybridflow.metrics import lpips, psnr

    distance = f"PSNR {psnr(original, decoded):.2f} dB, LPIPS {lpips(original, decoded):.4f}"
    figures = f"{_bpp(data, decoded):.4f} bpp, {distance}{warning}"
    _say(f"{args.decoded}: {len(data)} bytes, {figures}")
    if args.output:
        picture = side_by_side([original, decoded], ["original", figures])
        write_image(picture, args.output, force=args.force)
    return 0


# --- what they share ------------------------------------------------------------------------------------------------


def _weights(args: argparse.Namespace, otherwise: str | None) -> str | Path | None:
    """The checkpoint or preset that was named, if one was."""
    if args.checkpoint is not None:
        return args.checkpoint if args.checkpoint in available() else Path(args.checkpoint)
    return otherwise if args.preset is None else args.preset


def _load(args: argparse.Namespace, name: str | Path, decoder: str = DECODERS[0]):
    import hybridflow

    return hybridflow.load(name, device=args.device, decoder=decoder)


def _codec_of(args: argparse.Namespace, decoder: str = DECODERS[0], check: bool = True) -> Callable:
    """A file's bytes -> the codec that reads it: of the weights that were named, else of the shipped ones that made it.
    What is wrong with the file, damage only if `check` says so, is told before any model is loaded."""
    load = functools.cache(functools.partial(_load, args, decoder=decoder))

    def codec_of(data: bytes):
        header, _ = unpack(data, check=check)
        from hybridflow.codec import maker

        weights = _weights(args, maker(header))
        if weights is None:
            made_by = header.model_id.hex()
            raise ModelMismatchError(f"model {made_by} made it, which is not shipped: name its file by --checkpoint")
        return load(weights)

    return codec_of


def _looks_encoded(path: Path) -> bool:
    return path.suffix.lower() == ".hf" and not path.name.startswith(".")


def _names_file(output: str) -> bool:
    """Whether what is yet to be made would be taken for one picture or one .hf file."""
    path = Path(output)
    return not (os.path.isdir(output) or output.endswith(FOLDER)) and (_looks_encoded(path) or looks_like_image(path))


def _expand(args: argparse.Namespace, fits: Callable[[Path], bool]) -> list[str]:
    """The inputs, every folder replaced by the files in it that fit."""
    if STREAM in args.inputs and len(args.inputs) > 1:
        args.usage_error("- (standard input) must be the only input")
    if "" in args.inputs:
        args.usage_error("an input has an empty name: give a file, a folder, or - for standard input")
    sources = []
    for name in args.inputs:
        if not os.path.isdir(name):
            sources.append(name)
            continue
        try:
            entries = list(Path(name).iterdir())
        except OSError as error:
            raise HybridFlowError(f"{name} cannot be listed ({error.strerror}): check who may read it") from None
        inside = sorted(str(path) for path in entries if (os.path.isfile(path) or os.path.islink(path)) and fits(path))
        if not inside:
            raise HybridFlowError(f"{name} holds no file that {args.command} takes: give another folder, or files")
        sources += inside
    return sources


def _plan(args: argparse.Namespace, suffix: str, fits: Callable[[Path], bool]) -> list[tuple[str, str]]:
    """(input, output) of every file: beside the input unless -o names a file, a folder or the standard output."""
    sources = _expand(args, fits)
    if args.output == "":
        args.usage_error("-o has an empty name: give a file, a folder, or - for standard output")
    if args.inputs == [STREAM] or args.output == STREAM:
        if len(sources) > 1:
            args.usage_error("-o - (standard output) takes one input only")
        if args.output and args.output.endswith(FOLDER):
            args.usage_error("standard input has no name to give a file in a folder: name a file by -o")
        return [(sources[0], args.output or STREAM)]
    many = len(sources) > 1 or os.path.isdir(args.inputs[0])
    inside = args.output is not None and (many or args.output.endswith(FOLDER) or os.path.isdir(args.output))
    if args.output is None:
        targets = [str(Path(source).with_suffix(suffix)) for source in sources]
    elif inside:
        if os.path.isfile(args.output):
            args.usage_error(f"{args.output} is a file: many files need a folder for -o")
        if _names_file(args.output):
            args.usage_error(f"{args.output} is the name of a file: many files need a folder for -o, end it in /")
        targets = [str(Path(args.output) / Path(source).with_suffix(suffix).name) for source in sources]
    else:
        targets = [args.output]
    target, times = Counter(map(os.path.realpath, targets)).most_common(1)[0]
    if times > 1:
        twins = [source for source, other in zip(sources, targets) if os.path.realpath(other) == target]
        raise HybridFlowError(f"{', '.join(twins)} would all become {target}: convert them one by one with -o")
    if inside:
        try:
            os.makedirs(args.output, exist_ok=True)
        except OSError as error:
            raise HybridFlowError(f"cannot make {args.output} ({error.strerror}): choose another folder") from None
    return list(zip(sources, targets))


def _each(jobs: list[tuple], action: Callable[..., None]) -> int:
    """Do all jobs, whose first item names them; one that fails is told and the others go on. 1 if any failed."""
    failed = 0
    for job in tqdm(jobs, unit="file", disable=None if len(jobs) > 1 else True):
        try:
            action(*job)
        except BrokenPipeError:
            raise
        except Exception as error:
            _complain(error, job[0])
            failed = 1
    return failed


def _read(source: str) -> bytes:
    if source == STREAM:
        if sys.stdin is None:
            raise HybridFlowError("there is no standard input: name a file")
        return sys.stdin.buffer.read()
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise HybridFlowError(f"cannot be read ({error.strerror}): check the path") from None


def _read_picture(source: str, data: bytes) -> Image.Image:
    with _warnings_of(source):
        return read_image(data)


@contextmanager
def _warnings_of(source: str) -> Iterator[None]:
    """Put the source's name before what is warned of in here."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in caught:
        tqdm.write(f"hybridflow: warning: {source}: {warning.message}", file=sys.stderr)


def _named(source: str, read: Callable):
    """read(source), with the source's name put before what goes wrong."""
    try:
        return read(source)
    except HybridFlowError as error:
        raise HybridFlowError(f"{source}: {error}") from error


def _refuse(target: str, force: bool, *sources: str) -> None:
    if target != STREAM:
        if os.path.realpath(target) in (os.path.realpath(source) for source in sources if source != STREAM):
            raise HybridFlowError(f"{target} is what is read, and the output would take its place: name another by -o")
        refuse_overwrite(target, force=force)
        folder = os.path.dirname(os.path.realpath(target))
        if not os.path.isdir(folder):
            raise HybridFlowError(f"cannot write {target} (there is no such folder): make it, or choose another place")
        if not os.access(folder, os.W_OK):
            raise HybridFlowError(f"cannot write {target} (the folder is read-only): choose another place")


def _write(target: str, data: bytes, force: bool) -> None:
    if target != STREAM:
        write_atomic(target, data, force=force)
        return
    if sys.stdout is None:
        raise HybridFlowError("there is no standard output: name a file by -o")
    with _standard_output():
        rest = memoryview(data)
        while rest:  # an unbuffered one may take a part
            rest = rest[sys.stdout.buffer.write(rest) :]
        sys.stdout.buffer.flush()


@contextmanager
def _standard_output() -> Iterator[None]:
    """Where writing to it fails in here, the rest goes nowhere, so that Python's own last flush tells it no second
    time."""
    try:
        yield
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise
        raise HybridFlowError(f"cannot write standard output ({error.strerror}): choose another place") from None


def _say(line: str, target: str = "") -> None:
    """Print a result; on standard error if standard output carries the data."""
    with _standard_output() if target != STREAM else nullcontext():
        tqdm.write(line, file=sys.stderr if target == STREAM else sys.stdout)


def _as_they_are(error: UnicodeError) -> tuple[str | bytes, int]:
    """How standard output takes names of files: as their bytes are where they are no text, escaped where its encoding
    has no such character."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


def _warning_line(message: Warning | str, *where: object, **rest: object) -> str:
    """What is shown of a warning: no file of ours, nor a line of it."""
    return f"hybridflow: warning: {str(message).splitlines()[0]}\n"


def _complain(error: Exception, name: str = "") -> None:
    if os.environ.get("HYBRIDFLOW_DEBUG") == "1":
        raise error
    line = (str(error) or type(error).__name__).splitlines()[0]
    if not isinstance(error, HybridFlowError):
        line = f"{type(error).__name__}: {line} (HYBRIDFLOW_DEBUG=1 shows where)"
    tqdm.write(f"hybridflow: error: {name + ': ' if name else ''}{line}", file=sys.stderr)


def _bpp(data: bytes, image: Image.Image) -> float:
    return 8 * len(data) / (image.width * image.height)


def _table(facts: dict, model: str) -> str:
    """What `info` prints of one file for people."""
    pixels = facts["width"] * facts["height"]
    lines = [
        facts["name"],
        f"  size      {facts['width']} x {facts['height']}",
        f"  quality   {facts['quality']}",
        f"  schedule  {facts['schedule']}",
        f"  model     {facts['model_id']} ({model})",
        f"  {'section':<12}{'bytes':>10}{'bpp':>10}{'share':>9}",
    ]
    for name, size in [*facts["sections"].items(), ("file", facts["bytes"])]:
        lines.append(f"  {name:<12}{size:>10.1f}{8 * size / pixels:>10.5f}{size / facts['bytes']:>9.1%}")
    return "\n".join(lines)


# --- the arguments --------------------------------------------------------------------------------------------------


def _parser(with_training: bool) -> argparse.ArgumentParser:
    parser = _formatted(
        argparse.ArgumentParser(prog="hybridflow"),
        "Compress photos to 0.01 - 0.08 bits per pixel: a 768 x 512 photo becomes 0.5 to 4 kB.\n\n"
        "What goes wrong is told in one line; HYBRIDFLOW_DEBUG=1 in the environment shows where it came from.",
        """
        hybridflow encode photo.jpg                 writes photo.hf
        hybridflow decode photo.hf                  writes photo.png
        hybridflow compare photo.jpg photo.hf -o side.png
        hybridflow encode --help                    tells more; so for the other commands
        """,
    )
    parser.add_argument("--version", action="version", version=f"hybridflow {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_encode(commands)
    _add_decode(commands)
    _add_info(commands)
    _add_compare(commands)
    if with_training:  # imported only then, since encoding and decoding can do without it
        from hybridflow.training.cli import add_parsers

        add_parsers(commands)
    else:
        for name, what in TRAINING.items():
            commands.add_parser(name, help=what)
    return parser


def _add_encode(commands) -> None:
    parser = _formatted(
        commands.add_parser("encode", help="images to .hf files"),
        "Encode images, or all images that lie in a folder (none in its subfolders), each to an .hf file beside it.",
        """
        hybridflow encode photo.jpg                 at quality 31, the schedule the model's own for it
        hybridflow encode photo.jpg --bpp 0.03      the best file of at most 0.03 bits per pixel
        hybridflow encode photo.jpg --bytes 1000    the best file of at most 1000 bytes
        hybridflow encode photo.jpg --effort 10     takes its time for a better picture of the same size
        hybridflow encode photo.jpg --quality 40 --schedule 1_4 -o small.hf
        hybridflow encode holiday/ -o packed/       a whole folder
        hybridflow encode - < photo.jpg > photo.hf
        """,
    )
    _add_files(parser, "image files, folders of them, or - for standard input")
    rate = parser.add_mutually_exclusive_group()
    scale = f"0 (smallest file, some 0.01 bits per pixel) to {QUALITIES - 1} (best picture, some 0.1); 31 by default"
    rate.add_argument("--quality", type=quality, metavar="Q", help=scale)
    rate.add_argument("--bpp", type=positive(float), metavar="B", help="the best file of at most B bits per pixel")
    rate.add_argument("--bytes", type=positive(int), metavar="N", help="the best file of at most N bytes")
    parser.add_argument(
        "--schedule",
        type=_schedule,
        metavar="S",
        help="which codebook indices are sent, the rest being predicted: full, 1_4 (one of four), 1_9, none, or "
        "dynamic (chosen region by region by trying the others: ten times as long or more); by default what the model "
        "does best with at that quality",
    )
    parser.add_argument(
        "--effort",
        type=_steps,
        default=0,
        metavar="STEPS",
        help="refine what is coded in so many steps, each of which takes about as long as two decodings: 10 make a "
        "better picture of about as many bytes, 30 a still better one; by default none, and none where a side has 48 "
        "pixels or less",
    )
    _add_model(parser, f"default: {DEFAULT}")
    parser.set_defaults(run=_encode)


def _add_decode(commands) -> None:
    parser = _formatted(
        commands.add_parser("decode", help=".hf files to images"),
        "Decode .hf files, or all of a folder, each to a PNG beside it. The size is the original's.\n\n"
        "Every file decodes with either decoder. `fidelity` stays near the original. `perceptual` invents texture:\n"
        "the picture looks sharper, but text and faces may be wrong, and nothing in it is evidence. It takes weights\n"
        "of its own, NAME-perceptual.safetensors beside the checkpoint's NAME.safetensors.",
        """
        hybridflow decode photo.hf                  writes photo.png
        hybridflow decode photo.hf -o photo.webp    another format, by its name
        hybridflow decode photo.hf --decoder perceptual -o sharp.png
        hybridflow decode packed/ -o unpacked/      a whole folder
        hybridflow decode - < photo.hf > photo.png
        """,
    )
    _add_files(parser, ".hf files, folders of them, or - for standard input")
    _add_decoder(parser)
    cut = parser.add_mutually_exclusive_group()
    cut.add_argument("--preview", action="store_true", help="the continuous stream only; takes a file cut after it")
    cut.add_argument("--salvage", action="store_true", help="show what can be read of a cut or damaged file")
    _add_model(parser)
    parser.set_defaults(run=_decode)


def _add_info(commands) -> None:
    parser = _formatted(
        commands.add_parser("info", help="what is in an .hf file"),
        "Show size, quality, schedule and model of .hf files, and how many bytes every section takes.",
        """
        hybridflow info photo.hf
        hybridflow info --json packed/              one JSON object a line and file
        """,
    )
    parser.add_argument("inputs", nargs="+", metavar="FILE", help=".hf files, folders of them, or - for standard input")
    parser.add_argument("--json", action="store_true", help="print JSON")
    _add_model(parser)
    parser.set_defaults(run=_info, usage_error=parser.error)


def _add_compare(commands) -> None:
    parser = _formatted(
        commands.add_parser("compare", help="how far a decoded image is from its original"),
        "Print the bits per pixel of a compressed file, and PSNR and LPIPS (AlexNet) of its picture to the original.",
        """
        hybridflow compare photo.jpg photo.hf
        hybridflow compare photo.jpg photo.hf -o side.png
        hybridflow compare photo.png photo.webp     any image file instead of an .hf
        """,
    )
    parser.add_argument("original", metavar="ORIGINAL", help="the image that was encoded")
    parser.add_argument("decoded", metavar="FILE", help="its .hf file, or any other image file")
    parser.add_argument("-o", "--output", metavar="PNG", help="write both pictures side by side, with their figures")
    parser.add_argument("--force", action="store_true", help="replace the output file if it exists")
    _add_decoder(parser)
    _add_model(parser)
    parser.set_defaults(run=_compare, usage_error=parser.error)


def _add_files(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("inputs", nargs="+", metavar="FILE", help=what)
    parser.add_argument(
        "-o", "--output", metavar="OUT", help="a file, a folder, or - for standard output (default: beside the input)"
    )
    parser.add_argument("--force", action="store_true", help="replace output files that exist")
    parser.set_defaults(usage_error=parser.error)


def _add_decoder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--decoder",
        choices=DECODERS,
        default=DECODERS[0],
        help="what reads an .hf file: fidelity, or perceptual, which invents texture (default: %(default)s)",
    )


def _add_model(parser: argparse.ArgumentParser, default: str = "default: those that made the file") -> None:
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--preset", metavar="NAME", help=f"shipped weights ({default})")
    weights.add_argument("--checkpoint", metavar="FILE", help="weights of your own, such as `export` wrote")
    parser.add_argument(
        "--device", default="cpu", choices=("cpu", "cuda"), help="where the networks run (default: %(default)s)"
    )


def _formatted(parser: argparse.ArgumentParser, description: str, examples: str) -> argparse.ArgumentParser:
    lines = [line.strip() for line in examples.strip().splitlines()]
    parser.description = description
    parser.epilog = "\n  ".join(["examples:", *lines])
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    return parser


def named_path(text: str) -> Path:
    """An argument's type: a path that is not empty, which would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("the name is empty: give a file or a folder")
    return Path(text)


def quality(text: str) -> int:
    """An argument's type: 0 to 63."""
    if not (text.isdecimal() and int(text) < QUALITIES):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 to {QUALITIES - 1}")
    return int(text)


def positive(number: type) -> Callable[[str], int | float]:
    """An argument's type: an int or a float, whichever `number` is, above 0."""

    def parse(text: str) -> int | float:
        try:
            value = number(text)
        except ValueError:
            value = 0
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not a {'whole ' if number is int else ''}number above 0")
        return value

    return parse


def _steps(text: str) -> int:
    """An argument's type: 0, as if it were not given, or more."""
    return 0 if text == "0" else positive(int)(text)


def _schedule(text: str) -> str:
    from hybridflow.masking import SCHEDULES

    if text not in SCHEDULES:
        raise argparse.ArgumentTypeError(f"{text} is not one of {', '.join(SCHEDULES)}")
    return text
