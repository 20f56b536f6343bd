"""Stage 3: the text encoder learns what captions ask for, before a U-Net looks at it.

A U-Net that starts with a random text encoder sees most of its context, the padding, say nothing, and learns colors
within hundreds of steps but objects only after thousands. So the encoder is first trained to name the scene from its
states at the end mark and at all padding behind it, where CLIP is read too. Minutes, on text alone.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from recipes.emoji.names import COLORS, EMOJI
from recipes.emoji.scenes import RELATIONS, UP_TO_TWO, Mix, Scene, draw_training_scene, spoken, understood
from recipes.emoji.text_to_image import OUTPUT_SELECTION, Asked, token_ids, with_unknown_word
from undertow.encoders.clip import TextEncoder
from undertow.training.fit import FitSettings, fit
from undertow.training.log import StepRecord
from undertow.training.randomness import seed_for, seeded

ANSWERS = (len(EMOJI), len(EMOJI) + 1, len(COLORS) + 1, len(RELATIONS) + 1)
"""Classes of the four questions: the emoji at the left or top, the next or none, background or not said, relation or
none. Where emoji stand, not in which order they are named: a U-Net that has to find that out guesses, and half of its
pairs stand the wrong way round."""

THIRD = len(EMOJI) + 1
"""Classes of a fifth question, where scenes may have three emoji: the third or none."""

RELATION = 3
"""The question that is asked at every end mark. The others are asked at one after the other, by the position: what is
asked everywhere lies in every token beside all else, and no key of a U-Net's attention can choose between the left
emoji and the right one."""


class CaptionClassifier(nn.Module):
    """A text encoder with a linear layer that answers all questions at every token."""

    def __init__(self, text: TextEncoder, mix: Mix = UP_TO_TWO):
        super().__init__()
        self.text = text
        self.answers = nn.Linear(text.config.width, sum(classes(mix)))

    def forward(self, ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens answers"]:
        """Logits of all answers, one after the other."""
        return self.answers(self.text(ids, OUTPUT_SELECTION).tokens)


def train_text_encoder(
    text: TextEncoder,
    settings: FitSettings,
    folder: Path,
    *,
    mix: Mix = UP_TO_TWO,
    on_record: Callable[[StepRecord], None] = lambda record: None,
) -> None:
    """Trains `text` in place."""
    with seeded(settings.seed, "answers"):
        reader = CaptionClassifier(text, mix)

    def batch_at(step: int) -> tuple[Tensor, Tensor]:
        random = Random(seed_for(settings.seed, "text", step))
        scenes = [draw_training_scene(random, mix) for _ in range(settings.batch_size)]
        captions = [spoken(scene, random) for scene in scenes]
        ids = torch.tensor([token_ids(with_unknown_word(caption, random), text.tokenizer) for caption in captions])
        right = torch.tensor([answers(scene, caption, mix) for scene, caption in zip(scenes, captions, strict=True)])
        return ids, right

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        ids, right = batch
        return answer_loss(reader(ids), right, ids == text.tokenizer.eos, classes(mix))

    recipe = {"width": text.config.width, "layers": text.config.layers, "mix": repr(mix)}
    trained = fit(reader, batch_at, loss, settings, folder, recipe=recipe, on_record=on_record)
    assert isinstance(trained, CaptionClassifier)
    text.load_state_dict(trained.text.state_dict())


def asked_beside(text: TextEncoder, mix: Mix, weight: float) -> Asked:
    """The same questions, asked of an encoder while a U-Net learns with it. weight: of their loss beside its own."""
    reader = CaptionClassifier(text, mix)
    nn.init.zeros_(reader.answers.weight)  # nothing to learn from answers until they have begun to be right
    nn.init.zeros_(reader.answers.bias)

    def loss(ids: Int[Tensor, "batch tokens"], captions: Sequence[str]) -> Tensor:
        scenes = [understood(caption) for caption in captions]
        rows = [index for index, scene in enumerate(scenes) if scene is not None]
        if not rows:  # all captions of the batch were dropped
            return torch.zeros(())
        right = torch.tensor([answers(scene, captions[row], mix) for row, scene in enumerate(scenes) if scene])
        return weight * answer_loss(reader(ids[rows]), right, ids[rows] == text.tokenizer.eos, classes(mix))

    return Asked(reader=reader, loss=loss, weight=weight)


def classes(mix: Mix) -> tuple[int, ...]:
    """How many classes each question about such scenes has."""
    return (*ANSWERS, THIRD) if mix.triples else ANSWERS


def answers(scene: Scene, caption: str, mix: Mix = UP_TO_TWO) -> tuple[int, ...]:
    """What a caption of the scene says, as classes of `classes(mix)`."""
    first, second, third = (*map(EMOJI.index, scene.in_places), *[len(EMOJI)] * (3 - len(scene.names)))
    color = list(COLORS).index(scene.color) if f"{scene.color} background" in caption else len(COLORS)
    relation = len(RELATIONS) if scene.relation is None else RELATIONS.index(scene.relation)
    return (first, second, color, relation, third)[: len(classes(mix))]


def answer_loss(
    logits: Float[Tensor, "batch tokens answers"],
    right: Int[Tensor, "batch questions"],
    ends: Bool[Tensor, "batch tokens"],
    classes: tuple[int, ...] = ANSWERS,
) -> Float[Tensor, ""]:
    """Sum of the mean cross-entropies of the questions, each at the end marks where it is asked; padding counts as end
    marks."""
    losses: list[Tensor] = []
    for question, part in enumerate(logits.float().split(classes, dim=-1)):
        asked = asked_at(question, ends, len(classes))
        wanted = right[:, question, None].expand(-1, ends.shape[1])
        total = F.cross_entropy(part[asked], wanted[asked], reduction="sum")
        losses.append(total / asked.sum().clamp(min=1))
    return torch.stack(losses).sum()


def asked_at(question: int, ends: Bool[Tensor, "batch tokens"], questions: int) -> Bool[Tensor, "batch tokens"]:
    """The end marks at which one of so many questions is asked, see `RELATION`."""
    if question == RELATION:
        return ends
    turns = [one for one in range(questions) if one != RELATION]
    return ends & (torch.arange(ends.shape[1]) % len(turns) == turns.index(question))
