"""The tensors of a model in one file of any format that models come in."""

from pathlib import Path

from undertow.checkpoints.files.gguf_file import GgufFile
from undertow.checkpoints.files.sniff import sniff
from undertow.checkpoints.files.weights import Weights, open_weights


def open_model_file(path: str | Path) -> Weights:
    """Opens a safetensors or GGUF file of a model. Errors as in `read_header` and `read_gguf_header`."""
    path = Path(path)
    return Weights(path, [GgufFile(path)]) if sniff(path) == "gguf" else open_weights(path)
