"""Requests of A1111's API in words of ours (modules/api/models.py and modules/processing.py of version 1.10)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from annotated_types import Ge, Le

from undertow.doors import shown
from undertow.errors import InvalidInput
from undertow.known_names import AUTOMATIC
from undertow.records import Finite, Record
from undertow.serving.api.compatible.a1111.control import Unit, units_in
from undertow.serving.api.compatible.a1111.options import Options
from undertow.serving.api.compatible.a1111.prompts import embeddings_in, require_no_tags, split_prompt
from undertow.serving.api.compatible.a1111.samplers import sampler_options, schedule_of
from undertow.serving.api.compatible.fixed import Fixed, require_fixed, without_fixed
from undertow.serving.api.compatible.texts import without_texts
from undertow.serving.catalog.entries import AdapterEntry

Share = Annotated[Finite, Ge(0), Le(1)]
LONGEST_TASK = 200

NOT_KEPT = "pictures are kept by the service and come in the answer"

FIXED: Mapping[str, Fixed] = {
    "styles": Fixed(values=([],), remedy="write the style into the prompt"),
    "seed_resize_from_h": Fixed(values=(-1, 0), remedy="undertow does not resize noise"),
    "seed_resize_from_w": Fixed(values=(-1, 0), remedy="undertow does not resize noise"),
    "restore_faces": Fixed(values=(False,), remedy="nothing is drawn over faces"),
    "do_not_save_samples": Fixed(values=(False, True)),
    "do_not_save_grid": Fixed(values=(False, True)),
    "save_images": Fixed(values=(False,), remedy=NOT_KEPT),
    "do_not_reload_embeddings": Fixed(values=(False, True)),
    "ddim_discretize": Fixed(values=("uniform",), remedy="name a scheduler"),
    "s_min_uncond": Fixed(values=(0,), remedy="guidance acts in every step"),
    "refiner_checkpoint": Fixed(values=("", "None"), remedy="undertow serves no refiners"),
    "disable_extra_networks": Fixed(values=(False,), remedy="leave the tags out of the prompt"),
    "firstpass_image": Fixed(remedy="use img2img"),
    "comments": Fixed(values=({},)),
    "script_name": Fixed(values=("",), remedy="undertow runs no scripts"),
    "script_args": Fixed(values=([],), remedy="undertow runs no scripts"),
    "infotext": Fixed(values=("",), remedy="give the fields themselves"),
    "firstphase_width": Fixed(values=(0,), remedy="width and height are the first pass's"),
    "firstphase_height": Fixed(values=(0,), remedy="width and height are the first pass's"),
    "latent_mask": Fixed(remedy="give mask"),
    "initial_noise_multiplier": Fixed(values=(1,), remedy="noise has the size that the model was trained with"),
    "mask_round": Fixed(values=(True, False)),
    "token_merging_ratio": Fixed(values=(0,), remedy="undertow merges no tokens"),
    "token_merging_ratio_hr": Fixed(values=(0,), remedy="undertow merges no tokens"),
}
"""A1111's fields that can only have one meaning here."""

HIRES: Mapping[str, Fixed] = {
    "hr_resize_x": Fixed(values=(0,), remedy="give hr_scale"),
    "hr_resize_y": Fixed(values=(0,), remedy="give hr_scale"),
    "hr_checkpoint_name": Fixed(values=("", "Use same checkpoint"), remedy="both passes have the same model"),
    "hr_sampler_name": Fixed(values=("", "Use same sampler"), remedy="both passes have the same sampler"),
    "hr_scheduler": Fixed(values=("", "Use same scheduler"), remedy="both passes have the same scheduler"),
    "hr_prompt": Fixed(values=("",), remedy="both passes have the same prompt"),
    "hr_negative_prompt": Fixed(values=("",), remedy="both passes have the same prompt"),
}
"""The same of a second pass; without one they mean nothing."""

NAMES = {
    "count": "batch_size * n_iter",
    "guidance_scale": "cfg_scale",
    "size": "height, width",
    "sampler": "sampler_name",
    "schedule": "scheduler",
    "strength": "denoising_strength",
    "image": "init_images[0]",
    "high_resolution": "hr_scale",
    "clip_skip": "CLIP_stop_at_last_layers",
    "variation_seed": "subseed",
    "variation_strength": "subseed_strength",
    "model": "sd_model_checkpoint",
}
"""A1111's names of our fields, where it has others."""

UPSCALERS = {"Latent": "latent", "Lanczos": "pixels", "None": "pixels"}
"""Of the second pass."""


@dataclass(frozen=True, kw_only=True)
class Drawing(Record):
    """What txt2img and img2img have in common, with A1111's defaults; sizes are the model's own when `None`."""

    prompt: str = ""
    negative_prompt: str = ""
    seed: int = -1
    subseed: int = -1
    subseed_strength: Share = 0.0
    seed_enable_extras: bool = True
    sampler_name: str = ""
    sampler_index: str = "Euler"
    scheduler: str = "Automatic"
    batch_size: Annotated[int, Ge(1)] = 1
    n_iter: Annotated[int, Ge(1)] = 1
    steps: Annotated[int, Ge(1)] = 50
    cfg_scale: Finite = 7.0
    width: Annotated[int, Ge(1)] | None = None
    height: Annotated[int, Ge(1)] | None = None
    tiling: bool = False
    eta: Finite | None = None
    s_churn: Finite | None = None
    s_tmin: Finite | None = None
    s_tmax: Finite | None = None
    s_noise: Finite | None = None
    refiner_switch_at: Finite | None = None
    override_settings: dict[str, Any] = field(default_factory=dict[str, Any])
    override_settings_restore_afterwards: bool = True
    alwayson_scripts: dict[str, Any] = field(default_factory=dict[str, Any])
    force_task_id: str = ""
    send_images: bool = True
    denoising_strength: Share = 0.75

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> "Drawing":
        """Errors: `InvalidInput`, also for what A1111 does and undertow does not."""
        known = {name: value for name, value in without_fixed(given, FIXED).items() if value is not None}
        found = cls.from_json(without_texts(cls, known))
        for name, script in units_in(found.alwayson_scripts)[1].items():
            if not isinstance(script, Mapping) or any(script.get("args") or ()):
                raise InvalidInput("alwayson_scripts", shown(name), "none with arguments", "undertow runs no scripts")
        if len(found.force_task_id) > LONGEST_TASK:
            value = f"{len(found.force_task_id)} characters"
            raise InvalidInput("force_task_id", value, f"at most {LONGEST_TASK}")
        if found.batch_size * found.n_iter > 1 and found.variation_strength:
            # All pictures would have the seed, and each a subseed of its own.
            raise InvalidInput("subseed_strength", found.subseed_strength, "0 for several pictures", "ask one by one")
        return found

    @property
    def units(self) -> list[Unit]:
        """Control maps."""
        return units_in(self.alwayson_scripts)[0]

    @property
    def variation_strength(self) -> float:
        return self.subseed_strength if self.seed_enable_extras else 0.0

    @property
    def sampler(self) -> str:
        return self.sampler_name or self.sampler_index

    @property
    def size(self) -> list[int] | None:
        """Height and width. Errors: `InvalidInput` for one of them alone."""
        if self.width is None and self.height is None:
            return None
        if self.width is None or self.height is None:
            missing = "width" if self.width is None else "height"
            raise InvalidInput(missing, "left out", "both width and height, or neither")
        return [self.height, self.width]

    @property
    def label(self) -> str:
        """Of the job: what `progress` and `interrupt` find it by."""
        return task_label(self.force_task_id)

    def wanted(self, options: Options, entries: Sequence[AdapterEntry], random_seed: int) -> dict[str, Any]:
        """The job, as `Admission.admit` takes it. options: of the key, and of the request. entries: of the catalog, for
        the model. random_seed: taken for a subseed of -1. Errors: `InvalidInput`."""
        require_no_tags("negative_prompt", self.negative_prompt)
        prompt, adapters = split_prompt(self.prompt)
        numbers = {"eta": self.eta, "s_churn": self.s_churn, "s_tmin": self.s_tmin, "s_tmax": self.s_tmax}
        numbers["s_noise"] = self.s_noise
        embeddings = embeddings_in((prompt, self.negative_prompt), entries)
        schedule = schedule_of(self.scheduler)
        wanted: dict[str, Any] = {
            "model": options.model,
            "format": options.format,
            "label": self.label,
            "prompt": prompt,
            "negative_prompt": self.negative_prompt,
            "count": self.batch_size * self.n_iter,
            "steps": self.steps,
            "guidance_scale": self.cfg_scale,
            "sampler": self.sampler,
            "schedule": "automatic" if schedule == AUTOMATIC else schedule,
            "sampler_options": sampler_options(self.sampler, {k: v for k, v in numbers.items() if v is not None}),
            **({} if self.seed < 0 else {"seed": self.seed}),
            **({"seamless": "both"} if self.tiling else {}),
            **({} if options.clip_skip is None else {"clip_skip": options.clip_skip}),
            **({"adapters": adapters} if adapters else {}),
            **({"embeddings": embeddings} if embeddings else {}),
        }
        if self.variation_strength:
            subseed = random_seed if self.subseed < 0 else self.subseed
            wanted |= {"variation_seed": subseed, "variation_strength": self.variation_strength}
        return wanted


@dataclass(frozen=True, kw_only=True)
class TextToImage(Drawing):
    """The body of POST /sdapi/v1/txt2img. Without `enable_hr`, fields of the second pass mean nothing."""

    enable_hr: bool = False
    hr_scale: Finite = 2.0
    hr_upscaler: str = "Latent"
    hr_second_pass_steps: Annotated[int, Ge(0)] = 0

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> "TextToImage":
        if without_texts(cls, given).get("enable_hr"):
            for name in given.keys() & HIRES.keys():
                require_fixed(name, given[name], HIRES[name])
        found = super().read({name: value for name, value in given.items() if name not in HIRES})
        assert isinstance(found, TextToImage)
        if found.enable_hr and found.hr_upscaler not in UPSCALERS:
            expected = f"one of {', '.join(UPSCALERS)}"
            raise InvalidInput("hr_upscaler", shown(found.hr_upscaler), expected, "undertow has no other upscalers")
        return found

    def wanted(self, options: Options, entries: Sequence[AdapterEntry], random_seed: int) -> dict[str, Any]:
        wanted = super().wanted(options, entries, random_seed)
        if self.size is not None:
            wanted["size"] = self.size
        if self.enable_hr and self.hr_scale > 1:
            wanted["high_resolution"] = {
                "scale": self.hr_scale,
                "strength": self.denoising_strength,
                "upscale": UPSCALERS[self.hr_upscaler],
                **({"steps": self.hr_second_pass_steps} if self.hr_second_pass_steps else {}),
            }
        return wanted


@dataclass(frozen=True, kw_only=True)
class ImageToImage(Drawing):
    """The body of POST /sdapi/v1/img2img. Without a mask, fields of inpainting mean nothing. Sizes are the picture's
    own when `None`."""

    init_images: tuple[str, ...]
    resize_mode: Annotated[int, Ge(0), Le(2)] = 0
    """0 stretches, 1 crops, 2 fills up. 3, resizing latents, is not known here."""
    image_cfg_scale: Finite | None = None
    mask: str | None = None
    mask_blur: Annotated[int, Ge(0), Le(64)] | None = None
    mask_blur_x: Annotated[int, Ge(0), Le(64)] = 4
    mask_blur_y: Annotated[int, Ge(0), Le(64)] = 4
    inpainting_fill: int = 0
    inpaint_full_res: bool = True
    inpaint_full_res_padding: Annotated[int, Ge(0)] = 0
    inpainting_mask_invert: int = 0
    include_init_images: bool = False

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> "ImageToImage":
        found = super().read(given)
        assert isinstance(found, ImageToImage)
        if len(found.init_images) != 1:
            raise InvalidInput("init_images", f"{len(found.init_images)} pictures", "one", "ask for each alone")
        if found.mask is not None and found.inpainting_fill not in (0, 1):
            remedy = "1 keeps what is there; with denoising_strength 1 nothing of it is left"
            raise InvalidInput("inpainting_fill", found.inpainting_fill, "0 or 1", remedy)
        return found

    @property
    def blur(self) -> tuple[int, int]:
        """Of the mask, in pixels, across and down."""
        return (self.mask_blur_x, self.mask_blur_y) if self.mask_blur is None else (self.mask_blur, self.mask_blur)

    def wanted(self, options: Options, entries: Sequence[AdapterEntry], random_seed: int) -> dict[str, Any]:
        wanted = super().wanted(options, entries, random_seed)
        strength = {"strength": self.denoising_strength, "strength_convention": "a1111"}
        scale = {} if self.image_cfg_scale is None else {"image_guidance_scale": self.image_cfg_scale}
        return {**wanted, **strength, **scale}


def task_label(task: str) -> str:
    return f"a1111 {task}".rstrip()


def echoed(given: Mapping[str, Any], read: Drawing) -> dict[str, Any]:
    """`parameters` of an answer: what was asked for, with the defaults of what was not."""
    hidden = {"init_images": None, "mask": None}
    keeps = not isinstance(read, ImageToImage) or read.include_init_images
    return {**read.to_json(), **given, **({} if keeps else hidden)}
