"""What `--debug` can watch. Imports no torch, so that a misspelled word is answered at once."""

from dataclasses import dataclass

from undertow.errors import InvalidInput

FLAGS = ("nan", "timing", "shapes")


@dataclass(frozen=True, kw_only=True)
class Debug:
    """Which watches are on. nan: stop at the first non-finite tensor. timing, shapes: lines in the report."""

    nan: bool = False
    timing: bool = False
    shapes: bool = False

    @classmethod
    def parse(cls, text: str) -> "Debug":
        """From a comma list such as "nan,shapes", or "all". Errors: `InvalidInput` for another word."""
        words = [word.strip() for word in text.lower().split(",") if word.strip()]
        if words == ["all"]:
            words = list(FLAGS)
        for word in words:
            if word not in FLAGS:
                raise InvalidInput("debug", repr(word), f"all, or a comma list of {', '.join(FLAGS)}")
        return cls(**dict.fromkeys(words, True))
