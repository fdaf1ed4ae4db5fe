"""The commands that train: `hybridflow train`, `campaign`, `split`, `average`, `freeze` and `export`.

What `hybridflow --help` says of each stands in `hybridflow.cli`, which it needs without this module.
"""

import argparse
import dataclasses
import inspect
import json
from textwrap import dedent, fill, indent

from hybridflow.checkpoint import split_parts
from hybridflow.cli import named_path, positive
from hybridflow.errors import TrainingError
from hybridflow.model import PRESETS
from hybridflow.saving import refuse_overwrite, require_writable
from hybridflow.training.config import TrainConfig, load_config
from hybridflow.training.stages import STAGES


PARTS = list(dict.fromkeys(name for stage in STAGES.values() for name in (*stage.trained, *stage.kept)))


def add_parsers(subparsers) -> None:
    _add_train(subparsers)
    _add_campaign(subparsers)
    _add_split(subparsers)
    _add_average(subparsers)
    _add_freeze(subparsers)
    _add_export(subparsers)


def _add_train(subparsers) -> None:
    parser = subparsers.add_parser(
        "train",
        description="Train one stage. Each starts from the weights of the one before; `freeze` comes before refit.\n\n"
        "stages, in order, and the parts that each trains:\n" + _stages() + "\n\n"
        "SIGTERM, Ctrl-C and the clock lose nothing, a kill what came after the last save, where --resume goes on.\n"
        "A run meets the crops and noise of its seed: set another to go on by --init. The run folder gets\n"
        "config.yaml, log.jsonl, TensorBoard's files, state.pt, weights.safetensors and, of the best validation,\n"
        "best.safetensors. Photos whose number is a multiple of 50 are never trained on but validated on.",
        epilog="settings, the preset's own, or a resumed run's, unless set:\n" + _settings() + "\n\nexamples:\n"
        "  hybridflow train tokenizer --data photos/ --out runs/tokenizer --max-minutes 30\n"
        "  hybridflow train continuous --data photos/ --out runs/continuous --init runs/tokenizer/weights.safetensors\n"
        "  hybridflow train joint --data photos/ --out runs/joint --resume --set save_minutes=1 patience=4\n"
        "  accelerate launch --num_processes 4 -m hybridflow train joint --preset base --device cuda --data ...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", choices=STAGES, metavar="STAGE", help="one of those above")
    _add_preset(parser)
    _add_data(parser)
    parser.add_argument("--out", type=named_path, required=True, help="run folder: state, weights, log")
    what = "safetensors, or a folder of them, whose parts to start from; --resume needs none"
    parser.add_argument("--init", type=named_path, help=what)
    parser.add_argument("--resume", action="store_true", help="go on from OUT/state.pt, by OUT/config.yaml's settings")
    what = "end the stage after so many minutes; without --max-steps learning rate and lambda go by them too"
    parser.add_argument("--max-minutes", type=float, help=what)
    what = "end the stage after so many steps, by which learning rate and lambda go"
    parser.add_argument("--max-steps", type=int, help=what)
    _add_device_and_settings(parser)
    parser.set_defaults(run=_train)


def _add_campaign(subparsers) -> None:
    parser = subparsers.add_parser(
        "campaign",
        description="Train whichever stages of the preset's plan come next, for some minutes: the plan gives each\n"
        "stage its share of the whole campaign's minutes, its batch, crop and learning rate. Run it again, with the\n"
        "same OUT or, elsewhere, with --init on what an earlier call left in OUT/parts, and it goes on, by the same\n"
        "--total-minutes and --set, which OUT/parts/campaign.json holds, unless they are given anew.\n\n"
        "OUT/parts gets a half-precision file for every part that was trained, and campaign.json: what was run and\n"
        "measured. The clock counts from the start of the call; the last validation and the files come on top of it.",
        epilog="examples:\n"
        "  hybridflow campaign --preset base --device cuda --data photos/ --out runs/base --minutes 9\n"
        "  hybridflow campaign --preset base --device cuda --data photos/ --out runs/base --minutes 9 --init parts/",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_preset(parser)
    _add_data(parser)
    what = "folder to write: parts, and a run folder a stage"
    parser.add_argument("--out", type=named_path, required=True, help=what)
    parser.add_argument("--minutes", type=positive(float), required=True, help="clock of this call")
    what = "of the whole campaign, to share out (default: the last call's, at first the plan's)"
    parser.add_argument("--total-minutes", type=positive(float), help=what)
    parser.add_argument("--init", type=named_path, help="folder of parts and campaign.json to start from")
    _add_device_and_settings(parser)
    parser.set_defaults(run=_campaign)


def _add_split(subparsers) -> None:
    parser = subparsers.add_parser(
        "split",
        description="Write parts of a run's weights to a folder, a half-precision file each, for train --init.",
        epilog="parts:\n" + fill(", ".join(PARTS), 110, initial_indent="  ", subsequent_indent="  ") + "\n\nexample:\n"
        "  hybridflow split runs/tokenizer/weights.safetensors --out parts/ --parts codebook_encoder codebook",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("weights", type=named_path, help="weights.safetensors of a run")
    parser.add_argument("--out", type=named_path, required=True, help="folder to write to")
    parser.add_argument("--parts", nargs="+", required=True, metavar="PART", help="some of those below")
    _add_force(parser)
    parser.set_defaults(run=_split)


def _add_average(subparsers) -> None:
    parser = subparsers.add_parser(
        "average",
        description="Write the mean of the parts that all WEIGHTS hold. Runs that go on from one model, each of a\n"
        "seed of its own (`--set seed=N`), are often better together than alone, and so is the mean of a model\n"
        "and of what training made of it. Codewords and frozen integers have no mean: they must be the same in\n"
        "all; a network that one of them has not frozen, as joint training leaves it, is not frozen in the mean.",
        epilog="examples:\n"
        "  hybridflow average runs/a/weights.safetensors runs/b/weights.safetensors --out runs/mean.safetensors\n"
        "  hybridflow average tiny.safetensors runs/a/weights.safetensors --shares 0.3 0.7 --out runs/mean.safetensors",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = "weights.safetensors of a run, a release, or a folder of parts"
    parser.add_argument("weights", type=named_path, nargs="+", metavar="WEIGHTS", help=what)
    parser.add_argument("--out", type=named_path, required=True, help="safetensors to write")
    what = "what each counts for, adding up to 1 (default: alike); below 0, to go beyond the others"
    parser.add_argument("--shares", type=float, nargs="+", metavar="SHARE", help=what)
    _add_preset(parser)
    _add_force(parser)
    parser.set_defaults(run=_average)


def _add_freeze(subparsers) -> None:
    parser = subparsers.add_parser(
        "freeze",
        description="Quantise the probability networks to integers, measuring activations on the validation split\n"
        "(photos whose number is a multiple of 50), and fit the coder's tables to it; train refit then trains what\n"
        "reads those bits.",
        epilog="example:\n"
        "  hybridflow freeze runs/joint/weights.safetensors --data photos/ --out runs/frozen/weights.safetensors",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_trained(parser)
    parser.add_argument("--out", type=named_path, required=True, help="safetensors to write")
    _add_force(parser)
    parser.set_defaults(run=_freeze)


def _add_export(subparsers) -> None:
    parser = subparsers.add_parser(
        "export",
        description="Freeze what is not frozen yet, choose the operating points on the validation split, and write in\n"
        "half precision NAME.safetensors, all that encodes and decodes; NAME-ablation.safetensors, for comparisons\n"
        "and further training; and, of weights that `train perceptual` left, NAME-perceptual.safetensors, the decoder\n"
        "of `decode --decoder perceptual`.",
        epilog="examples:\n"
        "  hybridflow export runs/refit/weights.safetensors --data photos/ --out release/\n"
        "  hybridflow export runs/perceptual/weights.safetensors --data photos/ --out release/ --force",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_trained(parser)
    parser.add_argument("--out", type=named_path, required=True, help="folder to write to")
    parser.add_argument("--name", help="of the checkpoint (default: the preset's)")
    _add_force(parser)
    parser.set_defaults(run=_export)


def _add_trained(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("weights", type=named_path, help="weights.safetensors of a run, or a folder of parts")
    _add_preset(parser)
    _add_data(parser)


def _add_force(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="replace files that exist")


def _add_preset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", choices=PRESETS, default="tiny", help="sizes of the model (default: %(default)s)")


def _add_data(parser: argparse.ArgumentParser) -> None:
    what = "folder of images or tar shards (its subfolders are not searched)"
    parser.add_argument("--data", type=named_path, required=True, help=what)


def _add_device_and_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="what trains (default: %(default)s)")
    what = "override settings that `hybridflow train --help` explains"
    parser.add_argument("--set", nargs="*", action="extend", default=[], metavar="KEY=VALUE", help=what)


def _stages() -> str:
    return "\n".join(f"  {name:<14}{', '.join(stage.trained)}" for name, stage in STAGES.items())


def _settings() -> str:
    """What can be `--set`, as `TrainConfig` documents them, and its defaults."""
    _, _, attributes = inspect.getdoc(TrainConfig).partition("Attributes:\n")
    defaults = ", ".join(f"{field.name}={json.dumps(field.default)}" for field in dataclasses.fields(TrainConfig))
    where = "where hybridflow/training/configs/PRESET.yaml does not say: "
    return indent(f"{dedent(attributes).rstrip()}\n{fill(where + defaults, 110, subsequent_indent='    ')}", "  ")


def _train(args: argparse.Namespace) -> int:
    from hybridflow.training.data import validation_crops
    from hybridflow.training.loop import Run, check_folder, check_start, start_processes
    from hybridflow.training.streaming import open_photos

    settings = list(args.set)
    if args.max_minutes is not None:
        settings = ["max_steps=null", *settings, f"max_minutes={args.max_minutes}"]
    if args.max_steps is not None:
        settings.append(f"max_steps={args.max_steps}")
    check_folder(args.out, args.stage, args.preset, args.resume)
    if args.init is not None and not args.resume and not args.init.exists():
        raise TrainingError(f"there is no {args.init}: name by --init what the stages before it left")
    config = load_config(args.stage, args.preset, settings, args.out / "config.yaml" if args.resume else None)
    accelerator = start_processes(args.device)
    check_start(args.stage, args.preset, config, args.out, args.init, args.resume, accelerator)
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
    before = campaign.steps
    campaign.train(args.data, args.minutes, args.device, args.set)
    left = f"{campaign.next_stage} comes next" if campaign.next_stage else "all stages done"
    steps = campaign.steps - before
    late = "" if steps or not campaign.next_stage else ": reading took the clock, give it more --minutes"
    print(f"{args.out / 'parts'}: {steps} steps{late}, {left}")
    return 0


def _split(args: argparse.Namespace) -> int:
    for path in split_parts(args.weights, args.out, args.parts, args.force):
        print(f"{path}: {path.stat().st_size:,} bytes")
    return 0


def _average(args: argparse.Namespace) -> int:
    from hybridflow.training.average import average_weights

    _refuse_target(args)
    average_weights(args.weights, args.preset, args.out, args.shares)
    print(f"{args.out}: {args.out.stat().st_size:,} bytes")
    return 0


def _freeze(args: argparse.Namespace) -> int:
    from hybridflow.training.freeze import freeze_weights, held_out_photos

    _refuse_target(args)
    freeze_weights(args.weights, args.preset, args.out, held_out_photos(args.data))
    print(f"{args.out}: {args.out.stat().st_size:,} bytes")
    return 0


def _refuse_target(args: argparse.Namespace) -> None:
    """HybridFlowError if the file cannot or must not be written."""
    refuse_overwrite(args.out, force=args.force)
    require_writable(args.out.parent)


def _export(args: argparse.Namespace) -> int:
    from hybridflow.training.export import export

    name = args.name or args.preset
    for path in export(args.weights, args.preset, args.out, name, args.data, force=args.force):
        print(f"{path}: {path.stat().st_size:,} bytes")
    return 0
