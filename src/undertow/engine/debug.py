"""What `--debug` can watch. Imports no torch, so that a misspelled word is answered at once."""

from dataclasses import dataclass

from undertow.errors import InvalidInput
from undertow.lookup import did_you_mean

FLAGS = ("timing", "nan", "shapes", "vae", "sampler", "layers")


@dataclass(frozen=True, kw_only=True)
class Debug:
    """Which watches are on. nan: stop at the first tensor that is not finite, also inside the network, and say why.
    The others put lines into the report: seconds of stages; what passes between stages; NaN and Inf of the
    autoencoder's blocks; every step of the sampler; every layer of the U-Net."""

    nan: bool = False
    timing: bool = False
    shapes: bool = False
    vae: bool = False
    sampler: bool = False
    layers: bool = False

    @classmethod
    def parse(cls, text: str | bool) -> "Debug":
        """From a comma list such as "nan,shapes", or "all", which `True` says too. Errors: `InvalidInput` for another
        word."""
        if isinstance(text, bool):
            return cls(**dict.fromkeys(FLAGS, text))
        words = [word.strip() for word in text.lower().split(",") if word.strip()]
        if words == ["all"]:
            words = list(FLAGS)
        for word in words:
            if word not in FLAGS:
                near = did_you_mean(word, [*FLAGS, "all"]).removesuffix("; ")
                raise InvalidInput("debug", repr(word), f"all, or a comma list of {', '.join(FLAGS)}", near)
        return cls(**dict.fromkeys(words, True))
