"""Where the options of `undertow plan` arrive."""

from dataclasses import fields
from pathlib import Path

from tests.cli.options.arrival import Boundary, Command, case
from undertow.cli.plan import Device
from undertow.memory.families import family
from undertow.memory.machine import this_machine
from undertow.memory.plan import plan
from undertow.memory.seconds import SecondsTable
from undertow.memory.weights import image_prompt_weights, unet_weights
from undertow.memory.work import VIT_H, Work

FREE = 10**12
ASKED = Work(vae_dtype="float32", merged=True, kept_text=True)
UNET = family("sd15").unet
assert UNET is not None
FOUND = plan(family("sd15"), ASKED)


def planning(at: Boundary) -> None:
    at.patch.setattr("undertow.free_memory.host_free_bytes", lambda: FREE)
    at.stand_in("undertow.memory.seconds.read_table", SecondsTable())
    at.stand_in("undertow.memory.plan.plan", FOUND, apart=("work",))
    at.stand_in("undertow.cli.plan._show", unnoted=("found", "subject"))
    at.stand_in("undertow.cli.plan_measure.measure_missing", unnoted=("subject", "works"))
    at.stand_in("undertow.cli.plan_picture.draw_plan", unnoted=("plan", "asked"))
    Path("old.png").touch()


COMMANDS = (
    Command(
        verb=("plan",),
        arguments={"model": "sd15"},
        boundary=planning,
        arrives={
            "plan.subject": family("sd15"),
            **{f"work.{one.name}": getattr(ASKED, one.name) for one in fields(ASKED)},
            "plan.budget_bytes": FREE,
            "plan.table": SecondsTable(),
            "plan.machine": this_machine(),
            "plan.fixed_graphs": False,
            "read_table.device": Device.cpu,
            "_show.as_json": False,
            "_show.given": False,
            "_show.layers": False,
            "files": [],
        },
        cases=(
            case("--size", "768x512", work__size=(512, 768)),
            case("--size", "500x512", refused="--size is 500x512, expected multiples of 8 pixels"),
            case("--size", "large", refused="--size is 'large', expected WIDTHxHEIGHT in pixels"),
            case("--count", "3", work__pictures=3),
            case("--count", "0", refused="--count is '0', expected at least 1"),
            case("--steps", "7", work__steps=7),
            case("--no-guidance", work__branches=1),
            case("--no-guidance", "--guidance", "--steps", "7", work__steps=7),
            case("--lora", "2", work__loras=2, work__changes_all=True, work__adapter_bytes=unet_weights(UNET)),
            case("--adapter-slots", "3", work__merged=False, work__lora_slots=3),
            case("--controlnet", "1", work__controlnets=1),
            case(
                *("--reference", "2"),
                work__references=2,
                work__image_tokens=32,  # 16 for each, of an IP-Adapter Plus
                work__image_prompt_bytes=4 * image_prompt_weights(UNET, VIT_H.width),
            ),
            case("--prompt-chunks", "3", work__tokens=231),
            case("--budget", "6GB", plan__budget_bytes=6 * 10**9, _show__given=True),
            case("--budget", "6XB", refused="--budget is '6XB', expected an amount of memory; such as 6GB"),
            case("--precision", "f16", work__dtype="float16"),
            case("--vae-precision", "bf16", work__vae_dtype="bfloat16"),
            case("--quantize", "int8-weights", refused="--quantize is int8-weights, expected nothing beside sd15"),
            case(
                *("--device", "cuda"),
                plan__budget_bytes=None,
                plan__machine=this_machine().on("cuda"),
                read_table__device=Device.cuda,
            ),
            case("--device", "tpu", refused="--device is 'tpu', expected one of cpu, cuda"),
            case("--measure", measure_missing__device=Device.cpu),
            case("--json", _show__as_json=True),
            case("--layers", _show__layers=True),
            case(
                *("--picture", "plan.png"),
                plan__budget_bytes=None,
                plan__table=None,
                draw_plan__file=Path("plan.png"),
            ),
            case("--picture", "old.png", refused="--picture is 'old.png', expected a file that is not there yet"),
            case(
                *("--picture", "old.png", "--overwrite"),
                plan__budget_bytes=None,
                plan__table=None,
                draw_plan__file=Path("old.png"),
            ),
            case("--picture", "plan.txt", refused="--picture is 'plan.txt', expected a file that ends in"),
        ),
    ),
)
