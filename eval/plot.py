"""Rate-distortion figures of a folder of results, one panel a metric, and speed against quality.

    python -m eval.plot eval/results/kodak -o figures/

writes `rate_distortion.svg`, `ablations.svg` and `speed.svg`. Curves that were measured by us are solid, with filled
markers; points that other codecs' authors published on Kodak are grey, dashed and hollow. Colours are Okabe and Ito's,
which the colour-blind tell apart; markers differ too, for print without colour.
"""

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.result_files import METRICS, CurveResult, published_curves, read_curves

COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX*<>phd8H"
PUBLISHED_GREY = "#777777"
RATES = (0.008, 0.3)
"""bpp that are shown, at most."""
STYLE = {"font.size": 9, "axes.grid": True, "grid.alpha": 0.3, "svg.hashsalt": "hybridflow", "lines.markersize": 4.5}

CLASSICAL = ("jpeg", "webp", "avif", "jxl", "hevc", "vvc")
ABLATED = ("-codebook-only", "-continuous-only", "-without-correction", "-without-predictor")


def is_ablation(curve: CurveResult) -> bool:
    return curve.key.endswith(ABLATED)


def ours(curves: Sequence[CurveResult]) -> list[CurveResult]:
    """Checkpoints as they are."""
    return [curve for curve in curves if curve.key not in CLASSICAL and not is_ablation(curve)]


def rate_distortion(curves: Sequence[CurveResult], published: bool = False) -> Figure:
    """One panel a metric that any curve has; bpp is on a logarithmic axis."""
    metrics = [metric for metric in METRICS if any(metric in curve.results for curve in curves)]
    columns = min(2, len(metrics))
    rows = -(-len(metrics) // columns)
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(rows, columns, figsize=(5.2 * columns, 3.6 * rows), squeeze=False)
        for metric, panel in itertools.zip_longest(metrics, panels.flat):
            if metric is None:
                panel.set_axis_off()
            else:
                _draw(panel, curves, metric, published)
        handles = {label: handle for panel in panels.flat for handle, label in zip(*panel.get_legend_handles_labels())}
        figure.legend(handles.values(), handles, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=3, frameon=False)
        figure.tight_layout()
    return figure


def _draw(panel: Axes, curves: Sequence[CurveResult], metric: str, published: bool) -> None:
    label, more_is_better = METRICS[metric]
    if published:
        for (name, (rates, figures)), marker in zip(published_curves(metric).items(), itertools.cycle(MARKERS)):
            style = {"color": PUBLISHED_GREY, "mfc": "white", "lw": 0.7, "ms": 4, "zorder": 1}
            panel.plot(rates, figures, linestyle="--", marker=marker, label=f"{name} (published)", **style)
    for curve, (colour, marker) in zip(curves, itertools.cycle(zip(COLOURS, MARKERS))):
        if metric in curve.results:
            panel.plot(curve.results["bpp"], curve.results[metric], color=colour, marker=marker, label=curve.name)
    panel.set_xscale("log")
    low, high = panel.get_xlim()
    panel.set_xlim(max(low, RATES[0]), min(high, RATES[1]))
    ticks = [tick for tick in (0.01, 0.02, 0.04, 0.08, 0.15, 0.3) if panel.get_xlim()[0] <= tick <= panel.get_xlim()[1]]
    panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    panel.minorticks_off()
    panel.set_xlabel("bits per pixel")
    panel.set_ylabel(f"{label} ({'more' if more_is_better else 'less'} is better)")


def speed_against_quality(curves: Sequence[CurveResult], metric: str = "lpips-alex") -> Figure:
    """Seconds to encode and to decode an image, and the metric, at every point that was timed."""
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, 2, figsize=(10.4, 3.8), sharey=True)
        for panel, figure_name in zip(panels, ("encoding_time", "decoding_time")):
            for curve, (colour, marker) in zip(curves, itertools.cycle(zip(COLOURS, MARKERS))):
                if figure_name in curve.results and metric in curve.results:
                    times = curve.results[figure_name]
                    panel.plot(times, curve.results[metric], color=colour, marker=marker, lw=0, label=curve.name)
            panel.set_xscale("log")
            panel.set_xlabel(f"{figure_name.replace('_time', '')}, seconds an image")
        panels[0].set_ylabel(f"{METRICS[metric][0]} ({'more' if METRICS[metric][1] else 'less'} is better)")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=4, frameon=False)
        figure.tight_layout()
    return figure


def figures_of(curves: Sequence[CurveResult]) -> dict[str, Figure]:
    """File stem -> figure; ablations only where they were measured, published points only beside Kodak's."""
    whole = ours(curves)
    classical = [curve for key in CLASSICAL for curve in curves if curve.key == key]
    on_kodak = all(curve.description.startswith("Kodak") for curve in curves)
    found = {
        "rate_distortion": rate_distortion([*whole, *classical], published=on_kodak),
        "speed": speed_against_quality([*whole, *classical]),
    }
    ablated = [curve for curve in curves if is_ablation(curve)]
    return found | ({"ablations": rate_distortion([*whole, *ablated])} if ablated else {})


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m eval.plot", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="folder of curves")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    args = parser.parse_args(argv)

    try:
        figures = figures_of(read_curves(args.results))
        args.output.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            figure.savefig(args.output / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
            plt.close(figure)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
