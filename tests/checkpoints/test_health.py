"""Looking at every value: what counts as damage, how it is counted, and when it matters."""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file

import undertow
from tests.checkpoints.pipelines import save_pipeline
from tests.few import few
from undertow.checkpoints.health import NEVER, Health, examine
from undertow.checkpoints.read.model_loading import load_model
from undertow.checkpoints.report import report_on
from undertow.errors import DamagedWeights

NAN, INF = float("nan"), float("inf")

VERDICTS = {
    "sound": (torch.randn(8, generator=torch.Generator().manual_seed(0)), None, None),
    "norm as initialized": (torch.ones(8), None, None),
    "one NaN": (torch.tensor([1.0, NAN, 3.0]), None, ("not finite", 1, 0)),
    "infinities": (torch.tensor([INF, 2.0, -INF]), None, ("not finite", 0, 2)),
    "both": (torch.tensor([INF, NAN, NAN]), None, ("not finite", 2, 1)),
    "zeros": (torch.zeros(4, 4), None, ("all zero", 0, 0)),
    "constant": (torch.full((4,), 0.5), None, ("constant", 0, 0)),
    "scalar": (torch.tensor(0.5), None, None),
    "too large for half": (torch.tensor([7e4, 1.0]), torch.float16, ("overflows float16", 0, 0)),
    "large in bfloat16": (torch.tensor([7e4, 1.0]), torch.bfloat16, None),
    "half NaN": (torch.tensor([1.0, NAN]).half(), None, ("not finite", 1, 0)),
    "bfloat16 infinity": (torch.tensor([1.0, INF]).bfloat16(), None, ("not finite", 0, 1)),
    "fp8 NaN": (torch.tensor([1.0, NAN]).to(torch.float8_e4m3fn), None, ("not finite", 1, 0)),
    "integers": (torch.zeros(4, dtype=torch.int64), None, None),
    "marker": (torch.zeros(0), None, None),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_verdicts(name):
    tensor, target, expected = VERDICTS[name]
    found = examine(name, tensor, target=target)
    assert (None if found is None else (found.verdict, found.nan, found.infinite)) == expected


def test_a_finding_reads_like_the_report_that_was_asked_for():
    """R169: how many of how many."""
    found = examine("text_model.encoder.layers.11.self_attn.q_proj.weight", torch.full((768, 768), NAN))
    assert str(found) == "text_model.encoder.layers.11.self_attn.q_proj.weight: NaN: 589824/589824"


@pytest.mark.parametrize(
    ("use", "clip_skip", "refused"),
    [
        (None, None, True),
        (None, 2, True),
        (1, None, False),
        (1, 1, True),
        (1, 2, False),
        (3, 2, True),
        (NEVER, 1, False),
    ],
)
def test_damage_counts_where_it_is_read(use, clip_skip, refused, tmp_path):
    health = Health()
    health.add("weight", torch.tensor([NAN]), use=use)
    if refused:
        with pytest.raises(DamagedWeights, match="NaN: 1/1"):
            health.require(tmp_path, clip_skip)
    else:
        health.require(tmp_path, clip_skip)
    assert len(health.problems) == (use != NEVER)
    assert len(health.unused) == (use == NEVER)


def damage(folder, component, name, value: float = NAN) -> None:
    """Makes one whole tensor NaN, or another number."""
    file = next((folder / component).glob("*.safetensors"))
    tensors = load_file(file)
    key = next(key for key in tensors if key.removeprefix("text_model.") == name)
    tensors[key] = torch.full_like(tensors[key], value)
    save_file(tensors, file, metadata={"format": "pt"})


LAST = "encoder.layers.2.self_attn.q_proj.weight"


def test_sd1_s_last_text_layer_matters_only_at_clip_skip_1(tmp_path):
    """Source document 004's finding: damage that clip skip steps over."""
    folder = save_pipeline(tmp_path, "sd1")
    damage(folder, "text_encoder", LAST)
    model = load_model(folder)
    assert any("read up to clip skip 1" in note for note in model.report.notes)
    model.require_text(clip_skip=2)
    for clip_skip in (None, 1):
        with pytest.raises(DamagedWeights, match=r"layers\.2\.self_attn\.q_proj"):
            model.require_text(clip_skip)


def test_sdxl_never_reads_clip_l_s_last_layer(tmp_path):
    """Information, not an error: the picture is that of the sound file."""
    sound = load_model(save_pipeline(tmp_path / "sound", "sdxl"))
    folder = save_pipeline(tmp_path / "damaged", "sdxl")
    damage(folder, "text_encoder", LAST)
    damage(folder, "text_encoder", "final_layer_norm.weight")
    model = load_model(folder)
    assert len(model.report.health.unused) == 2
    assert not model.report.health.problems
    encoded, expected = (m.require_text().encode("a red apple") for m in (model, sound))
    assert torch.equal(encoded.context, expected.context)
    assert torch.equal(encoded.pooled, expected.pooled)


@pytest.mark.parametrize(
    ("component", "name"),
    few([("text_encoder_2", LAST), ("unet", "mid_block.attentions.0.proj_in.weight"),
         ("text_encoder", "embeddings.token_embedding.weight"), ("vae", "decoder.conv_in.weight")], 2),
)  # fmt: skip
def test_what_every_picture_reads_is_refused_on_loading(component, name, tmp_path):
    folder = save_pipeline(tmp_path, "sdxl")
    damage(folder, component, name)
    with pytest.raises(DamagedWeights):
        load_model(folder)
    load_model(folder, validate=False)


PARTS = {
    "sd1": ("unet", "vae", "text_encoder"),
    "sdxl": ("unet", "vae", "text_encoder", "text_encoder_2"),
}
READ_BY_ALL = {
    "unet": "mid_block.attentions.0.proj_in.weight",
    "vae": "decoder.conv_in.weight",
    "text_encoder": "embeddings.token_embedding.weight",
    "text_encoder_2": "embeddings.token_embedding.weight",
}
EVERY_PART = [(family, part) for family, parts in PARTS.items() for part in parts]


@pytest.mark.parametrize(("family", "part"), few(EVERY_PART, 3))
def test_a_service_refuses_damage_in_any_part_and_names_it(family, part, tmp_path):
    """R168: on every load, asked for or not. A pipeline's text encoders have the same names; the folder says which."""
    folder = save_pipeline(tmp_path, family)
    damage(folder, part, READ_BY_ALL[part], NAN if family == "sd1" else INF)
    said = f"{part}/.*{re.escape(READ_BY_ALL[part])}: {'NaN' if family == 'sd1' else 'Inf'}: "
    for validate_weights in (False, True):
        with pytest.raises(DamagedWeights, match=said) as caught:
            undertow.load(folder, validate_weights=validate_weights)
        assert [name.split("/")[0] for name in caught.value.tensors] == [part]


@pytest.mark.parametrize(
    ("family", "name"), few([("sd1", LAST), ("sdxl", LAST), ("sdxl", "final_layer_norm.weight")], 1)
)
def test_validation_on_request_refuses_what_only_some_pictures_read(family, name, tmp_path):
    """R180: without it such a model draws, and its report says what is damaged (source document 004's finding)."""
    folder = save_pipeline(tmp_path, family)
    damage(folder, "text_encoder", name)
    said = f"text_encoder/.*{re.escape(name)}: NaN: "
    assert [bool(re.search(said, note)) for note in undertow.load(folder).model.report.notes] == [True]
    with pytest.raises(DamagedWeights, match=said):
        undertow.load(folder, validate_weights=True)


def test_a_sound_model_passes_validation(tmp_path):
    model = undertow.load(save_pipeline(tmp_path, "sd1"), validate_weights=True).model
    assert not [finding for finding in model.report.health.findings if finding.verdict == "not finite"]
    files = tmp_path.rglob("*.safetensors")
    assert model.report.health.tensors == sum(
        tensor.is_floating_point() for f in files for tensor in load_file(f).values()
    )


@pytest.mark.parametrize(
    ("family", "value", "verdict"), [("sd1", 0.0, "all zero"), ("sdxl", 0.5, "constant (from 0.5 to 0.5)")]
)
def test_suspicious_weights_of_every_part_are_named_and_loaded(family, value, verdict, tmp_path):
    """They may spoil pictures without being wrong: the report tells, and nothing is refused."""
    folder = save_pipeline(tmp_path, family)
    for part in PARTS[family]:
        damage(folder, part, READ_BY_ALL[part], value)
    findings = [str(finding) for finding in undertow.load(folder, validate_weights=True).model.report.health.findings]
    for part in PARTS[family]:
        suspicious = [found for found in findings if found.startswith(f"{part}/") and READ_BY_ALL[part] in found]
        assert [found.split(": ", 1)[1] for found in suspicious] == [verdict]


@pytest.mark.parametrize("part", ["vae", "text"])
def test_parts_from_elsewhere_are_looked_at_too(part, tmp_path):
    sound = save_pipeline(tmp_path / "sound", "sd1")
    other = save_pipeline(tmp_path / "other", "sd1")
    folder = {"vae": "vae", "text": "text_encoder"}[part]
    damage(other, folder, READ_BY_ALL[folder])
    with pytest.raises(DamagedWeights, match=f"{folder}/.*NaN") as caught:
        load_model(sound, **{part: other})
    assert caught.value.path == other
    load_model(sound, **{part: other}, validate=False)


def test_what_is_damaged_in_a_text_encoder_from_elsewhere_is_noted(tmp_path):
    sound = save_pipeline(tmp_path / "sound", "sd1")
    other = save_pipeline(tmp_path / "other", "sd1")
    damage(other, "text_encoder", LAST)
    notes = load_model(sound, text=other).report.notes
    assert [note for note in notes if "read up to clip skip 1" in note and f"{LAST}: NaN" in note]


def test_a_refiner_is_validated_alike(tmp_path):
    base = save_pipeline(tmp_path / "base", "sdxl")
    refiner = save_pipeline(tmp_path / "refiner", "sdxl_refiner")
    damage(refiner, "unet", READ_BY_ALL["unet"])
    with pytest.raises(DamagedWeights, match="unet/mid_block"):
        undertow.load(base, refiner=refiner)


def test_a_report_looks_at_everything(tmp_path):
    folder = save_pipeline(tmp_path, "sdxl")
    damage(folder, "text_encoder", LAST)
    health = report_on(folder, validate=True).health
    assert health is not None
    assert [finding.nan for finding in health.findings] == [64]
    assert health.findings[0].name.startswith("text_encoder/")
    assert health.tensors == sum(part.tensors for part in report_on(folder).components)
