"""Pictures beside each other, each above its caption."""

from PIL import Image, ImageDraw, ImageFont

_GAP = 8


def side_by_side(images: list[Image.Image], captions: list[str]) -> Image.Image:
    """RGB images of equal size in a row, each above its caption, on white."""
    font = ImageFont.load_default(size=max(10, images[0].width // 32))
    left, top, right, bottom = ImageDraw.Draw(images[0]).textbbox((0, 0), max(captions, key=len), font=font)
    column = _GAP + max(images[0].width, right - left)
    height = images[0].height + bottom - top + 3 * _GAP
    sheet = Image.new("RGB", (_GAP + column * len(images), height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (image, caption) in enumerate(zip(images, captions)):
        sheet.paste(image, (_GAP + i * column, _GAP))
        draw.text((_GAP + i * column - left, 2 * _GAP + image.height - top), caption, fill="black", font=font)
    return sheet


def stack(sheets: list[Image.Image]) -> Image.Image:
    """RGB images below each other, from the left, on white."""
    stacked = Image.new("RGB", (max(sheet.width for sheet in sheets), sum(sheet.height for sheet in sheets)), "white")
    top = 0
    for sheet in sheets:
        stacked.paste(sheet, (0, top))
        top += sheet.height
    return stacked
