"""The commands that train: `hybridflow train`, `campaign`, `split`, `freeze` and `export`."""

import argparse
from pathlib import Path
from textwrap import fill

from hybridflow.checkpoint import split_parts
from hybridflow.model import PRESETS
from hybridflow.training.config import SETTINGS, load_config
from hybridflow.training.stages import STAGES


def add_parsers(subparsers) -> None:
    _add_train(subparsers)
    _add_campaign(subparsers)
    _add_split(subparsers)
    _add_freeze(subparsers)
    _add_export(subparsers)


def _add_train(subparsers) -> None:
    parser = subparsers.add_parser(
        "train",
        help="train one stage of a model",
        description="Train one stage. Stages in order: " + ", ".join(STAGES) + ".\n\n"
        "SIGTERM, Ctrl-C, the clock or a kill lose nothing: --resume goes on at the last save. The run folder gets\n"
        "config.yaml, log.jsonl, TensorBoard's files, state.pt, weights.safetensors and, of the best validation,\n"
        "best.safetensors. Photos whose number is a multiple of 50 are never trained on but validated on.",
        epilog="settings: " + fill(", ".join(SETTINGS), 110) + "\n\nexamples:\n"
        "  hybridflow train tokenizer --data photos/ --out runs/tokenizer --max-minutes 30\n"
        "  hybridflow train continuous --data photos/ --out runs/continuous --init runs/tokenizer/weights.safetensors\n"
        "  hybridflow train joint --data photos/ --out runs/joint --resume --set save_minutes=1 patience=4\n"
        "  accelerate launch --num_processes 4 -m hybridflow train joint --preset base --device cuda --data ...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    parser.add_argument("--data", type=Path, required=True, help="folder of images or tar shards")
    parser.add_argument("--out", type=Path, required=True, help="run folder: state, weights, log")
    parser.add_argument("--init", type=Path, help="safetensors, or a folder of them, whose parts to start from")
    parser.add_argument("--resume", action="store_true", help="go on from OUT/state.pt")
    parser.add_argument("--max-minutes", type=float, help="clock of the stage; without --max-steps it sets the pace too")
    parser.add_argument("--max-steps", type=int, help="steps of the stage")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="default: %(default)s")
    parser.add_argument(
        "--set", nargs="*", action="extend", default=[], metavar="KEY=VALUE", help="override settings of the preset"
    )
    parser.set_defaults(run=_train)


def _add_campaign(subparsers) -> None:
    parser = subparsers.add_parser(
        "campaign",
        help="train the stages that come next",
        description="Train whichever stages of the preset's plan come next, for some minutes: the plan gives each stage\n"
        "its share of the whole campaign's minutes, its batch, crop and learning rate. Run it again, with the same\n"
        "OUT or, elsewhere, with --init on what an earlier call left in OUT/parts, and it goes on.\n\n"
        "OUT/parts gets a half-precision file for every part that was trained, and campaign.json: what was run and\n"
        "measured. The clock counts from the start of the call; the last validation and the files come on top of it.",
        epilog="examples:\n"
        "  hybridflow campaign --preset base --device cuda --data photos/ --out runs/base --minutes 9\n"
        "  hybridflow campaign --preset base --device cuda --data photos/ --out runs/base --minutes 9 --init parts/",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    parser.add_argument("--data", type=Path, required=True, help="folder of images or tar shards")
    parser.add_argument("--out", type=Path, required=True, help="folder of the campaign: parts, and a run folder a stage")
    parser.add_argument("--minutes", type=float, required=True, help="clock of this call")
    parser.add_argument("--total-minutes", type=float, help="of the whole campaign, to share out (default: the plan's)")
    parser.add_argument("--init", type=Path, help="folder of parts and campaign.json to start from")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="default: %(default)s")
    parser.add_argument(
        "--set", nargs="*", action="extend", default=[], metavar="KEY=VALUE", help="override settings of every stage"
    )
    parser.set_defaults(run=_campaign)


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


def _add_freeze(subparsers) -> None:
    parser = subparsers.add_parser(
        "freeze",
        help="turn what makes bits into integers, before refit",
        description="Quantise the probability networks to integers, measuring activations on the validation split, and "
        "bake the coder's tables; train refit then trains what reads the frozen bits.",
        epilog="example: hybridflow freeze runs/joint/weights.safetensors --data photos/ "
        "--out runs/frozen/weights.safetensors",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("weights", type=Path, help="weights.safetensors of a run, or a folder of parts")
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    parser.add_argument("--data", type=Path, required=True, help="folder of images or tar shards")
    parser.add_argument("--out", type=Path, required=True, help="safetensors to write")
    parser.set_defaults(run=_freeze)


def _add_export(subparsers) -> None:
    parser = subparsers.add_parser(
        "export",
        help="turn a run's weights into a checkpoint",
        description="Freeze what is not frozen yet, choose the operating points on the validation split, and write "
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
    from hybridflow.training.data import validation_crops
    from hybridflow.training.loop import Run, start_processes
    from hybridflow.training.streaming import open_photos

    settings = list(args.set)
    if args.max_minutes is not None:
        settings += [f"max_minutes={args.max_minutes}", "max_steps=null"]
    if args.max_steps is not None:
        settings.append(f"max_steps={args.max_steps}")
    config = load_config(args.stage, args.preset, settings)
    accelerator = start_processes(args.device)
    photos = open_photos(args.data, config, accelerator.device)
    validation = validation_crops(args.data, config.validation_crops, config.crop)
    run = Run(args.stage, args.preset, config, photos, args.out, args.init, args.resume, accelerator, validation)
    run.train()
    if accelerator.is_main_process:
        end = "" if run.over else ": --resume goes on"
        print(f"{args.out}: {run.step} steps in {run.minutes:.1f} minutes, {run.skipped} skipped{end}")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return 0


def _campaign(args: argparse.Namespace) -> int:
    from hybridflow.training.campaign import Campaign

    campaign = Campaign(args.preset, args.out, args.init, args.total_minutes)
    campaign.train(args.data, args.minutes, args.device, args.set)
    print(f"{args.out / 'parts'}: " + (f"{campaign.next_stage} comes next" if campaign.next_stage else "all stages done"))
    return 0


def _split(args: argparse.Namespace) -> int:
    for path in split_parts(args.weights, args.out, args.parts):
        print(f"{path}: {path.stat().st_size:,} bytes")
    return 0


def _freeze(args: argparse.Namespace) -> int:
    from hybridflow.training.data import PhotoSet
    from hybridflow.training.freeze import SIDE, freeze_weights

    photos = PhotoSet(args.data, "validation", min_side=SIDE)
    freeze_weights(args.weights, args.preset, args.out, photos)
    print(f"{args.out}: {args.out.stat().st_size:,} bytes")
    return 0


def _export(args: argparse.Namespace) -> int:
    from hybridflow.training.data import PhotoSet
    from hybridflow.training.export import SIDE, export

    photos = PhotoSet(args.data, "validation", min_side=SIDE)
    for path in export(args.weights, args.preset, args.out, args.name, photos):
        print(f"{path}: {path.stat().st_size:,} bytes")
    return 0
