"""Measure a checkpoint's committed curves and studies anew, with the weights that are there now: after an export.

    python -m eval.anew tiny --kodak DIR --cid22val DIR --workers 2

The curves are those that `eval/results` holds of it, at the points that they have there (`eval.run`); then come its
`eval.parts`, at the qualities that it has there, and `eval.freezing`, and README's tables and figure. Rows of these
very weights are not measured again, so a run that was stopped goes on. On two cores it takes some three hours. A curve
whose baseline is not shipped is named and left as it is, but for the continuous stream's for rate + MSE if `--mse`
names one that was trained beside these weights.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

from eval import command, datasets, freezing, parts, readme
from eval.curves import Curve, run
from eval.result_files import RESULTS, read_curves
from eval.run import ablations_of, whole_of
from hybridflow.cli import named_path
from hybridflow.weights import available


def committed(name: str, folder: str, mse: Path | None = None) -> list[Curve]:
    """The curves of a checkpoint in a folder of committed results, at their points; those that cannot be measured are
    named on standard error."""
    points = {curve.key: tuple(curve.results["point"]) for curve in read_curves(RESULTS / folder)}
    points = {key: at for key, at in points.items() if key.split("-")[0] == name}
    efforts = [int(key.rpartition("-")[2]) for key in points if key.startswith(f"{name}-effort-")]
    whole = whole_of(name, "cpu", None, 0, "fidelity")
    curves = [whole, *(whole_of(name, "cpu", None, effort, "fidelity") for effort in efforts)]
    if f"{name}-perceptual" in points:
        curves.append(whole_of(name, "cpu", None, 0, "perceptual"))
    curves += ablations_of(whole, mse)
    for left in sorted(points.keys() - {curve.name for curve in curves}):
        print(f"{folder}/{left} is left as it is: its baseline is not shipped", file=sys.stderr)
    return [replace(curve, points=points[curve.name]) for curve in curves if curve.name in points]


def committed_qualities(name: str) -> list[int]:
    """Qualities of the curves in a checkpoint's committed `eval.parts`."""
    tables = json.loads((RESULTS / "parts" / f"{name}.json").read_text())["tables"]
    return sorted({row["quality"] for row in tables["curves"]})


@command.one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = command.parser("anew", __doc__)
    parser.add_argument("checkpoint", choices=available(), help="a preset that is shipped")
    for key, title in datasets.DATA_SETS.items():
        parser.add_argument(f"--{key}", type=named_path, required=True, metavar="DIR", help=f"folder of {title}")
    what = "weights.safetensors of `hybridflow train baseline --set mse_weight=...`"
    parser.add_argument("--mse", type=named_path, metavar="WEIGHTS", help=what)
    command.add_workers(parser)
    args = parser.parse_args(argv)

    name, folders = args.checkpoint, {key: getattr(args, key) for key in datasets.DATA_SETS}
    of_parts = ["--qualities", *map(str, committed_qualities(name))]
    for key, data in folders.items():
        datasets.check(key, data)
    with freezing.threads(1):  # which is what `run` leaves
        for key, data in folders.items():
            run(committed(name, key, args.mse), data, RESULTS / key, f"{name}.csv", args.workers)
    for study, folder, options in ((parts, "parts", of_parts), (freezing, "freezing", [])):
        output = RESULTS / folder / f"{name}.json"
        if code := study.main(["--data", str(args.kodak), "--checkpoint", name, "-o", str(output), *options]):
            return code
    return readme.main([])


if __name__ == "__main__":
    sys.exit(main())
