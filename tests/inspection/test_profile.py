"""Time, operations and bytes of layers, and the page that shows them."""

import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

from tests.services import fresh_service
from undertow import GenerationRequest, InvalidInput, UNet, UNetConfig
from undertow.engine.limits import BatchLimits
from undertow.engine.options import RunOptions
from undertow.errors import NonFiniteError
from undertow.inspection.flops import CountedFlops
from undertow.inspection.marks import marked, next_mark
from undertow.inspection.probe import ModuleProbe
from undertow.inspection.profile import PEAK_SIDE, Profiler, level_of
from undertow.inspection.report import report_page, save_report
from undertow.inspection.trace_file import traced
from undertow.unet.conditioning import Conditioning

REQUEST = GenerationRequest(prompt="abc <script>alert(1)</script>", steps=2, seed=3)


@pytest.fixture(scope="module", autouse=True)
def small_products():
    """The machine's speed is not what is tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PEAK_SIDE, "cpu", 64)
        yield


@pytest.fixture(scope="module")
def profiled(service):
    """A result, drawn while a profiler watched, and its profile."""
    with Profiler(service.engine) as profiler:
        result = service.run(REQUEST)
    return result, profiler.profile(result.report)


def test_profiling_changes_no_bit_and_leaves_nothing(service, profiled):
    assert torch.equal(profiled[0].latents, service.run(REQUEST).latents)
    assert service.engine.probes == []
    assert service.engine.watchers == []
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in service.unet.modules())


def test_layers_make_up_the_forward(service, profiled):
    _, found = profiled
    assert [layer.name for layer in found.layers] == service.config.layer_names()
    assert (found.forwards, found.rows) == (2, 2)
    assert 0.6 < found.covered <= 1
    assert 0 < found.attention_share < 1
    assert sum(found.by_level().values()) == pytest.approx(found.covered * found.forward_s)
    parameters = sum(weight.nbytes for weight in service.unet.parameters())
    assert sum(layer.weight_bytes for layer in found.layers) == parameters


def test_operations_of_a_convolution_and_a_linear_layer_are_those_of_arithmetic(service, profiled):
    layers = {layer.name: layer for layer in profiled[1].layers}
    side, rows, config = service.config.sample_size, 2, service.config
    first = config.levels[0].channels
    # Two operations for each weight and cell: 3 x 3 cells of each input channel.
    assert layers["conv_in"].flops == 2 * rows * side**2 * 9 * config.in_channels * first
    time_dim = 4 * first
    assert layers["time_embedding"].flops == 2 * rows * (first * time_dim + time_dim**2)
    assert layers["conv_in"].memory_bytes >= 4 * rows * first * side**2, "its output"
    assert all(layer.flops > 0 for layer in profiled[1].layers if "attentions" in layer.name)


def test_stable_diffusion_takes_what_is_usually_quoted_and_its_attention():
    """803.3 GFLOP at 64 x 64 cells: the 338.6 GMAC that counters without fused attention quote are 677.2 of them, and
    two products of the attention the rest (measured once on stand-ins, by PyTorch's counter with math attention)."""
    with torch.device("meta"):
        unet = UNet(UNetConfig.sd15())
        inputs = torch.empty(1, 4, 64, 64), torch.empty(1), Conditioning(context=torch.empty(1, 77, 768))
    with torch.inference_mode(), CountedFlops() as counted:
        unet(*inputs)
    assert counted.total / 1e9 == pytest.approx(803.3, abs=0.1)


def test_fused_attention_on_the_cpu_is_counted():
    query = torch.randn(2, 4, 16, 8)
    with CountedFlops() as counted:
        torch.nn.functional.scaled_dot_product_attention(query, query, query)
    # Two products of 16 x 16 scores and 8 channels, two operations each.
    assert counted.total == 2 * 2 * (2 * 4) * 16 * 16 * 8


def test_the_timeline_is_the_work(profiled):
    _, found = profiled
    kinds = [span.kind for span in found.timeline]
    assert kinds.count("denoise") == 2
    assert kinds[-1] == "decode"
    assert all(span.end >= span.begin >= 0 for span in found.timeline)
    assert json.loads(json.dumps(found.to_json()))["forwards"] == 2


def test_a_request_is_profiled_apart_with_the_rows_that_fill_its_forwards_up(service, profiled):
    mark, other = next_mark(), replace(REQUEST, prompt="cat", size=(32, 48))
    options = [RunOptions(limits=BatchLimits(padded_to=3), mark=mark), RunOptions()]
    with Profiler(service.engine, rows=marked(mark)) as profiler:
        handles = service.engine.submit_together([REQUEST, other], options=options)
        (result, _) = [handle.result() for handle in handles]
    found = profiler.profile(result.report)
    assert (found.forwards, found.rows) == (2, 3)
    assert [span.kind for span in found.timeline if span.kind != "encode"] == ["denoise", "denoise", "decode"]
    alone = {layer.name: layer.flops for layer in profiled[1].layers}
    assert all(layer.flops * 2 == alone[layer.name] * 3 for layer in found.layers if layer.level >= 0)


def test_nothing_drawn_is_refused(service):
    report = service.generate("red apple", steps=1).report
    with Profiler(service.engine) as profiler:
        pass
    with pytest.raises(InvalidInput, match="while the profiler was open"):
        profiler.profile(report)


@pytest.fixture(scope="module")
def broken():
    """A pipeline with one weight that is NaN."""
    service = fresh_service("sd1")
    service.unet.get_submodule("mid_block.resnets.0.conv1").weight.data[0, 0, 0, 0] = float("nan")
    return service


@pytest.mark.parametrize("name", ["profile", "metrics"])
def test_numbers_that_are_not_finite_are_named_as_without_a_profiler(broken, name):
    with pytest.raises(NonFiniteError, match=r"mid_block\.resnets\.0\.conv1"):
        getattr(broken, name)(replace(REQUEST, steps=1))
    assert broken.engine.probes == []


def test_the_evaluation_that_names_a_fault_is_not_counted(broken):
    with Profiler(broken.engine) as profiler, pytest.raises(NonFiniteError):
        broken.run(REQUEST)
    # The first step's forward, and neither of the two evaluations of its rows alone.
    assert [len(seconds) for seconds in profiler._times.seconds.values()] == [1] * len(profiler._times._names)
    assert len(profiler.rows) == 2


def test_a_forward_that_raises_is_not_counted(service):
    class Raises:
        """Raises in the middle of the first forward."""

        calls = 0

        def __call__(self, site, tensor):
            self.calls += 1
            if self.calls == 1:
                raise RuntimeError

    probe = ModuleProbe(patterns=("mid_block",), probe=Raises())
    service.engine.probes.append(probe)
    try:
        with Profiler(service.engine) as profiler:
            service.run(REQUEST)
    finally:
        service.engine.probes.remove(probe)
    # Two rows in halves, then the second step's two together.
    assert {len(seconds) for seconds in profiler._times.seconds.values()} == {3}
    assert len(profiler.rows) == 1


@pytest.mark.parametrize(
    ("layer", "level"), [("conv_in", 0), ("down_blocks.1.resnets.0", 1), ("mid_block.resnets.1", 3), ("up_blocks.3", 0)]
)
def test_layers_have_levels(layer, level):
    assert level_of(UNetConfig.sd15(), layer) == level


class Page(HTMLParser):
    """What a page refers to, and its tags."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href") and value]


def test_the_page_stands_alone_and_takes_prompts_for_text(profiled, tmp_path):
    result, found = profiled
    text = save_report(tmp_path / "deep" / "page.html", result, found).read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags
    assert page.links
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert page.tags.index("img") < page.tags.index("h1"), "pictures first"
    assert "polyline" in page.tags
    slowest = found.slowest(1)[0].name
    assert slowest in text
    assert "Where the time went" in text


def test_a_page_without_a_profile_has_the_request_alone(profiled):
    page = Page(report_page(profiled[0]))
    assert "svg" not in page.tags
    assert "img" in page.tags


def test_the_trace_is_a_table_and_a_file(service, tmp_path):
    path = tmp_path / "deep" / "trace.json"
    with traced(service.unet.device, path=path, top=3) as found:
        service.run(REQUEST)
    rows = [line for line in found.table.splitlines() if "aten::" in line or "mkldnn::" in line]
    assert len(rows) == 3
    assert any("aten::" in event.get("name", "") for event in json.loads(path.read_text())["traceEvents"])
