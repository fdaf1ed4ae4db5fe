"""The `hybridflow train`, `hybridflow split` and `hybridflow export` commands."""

import argparse
from pathlib import Path

from hybridflow.checkpoint import split_parts
from hybridflow.model import PRESETS
from hybridflow.training.config import TrainConfig
from hybridflow.training.stages import STAGES


def add_parsers(subparsers) -> None:
    _add_train(subparsers)
    _add_split(subparsers)
    _add_export(subparsers)


def _add_train(subparsers) -> None:
    parser = subparsers.add_parser(
        "train",
        help="train one stage of a model",
        description="Train one stage. Stages in order: " + ", ".join(STAGES) + ".",
        epilog="example: hybridflow train continuous --data photos/ --out runs/continuous "
        "--init runs/tokenizer/weights.safetensors --max-minutes 40",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    parser.add_argument("--data", type=Path, required=True, help="folder of images or tar shards")
    parser.add_argument("--out", type=Path, required=True, help="run folder: state, weights, log")
    parser.add_argument("--init", type=Path, help="safetensors, or a folder of them, whose parts to start from")
    parser.add_argument("--resume", action="store_true", help="go on from OUT/state.pt")
    parser.add_argument("--max-minutes", type=float, help="clock of the stage")
    parser.add_argument("--max-steps", type=int, help="steps of the stage")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="override a setting")
    parser.set_defaults(run=_train)


def _add_split(subparsers) -> None:
    parser = subparsers.add_parser(
        "split",
        help="take parts out of a run's weights",
        description="Write parts of a run's weights to a folder, a half-precision file each; train --init takes the "
        "folder.",
        epilog="example: hybridflow split runs/tokenizer/weights.safetensors --out parts/ "
        "--parts codebook_encoder codebook pixel_decoder",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("weights", type=Path, help="weights.safetensors of a run")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--parts", nargs="+", required=True, metavar="PART", help="names of parts")
    parser.set_defaults(run=_split)


def _add_export(subparsers) -> None:
    parser = subparsers.add_parser(
        "export",
        help="turn a run's weights into a checkpoint",
        description="Bake the coder's tables, choose the operating points on the validation split, and write "
        "NAME.safetensors and NAME-ablation.safetensors in half precision.",
        epilog="example: hybridflow export runs/refit/weights.safetensors --data photos/ --out checkpoints/",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("weights", type=Path, help="weights.safetensors of a run")
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    parser.add_argument("--data", type=Path, required=True, help="folder of images or tar shards")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--name", default="tiny", help="of the checkpoint (default: %(default)s)")
    parser.set_defaults(run=_export)


def _train(args: argparse.Namespace) -> int:
    from hybridflow.training.data import PhotoSet
    from hybridflow.training.loop import Run

    settings = list(args.set)
    if args.max_minutes is not None:
        settings.append(f"max_minutes={args.max_minutes}")
    if args.max_steps is not None:
        settings.append(f"max_steps={args.max_steps}")
    config = TrainConfig().override(settings)
    photos = PhotoSet(args.data, "train", args.device, min_side=config.crop)
    Run(args.stage, args.preset, config, photos, args.out, args.init, args.resume, args.device).train()
    return 0


def _split(args: argparse.Namespace) -> int:
    for path in split_parts(args.weights, args.out, args.parts):
        print(f"{path}: {path.stat().st_size:,} bytes")
    return 0


def _export(args: argparse.Namespace) -> int:
    from hybridflow.training.data import PhotoSet
    from hybridflow.training.export import SIDE, export

    photos = PhotoSet(args.data, "validation", min_side=SIDE)
    for path in export(args.weights, args.preset, args.out, args.name, photos):
        print(f"{path}: {path.stat().st_size:,} bytes")
    return 0
