"""Source document 002's shape table (R118-R120, trap T13), and shapes at odd sizes and for SDXL."""

import pytest

from undertow import InvalidInput, UNetConfig
from undertow.inspection.trace import trace_shapes

BATCH = 4
DOCUMENT_002 = [
    # name, input, output, skip; "Full Forward Pass: Shape Tracking", with the decoder's inputs of trap T13.
    ("time_embedding", (4, 256), (4, 256), ""),
    ("class_embedding", (4,), (4, 256), ""),
    ("conv_in", (4, 3, 32, 32), (4, 64, 32, 32), "stores 1"),
    ("down_blocks.0.resnets.0", (4, 64, 32, 32), (4, 64, 32, 32), "stores 2"),
    ("down_blocks.0.resnets.1", (4, 64, 32, 32), (4, 64, 32, 32), "stores 3"),
    ("down_blocks.0.downsamplers.0", (4, 64, 32, 32), (4, 64, 16, 16), "stores 4"),
    ("down_blocks.1.resnets.0", (4, 64, 16, 16), (4, 128, 16, 16), "stores 5"),
    ("down_blocks.1.resnets.1", (4, 128, 16, 16), (4, 128, 16, 16), "stores 6"),
    ("down_blocks.1.downsamplers.0", (4, 128, 16, 16), (4, 128, 8, 8), "stores 7"),
    ("down_blocks.2.resnets.0", (4, 128, 8, 8), (4, 256, 8, 8), ""),
    ("down_blocks.2.attentions.0", (4, 256, 8, 8), (4, 256, 8, 8), "stores 8"),
    ("down_blocks.2.resnets.1", (4, 256, 8, 8), (4, 256, 8, 8), ""),
    ("down_blocks.2.attentions.1", (4, 256, 8, 8), (4, 256, 8, 8), "stores 9"),
    ("mid_block.resnets.0", (4, 256, 8, 8), (4, 256, 8, 8), ""),
    ("mid_block.attentions.0", (4, 256, 8, 8), (4, 256, 8, 8), ""),
    ("mid_block.resnets.1", (4, 256, 8, 8), (4, 256, 8, 8), ""),
    ("up_blocks.0.resnets.0", (4, 512, 8, 8), (4, 256, 8, 8), "takes 9"),
    ("up_blocks.0.attentions.0", (4, 256, 8, 8), (4, 256, 8, 8), ""),
    ("up_blocks.0.resnets.1", (4, 512, 8, 8), (4, 256, 8, 8), "takes 8"),
    ("up_blocks.0.attentions.1", (4, 256, 8, 8), (4, 256, 8, 8), ""),
    ("up_blocks.0.resnets.2", (4, 384, 8, 8), (4, 256, 8, 8), "takes 7"),
    ("up_blocks.0.attentions.2", (4, 256, 8, 8), (4, 256, 8, 8), ""),
    ("up_blocks.0.upsamplers.0", (4, 256, 8, 8), (4, 256, 16, 16), ""),
    ("up_blocks.1.resnets.0", (4, 384, 16, 16), (4, 128, 16, 16), "takes 6"),
    ("up_blocks.1.resnets.1", (4, 256, 16, 16), (4, 128, 16, 16), "takes 5"),
    ("up_blocks.1.resnets.2", (4, 192, 16, 16), (4, 128, 16, 16), "takes 4"),
    ("up_blocks.1.upsamplers.0", (4, 128, 16, 16), (4, 128, 32, 32), ""),
    ("up_blocks.2.resnets.0", (4, 192, 32, 32), (4, 64, 32, 32), "takes 3"),
    ("up_blocks.2.resnets.1", (4, 128, 32, 32), (4, 64, 32, 32), "takes 2"),
    ("up_blocks.2.resnets.2", (4, 128, 32, 32), (4, 64, 32, 32), "takes 1"),
    ("conv_norm_out", (4, 64, 32, 32), (4, 64, 32, 32), ""),
    ("conv_out", (4, 64, 32, 32), (4, 3, 32, 32), ""),
]


def test_cifar10_traces_the_table_of_document_002():
    stages = trace_shapes(UNetConfig.cifar10(), batch=BATCH)

    assert [(stage.name, stage.input, stage.output, stage.skip) for stage in stages] == DOCUMENT_002


def test_stages_are_the_config_s_layers_in_the_order_of_execution():
    for config in (UNetConfig.sd15(), UNetConfig.sdxl_refiner(), UNetConfig.cifar10(class_labels=False)):
        assert [stage.name for stage in trace_shapes(config)] == config.layer_names()


def test_odd_sizes_come_back_to_the_input_s_size():
    stages = trace_shapes(UNetConfig.sd15(), size=(17, 13))

    assert stages[-1].output == (1, 4, 17, 13)
    assert {stage.output[2:] for stage in stages if stage.name.startswith("mid_block")} == {(3, 2)}


@pytest.mark.parametrize(("batch", "size"), [(0, None), (1, (0, 8)), (1, (8, -1))])
def test_impossible_sizes_are_refused(batch, size):
    with pytest.raises(InvalidInput, match="at least one row and one cell"):
        trace_shapes(UNetConfig.cifar10(), batch=batch, size=size)
