"""Keys and values of texts, computed at the first forward of the rows that share it and read by those that follow."""

from collections.abc import Sequence
from weakref import ref

from torch import Tensor

from undertow.engine.rows import Row
from undertow.nn.attention import KeysAndValues
from undertow.unet.unet import UNet


class KeptText:
    """What cross-attentions made of the texts of one batch, for as long as the batch stays the same.

    A text changes neither from step to step nor with the latents, so its projections are the same at every step. They
    are kept for the rows of one forward together, in their order, as one product makes them: the bits of a picture are
    those that it has without. Rows that join or leave, or other merged weights, make them anew.
    """

    def __init__(self) -> None:
        self._unet: ref[UNet] | None = None
        self._contexts: list[ref[Tensor]] = []
        self._merged: object = None
        self._found: dict[str, KeysAndValues] = {}

    def of(self, rows: Sequence[Row]) -> dict[str, KeysAndValues] | None:
        """Those of a forward of these rows, which it fills where they are missing; `None` for rows without text."""
        contexts = [row.conditioning.context for row in rows]
        given = [one for one in contexts if one is not None]
        if len(given) < len(contexts):
            return None
        if not self._are_of(rows[0].unet, rows[0].merged, given):
            self._unet, self._merged = ref(rows[0].unet), rows[0].merged
            self._contexts, self._found = [ref(one) for one in given], {}
        return self._found

    def forget(self) -> None:
        """Frees them."""
        self._contexts, self._found = [], {}

    def _are_of(self, unet: UNet, merged: object, contexts: Sequence[Tensor]) -> bool:
        same = len(contexts) == len(self._contexts) and self._unet is not None and self._unet() is unet
        return (
            same
            and merged == self._merged
            and all(kept() is one for kept, one in zip(self._contexts, contexts, strict=True))
        )
