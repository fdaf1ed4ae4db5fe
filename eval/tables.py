"""Tables of text: in Markdown for files, in aligned columns for a terminal."""

from collections.abc import Sequence

Cells = list[list[str]]


def cells_of(records: Sequence[dict]) -> tuple[list[str], Cells]:
    """Dictionaries of equal keys -> titles and rows: texts as they are, floats to four digits, nothing for None."""

    def text(value: str | float | None) -> str:
        if value is None or isinstance(value, str):
            return value or ""
        return f"{value:.4g}" if isinstance(value, float) and abs(value) < 1000 else f"{value:,.0f}"

    return [str(key) for key in records[0]], [[text(value) for value in record.values()] for record in records]


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """A Markdown table whose first `words` columns are aligned left, the others, numbers, right."""
    rule = ["---"] * words + ["---:"] * (len(titles) - words)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (titles, rule, *rows))


def aligned(titles: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Likewise in columns as wide as they need, two spaces apart."""
    lines = [titles, *rows]
    widths = [max(map(len, column)) for column in zip(*lines)]
    sides = ["<"] * words + [">"] * (len(titles) - words)
    return "\n".join(
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(cells, sides, widths)).rstrip()
        for cells in lines
    )
