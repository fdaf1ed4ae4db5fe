"""Tables of text."""

from eval.tables import aligned, cells_of, markdown

TITLES, ROWS = ["codec", "point", "bpp"], [["a", "31:none", "0.1"], ["longer", "0", "12.25"]]


def test_markdown_aligns_words_left_and_numbers_right():
    assert markdown(TITLES, ROWS, words=2).splitlines() == [
        "| codec | point | bpp |", "| --- | --- | ---: |", "| a | 31:none | 0.1 |", "| longer | 0 | 12.25 |"
    ]


def test_columns_are_as_wide_as_they_need():
    assert aligned(TITLES, ROWS, words=2).splitlines() == [
        "codec   point      bpp", "a       31:none    0.1", "longer  0        12.25"
    ]


def test_cells_are_short_texts():
    a = {"name": "a", "bytes": 12345, "psnr": 22.78335, "mib": None}
    b = {"name": "b", "bytes": 1234.5, "psnr": 1.0, "mib": 3}
    titles, rows = cells_of([a, b])
    assert titles == ["name", "bytes", "psnr", "mib"]
    assert rows == [["a", "12,345", "22.78", ""], ["b", "1,234", "1", "3"]]
