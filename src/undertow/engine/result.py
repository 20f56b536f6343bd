"""What comes back for a request."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from undertow.doors import checked
from undertow.engine.report import Report
from undertow.engine.saving import name_fields, save_picture
from undertow.pictures.names import DEFAULT_NAME, PicturePlace


@dataclass(frozen=True, kw_only=True, repr=False)
class GenerationResult:
    """Pictures, the latents they were decoded from (unscaled, as the network sees them), and the report. A cancelled
    request has no pictures, and the latents it had reached. A notebook shows the pictures."""

    images: list[Image.Image]
    latents: Float[Tensor, "count channels height width"]
    report: Report = field(repr=False)

    @checked
    def save(self, path: str | Path, *, name: str = DEFAULT_NAME, overwrite: bool = False) -> list[Path]:
        """Writes all pictures, with what is needed to repeat them, and returns their files.

        path: a file that ends in .png, .jpg or .webp (several pictures become apple-1.png, apple-2.png), or a folder,
        where names are made from the template `name` and count up. overwrite: whether files that exist may be replaced.
        Errors: `InvalidInput` for a file that exists and for places that cannot be written.

            service.generate("a red apple", count=4).save("apples", name="{seed}-{prompt}")
        """
        arguments = ("path", "name")
        place = PicturePlace.of(path, name, count=len(self.images), overwrite=overwrite, arguments=arguments)
        paths: list[Path] = []
        for index, image in enumerate(self.images):
            with place.taken(name_fields(self.report, index)) as file:
                paths.append(save_picture(image, file, self.report, index))
        return paths

    def __repr__(self) -> str:
        report, count = self.report, len(self.images)
        height, width = report.size
        pictures = f"{count} picture{'' if count == 1 else 's'} of {width}x{height}" if count else "no pictures"
        how = f"{report.sampler}, {_seeds(report.request.seeds)}"
        return f"<GenerationResult: {pictures} by {Path(report.model).name}, {how}{', cancelled' * report.cancelled}>"

    def _repr_png_(self) -> bytes | None:
        """A single picture, as IPython asks for it."""
        return _png(self.images[0]) if len(self.images) == 1 else None

    def _repr_html_(self) -> str | None:
        """Several pictures, as IPython asks for them."""
        if len(self.images) < 2:
            return None
        return "".join(
            f'<img src="data:image/png;base64,{base64.b64encode(_png(image)).decode()}" title="seed {seed}" '
            f'alt="{html.escape(self.report.request.prompt)}" style="display: inline-block; margin: 2px">'
            for image, seed in zip(self.images, self.report.request.seeds, strict=True)
        )


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"


def _png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
