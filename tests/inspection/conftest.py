import pytest

from tests.adapters.lora.files import is_attention, kohya, layers_of, write
from tests.services import service_of
from tests.services import services_are_left_as_found as services_are_left_as_found


@pytest.fixture(scope="session")
def service():
    """A tiny random SD1 pipeline."""
    return service_of("sd1")


@pytest.fixture(scope="session")
def files(service, tmp_path_factory):
    """LoRAs of attention, of convolutions and of text."""
    folder, layers = tmp_path_factory.mktemp("inspected_loras"), layers_of(service.unet)
    encoder = service.model.text.encoders[0]
    text = {
        name.removesuffix(".weight"): tuple(tensor.shape)
        for name, tensor in encoder.tensors().items()
        if name.endswith("q_proj.weight")
    }
    attention = {name: shape for name, shape in layers.items() if is_attention(name)}
    outside = {name: shape for name, shape in layers.items() if "attentions" not in name}
    # Twice the first as another file: parallel to it.
    tensors = {
        "style": kohya(attention, rank=4),
        "louder": {
            name: 2 * tensor if "lora_up" in name else tensor for name, tensor in kohya(attention, rank=4).items()
        },
        "texture": kohya(outside, rank=2),
        "text": kohya(text, prefix="lora_te_", rank=4, alpha=8.0),
    }
    return {name: write(folder / f"{name}.safetensors", parts) for name, parts in tensors.items()}
