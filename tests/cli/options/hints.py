"""Where the options of `undertow preprocess` arrive: the functions of `undertow.hints`."""

from typing import Any

from PIL import Image

from tests.cli.options.arrival import Boundary, Case, Command, case, picture

PHOTO = picture((6, 4), (200, 30, 40))


def boundary(at: Boundary) -> None:
    for name in ("photo.png", "old.png"):
        Image.new("RGB", (6, 4), (200, 30, 40)).save(name)
    for maker in ("edges.canny", "edges.soft_edges", "edges.scribble", "edges.line_art", "depth.depth", "blur.blur",
                  "blur.tile"):  # fmt: skip
        at.stand_in(f"undertow.hints.{maker}", lambda image, **_: image)
    at.stand_in("undertow.hints.depth.levels", 256, unnoted=("image",))
    at.stand_in("undertow.hints.grid.to_grid", lambda image, **_: image)


GRID = {"to_grid.image": PHOTO, "to_grid.fitting": "crop", "to_grid.size": None, "to_grid.fill": "black"}
MULTIPLE = Case(typed=("--multiple", "8"), changes={**GRID, "to_grid.multiple": 8})


def making(verb: str, function: str, cases: tuple[Case, ...], *, cut: bool = True, **options: Any) -> Command:
    """A command that makes a map by one function. options: its, with their defaults."""
    arrives = {f"{function}.image": PHOTO, "files": [f"photo-{verb}.png"]}
    return Command(
        verb=("preprocess", verb),
        arguments={"image": "photo.png"},
        boundary=boundary,
        arrives=arrives | {f"{function}.{name}": value for name, value in options.items()},
        cases=(
            *cases,
            *((MULTIPLE,) if cut else ()),
            case("--out", "maps/a.webp", files=["maps/a.webp"]),
            case("--out", "old.png", refused="a file that is not there yet; allow it to be replaced (--overwrite)"),
            case("--out", "old.png", "--overwrite", files=[]),
        ),
    )


COMMANDS = (
    making(
        "canny", "canny", low=100.0, high=200.0, blur=0.0,
        cases=(
            case("--low", "20", canny__low=20.0),
            case("--high", "300", canny__high=300.0),
            case("--blur", "1.5", canny__blur=1.5),
        ),
    ),
    making(
        "soft-edges", "soft_edges", blur=1.0, strong=0.25,
        cases=(case("--blur", "2.5", soft_edges__blur=2.5), case("--strong", "0.5", soft_edges__strong=0.5)),
    ),
    making(
        "scribble", "scribble", blur=3.0, threshold=0.5, width=3, strong=0.25 / 3,
        cases=(
            case("--blur", "2.5", scribble__blur=2.5),
            case("--threshold", "0.7", scribble__threshold=0.7),
            case("--width", "5", scribble__width=5),
        ),
    ),
    making(
        "lineart", "line_art", width=1.0, strong=0.15,
        cases=(case("--width", "2.5", line_art__width=2.5), case("--strong", "0.5", line_art__strong=0.5)),
    ),
    making(
        "depth", "depth", inverted=False, low=None, high=None, cut=False,
        cases=(
            case("--inverted", depth__inverted=True),
            case("--low", "3", depth__low=3.0),
            case("--high", "90", depth__high=90.0),
        ),
    ),
    making("blur", "blur", radius=8.0, cases=(case("--radius", "2.5", blur__radius=2.5),)),
    making("tile", "tile", factor=4.0, cases=(case("--factor", "2.5", tile__factor=2.5),)),
    making(
        "grid", "to_grid", multiple=64, fitting="crop", size=None, fill="black", cut=False,
        cases=(
            case("--multiple", "8", to_grid__multiple=8),
            case("--fitting", "fit", to_grid__fitting="fit"),
            case("--fitting", "pad", to_grid__fitting="pad"),
            case("--size", "48x32", to_grid__size=(48, 32)),
            case("--fill", "white", to_grid__fill="white"),
        ),
    ),
)  # fmt: skip
