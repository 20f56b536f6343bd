"""Pictures that cannot be drawn again: another model, other versions, other bits."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from PIL import Image

from undertow.checkpoints.files.hashes import model_hash
from undertow.embedded import embedded_name
from undertow.engine.loaded_as import TYPES
from undertow.engine.metadata import StoredDescription, read_stored
from undertow.engine.named_files import file_name, request_adapters
from undertow.errors import InvalidInput
from undertow.inspection.doctor.case import Case
from undertow.inspection.doctor.finding import Seen, rule

provenance_rule = partial(rule, family="provenance")


def _stored(case: Case) -> StoredDescription | None:
    if case.picture is None:
        return None
    try:
        return read_stored(case.picture)
    except InvalidInput:
        return None


@provenance_rule(
    "not-described",
    symptom="a picture that cannot be drawn again",
    prevention="keep the files that undertow writes; messengers and editors strip descriptions",
)
def not_described(case: Case) -> Iterator[Seen]:
    """A picture without a description of ours."""
    if case.picture is None:
        return
    try:
        read_stored(case.picture)
    except InvalidInput as error:
        yield Seen(
            evidence=str(error),
            cause="another program wrote the file, or one removed what undertow had written into it",
            fix="give the original file",
            severity="warning",
        )


@provenance_rule(
    "another-model",
    symptom="the same seed gives another picture",
    prevention="keep models under the hash that pictures name",
)
def another_model(case: Case) -> Iterator[Seen]:
    """The picture was drawn with a model of another hash."""
    stored = _stored(case)
    if stored is None or stored.model_hash is None:
        return
    found = model_hash(case.model.path)
    if found is not None and found != stored.model_hash:
        yield Seen(
            evidence=f"the picture names {stored.model} with hash {stored.model_hash}; {case.model.path.name} has "
            f"{found}",
            cause="it was drawn with another model, or with another version of it",
            fix=f"give the model whose hash begins with {stored.model_hash}",
            module="model",
            severity="serious",
        )


@provenance_rule(
    "not-reproduced",
    symptom="the same request gives other bytes",
    prevention="pin the version of PyTorch, the number of threads and the type beside the seed",
)
def not_reproduced(case: Case) -> Iterator[Seen]:
    """The picture's request, drawn again in a fresh process, gives other pixels."""
    stored = _stored(case)
    if stored is None or case.picture is None or case.image is None or any(another_model.check(case)):
        return
    again = case.redraw(case.picture, _options(case, stored))
    if again.size != case.image.size:
        yield _seen(f"drawn again it has {again.width}x{again.height} pixels, not {case.image.width}x"
                    f"{case.image.height}", case)  # fmt: skip
    elif (difference := _difference(case.image, again)) is not None:
        yield _seen(difference, case)


def _options(case: Case, stored: StoredDescription) -> Sequence[str]:
    """What the fresh process is told besides the picture: the same model, its type where the picture says nothing of
    that, and where adapters lie that did not come with the model. They are named bare: their settings and pictures are
    stored."""
    path = case.model.path
    words = ["--model", embedded_name(path) or str(path)]
    if stored.computing is None and (dtype := TYPES.get(case.unet.dtype)) is not None:
        words += ["--precision", dtype]
    bundled = case.manager.bundled.names()
    places = {file_name(str(adapter.source)): str(adapter.source) for adapter in case.adapters}
    named = dict.fromkeys(str(one.get("source")) for one in request_adapters(stored.request))
    for name in named:
        if name not in bundled and name in places:
            words += ["--adapter", places[name]]  # also a LoRA: --lora would take the place of all others
    return words


def _difference(one: Image.Image, other: Image.Image) -> str | None:
    """How two pictures of one size differ; `None` where their bytes are equal."""
    pair = [torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).int() for picture in (one, other)]
    apart = (pair[0] - pair[1]).abs()
    if not bool(apart.any()):
        return None
    return f"{int((apart > 0).sum()):,} of {apart.numel():,} bytes differ, by {int(apart.max())} at most"


def _seen(evidence: str, case: Case) -> Seen:
    return Seen(
        evidence=f"{evidence}; here PyTorch {torch.__version__} with {case.host.threads} threads",
        cause="another version of PyTorch or undertow, other threads, another type or device, or an edited file",
        fix="draw it with the versions, threads and type that it was made with",
        severity="serious",
    )


RULES = (not_described, another_model, not_reproduced)
