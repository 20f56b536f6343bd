"""A1111's text about a picture of ours, in its own spelling, so that other tools and Civitai read it."""

from collections.abc import Mapping

from undertow.adapters.adapter import Adapter
from undertow.checkpoints.files.hashes import lora_hash, model_hash
from undertow.engine.parts import HighResolution
from undertow.engine.report import Report
from undertow.infotext.settings import Infotext, format_infotext
from undertow.sampling.catalogue import SAMPLERS
from undertow.sampling.names import sampler_in, schedule_in

LORA = "LoRA"
"""The kind of adapter that A1111 knows by a tag in the prompt."""

TOOL, VERSION = "A1111", "undertow"


def a1111_text(report: Report, index: int) -> str:
    """A1111's "infotext" of picture `index` of a result (modules/processing.py, create_infotext)."""
    request = report.request
    settings = {
        "Steps": request.step_count,
        "Sampler": _sampler(report.sampler or request.sampler),
        "Schedule type": None if request.sigmas is not None else _schedule(report.schedule or request.schedule),
        "CFG scale": f"{request.guidance_scale:g}",
        "Seed": request.seeds[index],
        "Size": _first_size(report),
        **_model(report),
        **_variation(report, index),
        "Denoising strength": _strength(report),
        "Clip skip": request.clip_skip,
        "RNG": "CPU",
        "Tiling": True if request.seamless == "both" else None,
        **_second_pass(request.high_resolution),
        "Lora hashes": _lora_hashes(report),
        "TI hashes": _listed(report.files.embedding_hashes()),
        "Version": VERSION,
    }
    return format_infotext(
        Infotext(
            prompt=" ".join([request.prompt, *_tags(report)]),
            negative_prompt=request.negative_prompt,
            settings={name: str(value) for name, value in settings.items() if value is not None},
        )
    )


def _sampler(name: str) -> str:
    """A1111's name; ours where it has none."""
    return (sampler_in(TOOL, name) if name in SAMPLERS else None) or name


def _schedule(name: str | None) -> str | None:
    return None if name is None else schedule_in(TOOL, name) or name


def _first_size(report: Report) -> str:
    """Of the first pass, which A1111 calls the size."""
    (height, width), how = report.size, report.request.high_resolution
    if how is not None:
        height, width = report.request.size or (round(height / how.scale), round(width / how.scale))
    return f"{width}x{height}"


def _model(report: Report) -> dict[str, str | None]:
    path = report.files.model
    return {"Model hash": None if path is None else model_hash(path), "Model": report.model.rpartition("/")[2]}


def _variation(report: Report, index: int) -> dict[str, object]:
    request = report.request
    if not request.variation_strength or request.variation_seed is None:
        return {}
    return {
        "Variation seed": request.variation_seed + index,
        "Variation seed strength": f"{request.variation_strength:g}",
    }


def _strength(report: Report) -> str | None:
    """Of the second pass if there is one, else of a picture that was started from."""
    request = report.request
    if request.high_resolution is not None:
        return f"{request.high_resolution.strength:g}"
    return None if request.image is None else f"{request.strength:g}"


def _second_pass(how: HighResolution | None) -> dict[str, object]:
    if how is None:
        return {}
    return {
        "Hires upscale": f"{how.scale:g}",
        "Hires steps": how.steps,
        "Hires upscaler": "Latent" if how.upscale == "latent" else "Lanczos",
    }


def _tags(report: Report) -> list[str]:
    """The request's LoRAs as A1111 has them, in the prompt; of a scale that changes, the first."""
    loras = {used.title for used in report.files.adapters if used.kind == LORA}
    return [f"<lora:{one.title}:{one.scales[0]:g}>" for one in _adapters(report) if one.title in loras]


def _lora_hashes(report: Report) -> str | None:
    known = {used.title: lora_hash(used.path) for used in report.files.adapters if used.kind == LORA}
    return _listed({title: digits for title, digits in known.items() if digits is not None})


def _listed(hashes: Mapping[str, str]) -> str | None:
    return ", ".join(f"{name}: {digits}" for name, digits in hashes.items()) or None


def _adapters(report: Report) -> list[Adapter]:
    """Those that act on the whole picture."""
    return list(report.request.adapters)
