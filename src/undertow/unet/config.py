"""What a U-Net is built from: frozen records, one per published or home-made architecture.

Kinds are unions of small records, not flags: a level has `CrossAttention`, `SelfAttention` or nothing; what is added
to the time embedding is `TextTime`, `ClassLabels` or nothing. `heads` means heads here; diffusers' field
`attention_head_dim` means heads in its conditional U-Net and head width in its unconditional one (trap T5), and is
translated in `unet/diffusers_config.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from undertow.doors import checked, checked_record
from undertow.errors import ConfigError
from undertow.limits import LAYERS, WIDTH


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossAttention:
    """Transformers that look at the picture and at the text (arXiv:2112.10752, section 3.3).

    depth: transformer blocks after each ResBlock of the encoder; decoder_depth: the same for the decoder, which has one
    ResBlock more. A tuple gives each ResBlock its own depth, in the order of execution (SSD-1B); `None` repeats the
    encoder's, when that is one number.
    """

    heads: int
    depth: int | tuple[int, ...] = 1
    decoder_depth: int | tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SelfAttention:
    """GroupNorm, 1x1 projections to q, k, v, attention over all cells, 1x1 projection, residual (arXiv:2006.11239)."""

    heads: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Level:
    """One resolution: `resnets` ResBlocks in the encoder and one more in the decoder, each followed by `attention`."""

    channels: int
    resnets: int = 2
    attention: CrossAttention | SelfAttention | None = None

    @property
    def layers(self) -> int:
        """ResBlocks, and transformer blocks or self-attentions, of the encoder and the decoder."""
        resnets = 2 * self.resnets + 1
        match self.attention:
            case CrossAttention(depth=depth, decoder_depth=given):
                decoder = depth if given is None else given
                return resnets + _blocks(depth, self.resnets) + _blocks(decoder, self.resnets + 1)
            case SelfAttention():
                return 2 * resnets
            case None:
                return resnets

    def encoder_depths(self) -> tuple[int, ...]:
        """Transformer blocks after each ResBlock of the encoder."""
        match self.attention:
            case CrossAttention(depth=depth):
                return depth if isinstance(depth, tuple) else (depth,) * self.resnets
            case _:
                return (0,) * self.resnets

    def decoder_depths(self) -> tuple[int, ...]:
        """Transformer blocks after each ResBlock of the decoder, in the order of execution."""
        match self.attention:
            case CrossAttention(depth=int(depth), decoder_depth=None):
                return (depth,) * (self.resnets + 1)
            case CrossAttention(decoder_depth=int(depth)):
                return (depth,) * (self.resnets + 1)
            case CrossAttention(decoder_depth=tuple(depths)):
                return depths
            case _:
                return (0,) * (self.resnets + 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Middle:
    """The bottleneck: a ResBlock, then `resnets - 1` times (attention, ResBlock)."""

    attention: CrossAttention | SelfAttention | None = None
    resnets: int = 2

    @property
    def layers(self) -> int:
        """ResBlocks, and transformer blocks or self-attentions."""
        match self.attention:
            case CrossAttention(depth=depth):
                return self.resnets + _blocks(depth, self.resnets - 1)
            case SelfAttention():
                return 2 * self.resnets - 1
            case None:
                return self.resnets

    def depths(self) -> tuple[int, ...]:
        """Transformer blocks of each attention."""
        match self.attention:
            case CrossAttention(depth=int(depth)):
                return (depth,) * (self.resnets - 1)
            case _:
                return (0,) * (self.resnets - 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class TextTime:
    """SDXL's added conditioning: pooled text and sinusoids of `ids` numbers, through an MLP, added to the time
    embedding (arXiv:2307.01952, section 2.2)."""

    pooled_dim: int = 1280
    ids: int = 6
    sinusoid_dim: int = 256

    @property
    def scored(self) -> bool:
        """The refiner's, whose fifth and last number is an aesthetic score in place of the target size
        (generative-models' sd_xl_refiner)."""
        return self.ids == 5


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassLabels:
    """A learned vector per class, added to the time embedding. `null`: one more row that means "no class", needed for
    classifier-free guidance (arXiv:2207.12598)."""

    count: int
    null: bool = False

    @property
    def rows(self) -> int:
        return self.count + self.null


@checked_record
@dataclass(frozen=True, kw_only=True, slots=True)
class UNetConfig:
    """A U-Net's architecture. Levels go from the highest resolution to the lowest.

    linear_projection: transformers enter and leave by a Linear (SD2, SDXL) instead of a 1x1 convolution (SD1).
    guidance_dim: width of the guidance embedding of distilled models (LCM, arXiv:2310.04378). sinusoid_dim: width of
    the timestep sinusoid, the first level's channels when `None`. cos_first, frequency_shift: its convention (trap
    T11). time_dim: width of the time embedding, 4 x the first level's channels when `None`. sample_size: height and
    width, in cells, that the model was trained at. max_timestep: largest timestep accepted; `None` accepts any number.
    Errors: `ConfigError` names the field and the rule it breaks.
    """

    levels: tuple[Level, ...]
    middle: Middle = Middle()
    in_channels: int = 4
    out_channels: int = 4
    context_dim: int | None = None
    linear_projection: bool = False
    added: TextTime | ClassLabels | None = None
    guidance_dim: int | None = None
    sinusoid_dim: int | None = None
    cos_first: bool = True
    frequency_shift: float = 0.0
    time_dim: int | None = None
    norm_groups: int = 32
    norm_eps: float = 1e-5
    dropout: float = 0.0
    upcast_attention: bool = False
    sample_size: int = 64
    max_timestep: float | None = 1000.0

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> bool:
        """True for a buildable config; otherwise raises `ConfigError`."""
        _require(len(self.levels) >= 1, "levels", self.levels, "needs at least one level")
        self._validate_limits()
        self._validate_numbers()
        self._validate_added()
        self._validate_sinusoids()
        for index, level in enumerate(self.levels):
            self._validate_level(f"levels[{index}]", level)
        self._validate_middle()
        crosses = any(isinstance(part.attention, CrossAttention) for part in (*self.levels, self.middle))
        _require(
            crosses == (self.context_dim is not None),
            "context_dim",
            self.context_dim,
            "must be the text width when a level has CrossAttention, and None when none has",
        )
        return True

    def _validate_limits(self) -> None:
        """Nothing below may count in layers, or multiply widths, before they are known to be reasonable."""
        _require(self.layers <= LAYERS.most, "layers", self.layers, LAYERS.rule)
        widths = {
            **{name: getattr(self, name) for name in ("in_channels", "out_channels", "norm_groups", "sample_size")},
            **{name: getattr(self, name) for name in ("context_dim", "guidance_dim", "sinusoid_dim", "time_dim")},
            **{f"levels[{index}].channels": level.channels for index, level in enumerate(self.levels)},
        }
        match self.added:
            case TextTime(pooled_dim=pooled, ids=ids, sinusoid_dim=sinusoid):
                widths |= {"added.pooled_dim": pooled, "added.ids": ids, "added.sinusoid_dim": sinusoid}
            case ClassLabels(rows=rows):
                widths["added.count"] = rows
            case None:
                pass
        for name, width in widths.items():
            _require(width is None or width <= WIDTH.most, name, width, WIDTH.rule)

    @property
    def layers(self) -> int:
        """ResBlocks, and transformer blocks or self-attentions."""
        return sum(level.layers for level in self.levels) + self.middle.layers

    def _validate_numbers(self) -> None:
        for name in ("in_channels", "out_channels", "norm_groups", "sample_size"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        for name in ("context_dim", "time_dim", "max_timestep"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, value, "must be at least 1, or None")
        _require(self.norm_eps > 0, "norm_eps", self.norm_eps, "must be positive")
        _require(0 <= self.dropout < 1, "dropout", self.dropout, "must lie in [0, 1)")

    def _validate_added(self) -> None:
        match self.added:
            case TextTime(pooled_dim=pooled, ids=ids):
                _require(pooled >= 1, "added.pooled_dim", pooled, "must be at least 1")
                _require(ids >= 1, "added.ids", ids, "must be at least 1")
            case ClassLabels(count=count):
                _require(count >= 1, "added.count", count, "must be at least 1")
            case None:
                pass

    def _validate_sinusoids(self) -> None:
        widths = {"sinusoid_dim": self.timestep_sinusoid_dim}
        if isinstance(self.added, TextTime):
            widths["added.sinusoid_dim"] = self.added.sinusoid_dim
        narrowest = min(widths.values())
        if self.guidance_dim is not None:
            widths["guidance_dim"] = self.guidance_dim
        for name, width in widths.items():
            even = width >= 4 and width % 2 == 0
            _require(even, name, width, "must be even and at least 4: half of it are sines, half cosines")
        _require(
            0 <= self.frequency_shift < narrowest / 2,
            "frequency_shift",
            self.frequency_shift,
            f"must be at least 0 and less than {narrowest / 2:g}, half of the narrowest sinusoid",
        )

    def _validate_middle(self) -> None:
        _require(self.middle.resnets >= 1, "middle.resnets", self.middle.resnets, "must be at least 1")
        attention = self.middle.attention
        self._validate_attention("middle", attention, self.levels[-1].channels)
        if isinstance(attention, CrossAttention):
            whole = isinstance(attention.depth, int) and attention.depth >= 0
            _require(whole, "middle.attention.depth", attention.depth, "must be one number, at least 0")
            decoder = attention.decoder_depth
            _require(decoder is None, "middle.attention.decoder_depth", decoder, "must be None: there is no decoder")

    def _validate_level(self, name: str, level: Level) -> None:
        _require(level.resnets >= 1, f"{name}.resnets", level.resnets, "must be at least 1")
        _require(
            level.channels >= 1 and level.channels % self.norm_groups == 0,
            f"{name}.channels",
            level.channels,
            f"must be a positive multiple of norm_groups = {self.norm_groups}",
        )
        self._validate_attention(name, level.attention, level.channels)
        if isinstance(level.attention, CrossAttention):
            for field, depths, count in (
                ("depth", level.encoder_depths(), level.resnets),
                ("decoder_depth", level.decoder_depths(), level.resnets + 1),
            ):
                _require(
                    len(depths) == count and min(depths) >= 1,
                    f"{name}.attention.{field}",
                    depths,
                    f"must give each of the {count} ResBlocks a depth of at least 1",
                )

    def _validate_attention(self, name: str, attention: CrossAttention | SelfAttention | None, channels: int) -> None:
        if attention is not None:
            _require(
                attention.heads >= 1 and channels % attention.heads == 0,
                f"{name}.attention.heads",
                attention.heads,
                f"must divide the level's {channels} channels",
            )

    @property
    def embedding_dim(self) -> int:
        """Width of the time embedding that every ResBlock receives."""
        return 4 * self.levels[0].channels if self.time_dim is None else self.time_dim

    @property
    def timestep_sinusoid_dim(self) -> int:
        """Width of the sinusoid of the timestep."""
        return self.levels[0].channels if self.sinusoid_dim is None else self.sinusoid_dim

    def skip_shapes(self, height: int, width: int) -> list[tuple[int, int, int]]:
        """(channels, height, width) of each stored skip connection, in the order in which the encoder stores them."""
        shapes = [(self.levels[0].channels, height, width)]
        for index, level in enumerate(self.levels):
            shapes += [(level.channels, height, width)] * level.resnets
            if index < len(self.levels) - 1:
                height, width = (height + 1) // 2, (width + 1) // 2
                shapes.append((level.channels, height, width))
        return shapes

    def cross_attentions(self) -> dict[str, int]:
        """Name and width of every cross-attention, in the order of execution: where the image port acts."""
        return {
            f"{layer}.transformer_blocks.{block}.attn2": channels
            for layer, kind, depth, channels in self.attention_layers()
            if isinstance(kind, CrossAttention)
            for block in range(depth)
        }

    def attention_grids(self, height: int, width: int) -> dict[str, tuple[int, int]]:
        """Rows and columns of the feature map over which each cross-attention attends, for latents of this size."""
        return {site: self.grid_of(site, height, width) for site in self.cross_attentions()}

    def grid_of(self, layer: str, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the feature map in a layer of attention, for latents of this size."""
        sizes = [(height, width)]
        for _ in self.levels[1:]:
            sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
        stage, index = layer.split(".")[:2]
        match stage:
            case "down_blocks":
                return sizes[int(index)]
            case "up_blocks":
                return sizes[len(sizes) - 1 - int(index)]
            case _:
                return sizes[-1]

    def self_attentions(self) -> list[str]:
        """Names of all self-attentions, in the order of execution: where guidance can perturb or observe the
        network."""
        return [
            name
            for layer, kind, depth, _ in self.attention_layers()
            for name in (
                [f"{layer}.transformer_blocks.{block}.attn1" for block in range(depth)]
                if isinstance(kind, CrossAttention)
                else [layer]
            )
        ]

    def attention_layers(self) -> Iterator[tuple[str, CrossAttention | SelfAttention, int, int]]:
        """Name, kind, transformer blocks and width of every layer of attention, in the order of execution."""
        decoder, bottom = self.levels[::-1], self.levels[-1].channels
        stages = [
            *(
                (f"down_blocks.{i}", one.attention, one.encoder_depths(), one.channels)
                for i, one in enumerate(self.levels)
            ),
            ("mid_block", self.middle.attention, self.middle.depths(), bottom),
            *((f"up_blocks.{i}", one.attention, one.decoder_depths(), one.channels) for i, one in enumerate(decoder)),
        ]
        for stage, kind, depths, channels in stages:
            if kind is not None:
                yield from ((f"{stage}.attentions.{i}", kind, depth, channels) for i, depth in enumerate(depths))

    def layer_names(self) -> list[str]:
        """Module names of the network's layers in the order of execution."""
        return ["time_embedding", *self._added_names(), "conv_in", *self._stage_names(), "conv_norm_out", "conv_out"]

    def _added_names(self) -> list[str]:
        match self.added:
            case TextTime():
                return ["add_embedding"]
            case ClassLabels():
                return ["class_embedding"]
            case None:
                return []

    def _stage_names(self) -> Iterator[str]:
        last = len(self.levels) - 1
        for index, level in enumerate(self.levels):
            yield from _block_names(f"down_blocks.{index}", level.resnets, level.attention is not None)
            if index < last:
                yield f"down_blocks.{index}.downsamplers.0"
        yield "mid_block.resnets.0"
        for index in range(self.middle.resnets - 1):
            if self.middle.attention is not None:
                yield f"mid_block.attentions.{index}"
            yield f"mid_block.resnets.{index + 1}"
        for index, level in enumerate(reversed(self.levels)):
            yield from _block_names(f"up_blocks.{index}", level.resnets + 1, level.attention is not None)
            if index < last:
                yield f"up_blocks.{index}.upsamplers.0"

    # The words of source document 000 for the same facts.

    @property
    def model_type(self) -> str:
        """ "pixels" for a network without text, else the Stable Diffusion family that the text width tells."""
        families = {None: "pixels", 768: "sd1", 1024: "sd2", 1280: "sdxl_refiner", 2048: "sdxl"}
        return families.get(self.context_dim, "custom")

    @property
    def block_out_channels(self) -> list[int]:
        return [level.channels for level in self.levels]

    @property
    def layers_per_block(self) -> int | list[int]:
        counts = [level.resnets for level in self.levels]
        return counts[0] if len(set(counts)) == 1 else counts

    @property
    def attention_head_dim(self) -> list[int | None]:
        """Width of one head at each level, or `None` where there is no attention."""
        return [level.channels // level.attention.heads if level.attention else None for level in self.levels]

    @property
    def cross_attention_dim(self) -> int | None:
        return self.context_dim

    @property
    def use_linear_projection(self) -> bool:
        return self.linear_projection

    @classmethod
    @checked
    def sd15(cls) -> "UNetConfig":
        """Stable Diffusion 1.x: 859,520,964 parameters."""
        levels = tuple(Level(channels=c, attention=CrossAttention(heads=8)) for c in (320, 640, 1280))
        return cls(
            levels=(*levels, Level(channels=1280)), middle=Middle(attention=CrossAttention(heads=8)), context_dim=768
        )

    @classmethod
    @checked
    def sd15_inpaint(cls) -> "UNetConfig":
        """SD1.5 for inpainting: latents, mask and masked picture's latents, 9 channels."""
        return replace(cls.sd15(), in_channels=9)

    @classmethod
    @checked
    def instruct_pix2pix(cls) -> "UNetConfig":
        """InstructPix2Pix (arXiv:2211.09800): latents and the source picture's latents, 8 channels."""
        return replace(cls.sd15(), in_channels=8)

    @classmethod
    @checked
    def lcm_sd15(cls) -> "UNetConfig":
        """Latent consistency model of SD1.5, with the guidance scale as an input."""
        return replace(cls.sd15(), guidance_dim=256)

    @classmethod
    def sd21(cls, *, v_prediction: bool = False) -> "UNetConfig":
        """Stable Diffusion 2.x; the 768-pixel v-prediction model has the same weights' shapes."""
        heads = ((320, 5), (640, 10), (1280, 20))
        levels = tuple(Level(channels=c, attention=CrossAttention(heads=h)) for c, h in heads)
        return cls(
            levels=(*levels, Level(channels=1280)),
            middle=Middle(attention=CrossAttention(heads=20)),
            context_dim=1024,
            linear_projection=True,
            upcast_attention=v_prediction,
            sample_size=96 if v_prediction else 64,
        )

    @classmethod
    @checked
    def sd2_inpaint(cls) -> "UNetConfig":
        """SD2 for inpainting, 9 channels."""
        return replace(cls.sd21(), in_channels=9)

    @classmethod
    @checked
    def sdxl(cls) -> "UNetConfig":
        """Stable Diffusion XL base (and Turbo, Lightning): 2,567,463,684 parameters."""
        return cls(
            levels=(
                Level(channels=320),
                Level(channels=640, attention=CrossAttention(heads=10, depth=2)),
                Level(channels=1280, attention=CrossAttention(heads=20, depth=10)),
            ),
            middle=Middle(attention=CrossAttention(heads=20, depth=10)),
            context_dim=2048,
            linear_projection=True,
            added=TextTime(),
            sample_size=128,
        )

    @classmethod
    @checked
    def sdxl_inpaint(cls) -> "UNetConfig":
        """SDXL for inpainting, 9 channels."""
        return replace(cls.sdxl(), in_channels=9)

    @classmethod
    @checked
    def lcm_sdxl(cls) -> "UNetConfig":
        """Latent consistency model of SDXL."""
        return replace(cls.sdxl(), guidance_dim=256)

    @classmethod
    @checked
    def sdxl_refiner(cls) -> "UNetConfig":
        """SDXL's refiner: 2,259,526,660 parameters."""
        return cls(
            levels=(
                Level(channels=384),
                Level(channels=768, attention=CrossAttention(heads=12, depth=4)),
                Level(channels=1536, attention=CrossAttention(heads=24, depth=4)),
                Level(channels=1536),
            ),
            middle=Middle(attention=CrossAttention(heads=24, depth=4)),
            context_dim=1280,
            linear_projection=True,
            added=TextTime(ids=5),
            sample_size=128,
        )

    @classmethod
    @checked
    def ssd_1b(cls) -> "UNetConfig":
        """Segmind SSD-1B (arXiv:2401.02677): SDXL with transformer blocks removed, another number in each layer."""
        deep = CrossAttention(heads=20, depth=4, decoder_depth=(4, 4, 10))
        middle = CrossAttention(heads=10, depth=2, decoder_depth=(2, 1, 1))
        return _distilled_sdxl(middle, deep)

    @classmethod
    @checked
    def vega(cls) -> "UNetConfig":
        """Segmind Vega: smaller still than SSD-1B."""
        return _distilled_sdxl(CrossAttention(heads=10, depth=1), CrossAttention(heads=20, depth=2))

    @classmethod
    def cifar10(cls, *, class_labels: bool = True, attention_at_16: bool = False) -> "UNetConfig":
        """The class-conditional pixel U-Net of source document 002: 32x32 pixels, base 64, multipliers 1, 2, 4."""
        return cls(
            levels=(
                Level(channels=64),
                Level(channels=128, attention=SelfAttention(heads=2) if attention_at_16 else None),
                Level(channels=256, attention=SelfAttention(heads=4)),
            ),
            middle=Middle(attention=SelfAttention(heads=4)),
            in_channels=3,
            out_channels=3,
            added=ClassLabels(count=10) if class_labels else None,
            sinusoid_dim=256,
            cos_first=False,
            sample_size=32,
        )


def _distilled_sdxl(middle: CrossAttention, deep: CrossAttention) -> UNetConfig:
    return replace(
        UNetConfig.sdxl(),
        levels=(Level(channels=320), Level(channels=640, attention=middle), Level(channels=1280, attention=deep)),
        middle=Middle(resnets=1),
    )


def _block_names(block: str, resnets: int, attention: bool) -> Iterator[str]:
    for index in range(resnets):
        yield f"{block}.resnets.{index}"
        if attention:
            yield f"{block}.attentions.{index}"


def _blocks(depth: int | tuple[int, ...], count: int) -> int:
    """Transformer blocks behind `count` ResBlocks."""
    return sum(depth) if isinstance(depth, tuple) else depth * count


def _require(holds: bool, field: str, value: object, rule: str) -> None:
    if not holds:
        raise ConfigError(field, value, rule)
