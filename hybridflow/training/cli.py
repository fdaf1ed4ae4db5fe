"""The `hybridflow train` command."""

import argparse
from pathlib import Path

from hybridflow.model import PRESETS
from hybridflow.training.config import TrainConfig
from hybridflow.training.stages import STAGES


def add_parser(subparsers) -> None:
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
    parser.add_argument("--init", type=Path, help="safetensors whose parts to start from")
    parser.add_argument("--resume", action="store_true", help="go on from OUT/state.pt")
    parser.add_argument("--max-minutes", type=float, help="clock of the stage")
    parser.add_argument("--max-steps", type=int, help="steps of the stage")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="override a setting")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
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
