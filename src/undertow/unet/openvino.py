"""U-Nets run by OpenVINO, Intel's inference library for CPUs (https://docs.openvino.ai), where it is faster.

Its network is made from ours at the first call of every size, from a copy of the weights. What it has no inputs for is
computed by ours: ports (LoRA in slots, ControlNet, IP-Adapter, perturbed attention), observed maps, and float64.
"""

import warnings
from collections.abc import Callable, Hashable
from dataclasses import fields
from importlib import import_module
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from undertow.attention.chosen import kernel_named
from undertow.errors import InvalidInput
from undertow.extras import optional_package
from undertow.shapes import Latents, Timesteps
from undertow.unet.conditioning import Conditioning, Ports
from undertow.unet.unet import UNet, UNetOutput

HINTS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
"""The type that OpenVINO computes in. By itself it would take bfloat16 for float32 weights, where the processor can."""

Compiled = Callable[[list[Tensor]], Tensor]


class OpenVINONetworks:
    """Computes `predict` of U-Nets by OpenVINO. Their weights must not change afterwards.

    Errors: `MissingDependency`.
    """

    def __init__(self):
        self._converter = Converter()
        self._core = import_module("openvino").Core()
        self._made: WeakKeyDictionary[nn.Module, dict[Hashable, Compiled]] = WeakKeyDictionary()

    def predict(self, network: nn.Module, *inputs: Any) -> Any:
        """`network.predict(*inputs)`. Errors: `InvalidInput` for a network that is on no CPU."""
        if not isinstance(network, UNet) or network.dtype not in HINTS or not _plain(*inputs):
            return network.predict(*inputs)  # pyright: ignore[reportCallIssue]  networks have one
        if network.device.type != "cpu":
            raise InvalidInput("device", network.device, "cpu with backend='openvino'", "load the model on the CPU")
        latents, timesteps, conditioning = inputs[:3]
        names = tuple(field.name for field in fields(Conditioning) if getattr(conditioning, field.name) is not None)
        tensors = [latents, timesteps.to(torch.float32), *(getattr(conditioning, name) for name in names)]
        kind = (names, torch.get_num_threads(), *((tuple(one.shape), one.dtype) for one in tensors))
        made = self._made.setdefault(network, {})
        if kind not in made:
            made[kind] = self._make(network, names, tensors)
        return UNetOutput(prediction=made[kind](tensors).to(latents.dtype), observations={})

    def _make(self, network: UNet, names: tuple[str, ...], tensors: list[Tensor]) -> Compiled:
        inputs = [one.float() if one.is_floating_point() else one for one in tensors]
        # Traced as if gradients were wanted: our own ways to compute a product, for inference, are none of OpenVINO's.
        with torch.inference_mode(False), torch.enable_grad():
            given = tuple(one.clone() for one in inputs)
            exported = torch.export.export(_Predictor(network, names), given, strict=False)
        model = self._converter.model(exported)
        settings = {"INFERENCE_PRECISION_HINT": HINTS[network.dtype], "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        request = self._core.compile_model(model, "CPU", settings).create_infer_request()

        def run(tensors: list[Tensor]) -> Tensor:
            arrays = [(one.float() if one.is_floating_point() else one).contiguous().numpy() for one in tensors]
            return torch.from_numpy(request.infer(arrays)[0].copy())

        return run


class Converter:
    """Makes OpenVINO's networks from exported ones. Errors: `MissingDependency`."""

    def __init__(self):
        with optional_package("openvino", "openvino"):
            self._frontend = import_module("openvino.frontend").FrontEndManager().load_by_framework("pytorch")
            self._decoder = import_module("openvino.frontend.pytorch.fx_decoder").TorchFXPythonDecoder
            known = import_module("openvino.frontend.pytorch.torchdynamo.export_decompositions")
        self._whole = known.ops_to_not_decompose()
        """Operations that OpenVINO knows, and that are smaller ones for PyTorch."""

    def model(self, exported: torch.export.ExportedProgram, *, dynamic_shapes: bool = False) -> Any:
        """OpenVINO's network. dynamic_shapes: sizes that the exported one leaves free are free in it too."""
        smaller = torch.export.default_decompositions()
        for operation in self._whole:
            if operation in smaller:
                smaller.pop(operation)
        with torch.inference_mode(False), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of how openvino 2026.4 reads what torch 2.13 exports
            # As `openvino.convert_model` does it, which would tell its makers that it was called.
            decoder = self._decoder(exported.run_decompositions(smaller).module(), dynamic_shapes=dynamic_shapes)
            return self._frontend.convert(self._frontend.load(decoder))


class _Predictor(nn.Module):
    """The U-Net in float32, with tensors alone as inputs, and attention that OpenVINO knows as one operation."""

    def __init__(self, network: UNet, names: tuple[str, ...]):
        super().__init__()
        with torch.device("meta"):
            self.network = UNet(network.config, kernel_named("sdpa")).requires_grad_(False)
        weights = {name: tensor.detach().float() for name, tensor in network.state_dict().items()}
        self.network.load_state_dict(weights, assign=True)
        self.names = names

    def forward(self, latents: Latents, timesteps: Timesteps, *given: Tensor) -> Tensor:
        conditioning = Conditioning(**dict(zip(self.names, given, strict=True)))
        return self.network.predict(latents, timesteps, conditioning, Ports()).prediction


def _plain(
    latents: Latents, timesteps: Timesteps, conditioning: Conditioning, ports: Ports, observed: tuple[str, ...] = ()
) -> bool:
    """Whether OpenVINO's network has inputs for all of it."""
    del latents, timesteps, conditioning
    return ports == Ports() and not observed
