"""Poor pictures because of adapters: of another family, too strong, or without any effect."""

from collections.abc import Iterator
from functools import partial

from undertow.errors import CheckpointError, DamagedWeights
from undertow.inspection.conflict_figure import relative_sizes
from undertow.inspection.doctor.case import Case
from undertow.inspection.doctor.finding import Seen, rule

TOO_STRONG = 1.0
"""`‖ΔW‖ / ‖W‖` of a block: a change as large as the weights themselves. Published LoRA have 0.01 to 0.2."""

SCALES = 2.0
"""Scales of adapters that people use end here."""

adapter_rule = partial(rule, family="picture")


@adapter_rule(
    "adapter-of-another-model",
    symptom="an error when the adapter is read, or no effect",
    prevention="undertow inspect ADAPTER --model MODEL says what of it fits",
)
def adapter_of_another_model(case: Case) -> Iterator[Seen]:
    """Files that cannot be read for this model."""
    for adapter, found in case.read_adapters:
        if isinstance(found, CheckpointError) and not isinstance(found, DamagedWeights):
            yield Seen(
                evidence=str(found),
                cause=f"{adapter.title} was not made for a model like this one",
                fix=f"leave {adapter.title} out, or draw with a model of its family",
                module=adapter.title,
                severity="serious",
            )


@adapter_rule(
    "adapter-too-strong",
    symptom="burnt, distorted pictures with the adapter",
    prevention="undertow adapters impact shows the size of the changes block by block",
)
def adapter_too_strong(case: Case) -> Iterator[Seen]:
    """Changes of weights as large as the weights, or a scale beyond the usual ones."""
    readable = [adapter for adapter, found in case.read_adapters if not isinstance(found, CheckpointError)]
    sizes = relative_sizes(case.manager.summarize(readable), case.unet)
    for adapter in readable:
        scale = max(adapter.scales, key=abs)
        if adapter.title in sizes.columns:
            column = sizes.values[:, sizes.columns.index(adapter.title)].nan_to_num()
            place = int(column.argmax())
            if (strength := float(column[place])) > TOO_STRONG:
                yield Seen(
                    evidence=f"‖ΔW‖ / ‖W‖ = {strength:.2f} in {sizes.blocks[place]} at scale {scale:g}",
                    cause="the adapter outweighs the model",
                    fix=f"give {adapter.title} a scale of about {scale * 0.2 / strength:.2g}",
                    module=sizes.blocks[place],
                )
                continue
        if abs(scale) > SCALES:
            yield Seen(
                evidence=f"scale {scale:g}, beyond {SCALES:g}",
                cause="the adapter acts several times as strongly as it was trained",
                fix=f"give {adapter.title} a scale of 1 or less",
                module=adapter.title,
            )


@adapter_rule(
    "adapter-without-effect",
    symptom="the adapter changes nothing",
    prevention="undertow adapters impact measures what an adapter does to the predictions",
)
def adapter_without_effect(case: Case) -> Iterator[Seen]:
    """A scale of 0, or changes of nothing but zeros."""
    for adapter, found in case.read_adapters:
        if isinstance(found, CheckpointError):
            continue
        (summary,) = case.manager.summarize([adapter])
        idle = not any(adapter.scales)
        if not idle and summary.scaled is not None:
            column = relative_sizes([summary], case.unet).values.nan_to_num()
            idle = float(column.max()) == 0
        if idle:
            yield Seen(
                evidence=f"scale {max(adapter.scales, key=abs):g}; ‖ΔW‖ = 0 in all {summary.size_bytes:,} bytes of it"
                if any(adapter.scales)
                else "scale 0 in every step",
                cause="its tensors are the zeros that training begins with"
                if any(adapter.scales)
                else "it is switched off",
                fix=f"give {adapter.title} a scale, or leave it out",
                module=adapter.title,
            )


RULES = (adapter_of_another_model, adapter_too_strong, adapter_without_effect)
