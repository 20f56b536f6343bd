"""OpenVINO's own format (https://docs.openvino.ai): a network in XML, and its weights in a file beside it."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

from undertow.export.parts import Part
from undertow.export.running import Run
from undertow.export.torch_export import exported
from undertow.unet.openvino import Converter


def write(part: Part, file: Path) -> None:
    """Writes the network, with weights in float16 where the part's are, and its inputs and outputs by name."""
    model = Converter().model(exported(part), dynamic_shapes=part.other is not None)
    for port, name in (*zip(model.inputs, part.inputs, strict=True), *zip(model.outputs, part.outputs, strict=True)):
        port.get_tensor().set_names({name})
    import_module("openvino").save_model(model, str(file), compress_to_fp16=part.stored == torch.float16)


def read(file: Path, outputs: int) -> Run:
    """The file as a function, computed in float32 on the CPU."""
    core = import_module("openvino").Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    request = core.compile_model(core.read_model(str(file)), "CPU", settings).create_infer_request()

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        request.infer([tensor.contiguous().numpy() for tensor in inputs])
        return [torch.from_numpy(request.get_output_tensor(index).data.copy()) for index in range(outputs)]

    return run
