"""Rate-distortion figures of a folder of results, one panel a metric, and speed against quality.

    python -m eval.plot eval/results/kodak -o figures/

writes `rate_distortion.svg`, `ablations.svg` and `speed.svg`. Curves that were measured by us are solid, with filled
markers; points that other codecs' authors published on Kodak are grey letters on dashed lines, their sources below.
Seconds are those of ours on one thread, and of classical codecs on as many as they take, on whatever machine each curve
was measured: `eval.speed` compares speeds in one run. Colours are Okabe and Ito's, which the colour-blind tell apart;
markers differ too, for print without colour.
"""

import itertools
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import IO

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval import command
from eval.baselines import CODECS
from eval.result_files import METRICS, CurveResult, published_curves, read_curves
from eval.run import ABLATIONS
from hybridflow.cli import named_path

COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX*<>"
PUBLISHED_GREY = "#555555"
LEGEND = {"fontsize": 8, "alignment": "left", "frameon": False, "borderaxespad": 0}
DASHED = {"color": PUBLISHED_GREY, "linestyle": "--", "lw": 0.7, "zorder": 1}
LETTER = {
    "fontsize": 6.5,
    "color": PUBLISHED_GREY,
    "ha": "center",
    "va": "center",
    "zorder": 1.5,
    "clip_on": True,
    "bbox": {"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": PUBLISHED_GREY, "linewidth": 0.5},
}
"""A point that was published."""
LONGEST_LEGEND = 9
"""Curves that one column names."""
RATES = (0.008, 0.3)
"""bpp that are shown, at most, if any curve has such."""
STYLE = {"font.size": 9, "axes.grid": True, "grid.alpha": 0.3, "svg.hashsalt": "hybridflow", "lines.markersize": 4.5}

CLASSICAL = tuple(CODECS)
ABLATED = tuple(f"-{name}" for name in ABLATIONS)


def is_ablation(curve: CurveResult) -> bool:
    return curve.key.endswith(ABLATED)


def ours(curves: Sequence[CurveResult]) -> list[CurveResult]:
    """Checkpoints as they are."""
    return [curve for curve in curves if curve.key not in CLASSICAL and not is_ablation(curve)]


def beside_classical(curves: Sequence[CurveResult]) -> list[CurveResult]:
    """Checkpoints as they are, then classical codecs."""
    return [*ours(curves), *(curve for key in CLASSICAL for curve in curves if curve.key == key)]


def rate_distortion(curves: Sequence[CurveResult], published: Sequence[CurveResult] = ()) -> Figure:
    """One panel a metric that any curve has, over the same rates on a logarithmic axis; the last is the legend."""
    metrics = [metric for metric in METRICS if any(metric in curve.results for curve in curves)]
    places = metrics + ["legend"] * (2 - len(metrics) % 2)
    rows = [places[i : i + 2] for i in range(0, len(places), 2)]
    with rc_context(STYLE):
        figure = Figure(figsize=(10.4, 3.8 * len(rows)), layout="constrained")
        panels = figure.subplot_mosaic(rows)
        handles = {}
        for metric in metrics:
            _draw(panels[metric], curves, metric, published)
            handles |= {line.get_label(): line for line in panels[metric].lines}
        panels["legend"].set_axis_off()
        solid = [line for line in handles.values() if line.get_linestyle() == "-"]
        dashed = [line for line in handles.values() if line.get_linestyle() == "--"]
        columns = 1 + (len(solid) > LONGEST_LEGEND)
        measured = panels["legend"].legend(
            handles=solid, loc="upper left", ncols=columns, title="Measured here", **LEGEND
        )
        if dashed:
            panels["legend"].add_artist(measured)
            title = "Published by their authors, not measured here"
            panels["legend"].legend(handles=dashed, loc="lower left", ncols=2, title=title, **LEGEND)
            figure.supxlabel(_sources(published), x=0.01, ha="left", fontsize=7)
    return figure


def _draw(panel: Axes, curves: Sequence[CurveResult], metric: str, published: Sequence[CurveResult]) -> None:
    label, more_is_better = METRICS[metric]
    for curve, letter in zip(published, ascii_uppercase):
        panel.plot(*curve.points(metric), label=f"{letter}  {curve.name}", **DASHED)
        for point in zip(*curve.points(metric)):
            panel.text(*point, letter, **LETTER)
    for curve, colour, marker in _styled(curves):
        if metric in curve.results:
            panel.plot(*curve.points(metric), color=colour, marker=marker, label=curve.name)
    low, high = _rates([*curves, *published])
    if shown := [f for line in panel.lines for rate, f in zip(*line.get_data()) if low <= rate <= high]:
        margin = 0.05 * (max(shown) - min(shown)) or 0.05
        panel.set_ylim(min(shown) - margin, max(shown) + margin)
    panel.set_xscale("log")
    panel.set_xlim(low / 1.1, high * 1.1)
    ticks = [tick for tick in (0.01, 0.02, 0.04, 0.08, 0.15, 0.3) if low / 1.1 <= tick <= high * 1.1]
    panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    panel.minorticks_off()
    panel.set_xlabel("bits per pixel")
    panel.set_ylabel(f"{label} ({'more' if more_is_better else 'less'} is better)")


def _styled(curves: Sequence[CurveResult]) -> Iterator[tuple[CurveResult, str, str]]:
    """Curves with a colour and a marker, a pair that no other has among 70."""
    return zip(curves, itertools.cycle(COLOURS), itertools.cycle(MARKERS))


def _rates(curves: Sequence[CurveResult]) -> tuple[float, float]:
    """The lowest and the highest bpp that are shown."""
    rates = [rate for curve in curves for rate in curve.results["bpp"]]
    shown = [rate for rate in rates if RATES[0] <= rate <= RATES[1]] or rates
    return min(shown), max(shown)


def _sources(published: Sequence[CurveResult]) -> str:
    """Who published what, by the letters that the figure has for them."""
    letters: dict[str, str] = {}
    for curve, letter in zip(published, ascii_uppercase):
        letters[curve.description] = letters.get(curve.description, "") + letter
    sources = "; ".join(f"{', '.join(found)}: {source}" for source, found in letters.items())
    return textwrap.fill(f"Sources: {sources}.", 190)


def speed_against_quality(curves: Sequence[CurveResult], metric: str = "lpips-alex") -> Figure:
    """Seconds to encode and to decode an image, and the metric, at every point that was timed."""
    with rc_context(STYLE):
        figure = Figure(figsize=(10.4, 4), layout="constrained")
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        for panel, figure_name in zip(panels, ("encoding_time", "decoding_time")):
            for curve, colour, marker in _styled(curves):
                if figure_name in curve.results and metric in curve.results:
                    low, high = (f"{find(curve.results['bpp']):.3f}" for find in (min, max))
                    label = f"{curve.name}: {low if low == high else f'{low} to {high}'} bpp"
                    times = curve.results[figure_name]
                    panel.plot(times, curve.results[metric], color=colour, marker=marker, lw=0, label=label)
            panel.set_xscale("log")
            panel.xaxis.set_major_formatter("{x:g}")
            panel.set_xlabel(f"{figure_name.replace('_time', '')}, seconds an image")
        panels[0].set_ylabel(f"{METRICS[metric][0]} ({'more' if METRICS[metric][1] else 'less'} is better)")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def save(figure: Figure, file: Path | IO[str]) -> None:
    """Write a figure as SVG, the same bytes whenever it is the same figure."""
    with rc_context(STYLE):
        figure.savefig(file, format="svg", metadata={"Date": None})


def headline_figure(curves: Sequence[CurveResult]) -> Figure:
    """Checkpoints as they are beside other codecs; published points only beside Kodak's."""
    on_kodak = all(curve.on_kodak for curve in curves)
    return rate_distortion(beside_classical(curves), published=published_curves() if on_kodak else ())


def figures_of(curves: Sequence[CurveResult]) -> dict[str, Figure]:
    """File stem -> figure; ablations only where they were measured."""
    found = {"rate_distortion": headline_figure(curves), "speed": speed_against_quality(beside_classical(curves))}
    ablated = [curve for curve in curves if is_ablation(curve)]
    return found | ({"ablations": rate_distortion([*ours(curves), *ablated])} if ablated else {})


@command.one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = command.parser("plot", __doc__)
    parser.add_argument("results", type=named_path, help="folder of curves")
    what = "folder to write: an SVG a figure"
    parser.add_argument("-o", "--output", type=named_path, required=True, metavar="DIR", help=what)
    args = parser.parse_args(argv)

    figures = figures_of(read_curves(args.results))
    args.output.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        save(figure, args.output / f"{name}.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
