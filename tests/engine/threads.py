"""Four threads that draw with one service, again and again, each with adapters of another kind."""

import threading
from collections.abc import Sequence

import torch

from undertow import GenerationRequest, InvalidInput, UNetService
from undertow.engine.options import RunOptions

ROUNDS = 2


def draw_in_threads(service: UNetService, requests: Sequence[GenerationRequest], options: RunOptions) -> None:
    """Every thread must get the bits that its request has alone, while others are cancelled and fail in between."""
    engine = service.engine
    alone = [engine.submit(request, options=options).result().latents for request in requests]
    for index, one in enumerate(alone[1:], 1):
        assert (one - alone[0]).abs().max() > 0.01, f"request {index} draws as the first does"
    found: list[list[torch.Tensor]] = [[] for _ in requests]
    failures: list[BaseException] = []

    def work(index: int) -> None:
        request = requests[index]
        try:
            for _ in range(ROUNDS):
                engine.submit(request, options=options).cancel()
                found[index].append(engine.submit(request, options=options).result().latents)
                wrong = GenerationRequest(prompt="a", adapters=request.adapters, sampler="ddim_inverse")
                try:
                    engine.submit(wrong).result()
                except InvalidInput:
                    continue
                raise AssertionError("a request for an inverse sampler was drawn")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    for index, latents in enumerate(found):
        assert [torch.equal(each, alone[index]) for each in latents] == [True] * ROUNDS, f"request {index}"
