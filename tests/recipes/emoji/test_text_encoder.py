"""The text encoder's own lesson: what a caption asks for, told at every end mark."""

from random import Random

import pytest
import torch

from recipes.emoji.names import COLORS, EMOJI
from recipes.emoji.scenes import RELATIONS, Mix, Scene, draw_training_scene, spoken
from recipes.emoji.text_encoder import (
    ANSWERS,
    CaptionClassifier,
    answer_loss,
    answers,
    asked_at,
    asked_beside,
    classes,
    train_text_encoder,
)
from recipes.emoji.text_to_image import OUTPUT_SELECTION, new_model, token_ids
from recipes.emoji.tokenizer import save_tokenizer
from tests.recipes.emoji.tiny import TINY
from undertow.encoders.tokenizer import FolderTokenizer
from undertow.errors import CheckpointError
from undertow.training.fit import FitSettings

pytestmark = pytest.mark.slow

SETTINGS = FitSettings(steps=60, batch_size=32, learning_rate=3e-3, warmup_steps=5, ema_decay=0.8, precision="float32")


@pytest.fixture
def text(tmp_path):
    save_tokenizer(tmp_path / "tokenizer")
    model = new_model(TINY.unet(), layers=1, heads=1, tokenizer=FolderTokenizer(tmp_path / "tokenizer"), seed=0)
    return model.text


def test_answers_say_what_the_caption_says():
    scene = Scene(names=("owl", "key"), color="pink", relation="above")
    right = (EMOJI.index("owl"), EMOJI.index("key"), list(COLORS).index("pink"), RELATIONS.index("above"))
    assert answers(scene, scene.caption) == right
    assert answers(scene, "an owl above a key on a pink background") == right
    assert answers(scene, "owl above key")[2] == len(COLORS)
    below = Scene(names=("key", "owl"), color="pink", relation="below")
    assert answers(below, below.caption)[:3] == right[:3], "the same picture, said the other way round"
    alone = Scene(names=("owl",), color="pink")
    assert answers(alone, alone.caption)[1::2] == (len(EMOJI), len(RELATIONS))


def test_a_third_emoji_is_a_fifth_question():
    three = Scene(names=("owl", "key", "crown"), color="pink", relation="above")
    assert answers(three, three.caption, Mix(triples=0.1)) == (*answers(three, three.caption), EMOJI.index("crown"))
    alone = Scene(names=("owl",), color="pink")
    assert answers(alone, alone.caption, Mix(triples=0.1))[-1] == len(EMOJI)


@pytest.mark.parametrize("mix", [Mix(), Mix(triples=0.5)])
def test_all_answers_fit_their_classes(mix):
    random = Random(0)
    for _ in range(200):
        scene = draw_training_scene(random, mix)
        given = answers(scene, spoken(scene, random), mix)
        assert all(0 <= answer < count for answer, count in zip(given, classes(mix), strict=True))


def test_the_loss_counts_end_marks_only():
    right = torch.tensor([[1, 2, 3, 4]])
    logits = torch.zeros(1, 4, sum(ANSWERS))
    ends = torch.tensor([[False, False, True, True]])
    other = logits.clone()
    other[:, :2] = 100 * torch.randn(1, 2, sum(ANSWERS), generator=torch.Generator().manual_seed(0))
    assert torch.equal(answer_loss(logits, right, ends), answer_loss(other, right, ends))


def test_each_end_mark_is_asked_about_one_place_or_the_background_and_about_the_relation():
    ends = torch.tensor([[False] * 3 + [True] * 9])
    asked = torch.stack([asked_at(question, ends, 5)[0] for question in range(5)])
    others = asked[[0, 1, 2, 4]]
    assert torch.equal(asked[3], ends[0])
    assert torch.equal(others.sum(0), ends[0].long()), "one question each"
    assert all(int(row.sum()) >= 2 for row in others), "in turn"
    shifted = torch.roll(ends, 1, dims=1) & ends
    assert torch.equal(asked_at(1, shifted, 5), asked_at(1, ends, 5) & shifted), "by the position, not by the length"


def test_a_question_that_no_end_mark_is_asked_adds_nothing():
    logits, right = torch.zeros(1, 2, sum(ANSWERS)), torch.tensor([[1, 2, 3, 4]])
    loss = answer_loss(logits, right, torch.tensor([[False, True]]))
    asked = torch.tensor([ANSWERS[1], ANSWERS[3]], dtype=torch.float64)  # at position 1: the second emoji, the relation
    assert float(loss) == pytest.approx(float(asked.log().sum()), rel=1e-6)


def test_questions_asked_beside_are_those_of_the_scenes_that_captions_mean(text):
    asked = asked_beside(text, Mix(triples=0.1), 0.5)
    captions = ["owl below key on pink background", "", "an owl on a red background"]
    ids = torch.tensor([token_ids(caption, text.tokenizer) for caption in captions])
    even = sum(torch.tensor(classes(Mix(triples=0.1))).double().log())
    assert float(asked.loss(ids, captions).detach()) == pytest.approx(0.5 * float(even), rel=1e-4), (
        "it knows nothing at first"
    )
    assert float(asked.loss(ids[1:2], captions[1:2])) == 0, "nothing is asked of the empty caption"
    optimizer = torch.optim.Adam([*asked.reader.parameters()], lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        asked.loss(ids, captions).backward()
        optimizer.step()
    questions = classes(Mix(triples=0.1))
    logits, ends = asked.reader(ids)[0].split(questions, dim=-1), ids == text.tokenizer.eos
    places = [asked_at(question, ends, len(questions))[0] for question in range(len(questions))]
    found = [int(part[where][-1].argmax()) for part, where in zip(logits, places, strict=True)]
    scene = Scene(names=("owl", "key"), color="pink", relation="below")
    assert tuple(found) == answers(scene, captions[0], Mix(triples=0.1))


def test_training_teaches_the_encoder_in_place_and_goes_on_where_it_stopped(text, tmp_path):
    ids = torch.tensor([token_ids("owl above key on pink background", text.tokenizer)])
    before = text(ids, OUTPUT_SELECTION).tokens
    records = []
    train_text_encoder(text, SETTINGS, tmp_path / "run", on_record=records.append)
    after = text(ids, OUTPUT_SELECTION).tokens

    assert records[-1].loss < 0.8 * records[0].loss
    assert (after - before).abs().mean() > 1e-3
    again = []
    train_text_encoder(text, SETTINGS, tmp_path / "run", on_record=again.append)
    assert again == []
    assert torch.equal(text(ids, OUTPUT_SELECTION).tokens, after)


def test_a_run_of_another_encoder_is_refused(text, tmp_path):
    train_text_encoder(text, SETTINGS, tmp_path / "run")
    other = new_model(TINY.unet(), layers=2, heads=1, tokenizer=text.tokenizer, seed=0).text
    with pytest.raises(CheckpointError, match="layers"):
        train_text_encoder(other, SETTINGS, tmp_path / "run")


def test_a_reader_answers_at_every_token(text):
    ids = torch.tensor([token_ids("owl", text.tokenizer)])
    assert CaptionClassifier(text)(ids).shape == (1, ids.shape[1], sum(ANSWERS))
