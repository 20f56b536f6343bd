"""Stage 4: what is learned from latents and captions, and how much of it."""

from random import Random

import pytest
import torch

from recipes.emoji import text_to_image
from recipes.emoji.autoencoder import vae_config
from recipes.emoji.scenes import RELATIONS
from recipes.emoji.text_to_image import (
    OBJECTIVE,
    CachedLatents,
    cache_latents,
    new_model,
    token_ids,
    train_text_to_image,
    with_unknown_word,
)
from recipes.emoji.tokenizer import POSITIONS, save_tokenizer
from tests.recipes.emoji.tiny import SETTINGS, TINY, drawn_glyphs
from tests.vae.minis import build
from undertow.diffusion.parameterizations import VPrediction
from undertow.encoders.tokenizer import FolderTokenizer
from undertow.training.log import read_records
from undertow.training.randomness import generator_for

BF16 = 0.02
"""Of the latents' largest: their encoder computes in bfloat16."""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return FolderTokenizer(folder)


@pytest.fixture
def model(tokenizer):
    return new_model(TINY.unet(), layers=1, heads=2, tokenizer=tokenizer, seed=0)


def latents(count: int) -> torch.Tensor:
    side = TINY.unet().sample_size
    return torch.randn(count, TINY.latent_channels, side, side, generator=torch.Generator().manual_seed(0))


def test_the_model_is_trained_to_say_v_weighed_by_the_truncated_snr():
    """Every timestep, in the letters of DDPM: betas up to 0.02, and min(1, 3 (1 - abar)) for the error of v."""
    abar = (1 - torch.linspace(0.00085**0.5, 0.02**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)
    x0, noise = torch.randn(2, 1000, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    example = OBJECTIVE.example(x0, noise, (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000)
    assert OBJECTIVE.parameterization == VPrediction()
    signal, part = (tensor.float().reshape(-1, 1, 1, 1) for tensor in (abar.sqrt(), (1 - abar).sqrt()))
    torch.testing.assert_close(example.inputs, signal * x0 + part * noise, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(example.target, signal * noise - part * x0, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(example.weights, (3 * (1 - abar)).clamp(max=1), rtol=1e-6, atol=0)


def test_timesteps_are_spread_over_every_batch():
    u = OBJECTIVE.timesteps.draw(64, generator_for(0, "spread")).sort().values
    parts = 64 * torch.special.ndtr(torch.logit(u))
    assert parts.floor().tolist() == list(range(64))


def test_the_loss_is_the_objective_s_on_the_captions_of_the_latents(model, tmp_path, monkeypatch):
    """A network that always says the same shows what it was asked, and what its answer cost."""
    data = CachedLatents(latents=latents(5).half(), captions=("owl", "key", "bell", "bat", "fire"))
    asked: list[tuple[torch.Tensor, ...]] = []

    def forward(self, x, timesteps, ids):
        asked.append((x, timesteps, ids))
        return torch.zeros_like(x) * next(self.parameters()).sum()

    monkeypatch.setattr(text_to_image.TextToImage, "forward", forward)
    monkeypatch.setattr(text_to_image, "DROPPED", 0.0)
    train_text_to_image(model, data, SETTINGS, tmp_path)
    abar = (1 - torch.linspace(0.00085**0.5, 0.02**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)
    words = [token_ids(caption, model.text.tokenizer) for caption in data.captions]
    for (x, timesteps, ids), record in zip(asked, read_records(tmp_path / "log.jsonl"), strict=True):
        x0 = data.latents[[words.index(row) for row in ids.tolist()]].float()
        level = abar[timesteps.long()].float().reshape(-1, 1, 1, 1)
        noise = (x - level.sqrt() * x0) / (1 - level).sqrt()
        target = level.sqrt() * noise - (1 - level).sqrt() * x0
        cost = (3 * (1 - level)).clamp(max=1) * target.square()
        assert record.loss == pytest.approx(cost.mean().item(), rel=1e-3)


def test_a_tenth_of_the_captions_is_left_out_and_a_tenth_gets_a_stranger(model, tmp_path, monkeypatch):
    asked: list[int] = []

    def forward(self, x, timesteps, ids):
        empty = torch.tensor(token_ids("", self.text.tokenizer))
        asked.extend((ids == empty).all(1).tolist())
        return x * next(self.parameters()).sum()

    monkeypatch.setattr(text_to_image.TextToImage, "forward", forward)
    data = CachedLatents(latents=latents(2)[:, :, :2, :2].contiguous(), captions=("owl", "key"))
    many = text_to_image.FitSettings(steps=4, batch_size=500, learning_rate=1e-3, precision="float32", log_every=4)
    train_text_to_image(model, data, many, tmp_path)
    assert sum(asked) / len(asked) == pytest.approx(0.1, abs=0.03)  # standard deviation 0.007

    random = Random(0)
    said = [with_unknown_word("owl above key", random) for _ in range(2000)]
    strange = [caption for caption in said if caption != "owl above key"]
    assert len(strange) / len(said) == pytest.approx(0.1, abs=0.03)
    before = [caption.removesuffix(" owl above key") for caption in strange if caption.endswith(" owl above key")]
    behind = [caption.removeprefix("owl above key ") for caption in strange if caption.startswith("owl above key ")]
    assert len(before) + len(behind) == len(strange)
    assert min(len(before), len(behind)) > len(strange) / 3
    assert {len(word) for word in (*before, *behind)} == set(range(2, 9))


def test_the_last_stage_sees_all_pairs_and_a_third_as_many_singles():
    captions = ["owl", "key above bell on red background", "bat", "bell left of owl", "fire", "a left turn", "crown"]
    captions += [f"owl {relation} key" for relation in RELATIONS]
    data = CachedLatents(latents=torch.arange(len(captions)).reshape(-1, 1, 1, 1).float(), captions=tuple(captions))
    mostly = data.mostly_pairs()
    assert mostly.captions == (captions[1], captions[3], *captions[-4:], "owl", "bat")
    assert [captions[int(index)] for index in mostly.latents.flatten()] == list(mostly.captions)


@torch.no_grad()
def test_cached_latents_are_the_means_of_scenes_on_whole_cells():
    vae = build(vae_config(TINY.level_channels, TINY.latent_channels))
    told: list[int] = []
    data = cache_latents(vae, 10, drawn_glyphs(), batch_size=4, on_pictures=told.append)
    assert told == [4, 8, 10]
    assert (len(data), data.latents.dtype) == (10, torch.float16)
    again = cache_latents(vae, 10, drawn_glyphs(), batch_size=10)
    assert again.captions == data.captions
    largest = float(data.latents.abs().max())
    assert float((again.latents - data.latents).abs().max()) <= BF16 * largest
    assert float((data.latents[0] - data.latents[1]).abs().max()) > 10 * BF16 * largest


def test_captions_become_marks_tokens_and_padding_of_one_length(tokenizer):
    long = token_ids("owl " * 99, tokenizer)
    assert len(long) == len(token_ids("", tokenizer)) == POSITIONS
    assert long == [tokenizer.bos, *tokenizer.encode("owl") * (POSITIONS - 2), tokenizer.eos]
    assert token_ids("", tokenizer) == [tokenizer.bos, *[tokenizer.eos] * (POSITIONS - 1)]


@torch.no_grad()
def test_equal_captions_are_read_once_and_reach_their_own_rows(model):
    ids = torch.tensor([token_ids(caption, model.text.tokenizer) for caption in ("owl", "key", "owl", "bell")])
    rows: list[int] = []
    model.text.register_forward_pre_hook(lambda _module, given: rows.append(len(given[0])))
    x = latents(1).repeat(4, 1, 1, 1)
    together = model(x, torch.full((4,), 500.0), ids)
    assert rows == [3]
    for row in range(4):
        alone = model(x[:1], torch.tensor([500.0]), ids[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together[0], together[1], rtol=1e-4, atol=1e-5)
