"""undertow: a diffusion U-Net engine.

Names are imported from their rooms when they are first used (PEP 562), so `import undertow` alone loads no torch.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

from undertow.errors import (
    AdapterMismatch,
    CheckpointError,
    ConfigError,
    CorruptFile,
    DamagedWeights,
    DataError,
    EngineClosed,
    InvalidInput,
    KeyMismatch,
    MissingComponent,
    MissingDependency,
    NonFiniteError,
    OutOfMemory,
    PromptError,
    RequestFailed,
    UndertowError,
    UnknownCheckpoint,
    UnsafeFile,
    UnsupportedModel,
)

# Tensors of 2 MiB and more lie in huge pages, where the system has them on request (Linux). PyTorch reads the variable
# at its first tensor; 0 turns it off. What it gains: docs/results/scaling.md.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

if TYPE_CHECKING:
    __version__: str
    from undertow.adapters.adapter import Adapter
    from undertow.adapters.lora.bank import AdapterCapacity
    from undertow.adapters.stack import AdapterStack
    from undertow.adapters.state import StateSnapshot, UNetState
    from undertow.attention.config import AttentionConfig
    from undertow.attention.policy import AttentionPolicy
    from undertow.engine.context import PredictionContext
    from undertow.engine.engine import Engine
    from undertow.engine.events import WorkEvent
    from undertow.engine.fingerprint import Fingerprint
    from undertow.engine.handle import Handle
    from undertow.engine.limits import BatchLimits
    from undertow.engine.options import RunOptions
    from undertow.engine.outcomes import OutcomeLog
    from undertow.engine.parts import HighResolution, Region, StepForecast, Views
    from undertow.engine.request import GenerationRequest
    from undertow.engine.result import GenerationResult
    from undertow.export.exporting import export_model
    from undertow.inspection.doctor.finding import Diagnosis, Finding
    from undertow.inspection.metrics import Metrics
    from undertow.inspection.profile import Profile
    from undertow.loading import load, load_unet
    from undertow.memory.plan import MemoryPlan
    from undertow.nn.attention import ImageTokens
    from undertow.service import UNetService
    from undertow.unet.conditioning import Conditioning, Ports, Residuals
    from undertow.unet.config import UNetConfig
    from undertow.unet.unet import UNet

__all__ = [
    "Adapter",
    "AdapterCapacity",
    "AdapterMismatch",
    "AdapterStack",
    "AttentionConfig",
    "AttentionPolicy",
    "BatchLimits",
    "CheckpointError",
    "Conditioning",
    "ConfigError",
    "CorruptFile",
    "DamagedWeights",
    "DataError",
    "Diagnosis",
    "Engine",
    "EngineClosed",
    "Finding",
    "Fingerprint",
    "GenerationRequest",
    "GenerationResult",
    "Handle",
    "HighResolution",
    "ImageTokens",
    "InvalidInput",
    "KeyMismatch",
    "MemoryPlan",
    "Metrics",
    "MissingComponent",
    "MissingDependency",
    "NonFiniteError",
    "OutOfMemory",
    "OutcomeLog",
    "Ports",
    "PredictionContext",
    "Profile",
    "PromptError",
    "Region",
    "RequestFailed",
    "Residuals",
    "RunOptions",
    "StateSnapshot",
    "StepForecast",
    "UNet",
    "UNetConfig",
    "UNetService",
    "UNetState",
    "UndertowError",
    "UnknownCheckpoint",
    "UnsafeFile",
    "UnsupportedModel",
    "Views",
    "WorkEvent",
    "export_model",
    "load",
    "load_unet",
]

_ROOMS = {
    "Adapter": "undertow.adapters.adapter",
    "AdapterCapacity": "undertow.adapters.lora.bank",
    "AdapterStack": "undertow.adapters.stack",
    "StateSnapshot": "undertow.adapters.state",
    "UNetState": "undertow.adapters.state",
    "export_model": "undertow.export.exporting",
    "Diagnosis": "undertow.inspection.doctor.finding",
    "Finding": "undertow.inspection.doctor.finding",
    "Metrics": "undertow.inspection.metrics",
    "Profile": "undertow.inspection.profile",
    "MemoryPlan": "undertow.memory.plan",
    "ImageTokens": "undertow.nn.attention",
    "load": "undertow.loading",
    "UNetService": "undertow.service",
    "PredictionContext": "undertow.engine.context",
    "BatchLimits": "undertow.engine.limits",
    "Engine": "undertow.engine.engine",
    "Fingerprint": "undertow.engine.fingerprint",
    "Handle": "undertow.engine.handle",
    "OutcomeLog": "undertow.engine.outcomes",
    "RunOptions": "undertow.engine.options",
    "WorkEvent": "undertow.engine.events",
    "GenerationResult": "undertow.engine.result",
    "HighResolution": "undertow.engine.parts",
    "Region": "undertow.engine.parts",
    "StepForecast": "undertow.engine.parts",
    "Views": "undertow.engine.parts",
    "GenerationRequest": "undertow.engine.request",
    "AttentionConfig": "undertow.attention.config",
    "AttentionPolicy": "undertow.attention.policy",
    "Conditioning": "undertow.unet.conditioning",
    "Ports": "undertow.unet.conditioning",
    "Residuals": "undertow.unet.conditioning",
    "UNet": "undertow.unet.unet",
    "UNetConfig": "undertow.unet.config",
    "load_unet": "undertow.loading",
}
"""Where each lazily imported name lives; the imports above tell type checkers the same."""


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib import metadata  # noqa: PLC0415  slow to import

        return metadata.version("undertow")
    if name not in _ROOMS:
        raise AttributeError(f"module 'undertow' has no attribute {name!r}")
    return getattr(import_module(_ROOMS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
