"""What a step of training costs, stage by stage: images a second, the share that is data, peak memory, FLOPs an image.

    python -m eval.training_speed --data photos/ -o tiny.json
    python -m eval.training_speed --data photos/ --preset base --batch-share 8 --steps 1

Every stage is trained as it is shipped, in a process of its own, from random weights. Times are medians of the steps
after two that do not count, saves and validation excluded. Memory is all that the process holds, photos included. FLOPs
are those of convolutions, matrix products and attention, forward and backward, without the optimiser's, which are the
same for any batch.
"""

import itertools
import json
import os
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from eval import command, tables
from eval.cost import cost_of
from eval.speed import CPU_ATTENTION, median_seconds, random_codec
from hybridflow.ablation import Ablations
from hybridflow.cli import positive
from hybridflow.model import PRESETS
from hybridflow.training.config import load_config
from hybridflow.training.loop import Run, start_processes
from hybridflow.training.stages import STAGES
from hybridflow.training.streaming import open_photos

ONE_STEP = 1e-9
"""Minutes, after which a run stops at the end of the step that it is in."""
MATRIX_SIDE = 8192
COLUMNS = {
    "stage": ("stage", ""),
    "batch": ("batch", ""),
    "crop": ("crop", ""),
    "images_per_second": ("images/s", ".3g"),
    "data_share": ("data", ".1%"),
    "peak_mib": ("peak MiB", ",.0f"),
    "gflops_per_image": ("GFLOPs/image", ",.1f"),
    "bf16_peak_share": ("of bf16 peak", ".1%"),
}
"""Figures of a row: title and format."""


def measure(stage: str, preset: str, data: Path, steps: int, batch_share: int, device: str) -> dict:
    """What `steps` steps of a stage cost, with a part of the batch that is shipped.

    Raises:
        TrainingError: the data, the device or the batch that is left cannot be trained with.
    """
    config = load_config(stage, preset, [])
    config = replace(config, batch=config.batch // batch_share, max_steps=steps + 2, max_minutes=None, log_steps=1)
    accelerator = start_processes(device)
    photos = open_photos(data, config, accelerator.device)
    with TemporaryDirectory() as folder:
        init, out = Path(folder) / "init.safetensors", Path(folder) / "run"
        save_random_weights(preset, init)
        run = Run(stage, preset, config, photos, out, init, False, accelerator)
        run.train(ONE_STEP)
        with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as whole:
            run.train(ONE_STEP)
        with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as moves:
            for optimiser in itertools.chain(*run.optimisers.values()):
                optimiser.step()
        _, cost = cost_of(run.train, device)
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()][2:]
    images_per_second = statistics.median(line["images_per_second"] for line in lines)
    flops = (whole.get_total_flops() - moves.get_total_flops()) / config.batch
    return {
        "stage": stage,
        "batch": config.batch,
        "crop": config.crop,
        "images_per_second": images_per_second,
        "data_share": statistics.median(line["data_share"] for line in lines),
        "peak_mib": cost.peak_mib,
        "gflops_per_image": flops / 1e9,
        "bf16_peak_share": images_per_second * flops / bf16_peak() if device == "cuda" else None,
    }


def save_random_weights(preset: str, path: Path) -> None:
    """Weights of every part, none trained, that any stage can start from: bits are frozen, the codebook is started."""
    model = random_codec(preset, "cpu").model
    model.codebook.started.fill_(True)
    weights = model.state_dict() | Ablations(model.preset).state_dict()
    save_file({key: value.contiguous() for key, value in weights.items()}, path)


def bf16_peak() -> float:
    """FLOP/s of the GPU here in a large product of bfloat16 matrices."""
    matrix = torch.randn(MATRIX_SIDE, MATRIX_SIDE, device="cuda", dtype=torch.bfloat16)
    return 2 * MATRIX_SIDE**3 / median_seconds(lambda: matrix @ matrix, 20, "cuda")


def table(rows: list[dict]) -> str:
    """Rows in Markdown, without figures that are not known here."""
    shown = [figure for figure in COLUMNS if rows[0][figure] is not None]
    cells = [[format(row[figure], COLUMNS[figure][1]) for figure in shown] for row in rows]
    return tables.markdown([COLUMNS[figure][0] for figure in shown], cells)


@command.one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = command.parser("training_speed", __doc__)
    parser.add_argument("--preset", choices=PRESETS, default="tiny", help="default: %(default)s")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), metavar="STAGE", help="some only")
    command.add_data(parser, "folder of images or tar shards")
    parser.add_argument("--steps", type=positive(int), default=10, metavar="N", help="steps that count (%(default)s)")
    parser.add_argument(
        "--batch-share", type=positive(int), default=1, metavar="N", help="take 1/N of the batch (%(default)s)"
    )
    command.add_device(parser)
    parser.add_argument(
        "-o", "--output", type=command.file_to_write, metavar="JSON", help="also write the figures here"
    )
    args = parser.parse_args(argv)

    os.environ["TQDM_DISABLE"] = "1"  # bars of the processes: ours tells enough
    where = {"preset": args.preset, "data": args.data, "device": args.device}
    one = partial(measure, **where, steps=args.steps, batch_share=args.batch_share)
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        rows = list(tqdm(pool.map(one, args.stages), total=len(args.stages), unit=" stages"))
    print(table(rows))
    if args.output:
        device = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
        settings = {"preset": args.preset, "device": device, "threads": torch.get_num_threads(), "steps": args.steps}
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(settings | {"stages": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
