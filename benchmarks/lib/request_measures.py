"""What requests with the embedded emoji model must keep: masks, pictures to start from, regions, windows, rings."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from recipes.emoji.editions import Edition, edition_of
from recipes.emoji.recognize import nearest_emoji, recognize
from recipes.emoji.render import PAIR_SIZES, SIDE, SINGLE_SIZES, Glyphs, draw_places, render
from recipes.emoji.scenes import Scene, draw_pair_kept_out, draw_training_scene, singles
from undertow import GenerationRequest, Region, UNetService, Views
from undertow.engine.images import image_latents
from undertow.engine.request import Axes, RegionsBy
from undertow.engine.sizes import layout_for
from undertow.pictures.pixels import from_uint8, to_uint8
from undertow.training.randomness import seed_for

Box = tuple[float, float, float, float]

BESIDE = 2
"""Columns from a line to those it is compared with: the same cell of the latents or the next one."""


@dataclass(frozen=True, kw_only=True)
class Inpainted:
    """outside: worst difference of a pixel that the mask keeps, in levels of 255; latents: the same of kept latents,
    in their own units, before anything is pasted. right: whether the masked half shows what was asked for."""

    before: list[Image.Image]
    after: list[Image.Image]
    scenes: list[Scene]
    outside: int
    latents: float
    right: Bool[Tensor, "count"]


def rendered(scene: Scene, random: Random, glyphs: Glyphs, edition: Edition) -> Image.Image:
    """The scene with its emoji at random places."""
    return to_image(render(scene, draw_places(scene, random, edition.anywhere), glyphs, edition.side))


def inpaint(service: UNetService, base: GenerationRequest, count: int, glyphs: Glyphs) -> Inpainted:
    """Rendered pairs, of which the second's half is drawn anew with another emoji."""
    random, edition = Random(seed_for(0, "inpaint")), edition_of(service.vae.config.sample_size)
    asked = [draw_pair_kept_out(random) for _ in range(count)]
    before = []
    for scene in asked:
        other = random.choice([one.names[0] for one in singles(trained=True) if one.names[0] not in scene.names])
        shown = replace(scene, names=(scene.names[0], other))
        before.append(rendered(shown, random, glyphs, edition))
    masks = [half_mask(scene, edition.side) for scene in asked]
    requests = [
        replace(base, prompt=scene.caption, seed=seed, image=image, mask=mask, strength=1.0)
        for seed, (scene, image, mask) in enumerate(zip(asked, before, masks, strict=True))
    ]
    results = service.generate_many(requests)
    after = [result.images[0] for result in results]
    outside, latents = 0, 0.0
    for image, drawn, mask, result in zip(before, after, masks, results, strict=True):
        kept = ~levels(mask.convert("RGB")).bool()
        outside = max(outside, difference(image, drawn, kept))
        known = image_latents(service.model, from_uint8(levels(image))[None])
        factor = service.vae.config.factor
        cells = kept[:1, ::factor, ::factor].expand(known.shape[1:])
        latents = max(latents, float((known - result.latents)[0][cells].abs().max()))
    found = recognize(torch.stack([levels(image) for image in after]), asked, glyphs).found
    right = torch.tensor([names[1] == scene.names[1] for names, scene in zip(found, asked, strict=True)])
    return Inpainted(before=before, after=after, scenes=asked, outside=outside, latents=latents, right=right)


def start_from(service: UNetService, base: GenerationRequest, count: int, glyphs: Glyphs) -> int:
    """Worst difference, in levels of 255, of strength 0 from the autoencoder's reconstruction of the picture."""
    random, worst, edition = Random(seed_for(0, "start from")), 0, edition_of(service.vae.config.sample_size)
    for _ in range(count):
        scene = draw_training_scene(random, edition.mix)
        image = rendered(scene, random, glyphs, edition)
        drawn = service.run(replace(base, prompt=scene.caption, image=image, strength=0.0)).images[0]
        with torch.inference_mode():
            posterior = service.vae.encode(from_uint8(levels(image))[None].to(service.vae.dtype))
            rebuilt = to_image(to_uint8(service.vae.decode(posterior.mean))[0])
        worst = max(worst, difference(rebuilt, drawn))
    return worst


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """A way to draw two regions. square: the square that the model was trained at, halved; otherwise two of it."""

    name: str
    by: RegionsBy
    square: bool = False
    views: Views | None = None

    def request(self, base: GenerationRequest, scene: Scene, seed: int, side: int) -> GenerationRequest:
        size = (side, side) if self.square else (side, 2 * side) if scene.is_row else (2 * side, side)
        alone = [Scene(names=(name,), color=scene.color).caption for name in scene.names]
        return replace(
            base,
            prompt=f"{scene.color} background",
            seed=seed,
            size=size,
            views=self.views,
            regions_by=self.by,
            regions=tuple(Region(prompt=prompt, box=box) for prompt, box in zip(alone, boxes(scene), strict=True)),
        )


@dataclass(frozen=True, kw_only=True)
class Placed:
    """Pictures of two regions, and which show both emoji where they were asked for."""

    canvas: Canvas
    scenes: list[Scene]
    pictures: list[Image.Image]
    right: Bool[Tensor, "count 2"]

    @property
    def both(self) -> float:
        return float(self.right.all(1).float().mean())

    @property
    def each(self) -> float:
        return float(self.right.float().mean())


def place(service: UNetService, base: GenerationRequest, canvas: Canvas, count: int, glyphs: Glyphs) -> Placed:
    """Pairs that were never trained together, each emoji in a region of its own, as its relation says."""
    random, side = Random(seed_for(0, "regions")), edition_of(service.vae.config.sample_size).side
    scenes = [draw_pair_kept_out(random) for _ in range(count)]
    requests = [canvas.request(base, scene, seed, side) for seed, scene in enumerate(scenes)]
    pictures = [result.images[0] for result in service.generate_many(requests)]
    right = found_in_regions(pictures, scenes, glyphs, side)
    return Placed(canvas=canvas, scenes=scenes, pictures=pictures, right=right)


def found_in_regions(
    pictures: Sequence[Image.Image], scenes: Sequence[Scene], glyphs: Glyphs, side: int
) -> Bool[Tensor, "count 2"]:
    """Whether the half of each picture where an emoji belongs shows it, the rest of the picture not looked at.

    side: of the squares that the model was trained at; pictures are compared at the first edition's size."""
    right = torch.zeros(len(scenes), 2, dtype=torch.bool)
    for index, (picture, scene) in enumerate(zip(pictures, scenes, strict=True)):
        sizes = PAIR_SIZES if picture.width == picture.height else SINGLE_SIZES
        small = picture.reduce(side // SIDE)
        for part, box in enumerate(boxes(scene)):
            window = levels(small.crop(pixels_of(box, small)))
            right[index, part] = nearest_emoji(window[None], [scene.color], sizes, glyphs)[0] == scene.names[part]
    return right


@dataclass(frozen=True, kw_only=True)
class Seams:
    """Mean absolute step between neighboring columns, in levels of 255: across the lines looked at, beside them, and
    over the whole picture. A seam is a line with larger steps than those beside it, whatever stands there."""

    name: str
    picture: Image.Image
    across: float
    beside: float
    everywhere: float

    @classmethod
    def along(cls, name: str, pictures: Sequence[Image.Image], lines: Sequence[int]) -> "Seams":
        """lines: columns left of which they lie, 0 between the last and the first."""
        steps = torch.stack([column_steps(levels(picture)) for picture in pictures])
        beside = [(line + far) % steps.shape[1] for line in lines for far in (-BESIDE, BESIDE)]
        return cls(
            name=name,
            picture=pictures[0],
            across=float(steps[:, list(lines)].mean()),
            beside=float(steps[:, beside].mean()),
            everywhere=float(steps[:, 1:].mean()),
        )

    @property
    def ratio(self) -> float:
        return self.across / self.beside


def seams(service: UNetService, base: GenerationRequest, width: int, overlap: float, count: int) -> Seams:
    """Of windows beside each other: the lines are where one begins or ends."""
    side, factor = edition_of(service.vae.config.sample_size).side, service.vae.config.factor
    base = replace(base, size=(side, width), views=Views(overlap=overlap))
    cells = (side // factor, width // factor)
    layout = layout_for(base, cells, service.config.sample_size, factor)
    edges = {edge for _, left in layout.windows for edge in (left, left + layout.window[1])} - {0, cells[1]}
    return Seams.along(f"{overlap:g}", _draw(service, base, count), [edge * factor for edge in sorted(edges)])


def ring(service: UNetService, base: GenerationRequest, width: int, axes: Axes, count: int) -> Seams:
    """Of a picture whose left edge lies beside its right one: the line is between these two."""
    side = edition_of(service.vae.config.sample_size).side
    views = None if width == side else Views()
    pictures = _draw(service, replace(base, size=(side, width), views=views, seamless=axes), count)
    return Seams.along(axes, pictures, [0])


def _draw(service: UNetService, base: GenerationRequest, count: int) -> list[Image.Image]:
    scenes = Random(seed_for(0, "seams")).sample(list(singles(trained=True)), count)
    requests = [replace(base, prompt=scene.caption, seed=seed) for seed, scene in enumerate(scenes)]
    return [result.images[0] for result in service.generate_many(requests)]


def column_steps(picture: UInt8[Tensor, "3 height width"]) -> Float[Tensor, "steps"]:
    """Mean absolute difference of each column from the one before, of the first from the last."""
    return (picture.float() - picture.float().roll(1, dims=2)).abs().mean((0, 1))


def boxes(scene: Scene) -> tuple[Box, Box]:
    """Where the two emoji of a scene belong, in fractions."""
    halves: list[Box] = [(0, 0, 0.5, 1), (0.5, 0, 1, 1)] if scene.is_row else [(0, 0, 1, 0.5), (0, 0.5, 1, 1)]
    first, second = halves if scene.first_comes_first else halves[::-1]
    return first, second


def half_mask(scene: Scene, side: int) -> Image.Image:
    """White where the second emoji belongs."""
    mask = Image.new("L", (side, side))
    mask.paste(255, pixels_of(boxes(scene)[1], mask))
    return mask


def pixels_of(box: Box, picture: Image.Image) -> tuple[int, int, int, int]:
    left, top, right, bottom = box
    width, height = picture.size
    return round(left * width), round(top * height), round(right * width), round(bottom * height)


def difference(one: Image.Image, other: Image.Image, where: Bool[Tensor, "3 height width"] | None = None) -> int:
    """Largest, in levels of 255."""
    apart = (levels(one).int() - levels(other).int()).abs()
    return int(apart.max() if where is None else apart[where].max())


def levels(picture: Image.Image) -> UInt8[Tensor, "3 height width"]:
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).contiguous()


def to_image(picture: UInt8[Tensor, "3 height width"]) -> Image.Image:
    return Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
