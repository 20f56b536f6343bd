"""What the catalogue says about a sampler."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from undertow.diffusion.paths import Path, RectifiedFlow, VarianceExploding, VariancePreserving
from undertow.sampling.options import Option
from undertow.sampling.protocol import SamplerFunction

ANY_PATH = (VariancePreserving, VarianceExploding, RectifiedFlow)
DIFFUSION = (VariancePreserving, VarianceExploding)

TOOLS = ("ComfyUI", "A1111", "diffusers")


@dataclass(frozen=True, kw_only=True)
class SamplerEntry:
    """An algorithm and what a planner or a menu wants to know about it.

    order: the error shrinks as step^order (of the deterministic part, after the first steps); `None` for distilled
    models, whose every estimate is a picture. stochastic: draws noise by default. evaluations: network calls per step,
    a last step to 0 may need fewer; `None` when the sampler decides.
    paths: kinds of path on which it runs. native_flow: its formulas hold on the flow path as they are; others run there
    by a change of variables (`flow.along_flow`). guided: needs the unconditional estimate (CFG++). inverse: runs from a
    clean x up the grid. discards_penultimate: ComfyUI and A1111 leave out the last level above 0 for it
    (`grids.discard_penultimate`). aliases: its names in other tools.
    """

    function: SamplerFunction
    order: int | None
    stochastic: bool = False
    evaluations: int | None = 1
    paths: tuple[type[Path], ...] = ANY_PATH
    native_flow: bool = False
    guided: bool = False
    inverse: bool = False
    discards_penultimate: bool = False
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])

    @property
    def options(self) -> Mapping[str, Option]:
        """The numbers it may be tuned with, by name."""
        return self.function.options
