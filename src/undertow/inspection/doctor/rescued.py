"""Whether generation draws a picture although activations of the U-Net leave its type's range."""

import torch

from undertow.engine.probing import ForwardProbe
from undertow.engine.rows import Outcome, Row
from undertow.inspection.doctor.case import Case
from undertow.inspection.rescue import Rescuer


@torch.no_grad()
def is_rescued(case: Case) -> bool:
    """Whether the forward of `Case.activations` has a finite prediction once the modules that overflow are computed in
    float32, which generation does by itself (`non_finite="upcast"`, the default)."""
    row = Row(
        unet=case.unet,
        latents=case.noise().to(case.unet.dtype),
        timestep=case.first_timestep,
        conditioning=case.conditioning(conditional=True),
    )

    def again(probe: ForwardProbe) -> Outcome:
        with probe.attached(row.unet, [row]):
            return Outcome(prediction=row.unet(row.latents, row.timestep, row.conditioning))

    found = Rescuer()(row, "upcast", False, again)
    return found is not None and found.outcome is not None
