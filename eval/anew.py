"""Measure anew, with the weights that are there now, all that is committed of a checkpoint: after `hybridflow export`.

    python -m eval.anew tiny --kodak DIR --cid22val DIR --workers 2

Every curve of the checkpoint in `eval/results` is measured at the points that it has there, by `eval.run`; then its
`eval.parts` and `eval.freezing`, and README's tables are written. Rows of these very weights are not measured again, so
a run that was stopped goes on. Two cores take some three hours. A baseline that was trained for rate + MSE is not
shipped: its curve is measured if `--mse` names one that was trained beside these weights.
"""

import sys
from pathlib import Path

from eval import command, datasets, freezing, parts, readme, run
from eval.result_files import RESULTS, read_curves
from hybridflow.cli import positive
from hybridflow.weights import available


def commands(name: str, folder: str, data: Path, workers: int, mse: Path | None) -> list[list[str]]:
    """Arguments of each `eval.run` that measures a checkpoint's curves in a folder of committed results."""
    points = {curve.key: curve.results["point"] for curve in read_curves(RESULTS / folder)}
    common = ["--data", str(data), "--checkpoint", name, "-o", str(RESULTS / folder), "--workers", str(workers)]
    found = []
    for key in points:
        variant = key.removeprefix(name)
        if key == name:
            ablated = any(other.startswith(f"{name}-{ablation}") for ablation in run.ABLATIONS for other in points)
            options = [] if ablated else ["--no-ablations"]
            options = ["--mse", str(mse)] if ablated and mse else options
        elif variant.startswith("-effort-"):
            options = ["--effort", variant.removeprefix("-effort-")]
        elif variant == "-perceptual":
            options = ["--decoder", "perceptual"]
        else:
            continue
        found.append([*common, *options, "--points", *points[key]])
    return found


@command.one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = command.parser("anew", __doc__)
    parser.add_argument("checkpoint", choices=available(), help="a preset that is shipped")
    for key, title in datasets.DATA_SETS.items():
        parser.add_argument(f"--{key}", type=Path, required=True, metavar="DIR", help=f"folder of {title}")
    what = "weights.safetensors of `hybridflow train baseline --set mse_weight=...`"
    parser.add_argument("--mse", type=Path, metavar="WEIGHTS", help=what)
    what = "of one thread each (%(default)s)"
    parser.add_argument("--workers", type=positive(int), default=1, metavar="N", help=what)
    args = parser.parse_args(argv)

    folders = {key: getattr(args, key) for key in datasets.DATA_SETS}
    for key, data in folders.items():
        datasets.check(key, data)
    jobs = [
        (run.main, arguments)
        for key, data in folders.items()
        for arguments in commands(args.checkpoint, key, data, args.workers, args.mse)
    ]
    for study in (parts, freezing):
        output = RESULTS / study.__name__.rpartition(".")[2] / f"{args.checkpoint}.json"
        jobs.append((study.main, ["--data", str(args.kodak), "--checkpoint", args.checkpoint, "-o", str(output)]))
    for measure, arguments in [*jobs, (readme.main, [])]:
        if code := measure(arguments):
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
