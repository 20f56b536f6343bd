"""The tensors of a model in one file of any format that models come in."""

from pathlib import Path

from undertow.checkpoints.files.gguf_file import GgufFile
from undertow.checkpoints.files.scaled import plain_file
from undertow.checkpoints.files.sniff import sniff
from undertow.checkpoints.files.weights import WeightFile, Weights


def open_model_file(path: str | Path) -> Weights:
    """Opens a safetensors or GGUF file of a model. Errors as in `read_header`,
    `read_gguf_header` and `plain_view`."""
    path = Path(path)
    if sniff(path) == "gguf":
        return Weights(path, [GgufFile(path)])
    return Weights(path, [plain_file(WeightFile(path))])
