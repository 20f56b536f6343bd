"""Every rule of the doctor: a fault is planted, and it is named; healthy models are left alone."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import undertow
from tests.adapters.lora.files import is_attention, kohya, layers_of, write
from tests.distilled import distilled_pipeline
from tests.services import service_of
from undertow import Adapter, GenerationRequest, InvalidInput, UNet, UNetConfig
from undertow.adapters.manager import AdapterManager
from undertow.attention.chosen import ChosenAttention
from undertow.checkpoints.health import Finding, Health
from undertow.checkpoints.read.class_model import load_class_model
from undertow.diffusion.parameterizations import PARAMETERIZATIONS
from undertow.diffusion.schedules import EDMSchedule, NoiseSchedule
from undertow.embedded import located
from undertow.errors import MissingComponent
from undertow.inspection.doctor import memory, slow
from undertow.inspection.doctor.case import Case
from undertow.inspection.doctor.catalogue import RULES, rules_named
from undertow.inspection.doctor.diagnose import diagnose, diagnose_damage
from undertow.inspection.doctor.host import Host
from undertow.inspection.doctor.prediction import probe_prediction
from undertow.unet.conditioning import Conditioning
from undertow.unet.runner import EAGER
from undertow.vae.config import VAEConfig
from undertow.vae.latent_space import SD, SDXL

REQUEST = GenerationRequest(prompt="abc", steps=20)

IDLE = "cpu  100 0 100 800 0 0 0 0 0 0\n"
LATER = "cpu  150 0 150 1300 0 0 0 400 0 0\n"
"""Of 1000 more ticks, 400 were stolen."""

CALM = Host(stat=lambda: IDLE, status=lambda: "VmSwap:\t0 kB\n", group=lambda: "", cores=2, threads=2)


@dataclass(frozen=True, kw_only=True)
class Sick:
    """What is planted. model: fields of the loaded model. request: of the request. host: of the machine."""

    model: Mapping[str, Any] = field(default_factory=dict)
    request: Mapping[str, Any] = field(default_factory=dict)
    host: Mapping[str, Any] = field(default_factory=dict)
    case: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Ward:
    """What faults are planted in: a healthy service, adapters, and a folder."""

    service: undertow.UNetService
    files: Mapping[str, Path]
    folder: Path
    monkeypatch: pytest.MonkeyPatch

    def case(self, sick: Sick = Sick()) -> Case:
        model = replace(self.service.model, **sick.model)
        return Case(
            model=model,
            manager=AdapterManager(model.unet, model.text) if "unet" in sick.model else self.service.adapters,
            request=replace(REQUEST, **sick.request),
            host=replace(CALM, **sick.host),
            **sick.case,
        )

    def unet(self, change: Callable[[UNet], None], dtype: torch.dtype = torch.float32) -> Sick:
        """A copy of the U-Net, changed."""
        unet = copy.deepcopy(self.service.model.unet).to(dtype)
        with torch.no_grad():
            change(unet)
        return Sick(model={"unet": unet})

    def vae(self, change: Callable[[Any], None], dtype: torch.dtype = torch.float32) -> Sick:
        """As `unet`."""
        vae = copy.deepcopy(self.service.model.vae).to(dtype)
        with torch.no_grad():
            change(vae)
        return Sick(model={"vae": vae})

    def published(self, **model: Any) -> Sick:
        """A published architecture without weights, which is all that some rules read."""
        vae = copy.copy(self.service.model.vae)
        vae.config = VAEConfig.sd()
        with torch.device("meta"):
            unet = UNet(replace(UNetConfig.sd15()))
        return Sick(model={"unet": unet, "vae": vae, **model})

    def picture(self, image: Image.Image | None = None) -> Path:
        """A picture file: one of ours, with its description, unless an image is given."""
        path = self.folder / "picture.png"
        if image is not None:
            image.save(path)
        else:
            self.service.run(replace(REQUEST, steps=1)).save(path, overwrite=True)
        return path


@pytest.fixture
def ward(service, files, tmp_path, monkeypatch):
    return Ward(service=service, files=files, folder=tmp_path, monkeypatch=monkeypatch)


def layer(unet: UNet, name: str = "mid_block.attentions.0.transformer_blocks.0.attn2.to_q") -> torch.Tensor:
    weight = unet.get_submodule(name).weight
    assert isinstance(weight, torch.Tensor)
    return weight


def broken_weight(ward):
    return ward.unet(lambda unet: layer(unet)[0, 0].fill_(float("nan")))


def rare_damage(ward):
    finding = Finding(name="layers.11", verdict="not finite", dtype=torch.float16, count=9, nan=9, use=1)
    report = replace(ward.service.model.report, health=Health(findings=[finding]))
    return Sick(model={"report": report}, request={"clip_skip": 2})


def zero_weight(ward):
    return ward.unet(lambda unet: layer(unet, "mid_block.resnets.0.conv1").zero_())


def overflow(ward):
    # In float16, 60,000 times anything above 1.1 is infinite.
    return ward.unet(lambda unet: unet.conv_in.weight.fill_(60000.0), torch.float16)


def little_headroom(ward):
    # A bias of 40,000 leaves a factor of 1.6 to 65,504.
    return ward.unet(lambda unet: unet.conv_out.bias.fill_(40000.0), torch.float16)


def large_weight(ward):
    return ward.unet(lambda unet: layer(unet)[0, 0].fill_(1e5))


def large_scores(ward):
    def change(unet):
        for name in ("to_q", "to_k"):
            layer(unet, f"mid_block.attentions.0.transformer_blocks.0.attn1.{name}").mul_(1000)

    return ward.unet(change, torch.float16)


def vae_overflow(ward):
    return ward.vae(lambda vae: vae.decoder.conv_in.weight.fill_(60000.0), torch.float16)


def lora(ward, change: Callable[[str, torch.Tensor], torch.Tensor]):
    layers = layers_of(ward.service.unet, is_attention)
    tensors = {name: change(name, tensor) for name, tensor in kohya(layers, rank=2).items()}
    return Adapter(write(ward.folder / "planted.safetensors", tensors))


def bad_adapter(ward):
    return Sick(request={"adapters": (lora(ward, lambda name, x: x * float("nan") if "lora_up" in name else x),)})


def zero_adapter(ward):
    return Sick(request={"adapters": (lora(ward, lambda name, x: x * 0 if "lora_up" in name else x),)})


def foreign_adapter(ward):
    wide = {"mid_block.attentions.0.transformer_blocks.0.attn2.to_k": (64, 2048)}  # SDXL's text
    return Sick(request={"adapters": (Adapter(write(ward.folder / "sdxl.safetensors", kohya(wide))),)})


def strong_adapter(ward):
    return Sick(request={"adapters": (Adapter(ward.files["style"], scale=8.0),)})


def same_texts(ward):
    text = copy.copy(ward.service.model.text)
    text.encoders = tuple(copy.deepcopy(one) for one in text.encoders)
    with torch.no_grad():
        for one in text.encoders:
            table = next(weight for name, weight in one.named_parameters() if "token_embedding" in name)
            table.copy_(table[:1].expand_as(table))
    text._cache = type(text._cache)(4)
    return Sick(model={"text": text})


def bare_token(ward):
    text = copy.copy(ward.service.model.text)
    text.encoders = tuple(copy.deepcopy(one) for one in text.encoders)
    with torch.no_grad():
        for one in text.encoders:
            table = next(weight for name, weight in one.named_parameters() if "token_embedding" in name)
            table[one.tokenizer.encode("abc")[0]] *= 0.01
    return Sick(model={"text": text})


def deaf_network(ward):
    def change(unet):
        for name, module in unet.named_modules():
            if name.endswith("attn2.to_out.0"):
                module.weight.zero_()

    return ward.unet(change)


def half_precision(ward):
    return ward.unet(lambda unet: None, torch.float16)


def failed_kernel(ward):
    kernel = ChosenAttention()
    kernel._note("attention kernel flash failed (no such instruction); sdpa takes its place")
    sick = ward.unet(lambda unet: None)
    vars(sick.model["unet"])["kernel"] = kernel
    return sick


class OneByOne(ChosenAttention):
    """Attends with one query after the other, which no threshold has to be moved for."""

    def __call__(self, query, key, value, mask=None):
        one = super().__call__
        return torch.cat([one(query[:, :, i : i + 1], key, value, mask) for i in range(query.shape[2])], dim=2)


def slow_kernel(ward):
    sick = ward.unet(lambda unet: None)
    vars(sick.model["unet"])["kernel"] = OneByOne(name="math")
    return sick


def long_run(ward):
    return Sick(request={"steps": 1000, "count": 100})


def no_memory(ward):
    ward.monkeypatch.setattr(memory, "free_bytes", lambda device: 0)
    ward.monkeypatch.setattr(memory, "memory_of", lambda device: type("None", (), {"in_use": lambda self: 10**6})())
    return Sick(request={"size": (256, 256)})


def too_large(ward):
    return Sick(request={"size": (8192, 8192), "count": 64})


def written_scores(ward):
    sick = ward.unet(lambda unet: None)
    vars(sick.model["unet"])["kernel"] = ChosenAttention(name="math")
    return replace(sick, request={"size": (256, 256)})


def other_model(ward):
    path = ward.picture()
    file = ward.folder / "other.safetensors"
    file.write_bytes(b"another model")
    return Sick(model={"path": file}, case={"picture": path})


def other_bytes(ward):
    path = ward.picture()
    with Image.open(path) as image:
        again = image.convert("RGB")
    first, *rest = again.tobytes()
    again = Image.frombytes("RGB", again.size, bytes([(first + 1) % 256, *rest]))
    return Sick(case={"picture": path, "redraw": lambda picture, options: again})


FAULTS: Mapping[str, Callable[[Ward], Sick]] = {
    "weights-not-finite": broken_weight,
    "weights-not-finite-sometimes": rare_damage,
    "weights-zero": zero_weight,
    "prediction-not-finite": overflow,
    "float16-headroom": little_headroom,
    "weights-overflow-float16": large_weight,
    "upcast-attention-missing": large_scores,
    "vae-float16": vae_overflow,
    "adapter-not-finite": bad_adapter,
    "latent-scale-of-family": lambda ward: ward.published(latent_space=SDXL),
    "noise-levels-of-family": lambda ward: ward.published(schedule=NoiseSchedule.cosine()),
    "text-collapsed": same_texts,
    "prompt-without-effect": deaf_network,
    "flat-picture": lambda ward: Sick(case={"picture": ward.picture(Image.new("RGB", (64, 64)))}),
    "untrained-tokens": bare_token,
    "negative-cancels-prompt": lambda ward: Sick(request={"negative_prompt": "ABC "}),
    "size-far-from-trained": lambda ward: Sick(request={"size": (64, 64)}),
    "guidance-off": lambda ward: Sick(request={"guidance_scale": 1.0}),
    "guidance-high": lambda ward: Sick(request={"guidance_scale": 30.0}),
    "distilled-steps": lambda ward: Sick(model={"path": Path("sd_turbo.safetensors")}),
    "few-steps": lambda ward: Sick(request={"steps": 3}),
    "off-grid-levels": lambda ward: Sick(request={"sigmas": (0.5, 0.1, 0.0)}),
    "terminal-noise-unused": lambda ward: Sick(
        model={"schedule": NoiseSchedule.scaled_linear().rescale_zero_terminal_snr()},
        request={"schedule": "ddim"},
    ),
    "adapter-of-another-model": foreign_adapter,
    "adapter-too-strong": strong_adapter,
    "adapter-without-effect": zero_adapter,
    "type-imitated": half_precision,
    "kernel-replaced": failed_kernel,
    "kernel-slow": slow_kernel,
    "threads": lambda ward: Sick(host={"cores": 16, "threads": 2}),
    "not-compiled": long_run,
    "swapped": lambda ward: Sick(host={"status": lambda: "VmSwap:\t  200000 kB\n"}),
    "processor-taken-away": lambda ward: Sick(host={"stat": iter([IDLE, LATER]).__next__}),
    "does-not-fit": too_large,
    "scores-written-out": written_scores,
    "not-described": lambda ward: Sick(case={"picture": ward.picture(Image.new("RGB", (64, 64), "red"))}),
    "another-model": other_model,
    "not-reproduced": other_bytes,
}
"""By the rule that has to name it. What needs a trained model is below."""

TRAINED = {"wrong-prediction-type", "latent-scale-measured"}


def test_every_rule_has_its_fault():
    assert FAULTS.keys() | TRAINED == RULES.keys()
    assert len(RULES) >= 24


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_named(ward, name):
    found = diagnose(ward.case(FAULTS[name](ward)), [name])
    assert found.skipped == {}
    (first, *_) = found.findings
    assert first.rule == name
    assert any(character.isdigit() for character in first.evidence) or name == "kernel-replaced", "it has no numbers"
    assert min(map(len, (first.symptom, first.cause, first.fix, first.prevention))) > 5


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_healthy_models_are_left_alone(family):
    service = service_of(family)
    case = Case(model=service.model, manager=service.adapters, request=REQUEST, host=CALM)
    found = diagnose(case)
    assert found.findings == ()
    assert found.skipped == {}
    assert found.rules == tuple(RULES)


@pytest.fixture(scope="module")
def emoji():
    return undertow.load("emoji", dtype=torch.float32)


def test_a_healthy_trained_model_is_left_alone(emoji):
    request = GenerationRequest(prompt="red apple on white background")
    case = Case(model=emoji.model, manager=emoji.adapters, request=request, host=CALM)
    assert diagnose(case).findings == ()
    assert emoji.diagnose(request, only=["picture"]).findings == ()


@pytest.mark.parametrize("label", ["epsilon", "x0"])
def test_the_true_type_of_a_mislabelled_model_is_named_and_cures_it(emoji, label):
    sick = replace(emoji.model, parameterization=PARAMETERIZATIONS[label])
    case = Case(model=sick, manager=emoji.adapters, request=REQUEST, host=CALM)
    found = diagnose(case, ["wrong-prediction-type"])
    assert found.serious
    assert "the network predicts v" in found.findings[0].cause
    assert found.load_options() == {"prediction": "v"}


@pytest.mark.parametrize(
    ("name", "label", "truth"), [("digits-ddpm", "epsilon", "v"), ("digits-flow", "epsilon", "velocity")]
)
def test_pixel_models_are_told_apart_by_the_same_probe(name, label, truth):
    model = load_class_model(located(name))
    clean = torch.full((1, 1, 32, 32), -1.0)[..., : model.unet.config.sample_size, : model.unet.config.sample_size]
    conditioning = Conditioning(class_labels=torch.tensor([0]))
    schedule = model.scheduler.schedule
    wrong = probe_prediction(model.unet, clean, conditioning, schedule, PARAMETERIZATIONS[label])
    right = probe_prediction(model.unet, clean, conditioning, schedule, model.scheduler.parameterization)
    assert (wrong.mislabelled, wrong.best) == (True, truth)
    assert not right.mislabelled


def test_class_models_of_pixels_are_examined_too():
    service = undertow.load("digits-ddpm", dtype=torch.float32)
    request = GenerationRequest(prompt="", steps=20)
    healthy = Case(model=service.model, manager=service.adapters, request=request, host=CALM)
    found = diagnose(healthy)
    assert found.findings == ()
    assert set(found.skipped) == {"vae-float16", "latent-scale-of-family", "latent-scale-measured"}, "no VAE"
    sick = replace(service.model, parameterization=PARAMETERIZATIONS["epsilon"])
    case = Case(model=sick, manager=service.adapters, request=request, host=CALM)
    (finding,) = diagnose(case, ["wrong-prediction-type"]).findings
    assert "predicts v" in finding.cause
    with pytest.raises(MissingComponent, match="no VAE; it is a pixel model: it draws no latents; undertow sample"):
        service.profile(request)
    with pytest.raises(MissingComponent, match="no text encoder; it is a pixel model: it reads no words"):
        service.visualize_attention("red")


def test_a_wrong_scale_of_latents_is_measured(emoji):
    sick = replace(emoji.model, latent_space=replace(emoji.model.latent_space, scale=0.18215))
    found = diagnose(Case(model=sick, manager=emoji.adapters, request=REQUEST, host=CALM), ["latent-scale-measured"])
    (finding,) = found.findings
    scale = float(finding.fix.rpartition(" ")[2])
    assert 0.5 < scale < 2, "the model was trained with 1"


def test_words_that_a_small_model_never_had(emoji):
    request = replace(REQUEST, prompt="red aple on white background")
    case = Case(model=emoji.model, manager=emoji.adapters, request=request, host=CALM)
    (finding,) = diagnose(case, ["untrained-tokens"]).findings
    assert "aple" in finding.evidence
    assert "apple" in finding.fix


def test_changes_make_a_request_without_the_findings(ward):
    sick = Sick(request={"guidance_scale": 30.0, "size": (256, 256), "steps": 2, "negative_prompt": "abc"})
    found = diagnose(ward.case(sick), ["picture"])
    assert len(found.findings) == 4
    cured = found.cured_request()
    assert (cured.guidance_scale, cured.size, cured.steps, cured.negative_prompt) == (5.0, (32, 32), 20, "")
    assert diagnose(replace(ward.case(), request=cured), ["picture"]).findings == ()


@pytest.fixture(scope="module")
def turbo(tmp_path_factory):
    return undertow.load(distilled_pipeline(tmp_path_factory.mktemp("models") / "turbo"), dtype=torch.float32)


ABOUT_STEPS = ["guidance-off", "guidance-high", "distilled-steps", "few-steps"]


def fixes(service, **fields):
    case = Case(model=service.model, manager=service.adapters, request=replace(REQUEST, **fields), host=CALM)
    found = diagnose(case, ABOUT_STEPS)
    return {finding.rule: finding.fix for finding in found.findings}, found.cured_request()


def test_every_rule_advises_what_the_model_itself_suggests(turbo):
    told, cured = fixes(turbo, steps=20, guidance_scale=7.0)
    assert told == {"guidance-high": "draw with --guidance 1", "distilled-steps": "draw with --steps 4 --guidance 1"}
    assert {"steps": cured.steps, "guidance_scale": cured.guidance_scale} == turbo.model.suggested
    assert fixes(turbo, steps=20, guidance_scale=1.0)[0] == {"distilled-steps": "draw with --steps 4"}
    assert fixes(turbo, steps=20, guidance_scale=1.0, sampler="euler")[0] == {
        "distilled-steps": "draw with --sampler model --steps 4"
    }
    assert fixes(turbo, steps=4, guidance_scale=1.0)[0] == {}


def test_the_steps_that_are_drawn_are_counted_whatever_takes_their_place(turbo, emoji):
    three, thirty = (14.0, 5.0, 1.0, 0.0), tuple(15.0 - step / 2 for step in range(31))
    assert fixes(turbo, steps=20, guidance_scale=1.0, sigmas=three)[0] == {}
    told, cured = fixes(turbo, steps=4, guidance_scale=1.0, sigmas=thirty)
    assert told == {"distilled-steps": "draw with --steps 4 in place of --sigmas"}
    assert (cured.steps, cured.sigmas) == (4, None)
    a_little = {"image": Image.new("RGB", (64, 64)), "strength": 0.2}
    assert fixes(turbo, steps=20, guidance_scale=1.0, **a_little)[0] == {}
    assert fixes(emoji, steps=20, sigmas=three)[0] == {"few-steps": "draw with --steps 20 in place of --sigmas"}


def test_a_model_that_only_its_name_tells_to_be_distilled_is_drawn_as_such_loras_are(ward):
    found = diagnose(ward.case(Sick(model={"path": Path("sd_turbo.safetensors")})), ABOUT_STEPS)
    assert [finding.fix for finding in found.findings] == [
        "draw with --guidance 1",
        "draw with --sampler lcm --schedule sgm_uniform --steps 4 --guidance 1",
    ]
    cured = found.cured_request()
    assert (cured.steps, cured.guidance_scale, cured.sampler, cured.schedule) == (4, 1.0, "lcm", "sgm_uniform")


def test_the_most_serious_comes_first(ward):
    sick = Sick(request={"negative_prompt": "abc", "guidance_scale": 30.0})
    found = diagnose(ward.case(sick), ["guidance-high", "negative-cancels-prompt"])
    assert [one.severity for one in found.findings] == ["serious", "warning"]
    assert found.to_json()["serious"]


def test_a_rule_that_cannot_be_asked_says_why(ward):
    found = diagnose(ward.case(Sick(model={"vae": None})), ["latent-scale-measured", "guidance-high"])
    assert list(found.skipped) == ["latent-scale-measured"]
    assert "VAE" in found.skipped["latent-scale-measured"]


def test_an_unknown_rule_is_refused_with_the_nearest():
    with pytest.raises(InvalidInput, match="slow"):
        rules_named(["slo"])


def test_a_model_that_does_not_load_has_a_diagnosis():
    error = undertow.DamagedWeights("model.safetensors", ["mid.weight"], "NaN: 3/9", "download it again")
    found = diagnose_damage(error, "model.safetensors")
    assert found.serious
    assert "mid.weight" in found.findings[0].module
    assert found.rules == tuple(RULES)
    assert RULES.keys() - found.skipped.keys() == {"weights-not-finite", "threads", "swapped"}
    host = replace(CALM, cores=16)
    chosen = diagnose_damage(error, "model.safetensors", ["threads"], host)
    assert [one.rule for one in chosen.findings] == ["weights-not-finite", "threads"]


def test_a_damaged_text_encoder_is_named_once(ward):
    text = copy.copy(ward.service.model.text)
    text.encoders = tuple(copy.deepcopy(one) for one in text.encoders)
    name, weight = next((name, one) for name, one in text.encoders[0].named_parameters() if "layers.0." in name)
    with torch.no_grad():
        weight.view(-1)[0] = float("nan")
    layers = text.encoders[0].config.layers
    finding = Finding(name=name, verdict="not finite", dtype=torch.float32, count=9, nan=1, use=layers)
    report = replace(ward.service.model.report, health=Health(findings=[finding]))
    found = diagnose(ward.case(Sick(model={"text": text, "report": report})), ["nan"])
    assert [one.rule for one in found.findings] == ["weights-not-finite"]


def test_an_overflow_that_generation_computes_in_float32_is_a_warning(ward):
    (finding,) = diagnose(ward.case(overflow(ward)), ["prediction-not-finite"]).findings
    assert finding.severity == "warning"
    assert "in float32" in finding.cause
    (finding,) = diagnose(ward.case(vae_overflow(ward)), ["vae-float16"]).findings
    assert finding.severity == "warning"
    (finding,) = diagnose(ward.case(broken_weight(ward)), ["prediction-not-finite"]).findings
    assert finding.severity == "serious"


def test_the_same_picture_drawn_again_is_no_finding(ward):
    path = ward.picture()
    with Image.open(path) as image:
        again = image.convert("RGB")
    asked = []

    def redraw(picture, options):
        asked.append((picture, *options))
        return again

    case = ward.case(Sick(case={"picture": path, "redraw": redraw}))
    assert diagnose(case, ["provenance"]).findings == ()
    assert asked == [(path, "--model", str(ward.service.model.path))], "the picture says how its model computed"


def test_a_finding_of_a_graph_runner_is_none(ward):
    runner = copy.copy(EAGER)
    runner.capabilities = replace(EAGER.capabilities, observable=False)
    ward.monkeypatch.setattr(slow, "LONG_S", 1e-6)
    assert diagnose(replace_case(ward, runner), ["not-compiled"]).findings == ()


def replace_case(ward: Ward, runner: Any) -> Case:
    return ward.case(Sick(case={"runner": runner}))


def test_what_is_free_decides_whether_a_request_fits(ward):
    (finding,) = diagnose(ward.case(no_memory(ward)), ["does-not-fit"]).findings
    assert finding.severity == "serious"


def test_published_models_are_left_alone(ward):
    case = ward.case(ward.published(latent_space=SD))
    assert diagnose(case, ["latent-scale-of-family", "noise-levels-of-family"]).findings == ()


def test_a_model_of_edm_is_not_asked_for_a_type(ward):
    sick = Sick(model={"parameterization": PARAMETERIZATIONS["edm"], "schedule": EDMSchedule()})
    found = diagnose(ward.case(sick), ["wrong-prediction-type", "noise-levels-of-family"])
    assert (found.findings, found.skipped) == ((), {})
