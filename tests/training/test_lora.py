"""Training a LoRA: it learns, it changes nothing else, it resumes to the bit, and refuses what cannot be trained."""

from dataclasses import replace

import pytest
import torch

from tests.services import pipeline_folder
from tests.training.lora_runs import FIT, load, pictures, random_lora, settings
from undertow.adapters.lora.write import write_lora
from undertow.checkpoints.files.weights import write_tensors
from undertow.errors import CheckpointError, ConfigError, InvalidInput
from undertow.nn.adaptable import WeightRows
from undertow.training.base_model import encode_pictures, native_size, require_trainable
from undertow.training.caption_encoder import CaptionEncoder
from undertow.training.log import read_records
from undertow.training.lora import LoraSettings, TrainableLora, new_lora, train_lora
from undertow.training.lora_export import export_lora
from undertow.training.lora_start import read_start
from undertow.training.low_rank import in_slots, text_sites, unet_sites
from undertow.training.objective import ConstantWeighting, MinSNRWeighting
from undertow.training.timesteps import LogitNormalTimesteps, UniformTimesteps
from undertow.training.training_state import saved_steps
from undertow.unet.conditioning import Conditioning, Ports

LEARNED = 1 / 2
"""What is left of the loss after `LEARNING_STEPS` steps on four pictures, at most. Observed: a third."""
LEARNING_STEPS = 24

ROUNDING = 1e-5
"""Float32: an update beside the weight and one inside it differ by the order of additions."""


@pytest.fixture(scope="module")
def folders():
    return {family: pipeline_folder(family) for family in ("sd1", "sdxl", "inpaint")}


@pytest.fixture(scope="module")
def sd1(folders):
    return load(folders["sd1"])


def weights(model):
    networks = (model.unet, model.vae, *model.text.encoders)
    return [tensor.clone() for network in networks for tensor in network.state_dict().values()]


def learned(lora):
    return {name: tensor.clone() for name, tensor in lora.state_dict().items()}


def test_it_learns_and_the_base_stays_as_it_was(sd1, tmp_path):
    before, learning = weights(sd1), [p.requires_grad for p in sd1.unet.parameters()]
    fit = replace(FIT, steps=LEARNING_STEPS, learning_rate=1e-2, checkpoint_every=LEARNING_STEPS)
    train_lora(sd1, pictures(), LoraSettings(fit=fit, sites=("*",), dropped=0.0), tmp_path)
    losses = [record.loss for record in read_records(tmp_path / "log.jsonl")]
    assert sum(losses[-5:]) <= LEARNED * sum(losses[:5])
    assert (tmp_path / "loss.png").is_file()
    assert all(old.equal(new) for old, new in zip(before, weights(sd1), strict=True))
    assert [p.requires_grad for p in sd1.unet.parameters()] == learning
    assert all(p.grad is None for p in sd1.unet.parameters())
    assert all(layer.slots is None for layer in unet_sites(sd1.unet, ("*",)).values())
    assert not sd1.unet.training


@pytest.mark.slow
@pytest.mark.parametrize("text_encoder", [False, True])
def test_updates_count_alpha_over_rank(sd1, tmp_path, text_encoder):
    def losses(name, alpha, rate):
        chosen = settings(alpha=alpha, text_encoder=text_encoder)
        train_lora(sd1, pictures(), replace(chosen, fit=replace(FIT, learning_rate=rate)), tmp_path / name)
        return torch.tensor([record.loss for record in read_records(tmp_path / name / "log.jsonl")])

    base, none, much = losses("base", 2.0, 1e-12), losses("none", 1e-9, 5e-3), losses("much", 2.0, 5e-3)
    assert (none - base).abs().max() <= ROUNDING
    assert (much - base).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("text_encoder", [False, True])
def test_a_dropped_caption_is_the_empty_one(sd1, tmp_path, text_encoder):
    few, chosen = pictures(), settings(steps=2, text_encoder=text_encoder)
    said = train_lora(sd1, few, replace(chosen, dropped=0.0), tmp_path / "said").state_dict()
    dropped = train_lora(sd1, few, replace(chosen, dropped=0.999999), tmp_path / "dropped").state_dict()
    empty = replace(few, captions=("",) * len(few))
    unsaid = train_lora(sd1, empty, replace(chosen, dropped=0.0), tmp_path / "unsaid").state_dict()
    assert all(tensor.equal(unsaid[name]) for name, tensor in dropped.items())
    assert not all(tensor.equal(unsaid[name]) for name, tensor in said.items())


@pytest.mark.slow
@pytest.mark.parametrize("text_encoder", [False, True])
def test_a_stopped_run_goes_on_to_the_same_bits(sd1, tmp_path, text_encoder):
    chosen = settings(text_encoder=text_encoder)
    whole = train_lora(sd1, pictures(), chosen, tmp_path / "whole")

    def stop(record):
        if record.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_lora(sd1, pictures(), chosen, tmp_path / "run", on_record=stop)
    assert saved_steps(tmp_path / "run" / "checkpoints") == [2]
    assert all(layer.slots is None for layer in unet_sites(sd1.unet, ("*",)).values()), "also when it is interrupted"
    resumed = train_lora(sd1, pictures(), chosen, tmp_path / "run")
    again = resumed.state_dict()
    assert all(tensor.equal(again[name]) for name, tensor in learned(whole).items())
    assert any(tensor.any() for name, tensor in learned(whole).items() if name.endswith("up"))


def test_a_run_of_other_settings_or_pictures_is_refused(sd1, tmp_path):
    train_lora(sd1, pictures(), settings(steps=2), tmp_path)
    for changes, named in (
        ({"rank": 2}, "rank was 4"),
        ({"alpha": 3.0}, "alpha was 2.0"),
        ({"dropped": 0.3}, "dropped was 0.1"),
        ({"text_encoder": True}, "text_encoder was False"),
        ({"sites": ("*.attn1.*",)}, "sites was"),
        ({"min_snr_gamma": 5.0}, "objective was"),
        ({"timesteps": "logit_normal"}, "objective was"),
    ):
        with pytest.raises(CheckpointError, match=named):
            train_lora(sd1, pictures(), settings(steps=2, **changes), tmp_path)
    other = replace(pictures(), captions=("a", "b", "c", "d"))
    with pytest.raises(CheckpointError, match="pictures was"):
        train_lora(sd1, other, settings(steps=2), tmp_path)


def test_a_run_in_the_folder_of_its_base_is_refused(sd1):
    before = sorted(sd1.path.rglob("*"))
    for folder in (sd1.path, sd1.path / "loras"):
        with pytest.raises(InvalidInput, match="which is read for it"):
            train_lora(sd1, pictures(), settings(steps=2), folder)
    assert sorted(sd1.path.rglob("*")) == before


def started(sd1, folder, first: TrainableLora, chosen: LoraSettings, further: LoraSettings):
    """A file of `first`, and what a training that starts from it begins with: after a step of no length."""
    write_lora(export_lora(first, sd1, pictures(), chosen, "x"), folder / "first.safetensors", format="kohya",
               dtype=torch.float32)  # fmt: skip
    start = read_start(folder / "first.safetensors", sd1)
    frozen = replace(further, fit=replace(FIT, steps=1, learning_rate=1e-30, checkpoint_every=1))
    return start, frozen, lambda: train_lora(sd1, pictures(), frozen, folder / "further", start=start)


@pytest.mark.parametrize("rank", [4, 7])
def test_an_existing_lora_is_trained_further_from_what_it_does(sd1, tmp_path, rank):
    """Whatever rank and alpha the new one has, the change of every layer is the old one's: scale · up · down."""
    chosen = settings(sites=("*.attn1.*", "conv_in"), text_encoder=True)
    first = random_lora(sd1, chosen)
    for number, update in enumerate(first.for_text() or ()):
        assert number == 0
        for _, each in update.items():
            assert each.up.any()
    start, frozen, train = started(sd1, tmp_path, first, chosen, replace(chosen, rank=rank, alpha=3.0))
    assert (start.rank, start.scale, start.has_text) == (4, 0.5, True)
    assert set(start.sites) == {name for name, _ in first.unet.items()}
    assert start.settings(rank=None, alpha=None, sites=None) == {"rank": 4, "alpha": 2.0, "sites": start.sites}
    further = train()
    for old, new in ((first.unet, further.unet), ((first.for_text() or [])[0], (further.for_text() or [])[0])):
        for (name, before), (same, after) in zip(old.items(), new.items(), strict=True):
            assert name == same
            expected = chosen.gain * before.delta()
            torch.testing.assert_close(frozen.gain * after.delta(), expected, rtol=ROUNDING, atol=ROUNDING)


def test_what_cannot_be_trained_further_is_refused(sd1, tmp_path):
    chosen = settings(sites=("*.attn1.*",))
    first = random_lora(sd1, chosen)
    start, frozen, train = started(sd1, tmp_path, first, chosen, replace(chosen, rank=2))
    with pytest.raises(InvalidInput, match="rank is 2, expected at least 4, the rank of"):
        train()
    with pytest.raises(
        InvalidInput, match=r"sites is without .*, expected all layers that .* changes; leave out --sites"
    ):
        train_lora(sd1, pictures(), replace(frozen, rank=4, sites=("conv_in",)), tmp_path / "other", start=start)
    train_lora(sd1, pictures(), replace(frozen, rank=4), tmp_path / "run", start=start)
    with pytest.raises(CheckpointError, match=r"start was '.*' and is now None"):
        train_lora(sd1, pictures(), replace(frozen, rank=4), tmp_path / "run")
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    width = len(sd1.unet.get_submodule(layer.removeprefix("unet.")).weight)
    dora = {
        f"{layer}.lora_A.weight": torch.ones(2, width),
        f"{layer}.lora_B.weight": torch.ones(width, 2),
        f"{layer}.lora_magnitude_vector.weight": torch.ones(width),
    }
    write_tensors(dora, tmp_path / "dora.safetensors", {})
    with pytest.raises(InvalidInput, match="is no plain pair of matrices"):
        read_start(tmp_path / "dora.safetensors", sd1)


def test_another_base_is_refused(folders, tmp_path):
    model = load(folders["sd1"])
    train_lora(model, pictures(), settings(steps=2), tmp_path)
    with torch.no_grad():
        model.unet.conv_out.weight += 1e-3
    with pytest.raises(CheckpointError, match="model was"):
        train_lora(model, pictures(), settings(steps=2), tmp_path)


def test_gradients_reach_the_adapted_sites_and_nothing_else(sd1, tmp_path):
    chosen = settings(steps=2, sites=("*.attn2.to_k", "mid_block.resnets.0.conv1"), text_encoder=True, dropped=0.0)
    lora = train_lora(sd1, pictures(), chosen, tmp_path)
    assert {name for name, _ in lora.unet.items()} == {
        name for name, _ in sd1.unet.named_modules() if name.endswith("attn2.to_k")
    } | {"mid_block.resnets.0.conv1"}
    # The first step moves `up` alone, since `up` is zero and `down` has no gradient then; the second moves both.
    assert all(tensor.any() for name, tensor in lora.state_dict().items() if name.endswith("up"))
    assert all(p.grad is None for network in (sd1.unet, *sd1.text.encoders) for p in network.parameters())


def test_checkpointed_activations_give_the_same_updates(sd1, tmp_path):
    plain, less = settings(steps=2), settings(steps=2, gradient_checkpointing=True)
    forwards: list[bool] = []
    hook = sd1.unet.mid_block.resnets[0].register_forward_hook(lambda module, *_: forwards.append(module.training))
    plain = train_lora(sd1, pictures(), plain, tmp_path / "plain").state_dict()
    checkpointed = train_lora(sd1, pictures(), less, tmp_path / "less").state_dict()
    hook.remove()
    assert forwards == [False] * 2 + [True] * 4, "each of two steps again in the backward pass"
    assert all(tensor.equal(checkpointed[name]) for name, tensor in plain.items())
    assert not sd1.unet.gradient_checkpointing


def test_bf16_computes_in_bf16_and_learns_in_float32(sd1, tmp_path):
    fit = replace(FIT, precision="bf16", steps=2)
    rounded = train_lora(sd1, pictures(), replace(settings(text_encoder=True), fit=fit), tmp_path).state_dict()
    assert {tensor.dtype for tensor in rounded.values()} == {torch.float32}
    assert all(tensor.isfinite().all() for tensor in rounded.values())


def test_a_new_update_changes_nothing_and_a_trained_one_is_the_merged_weight(sd1):
    chosen = settings(sites=("*.attn1.*", "*.resnets.*"))
    lora = random_lora(sd1, chosen)
    latents, timesteps = (
        torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1)),
        torch.tensor([3.0, 871.0]),
    )
    given = Conditioning(context=torch.randn(2, 5, 768, generator=torch.Generator().manual_seed(2)))
    rows = WeightRows(slots=torch.zeros(2, 1, dtype=torch.long), gains=torch.full((2, 1), chosen.gain))
    with torch.no_grad():
        base = sd1.unet(latents, timesteps, given)
        with in_slots(sd1.unet, lora.unet):
            ported = sd1.unet(latents, timesteps, given, Ports(weights=rows))
        updates = export_lora(lora, sd1, pictures(), chosen, "x").updates["unet"]
        layers = {name: sd1.unet.get_submodule(name) for name in updates}
        pristine = {name: layer.weight.clone() for name, layer in layers.items()}
        for name, layer in layers.items():
            layer.weight.copy_(updates[name].weight(layer.weight, 1.0))
        merged = sd1.unet(latents, timesteps, given)
        for name, layer in layers.items():
            layer.weight.copy_(pristine[name])
    scale = float(merged.abs().max())
    assert float((ported - merged).abs().max()) <= ROUNDING * scale
    assert float((ported - base).abs().max()) > 0.1 * scale, "an update without effect shows nothing"


def test_what_is_written_says_from_what_it_was_trained(folders):
    model, chosen = load(folders["sdxl"]), settings(steps=7, text_encoder=True, sites=("*.attn2.to_k",))
    done = export_lora(random_lora(model, chosen), model, pictures(), chosen, "style")
    assert (done.title, done.family, done.prediction) == ("style", "sdxl", "epsilon")
    # CLIP-L is the first encoder of SDXL, bigG the second.
    assert {name: len(updates) for name, updates in done.updates.items() if name != "unet"} == {
        "text_encoder": 12,
        "text_encoder_2": 18,
    }
    assert done.notes == {
        "ss_sd_model_name": model.path.name,
        "ss_num_train_images": "4",
        "ss_steps": "7",
        "ss_learning_rate": "0.005",
        "modelspec.resolution": "32x32",
    }


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_captions_are_encoded_as_prompts_are(folders, family):
    model = load(folders[family])
    captions = CaptionEncoder(stack=model.text, config=model.unet.config)
    long = "many words " * 40
    encoded = captions.encode_once(["red apple", long, None])
    for row, text in enumerate(("red apple", long, "")):
        asked = model.text.encode(text, emphasis="none", long="truncate")
        if row == 2 and family == "sdxl":
            assert not encoded.context[row].any()
            assert not encoded.pooled[row].any()
            continue
        torch.testing.assert_close(encoded.context[row : row + 1], asked.context, rtol=ROUNDING, atol=ROUNDING)
        if family == "sdxl":
            torch.testing.assert_close(encoded.pooled[row : row + 1], asked.pooled, rtol=ROUNDING, atol=ROUNDING)
    few = pictures()
    given = captions.conditioning(encoded, few.crops[:3], few.size)
    assert (given.time_ids is None) == (family == "sd1")
    if given.time_ids is not None:
        assert given.time_ids[1].tolist() == [33.0, 64.0, 0.0, 16.0, 32.0, 32.0]


def test_what_is_trained_for_is_the_model_s_with_the_asked_weights_and_timesteps(sd1):
    plain, other = settings(), settings(timesteps="logit_normal", min_snr_gamma=2.5)
    for chosen in (plain, other):
        objective = chosen.objective(sd1)
        assert (objective.parameterization, objective.schedule) == (sd1.parameterization, sd1.schedule)
    assert (plain.objective(sd1).timesteps, plain.objective(sd1).weighting) == (UniformTimesteps(), ConstantWeighting())
    assert other.objective(sd1).timesteps == LogitNormalTimesteps()
    assert other.objective(sd1).weighting == MinSNRWeighting(gamma=2.5)


def test_a_new_update_starts_as_sd_scripts_do(sd1):
    """down uniform within 1 / sqrt(inputs), up zero, by the seed."""
    sites = settings(sites=("conv_in", "*.attn2.to_k", "*.ff.net.2"))
    lora = new_lora(sd1.unet, sd1.text, sites)
    for name, update in lora.unet.items():
        bound = sd1.unet.get_submodule(name).weight[0].numel() ** -0.5
        assert update.down.abs().max() <= bound
        assert float(update.down.detach().square().mean()) == pytest.approx(bound**2 / 3, rel=0.35)
        assert not update.up.any()
    other = new_lora(sd1.unet, sd1.text, replace(sites, fit=replace(FIT, seed=1)))
    assert not any(
        new.down.equal(old.down) for (_, new), (_, old) in zip(other.unet.items(), lora.unet.items(), strict=True)
    )


def test_where_a_score_is_read_a_dropped_caption_is_the_empty_one_and_the_size_is_the_score(folders):
    """SDXL's refiner: diffusers' `_get_add_time_ids` with `requires_aesthetics_score`."""
    model, few = load(folders["sdxl"]), pictures()
    config = model.unet.config
    scored = CaptionEncoder(stack=model.text, config=replace(config, added=replace(config.added, ids=5)))
    encoded = scored.encode_once([None, "", "owl"])
    assert encoded.context[0].equal(encoded.context[1])
    assert encoded.pooled[0].equal(encoded.pooled[1])
    assert encoded.pooled[0].any()
    assert scored.conditioning(encoded, few.crops[:3], few.size).time_ids[1].tolist() == [33.0, 64.0, 0.0, 16.0, 6.0]


def test_pictures_become_the_latents_that_the_model_knows(sd1):
    latents = encode_pictures(sd1, pictures())
    with torch.no_grad():
        few = sd1.vae.encode(pictures().pixels[:1].float() / 127.5 - 1).mean * 0.18215
    torch.testing.assert_close(latents[:1], few, rtol=1e-4, atol=ROUNDING)
    assert native_size(sd1) == 32


def test_only_text_layers_that_are_read_are_adapted(folders):
    sd1, sdxl = load(folders["sd1"]), load(folders["sdxl"])
    counts = [
        [
            len(text_sites(encoder, reading)) // 6
            for encoder, reading in zip(text.encoders, text.selections, strict=True)
        ]
        for text in (sd1.text, sdxl.text)
    ]
    assert counts == [[3], [2, 3]], "CLIP-L's last layer is not read in SDXL, bigG's is for the pooled vector"


@pytest.mark.parametrize(
    ("pattern", "near"), [("*.to_qq", r"'\*\.to_q'"), ("*.attn3.to_k", r"attn[12]\.to_k"), ("conv_inn", "'conv_in'")]
)
def test_patterns_that_match_nothing_are_refused_with_near_ones(sd1, pattern, near):
    with pytest.raises(InvalidInput, match=near):
        unet_sites(sd1.unet, ("*.attentions.*", pattern))
    with pytest.raises(InvalidInput, match="at least one pattern"):
        unet_sites(sd1.unet, ())


def test_the_standard_sites_are_those_of_sd_scripts(sd1):
    ends = {name.split("attentions.")[1].split(".", 1)[1] for name in unet_sites(sd1.unet, ("*.attentions.*",))}
    block = "transformer_blocks.0"
    attention = {f"{block}.attn{n}.{layer}" for n in (1, 2) for layer in ("to_q", "to_k", "to_v", "to_out.0")}
    assert ends == attention | {"proj_in", "proj_out", f"{block}.ff.net.0.proj", f"{block}.ff.net.2"}


def test_models_that_cannot_be_trained_are_refused(folders, sd1, tmp_path):
    with pytest.raises(InvalidInput, match=r"9 input channels.*train on their base model"):
        require_trainable(load(folders["inpaint"]))
    half = replace(sd1, unet=load(folders["sd1"]).unet.half())
    with pytest.raises(InvalidInput, match=r"float16.*torch\.float32"):
        require_trainable(half)
    with pytest.raises(InvalidInput, match="size is 34, expected a multiple of 4 pixels; for example 32"):
        train_lora(sd1, pictures(size=34), settings(), tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "field", [{"rank": 0}, {"alpha": 0.0}, {"dropped": 1.0}, {"timesteps": "normal"}, {"fit": replace(FIT, steps=0)}]
)
def test_impossible_settings_are_refused(field):
    with pytest.raises(ConfigError):
        LoraSettings(**{"fit": FIT, **field})
