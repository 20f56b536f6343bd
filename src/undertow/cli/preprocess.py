"""`undertow preprocess`: control maps from pictures, a command for each kind."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from undertow.cli.sizes import parse_size
from undertow.cli.terminal import SafeConsole
from undertow.cli.written_pictures import OVERWRITE_HELP
from undertow.pictures.names import PicturePlace, require_picture_file

if TYPE_CHECKING:
    from PIL import Image

Picture = Annotated[Path, typer.Argument(help="A picture file.")]
Out = Annotated[Path | None, typer.Option(help="Where the map is written.", show_default="NAME-KIND.png, here")]
Multiple = Annotated[
    int | None, typer.Option(help="Crop to sides that are multiples of this first.", show_default="as it is", min=1)
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help=OVERWRITE_HELP)]
Blur = Annotated[float, typer.Option(help="Standard deviation of a blur before it, in pixels.")]

preprocess = typer.Typer(
    help="Make the map that a ControlNet or T2I-Adapter reads out of a picture; no network is involved.",
    no_args_is_help=True,
)


@preprocess.command("canny")
def canny(
    image: Picture,
    low: Annotated[float, typer.Option(help="Weakest gradient that continues an edge.")] = 100.0,
    high: Annotated[float, typer.Option(help="Weakest gradient that begins one.")] = 200.0,
    blur: Blur = 0.0,
    multiple: Multiple = None,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """Edges one pixel wide, for "canny" ControlNets."""
    from undertow.hints import edges

    _run(
        image, "canny", (out, overwrite), multiple, lambda picture: edges.canny(picture, low=low, high=high, blur=blur)
    )


@preprocess.command("soft-edges")
def soft_edges(
    image: Picture,
    blur: Blur = 1.0,
    strong: Annotated[float, typer.Option(help="Gradient that is white, in shares of full contrast a pixel.")] = 0.25,
    multiple: Multiple = None,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """The strength of edges, for "softedge" and "hed" ControlNets: the picture's gradient, not HED's network."""
    from undertow.hints import edges

    _run(
        image,
        "soft-edges",
        (out, overwrite),
        multiple,
        lambda picture: edges.soft_edges(picture, blur=blur, strong=strong),
    )


@preprocess.command("scribble")
def scribble(
    image: Picture,
    blur: Blur = 3.0,
    threshold: Annotated[float, typer.Option(help="Of the soft edges, 0 to 1: more leaves fewer strokes.")] = 0.5,
    width: Annotated[int, typer.Option(help="Of the strokes, in pixels.")] = 3,
    multiple: Multiple = None,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """Strokes along the strongest edges, for "scribble" ControlNets."""
    from undertow.hints import edges

    _run(
        image,
        "scribble",
        (out, overwrite),
        multiple,
        lambda picture: edges.scribble(picture, blur=blur, threshold=threshold, width=width),
    )


@preprocess.command("lineart")
def lineart(
    image: Picture,
    width: Annotated[float, typer.Option(help="Of the lines: standard deviation in pixels.")] = 1.0,
    strong: Annotated[float, typer.Option(help="Contrast of a line that is white, 0 to 1.")] = 0.15,
    multiple: Multiple = None,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """Lines where the picture is darker than around them, for "lineart" ControlNets."""
    from undertow.hints import edges

    _run(
        image,
        "lineart",
        (out, overwrite),
        multiple,
        lambda picture: edges.line_art(picture, width=width, strong=strong),
    )


@preprocess.command("depth")
def depth(
    image: Picture,
    inverted: Annotated[bool, typer.Option("--inverted", help="The map's larger values are farther.")] = False,
    low: Annotated[float | None, typer.Option(help="Value of one end.", show_default="its smallest")] = None,
    high: Annotated[float | None, typer.Option(help="Value of the other end.", show_default="its largest")] = None,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """Check a depth map of your own and bring it to near white, far black, for "depth" ControlNets and models."""
    from undertow.hints import depth as maps

    def run(picture: "Image.Image") -> "Image.Image":
        found = maps.levels(picture)
        result = maps.depth(picture, inverted=inverted, low=low, high=high)
        if found < maps.LEVELS:
            note = f"note: the map has {found} different values; a mask is no depth map"
            SafeConsole(stderr=True, soft_wrap=True).print(note, style="yellow", markup=False, highlight=False)
        return result

    _run(image, "depth", (out, overwrite), None, run)


@preprocess.command("blur")
def blur(
    image: Picture,
    radius: Annotated[float, typer.Option(help="Standard deviation in pixels.")] = 8.0,
    multiple: Multiple = None,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """The picture blurred, for "blur" ControlNets."""
    from undertow.hints import blur as blurring

    _run(image, "blur", (out, overwrite), multiple, lambda picture: blurring.blur(picture, radius=radius))


@preprocess.command("tile")
def tile(
    image: Picture,
    factor: Annotated[float, typer.Option(help="How many times fewer pixels to a side; 1 keeps all.")] = 4.0,
    multiple: Multiple = None,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """The picture with its detail averaged away, for "tile" ControlNets."""
    from undertow.hints import blur as blurring

    _run(image, "tile", (out, overwrite), multiple, lambda picture: blurring.tile(picture, factor=factor))


@preprocess.command("grid")
def grid(
    image: Picture,
    multiple: Annotated[int, typer.Option(help="Of what the sides are to be multiples.", min=1)] = 64,
    fitting: Annotated[
        Literal["fit", "crop", "pad"],
        typer.Option(help="Resize all of it, cut the longer side, or fill up the shorter one."),
    ] = "crop",
    size: Annotated[
        str | None, typer.Option(help="WIDTHxHEIGHT in pixels.", show_default="nearest to the picture's own")
    ] = None,
    fill: Annotated[str, typer.Option(help="Color around a padded picture.")] = "black",
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """Bring a picture to sides that a model can draw."""
    from undertow.hints.grid import to_grid

    height, width = (None, None) if size is None else parse_size(size)
    wanted = None if height is None or width is None else (width, height)
    _run(
        image,
        "grid",
        (out, overwrite),
        None,
        lambda picture: to_grid(picture, multiple=multiple, fitting=fitting, size=wanted, fill=fill),
    )


def _run(
    path: Path,
    kind: str,
    place: tuple[Path | None, bool],
    multiple: int | None,
    make: "Callable[[Image.Image], Image.Image]",
) -> None:
    """Reads the picture, crops it when asked to, makes the map and writes it. place: where, and whether a file that is
    there is replaced. Errors: `InvalidInput`."""
    from undertow.checkpoints.files.atomic import atomic_write
    from undertow.checkpoints.files.destination import require_elsewhere
    from undertow.hints.grid import to_grid
    from undertow.pictures.files import open_picture

    out, overwrite = place
    if out is not None:
        require_elsewhere("--out", out, [path])
        require_picture_file(out, overwrite=overwrite)
    template = f"{path.stem}-{kind}".replace("{", "{{").replace("}", "}}")
    target_place = PicturePlace.of(Path() if out is None else out, template, overwrite=overwrite)
    picture = open_picture("IMAGE", path)
    if multiple is not None:
        picture = to_grid(picture, multiple=multiple)
    made = make(picture)
    with target_place.taken({}) as target, atomic_write(target) as draft:
        made.save(draft)
    SafeConsole().print(f"wrote {target} ({made.width}x{made.height})", markup=False, highlight=False, soft_wrap=True)
