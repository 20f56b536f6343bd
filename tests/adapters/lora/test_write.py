"""Files that we write: sd-scripts' and PEFT's names, alphas and headers, and diffusers' networks under them."""

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors import safe_open

from tests.adapters.lora.files import normal
from tests.few import few
from tests.services import pipeline_folder
from tests.training.lora_runs import load, pictures, random_lora, settings
from undertow.adapters.lora.additive import LowRank
from undertow.adapters.lora.lora_file import read_lora
from undertow.adapters.lora.targets import Targets
from undertow.adapters.lora.write import FORMATS, TrainedLora, kohya_stem, write_lora
from undertow.errors import InvalidInput
from undertow.nn.adaptable import WeightRows
from undertow.training.caption_encoder import CaptionEncoder
from undertow.training.lora_export import export_lora
from undertow.training.low_rank import in_slots
from undertow.unet.conditioning import Ports
from undertow.unet.config import UNetConfig

T0 = 1e-5
"""Largest difference in float32, relative to the largest reference value: the same operations in another order."""

EFFECT = 0.1
"""The LoRA changes the output by this much of its largest value at least, or the comparison shows nothing."""

SITES = {
    "sd1": ("*.attentions.*", "*.resnets.*", "time_embedding.*", "conv_in"),
    "sd2": ("*.attentions.*",),
    "sdxl": ("*.attentions.*", "*.resnets.*"),
}
CAPTION = "red apple"
FC1 = "text_model.encoder.layers.0.mlp.fc1"


@pytest.fixture(scope="module", params=list(SITES))
def trained(request):
    """(family, folder of the pipeline, our model, settings, updates that change something)."""
    folder = pipeline_folder(request.param)
    chosen = settings(sites=SITES[request.param], text_encoder=True)
    model = load(folder)
    return request.param, folder, model, chosen, random_lora(model, chosen)


def reference(family, folder):
    pipeline = (StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline).from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def encode(pipeline, family):
    if family == "sdxl":
        context, _, pooled, _ = pipeline.encode_prompt(CAPTION, do_classifier_free_guidance=False)
        return context, pooled
    return pipeline.encode_prompt(CAPTION, "cpu", 1, do_classifier_free_guidance=False)[0], None


@torch.no_grad()
def draw(pipeline, latents, timesteps, given):
    added = None if given.pooled is None else {"text_embeds": given.pooled, "time_ids": given.time_ids}
    return pipeline.unet(latents, timesteps, encoder_hidden_states=given.context, added_cond_kwargs=added).sample


@pytest.mark.parametrize("format", few(FORMATS, 3))
@torch.no_grad()
def test_diffusers_computes_what_we_do(trained, tmp_path, format):
    family, folder, model, chosen, lora = trained
    write_lora(
        export_lora(lora, model, pictures(), chosen, "style"),
        tmp_path / "x.safetensors",
        format=format,
        dtype=torch.float32,
    )
    pipeline = reference(family, folder)
    plain, _ = encode(pipeline, family)
    captions = CaptionEncoder(stack=model.text, config=model.unet.config)
    ours = captions.encode([CAPTION], lora.for_text(), chosen.gain)
    given = captions.conditioning(ours, pictures().crops[:1], 32)
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    timesteps = torch.tensor([401.0])
    base = draw(pipeline, latents, timesteps, given)

    pipeline.load_lora_weights(tmp_path, weight_name="x.safetensors")
    context, pooled = encode(pipeline, family)
    close(ours.context, context, plain)
    assert (pooled is None) == (ours.pooled is None)
    if pooled is not None:
        close(ours.pooled, pooled)
    rows = WeightRows(slots=torch.zeros(1, 1, dtype=torch.long), gains=torch.full((1, 1), chosen.gain))
    with in_slots(model.unet, lora.unet):
        prediction = model.unet(latents, timesteps, given, Ports(weights=rows))
    close(prediction, draw(pipeline, latents, timesteps, given), base)


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_written_is_read(trained, tmp_path, format):
    _, _, model, chosen, lora = trained
    written = export_lora(lora, model, pictures(), chosen, "style")
    write_lora(written, tmp_path / "x.safetensors", format=format, dtype=torch.float32)
    read = read_lora(tmp_path / "x.safetensors", Targets.of(model.unet, model.text.encoders))
    networks = ["unet", *(encoder.kind for encoder in model.text.encoders)]
    for network, ours in zip(networks, written.updates.values(), strict=True):
        assert read.updates[network].keys() == ours.keys()
        for name, update in read.updates[network].items():
            same = ours[name]
            assert update.scale == same.scale == chosen.gain
            assert update.down.reshape(same.down.shape).equal(same.down)
            assert update.up.reshape(same.up.shape).equal(same.up)


def close(ours, theirs, without=None):
    scale = float(theirs.abs().max())
    assert float((ours - theirs).abs().max()) <= T0 * max(1.0, scale)
    if without is not None:
        assert float((theirs - without).abs().max()) >= EFFECT * scale


def one_layer(**changes):
    update = LowRank(down=normal(4, 6, seed="down"), up=normal(5, 4, seed="up"), scale=0.5)
    fields = {
        "updates": {"unet": {"mid_block.attentions.0.proj_in": update}},
        "title": "style",
        "family": "sd1",
        "variant": "base",
        "prediction": "epsilon",
        "config": UNetConfig.sd15(),
        "notes": {"ss_steps": "7"},
    }
    return TrainedLora(**(fields | changes))


def read(path):
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118  not a mapping


def test_kohya_files_have_alphas_and_say_what_they_are(tmp_path):
    lora = one_layer()
    write_lora(lora, tmp_path / "new" / "x.safetensors", format="kohya")
    tensors, header = read(tmp_path / "new" / "x.safetensors")
    stem = "lora_unet_mid_block_attentions_0_proj_in"
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        f"{stem}.lora_down.weight": (4, 6),
        f"{stem}.lora_up.weight": (5, 4),
        f"{stem}.alpha": (),
    }
    assert tensors[f"{stem}.alpha"] == 2.0
    assert tensors[f"{stem}.lora_up.weight"].dtype == torch.float16
    assert (
        header
        | {
            "format": "pt",
            "ss_network_dim": "4",
            "ss_network_alpha": "2",
            "ss_base_model_version": "sd_v1",
            "modelspec.architecture": "stable-diffusion-v1/lora",
            "modelspec.title": "style",
            "ss_steps": "7",
        }
        == header
    )
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.safetensors"]


def test_peft_files_have_their_alpha_in_the_header(tmp_path):
    write_lora(one_layer(), tmp_path / "x.safetensors", format="peft")
    tensors, header = read(tmp_path / "x.safetensors")
    assert set(tensors) == {f"unet.mid_block.attentions.0.proj_in.lora_{leaf}.weight" for leaf in "AB"}
    assert json.loads(header["lora_adapter_metadata"]) == {
        "unet.r": 4,
        "unet.lora_alpha": 2.0,
        "unet.target_modules": ["mid_block.attentions.0.proj_in"],
    }


@pytest.mark.parametrize(
    ("family", "prediction", "version"),
    [("sd1", "v", "sd_v1_v"), ("sd2", "epsilon", "sd_v2"), ("sd2", "v", "sd_v2_v"), ("sdxl", "v", "sdxl_base_v1-0")],
)
def test_published_bases_are_named_as_sd_scripts_does(tmp_path, family, prediction, version):
    write_lora(one_layer(family=family, prediction=prediction), tmp_path / "x.safetensors", format="kohya")
    assert read(tmp_path / "x.safetensors")[1]["ss_base_model_version"] == version
    custom = one_layer(family=family, prediction=prediction, variant="custom")
    write_lora(custom, tmp_path / "x.safetensors", format="kohya")
    assert "ss_base_model_version" not in read(tmp_path / "x.safetensors")[1], "no base that other programs know"


@pytest.mark.parametrize(
    ("component", "layer", "family", "stem"),
    [
        ("unet", "down_blocks.0.attentions.0.proj_in", "sd1", "lora_unet_down_blocks_0_attentions_0_proj_in"),
        ("unet", "down_blocks.1.attentions.0.proj_in", "sdxl", "lora_unet_input_blocks_4_1_proj_in"),
        ("unet", "up_blocks.0.resnets.2.conv1", "sdxl", "lora_unet_output_blocks_2_0_in_layers_2"),
        ("text_encoder", FC1, "sd2", "lora_te_text_model_encoder_layers_0_mlp_fc1"),
        ("text_encoder", FC1, "sdxl", "lora_te1_text_model_encoder_layers_0_mlp_fc1"),
        ("text_encoder_2", FC1, "sdxl", "lora_te2_text_model_encoder_layers_0_mlp_fc1"),
    ],
)  # fmt: skip
def test_stems_are_sd_scripts_names(component, layer, family, stem):
    config = UNetConfig.sdxl() if family == "sdxl" else UNetConfig.sd15()
    assert kohya_stem(component, layer, family, config) == stem


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path):
    path = tmp_path / "x.safetensors"
    large = LowRank(down=torch.full((4, 6), 1e6), up=normal(5, 4, seed="large"))
    with pytest.raises(InvalidInput, match=r"not finite in torch.float16 at lora_unet_conv_in\.lora_down\.weight"):
        write_lora(one_layer(updates={"unet": {"conv_in": large}}), path, format="kohya")
    with pytest.raises(InvalidInput, match="one of kohya, peft"):
        write_lora(one_layer(), path, format="onetrainer")
    with pytest.raises(InvalidInput, match="0 scales"):
        one_layer(updates={"unet": {}})
    other = LowRank(down=normal(2, 6, seed="other"), up=normal(5, 2, seed="other up"), scale=0.5)
    with pytest.raises(InvalidInput, match="2 scales"):
        one_layer(updates={"unet": {"conv_in": large, "conv_out": other}})
    assert not any(tmp_path.iterdir())
