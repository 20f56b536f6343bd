"""Two networks at one point of a trajectory: a frozen teacher, whose guidance may be part of what it says, and the
student that learns from it. Both see the captions of the training pictures."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from undertow.checkpoints.read.model import LoadedModel
from undertow.diffusion.denoiser import Preconditioning
from undertow.diffusion.guidance import ClassifierFree
from undertow.shapes import Latents, Sigmas
from undertow.training.batches import indices_at
from undertow.training.captioned import CaptionedPictures
from undertow.training.examples import FixedCaptions
from undertow.training.fit import FitSettings
from undertow.training.randomness import generator_for
from undertow.training.timesteps import TimestepDistribution
from undertow.unet.unet import UNet


@dataclass(frozen=True, kw_only=True, eq=False)
class DistillationBatch:
    """The batch of a step. step: from 1. indices: which training pictures are in it. x0: their latents. u: positions in
    [0, 1) along the path, of which each method makes its noise levels. uniform: a random number in [0, 1) for each row,
    which decides whether its caption is dropped, where a method drops any."""

    step: int
    indices: Int[Tensor, "batch"]
    x0: Latents
    noise: Latents
    u: Float64[Tensor, "batch"]
    uniform: Float[Tensor, "batch"]


@dataclass(frozen=True, kw_only=True, eq=False)
class DistillationData:
    """The dataset: the batch of a step depends on the step alone."""

    latents: Float[Tensor, "count channels height width"]
    fit: FitSettings
    timesteps: TimestepDistribution
    device: torch.device

    def at(self, step: int) -> DistillationBatch:
        """Returns the batch of a step."""
        generator = generator_for(self.fit.seed, "distillation batch", step)
        indices = indices_at(step, self.fit.batch_size, len(self.latents), self.fit.seed)
        x0 = self.latents[indices]
        u = self.timesteps.draw(len(x0), generator)
        noise = torch.randn(x0.shape, generator=generator).to(self.device)
        uniform = torch.rand(len(x0), generator=generator)
        return DistillationBatch(step=step, indices=indices, x0=x0.to(self.device), noise=noise, u=u, uniform=uniform)


@dataclass(frozen=True, kw_only=True, eq=False)
class TeacherAndStudent:
    """The two networks, with the mathematics and the captions that both share."""

    teacher: UNet
    student: UNet
    captions: FixedCaptions
    preconditioning: Preconditioning

    @classmethod
    def of(cls, model: LoadedModel, student: UNet, pictures: CaptionedPictures) -> "TeacherAndStudent":
        """The model's own U-Net teaches; captions are encoded once."""
        teacher = model.require_unet()
        return cls(
            teacher=teacher,
            student=student,
            captions=FixedCaptions.of(model.require_text(), teacher.config, pictures),
            preconditioning=Preconditioning(parameterization=model.parameterization, schedule=model.schedule),
        )

    def noisy(self, batch: DistillationBatch, sigma: Sigmas) -> Latents:
        """The pictures of the batch at these noise levels, all with the batch's noise: points of one trajectory."""
        return self.preconditioning.parameterization.path.add_noise(batch.x0, batch.noise, sigma)

    def learned(self, x: Latents, sigma: Sigmas, indices: Int[Tensor, "batch"]) -> Latents:
        """The student's prediction for pictures with these captions, in float32."""
        return self.predicted(self.student, x, sigma, indices, _none(indices))

    @torch.no_grad()
    def taught(self, x: Latents, sigma: Sigmas, indices: Int[Tensor, "batch"], guidance: float = 1.0) -> Latents:
        """The teacher's prediction with classifier-free guidance, in float32. A scale of 1 is one forward, else two."""
        method = ClassifierFree(scale=guidance)
        none = _none(indices)
        dropped = [~none if branch == "unconditional" else none for branch in method.branches]
        return method.combine([self.predicted(self.teacher, x, sigma, indices, each) for each in dropped])

    def estimate(self, prediction: Latents, x: Latents, sigma: Sigmas) -> Latents:
        """The estimate of x0 that a prediction means."""
        return self.preconditioning.denoised(prediction, x, sigma)

    def predicted(
        self, unet: UNet, x: Latents, sigma: Sigmas, indices: Int[Tensor, "batch"], dropped: Bool[Tensor, "batch"]
    ) -> Latents:
        """A network's prediction for pictures with these captions, in float32; those of rows in `dropped` are empty."""
        given = self.captions.conditioning(indices, dropped)
        inputs, timesteps = self.preconditioning.inputs(x, sigma)
        return unet(inputs.to(memory_format=torch.channels_last), timesteps, given).float()


def _none(indices: Int[Tensor, "batch"]) -> Bool[Tensor, "batch"]:
    """No row's caption is dropped."""
    return torch.zeros(len(indices), dtype=torch.bool)
