"""What can be asked of a loaded model about what happens inside, in Python's words."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Unpack

from undertow.adapters.manager import AdapterManager
from undertow.checkpoints.read.model import LoadedModel
from undertow.doors import checked
from undertow.engine.engine import Engine
from undertow.engine.events import Observer, unobserved
from undertow.engine.generate import generate_many
from undertow.engine.request import GenerationRequest, as_request
from undertow.engine.settings import RequestSettings, request_of
from undertow.inspection.activation_pictures import ActivationHistory, activation_history
from undertow.inspection.attention_choice import AttentionChoice, GuidanceSide
from undertow.inspection.attention_maps import AttentionMapProbe
from undertow.inspection.debugging import Debugger, DebugInfo
from undertow.inspection.doctor.case import Case
from undertow.inspection.doctor.diagnose import diagnose
from undertow.inspection.doctor.finding import Diagnosis
from undertow.inspection.metrics import Metrics, measure_metrics
from undertow.inspection.profile import Profile, Profiler
from undertow.inspection.recorder import Recorder
from undertow.inspection.visualize_attention import attention_heatmaps
from undertow.inspection.word_maps import Among, AttentionHeatmaps, Pooling, WordOptions
from undertow.unet.runner import Runner
from undertow.unet.unet import UNet


class Inspectable(ABC):
    """Base of `UNetService`, which says what it is a model of. runner: evaluates its networks."""

    runner: Runner

    @property
    @abstractmethod
    def model(self) -> LoadedModel:
        """All its networks, in memory."""

    @property
    @abstractmethod
    def unet(self) -> UNet:
        """Its network, in memory."""

    @property
    @abstractmethod
    def adapters(self) -> AdapterManager:
        """What of adapters is in memory."""

    @property
    @abstractmethod
    def engine(self) -> Engine:
        """What draws."""

    @cached_property
    def _debugger(self) -> Debugger:
        return Debugger(self.engine.probes)

    @checked
    def enable_layer_hooks(self, patterns: Sequence[str] | str = "*", *, every: int = 1) -> Recorder:
        """Records what enters and leaves the modules of these names, with * and ?, in every `every`-th step of all
        requests from now on, until `disable_layer_hooks`; forwards that are recorded run without graphs. Names are the
        U-Net's; those of other networks begin with "controlnet." and an adapter's title, "text_encoder.",
        "text_encoder_2." or "vae.". Errors: `InvalidInput` for a pattern that matches no module, and for an `every`
        below 1."""
        chosen = (patterns,) if isinstance(patterns, str) else tuple(patterns)
        return self._debugger.enable(self.engine.model, chosen, every=every)

    @checked
    def log_layer_input(self, layer: str) -> Recorder:
        """As `enable_layer_hooks`, for what enters alone."""
        return self._debugger.enable(self.engine.model, (layer,), ("input",))

    @checked
    def log_layer_output(self, layer: str) -> Recorder:
        """As `enable_layer_hooks`, for what leaves alone."""
        return self._debugger.enable(self.engine.model, (layer,), ("output",))

    def log_final_prediction(self) -> Recorder:
        """Records what the U-Net predicts, for every branch of guidance."""
        return self._debugger.enable(self.engine.model, ("",), ("output",))

    def disable_layer_hooks(self) -> None:
        """Takes off what the methods above put on, and forgets their records."""
        self._debugger.disable()

    def get_debug_info(self) -> DebugInfo:
        """What the methods above have recorded, and the last request with `debug="layers"`: `layer_statistics`, and the
        records."""
        return self._debugger.info()

    @checked
    def visualize_attention(
        self,
        prompt: str,
        *,
        words: Sequence[str] | None = None,
        layers: Sequence[str] | None = None,
        cells: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        at_steps: Sequence[int] | None = None,
        side: GuidanceSide = "conditional",
        pooling: Pooling = "mean",
        among: Among = "context",
        marks: bool = False,
        self_attention: bool = False,
        observe: Observer = unobserved,
        **settings: Unpack[RequestSettings],
    ) -> AttentionHeatmaps:
        """Draws a prompt, the same picture to the bit as `generate`, with maps of where each word acts.

        words: words of the prompt, or phrases of it; `None` for every word. layers: patterns of names of attention
        layers ("up_blocks.*", "mid_block"); cells: shorter sides of their maps; heads, at_steps: from 0. `None` is all,
        and what is chosen is averaged. side: "unconditional" for the words of the negative prompt. pooling, among,
        marks: as in `WordOptions`. self_attention: also entropies and attention received of every self-attention.
        settings: as in `generate`. Errors: as `run`; `InvalidInput` for words, layers, heads and steps that are not
        there; `MissingComponent` for a model without text.

            found = service.visualize_attention("red apple left of dog face on blue background", seed=7)
            found.maps["apple"], found.overlay("red apple"), found.save("maps")
        """
        request = request_of(prompt, settings, self.visualize_attention, self.engine.model)
        choice = AttentionChoice.of(layers=layers, cells=cells, heads=heads, steps=at_steps)
        chosen = None if words is None else (words,) if isinstance(words, str) else tuple(words)
        options = WordOptions(words=chosen, pooling=pooling, among=among, marks=marks)
        return attention_heatmaps(
            self.engine, request, choice, options, side=side, self_attention=self_attention, observe=observe
        )

    @contextmanager
    def log_attention_maps(
        self,
        *,
        layers: Sequence[str] | None = None,
        cells: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        at_steps: Sequence[int] | None = None,
        side: GuidanceSide = "conditional",
    ) -> Generator[AttentionMapProbe]:
        """Sums the maps of all that is drawn meanwhile, with fused kernels or without, and changes no bit of it.
        Arguments as in `visualize_attention`. Errors: `InvalidInput` for layers and heads that the network lacks; of
        `log.maps` also where nothing that was drawn had layers of these `cells`.

            with service.log_attention_maps(cells=(8,)) as log:
                service.generate_many(["red apple", "dog face"])
            log.maps(request=1)[0].heat
        """
        choice = AttentionChoice.of(layers=layers, cells=cells, heads=heads, steps=at_steps)
        model, other = self.engine.model, self.engine.refiner
        unet, refiner = model.require_unet(), None if other is None else other.require_unet()
        choice.require_cross(unet, None)
        probe = AttentionMapProbe(unet=unet, refiner=refiner, choice=choice, side=side)
        self.engine.probes.append(probe)
        try:
            yield probe
        finally:
            self.engine.probes.remove(probe)

    @checked
    def visualize_activations(
        self, prompt: str, *, observe: Observer = unobserved, **settings: Unpack[RequestSettings]
    ) -> ActivationHistory:
        """Draws a prompt, the same picture to the bit as `generate`, and records on the way what every layer returns:
        standard deviation and largest magnitude over the steps, the share of skip connections, and a film of the noisy
        latents and the picture that is expected of them. settings: as in `generate`. Errors: as `run`.

            service.visualize_activations("red apple", seed=7).save("activations")
        """
        request = request_of(prompt, settings, self.visualize_activations, self.engine.model)
        return activation_history(self.engine, request, observe=observe)

    @checked
    def diagnose(
        self,
        request: GenerationRequest | str = "",
        *,
        picture: str | Path | None = None,
        only: Sequence[str] = (),
    ) -> Diagnosis:
        """What is wrong with the model, with a request and with this machine, as far as rules can measure it: symptom,
        evidence, cause, fix and prevention of each finding. It takes about ten evaluations of the network.

        request: what is, or would be, drawn. picture: a file that undertow wrote, which is drawn again in a fresh
        process and compared byte by byte. only: names of rules, or of their families: "nan", "picture", "slow",
        "memory", "provenance". Errors: `InvalidInput` for an unknown name; `MissingComponent`.

            for finding in service.diagnose("a red apple").findings:
                print(finding.symptom, finding.evidence, finding.fix)
        """
        case = Case(
            model=self.model,
            manager=self.adapters,
            request=as_request(request, **self.engine.model.suggested),
            runner=self.runner,
            picture=None if picture is None else Path(picture),
        )
        with self.engine.paused():
            return diagnose(case, only)

    @checked
    def profile(self, request: GenerationRequest | str) -> Profile:
        """Draws a request, and says where its time and memory went: by stage and layer, in operations, and against what
        a matrix product reaches in this process. Errors: those of `run`.

            print(service.profile("a red apple").slowest(5))
        """
        with Profiler(self.engine) as profiler:
            (result,) = generate_many(self.engine, [as_request(request, **self.engine.model.suggested)])
        return profiler.profile(result.report)

    @checked
    def metrics(self, request: GenerationRequest | str) -> Metrics:
        """Draws a request, and measures it in four groups: performance, quality, resources and adapters. Errors: those
        of `run`.

            print(service.metrics("a red apple").exposition())
        """
        return measure_metrics(self.engine, as_request(request, **self.engine.model.suggested))
