import pytest
import torch

from undertow.errors import ConfigError
from undertow.training.ema import ExponentialMovingAverage
from undertow.unet.unet import UNet

FLOAT32 = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture
def unet(tiny_config):
    torch.manual_seed(0)
    return UNet(tiny_config().unet).train()


def test_the_average_is_the_closed_form(unet):
    average = ExponentialMovingAverage(unet, decay=0.6)
    name = "conv_in.weight"
    start, history = unet.get_parameter(name).detach().clone(), []
    for step in range(1, 6):
        with torch.no_grad():
            unet.get_parameter(name).add_(float(step))
        history.append(unet.get_parameter(name).detach().clone())
        average.update(unet, step)
    decays = [min(0.6, (1 + step) / (10 + step)) for step in range(1, 6)]
    assert decays[0] < decays[1] < 0.6  # the warm-up is in the test
    expected, remaining = torch.zeros_like(start), 1.0
    for decay, weight in zip(reversed(decays), reversed(history), strict=True):
        expected += remaining * (1 - decay) * weight
        remaining *= decay
    expected += remaining * start
    torch.testing.assert_close(average.network.get_parameter(name), expected, **FLOAT32)


def test_decay_ends_at_its_value(unet):
    average = ExponentialMovingAverage(unet, decay=0.9)
    assert average.decay_at(1) == pytest.approx(2 / 11)
    assert average.decay_at(10_000) == 0.9


def test_the_average_is_a_network_for_inference_and_shares_no_memory(unet):
    average = ExponentialMovingAverage(unet, decay=0.9)
    assert not average.network.training
    assert not any(parameter.requires_grad for parameter in average.network.parameters())
    with torch.no_grad():
        unet.conv_in.weight.zero_()
    assert average.network.conv_in.weight.abs().sum() > 0


def test_a_decay_of_one_is_refused(unet):
    with pytest.raises(ConfigError, match="ema_decay = 1"):
        ExponentialMovingAverage(unet, decay=1.0)
