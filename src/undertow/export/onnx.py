"""ONNX (https://onnx.ai): for ONNX Runtime, in other languages and on other hardware."""

import logging
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undertow.export.parts import Part
from undertow.export.running import Run
from undertow.export.torch_export import exported

OPSET = 20
"""Of ONNX's operators: the first with GELU, read by every ONNX Runtime since 1.17."""

LEAST_STORED = 1024
"""Numbers of a tensor that is worth a cast: constants of the mathematics are smaller, and need their precision."""

INSIDE_BYTES = 2**31 - 2**20
"""Most that one file can hold, a protocol buffer; weights of larger networks lie beside it."""


def program_of(part: Part) -> Any:
    """The part as an ONNX program of PyTorch's exporter."""
    with warnings.catch_warnings(), _quiet("torch.onnx"):
        warnings.simplefilter("ignore")  # of names within the exporter that will change
        return torch.onnx.export(
            exported(part),
            input_names=list(part.inputs),
            output_names=list(part.outputs),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )


@contextmanager
def _quiet(name: str) -> Generator[None]:
    """Without a line for each operation of a package that is not installed, and that nothing here needs."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


def write(part: Part, file: Path) -> None:
    """Writes the program; weights of more than two gigabytes into a second file beside it. Weights that are stored in
    float16 and computed in float32 are converted by the program itself, when it is loaded."""
    program = program_of(part)
    forget_origins(program.model)
    if part.stored != part.dtype:
        store_in_half(program.model)
    size = sum(weight.numel() * weight.element_size() for weight in part.module.state_dict().values())
    program.save(file, external_data=size > INSIDE_BYTES)


def forget_origins(model: Any) -> None:
    """Leaves out from which lines of which files operations came: it tells of this machine, and no runtime reads it."""
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        for node in graph:
            node.metadata_props.clear()
            for value in node.outputs:
                value.metadata_props.clear()
        for value in (*graph.inputs, *graph.initializers.values()):
            value.metadata_props.clear()
        graph.metadata_props.clear()


def store_in_half(model: Any) -> None:
    """Stores the weights of a program as float16, each with a cast behind it, and leaves small tensors as they are."""
    ir = import_module("onnx_ir")
    graph = model.graph
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor.dtype != ir.DataType.FLOAT or tensor.size < LEAST_STORED:
            continue
        numbers = tensor.numpy()
        if np.abs(numbers).max() > np.finfo(np.float16).max:
            continue  # a mask, or weights that float16 does not hold
        half = ir.Value(name=f"{name}_f16", const_value=ir.tensor(numbers.astype(np.float16)))
        half.dtype, half.shape = ir.DataType.FLOAT16, value.shape
        cast = ir.node("Cast", [half], attributes={"to": ir.DataType.FLOAT})
        graph.initializers.pop(name)
        ir.convenience.replace_all_uses_with(value, cast.outputs[0])
        cast.outputs[0].name, cast.outputs[0].dtype, cast.outputs[0].shape = name, value.dtype, value.shape
        graph.register_initializer(half)
        graph.insert_before(graph[0], cast)


def read(file: Path, outputs: int) -> Run:
    """The file as a function, run by ONNX Runtime on the CPU."""
    onnxruntime = import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # warnings say which operations stay on the CPU, where all of them are
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        given = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        return [torch.from_numpy(array) for array in session.run(None, given)[:outputs]]

    return run
