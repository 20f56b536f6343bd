"""Networks to be timed: what their weights are does not matter, as long as they are numbers of an ordinary size."""

import torch
from torch import nn


def random_weights(network: type[nn.Module], config: object) -> nn.Module:
    """A network in float32 and channels-last memory."""
    with torch.device("meta"):
        made = network(config)
    made = made.to_empty(device="cpu").eval()
    for parameter in made.parameters():
        parameter.data.normal_(std=0.1 if parameter.ndim < 2 else parameter[0].numel() ** -0.5)
    return made.to(memory_format=torch.channels_last)
