"""Pictures in rows and columns with their names: the comparison that people make by hand."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

MARGIN = 6
LINE = 16
FONT_SIZE = 13
SMALLEST_SIDE = 96
"""Small pictures are enlarged by whole factors to at least about this side."""

INK, PAPER = "#222222", "#ffffff"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A picture with a line below it."""

    image: Image.Image
    caption: str = ""


def contact_sheet(
    cells: Sequence[Sequence[Cell]], *, rows: Sequence[str], columns: Sequence[str], title: str = ""
) -> Image.Image:
    """The cells, row by row, with a name for each row and column and a title above. Pictures may differ in size."""
    font = ImageFont.load_default(FONT_SIZE)
    images = [[enlarged(cell.image) for cell in row] for row in cells]
    captions = [[cell.caption for cell in row] for row in cells]
    ruler = ImageDraw.Draw(Image.new("RGB", (1, 1)))

    def width_of(text: str) -> int:
        return int(ruler.textlength(text, font=font)) + 1

    left = max((width_of(name) for name in rows), default=0) + 2 * MARGIN
    widths = [
        max(
            width_of(columns[index]),
            *(image_row[index].width for image_row in images),
            *(width_of(caption_row[index]) for caption_row in captions),
        )
        for index in range(len(columns))
    ]
    heights = [
        max(image.height for image in row) + (LINE if any(names) else 0)
        for row, names in zip(images, captions, strict=True)
    ]
    top = (LINE + MARGIN) * (2 if title else 1)
    size = (
        max(left + sum(widths) + MARGIN * len(widths), width_of(title) + 2 * MARGIN),
        top + sum(heights) + MARGIN * (len(heights) + 1),
    )
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN // 2), title, fill=INK, font=font)
    lefts = [left + sum(widths[:index]) + MARGIN * index for index in range(len(widths))]
    for x, name in zip(lefts, columns, strict=True):
        pen.text((x, top - LINE), name, fill=INK, font=font)
    y = top + MARGIN
    for row, names, name, height in zip(images, captions, rows, heights, strict=True):
        pen.text((MARGIN, y + height // 2 - LINE), name, fill=INK, font=font)
        for x, image, caption in zip(lefts, row, names, strict=True):
            sheet.paste(image, (x, y))
            pen.text((x, y + image.height), caption, fill=INK, font=font)
        y += height + MARGIN
    return sheet


def enlarged(image: Image.Image) -> Image.Image:
    """RGB, by a whole factor with sharp edges where it is small."""
    factor = max(1, -(-SMALLEST_SIDE // max(1, min(image.size))))
    return image.convert("RGB").resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
