"""The two of `undertow diff`, as they were typed, and as a bundle names them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from undertow.cli.diff_options import Against
from undertow.cli.model_loading import Backend, LoadingOptions, Precision
from undertow.cli.named_files import model_place, require_adapters, require_model
from undertow.errors import InvalidInput

if TYPE_CHECKING:
    from undertow.adapters.adapter import Adapter
    from undertow.inspection.bundle import Bundle
    from undertow.inspection.departure_runs import Drawing
    from undertow.inspection.diffusers_tree import DiffusersTree
    from undertow.service import UNetService


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two, as it was typed. against: the library whose U-Net it is, where it is not undertow's."""

    source: str
    loading: LoadingOptions
    adapters: "tuple[Adapter, ...]"
    against: Against | None = None

    @property
    def title(self) -> str:
        if self.against is not None:
            return str(self.against)
        loading = self.loading
        words = [
            loading.precision,
            loading.attention,
            None if loading.backend is Backend.eager else loading.backend,
            loading.device,
        ]
        said = [str(word) for word in words if word is not None] + [one.title for one in self.adapters]
        return f"{self.source} ({', '.join(said)})" if said else self.source

    def require(self) -> None:
        """Errors: `InvalidInput` for files that are not there, and for what another library's U-Net does not take."""
        if self.against is not None and (
            self.adapters or self.loading.backend != Backend.eager or self.loading.attention or self.loading.device
        ):
            expected = "none of --lora-b, --backend-b, --attention-b and --device-b beside it"
            raise InvalidInput("--against", self.against, expected)
        require_model(self.source)
        require_adapters(self.adapters, model_place(self.source))

    def load(self) -> "UNetService | DiffusersTree":
        """Imports torch."""
        return self.load_service() if self.against is None else self._load_tree()

    def load_service(self) -> "UNetService":
        """The side as undertow runs it."""
        return self.loading.load(self.source)

    def _load_tree(self) -> "DiffusersTree":
        from undertow.cli.model_loading import dtype_of
        from undertow.embedded import located
        from undertow.inspection.diffusers_tree import load_diffusers_unet

        return load_diffusers_unet(located(self.source), dtype_of(self.loading.precision, self.source))

    def to_json(self, loaded: "Drawing | DiffusersTree") -> dict[str, Any]:
        """For a bundle. loaded: what it was loaded as."""
        return {
            "source": self.source,
            "precision": self.loading.precision,
            "attention": self.loading.attention,
            "device": self.loading.device,
            "backend": self.loading.backend,
            "adapters": [f"{one.source}@{','.join(f'{scale:g}' for scale in one.scales)}" for one in self.adapters],
            "computes": computes(loaded),
        }


def computes(side: "Drawing | DiffusersTree") -> str:
    """What runs a side, in words."""
    from undertow.inspection.departure_runs import described
    from undertow.inspection.diffusers_tree import DiffusersTree

    return "diffusers" if isinstance(side, DiffusersTree) else described(side)


def models_of(bundle: "Bundle", a: str | None, b: str | None) -> "tuple[UNetService, UNetService]":
    """Both models, as the bundle names them or as they were typed. Errors: `InvalidInput` for diffusers."""
    loaded: list[UNetService] = []
    for which, typed in (("a", a), ("b", b)):
        side = bundle.side(which)
        if side.get("computes") == "diffusers":
            raise InvalidInput("--replay", bundle.folder, "a bundle of two models", "compare with diffusers again")
        precision = side.get("precision")
        loading = LoadingOptions(
            precision=None if precision is None else Precision(precision),
            attention=side.get("attention"),
            device=side.get("device"),
        )
        source = str(side["source"]) if typed is None else typed
        require_model(source)
        loaded.append(loading.load(source))
    return loaded[0], loaded[1]
