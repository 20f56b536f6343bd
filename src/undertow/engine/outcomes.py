"""The log of what a request's pictures were answered, from which they go on after a crash.

A sampler is a generator, a pure function of what it was sent: whatever the sampler, the guidance, the passes, the
regions and windows, the state of a picture is the sequence of network outcomes that it has received. The log holds
these, and what else was decided or computed on the way and is not certain to come out the same again (pictures
enlarged between two passes, what was done for less memory). The generators of a request that is submitted with its log
are sent the recorded outcomes, without a call of the network, and go on from there. Prompts and pictures are encoded
again.
"""

import zlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from undertow.doors import checked
from undertow.engine.fingerprint import Fingerprint
from undertow.engine.outcome_records import (
    MAGIC,
    Answered,
    Begun,
    Decoded,
    Enlarged,
    GaveWay,
    framed,
    records,
)
from undertow.engine.passes import UpscaledLatents
from undertow.engine.rows import Outcome, Row
from undertow.errors import InvalidInput
from undertow.memory.ladder import Economy, StepDown
from undertow.shapes import AnyTensor

Sink = Callable[[bytes], object]
"""Takes bytes that belong behind all that it was given before, such as `file.write`."""


class OutcomeLog:
    """The log of one request, for one run of it.

    fingerprint: of the request, by `Engine.fingerprint`; of a new log `None` may stand for that of the request which it
    is submitted with. sink: called with the bytes of each record as it comes, by the thread that works; what it raises
    fails the request. `None` records nothing.

        fingerprint = engine.fingerprint(request, options=options)
        with path.open("ab") as file:
            log = OutcomeLog.read(path.read_bytes(), fingerprint, sink=file.write)
            file.truncate(log.whole_bytes)  # what was being written when the process died
            engine.submit(request, options=options, outcomes=log).result()
    """

    @checked
    def __init__(self, fingerprint: Fingerprint | None = None, sink: Sink | None = None):
        self.fingerprint = fingerprint
        self.whole_bytes = 0
        """Of the data that it was read from, what is to be kept; what is appended belongs behind that."""
        self.course: tuple[StepDown, ...] = ()
        """What was done for less memory, from which unit of the request's work on."""
        self._units: set[tuple[int, int]] = set()
        self._sink = sink
        self._pictures: dict[int, PictureOutcomes] = {}
        self._taken = False

    @classmethod
    @checked
    def read(cls, data: bytes, fingerprint: Fingerprint, sink: Sink | None = None) -> "OutcomeLog":
        """The log in what a sink was given, without what is not whole at its end; a new one where nothing is.

        fingerprint: of the request as it is now. Errors: `InvalidInput` (argument "outcomes") names what differs from
        the request, model or machine that the log was made with, and refuses what is no log.
        """
        log = cls(fingerprint, sink)
        for record, end in records(data):
            if not log.whole_bytes:
                if not isinstance(record, Begun):
                    break
                fingerprint.require(record.fingerprint)
            log._take(record)
            log.whole_bytes = end
        return log

    @property
    def rows(self) -> int:
        """Evaluations of networks that are recorded and have not been replayed yet."""
        return sum(picture.waiting for picture in self._pictures.values())

    @property
    def units(self) -> int:
        """Of the request's work that were done: a forward is one for each picture that had part in it."""
        return len(self._units)

    def claim(self, fingerprint: Fingerprint) -> "OutcomeLog":
        """The log itself, for the run that it is given to. Errors: `InvalidInput` for another request, and the second
        time."""
        if self.fingerprint is not None:
            fingerprint.require(self.fingerprint)
        if self._taken:
            raise InvalidInput(
                "outcomes", "a log in use", "one for each run of a request", "read it again from its bytes"
            )
        self._taken, self.fingerprint = True, fingerprint
        return self

    def picture(self, index: int) -> "PictureOutcomes":
        return self._pictures.setdefault(index, PictureOutcomes(self, index))

    def gave_way(self, step: StepDown) -> None:
        """Records what is done for less memory from now on."""
        self.append(GaveWay(step=step))

    @property
    def recording(self) -> bool:
        return self._sink is not None

    def forget(self) -> None:
        """Lets go of all tensors."""
        for picture in self._pictures.values():
            picture.forget()

    def append(self, record: Answered | Enlarged | Decoded | GaveWay) -> None:
        if self._sink is None:
            return
        assert self.fingerprint is not None  # claimed before anything is answered
        start = b"" if self.whole_bytes else MAGIC + framed(Begun(fingerprint=self.fingerprint))
        content = start + framed(record)
        self._sink(content)
        self.whole_bytes += len(content)

    def _take(self, record: object) -> None:
        match record:
            case GaveWay(step=step):
                self.course += (step,)
            case Answered() | Enlarged() | Decoded():
                self._units.add((record.picture, record.unit))
                self.picture(record.picture).take(record, self.course[-1].economy if self.course else Economy())
            case _:
                pass


def no_log() -> OutcomeLog:
    """Nothing is recorded."""
    return OutcomeLog(Fingerprint(parts={}))


class PictureOutcomes:
    """What one picture of a request was answered. Its generator's rows are counted over all passes."""

    def __init__(self, log: OutcomeLog, index: int):
        self.decoded_with: Economy | None = None
        """What was done for less memory when the picture was decoded, if it was."""
        self._log, self._index = log, index
        self._answers: dict[int, Answered] = {}
        self._enlarged: dict[int, AnyTensor] = {}
        self._next = 0
        self._asked: Sequence[Row] = ()
        self._went_on_at: int | None = None

    @property
    def waiting(self) -> int:
        return len(self._answers)

    @property
    def replaying(self) -> bool:
        """Whether the outcome of the next row is recorded."""
        return self._next in self._answers

    def recorded(self, rows: Sequence[Row], *, keep_non_finite: bool) -> list[Outcome | None]:
        """The recorded outcomes of the rows that the picture asks for next; `None` for those that the network has to
        compute. Errors: `InvalidInput` where the picture asks for something else than when the log was made."""
        self._asked, start = rows, self._next
        self._next += len(rows)
        found = [self._recorded(start + place, row, keep_non_finite) for place, row in enumerate(rows)]
        if self._went_on_at is None and None in found:
            self._went_on_at = rows[0].origin.step
        return found

    def reached(self, steps: int) -> int:
        """How many steps, over all passes, the picture was taken through by its log; `steps` where that has all."""
        if self._went_on_at is None:
            return steps if self._next else 0
        return self._went_on_at

    def forget(self) -> None:
        """Lets go of all tensors."""
        self._answers.clear()
        self._enlarged.clear()
        self._asked = ()

    def answer(self, place: int, outcome: Outcome, unit: int) -> None:
        """Records the outcome of one of the rows that were asked for last."""
        if not self._log.recording:
            return
        self._log.append(
            Answered(
                picture=self._index,
                position=self._next - len(self._asked) + place,
                unit=unit,
                question=_question(self._asked[place]),
                finite=outcome.finite,
                prediction=outcome.prediction,
                observations=outcome.observations,
            )
        )

    def enlarged(self, index: int) -> UpscaledLatents | None:
        """What was recorded of the latents behind pass `index`."""
        return self._enlarged.pop(index, None)

    def enlarge(self, index: int, latents: UpscaledLatents, unit: int) -> None:
        """Records the enlarged latents behind pass `index`."""
        self._log.append(Enlarged(picture=self._index, position=index, unit=unit, latents=latents))

    def decode(self, unit: int) -> None:
        """Records that the picture is finished."""
        self._log.append(Decoded(picture=self._index, unit=unit))

    def take(self, record: Answered | Enlarged | Decoded, economy: Economy) -> None:
        """A record that was read. economy: what was done for less memory at the time."""
        match record:
            case Answered(position=position):
                self._answers[position] = record
            case Enlarged(position=position, latents=latents):
                self._enlarged[position] = latents
            case Decoded():
                self.decoded_with = economy

    def _recorded(self, position: int, row: Row, keep_non_finite: bool) -> Outcome | None:
        answer = self._answers.pop(position, None)
        if answer is None or not (answer.finite or keep_non_finite):
            return None
        shape = (1, row.unet.config.out_channels, *row.latents.shape[2:])
        fits = answer.prediction.shape == shape and set(answer.observations) == set(row.observed)
        if not fits or answer.question != _question(row):
            raise InvalidInput(
                "outcomes",
                f"a log whose {row.origin} was drawn from other latents",
                "one of the same request on the same machine",
                "draw the request from the beginning, with a new log",
            )
        device = row.latents.device
        return Outcome(
            prediction=answer.prediction.to(device),
            finite=answer.finite,
            observations={name: one.to(device) for name, one in answer.observations.items()},
        )


def _question(row: Row) -> int:
    """A checksum of what the network is asked, by which the replay is known to be exact."""
    where = row.origin
    place = f"{where.picture} {where.step} {where.branch} {where.window} {float(row.timestep)!r}"
    return zlib.crc32(_bytes(row.latents), zlib.crc32(place.encode()))


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
