"""What the fields of a config.json may be: each one's type and bounds, by the name that the families share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Value = None | bool | int | float | str | list[int] | list[float] | list[str] | list[bool]

# Stages, or positions in a list; the longest real one is EfficientNet's seven.
MAX_ITEMS = 16


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number in [minimum, maximum]."""

    minimum: int
    maximum: int

    def accepts(self, value: object) -> bool:
        """Whether the value is one."""
        return type(value) is int and self.minimum <= value <= self.maximum

    def __str__(self) -> str:
        return f"a whole number from {self.minimum} to {self.maximum}"


@dataclass(frozen=True, slots=True)
class Number:
    """A finite number in [minimum, maximum]."""

    minimum: float
    maximum: float

    def accepts(self, value: object) -> bool:
        """Whether the value is one."""
        return type(value) in (int, float) and self.minimum <= value <= self.maximum  # type: ignore[operator]

    def __str__(self) -> str:
        return f"a number from {self.minimum:g} to {self.maximum:g}"


@dataclass(frozen=True, slots=True)
class Flag:
    """True or false."""

    def accepts(self, value: object) -> bool:
        """Whether the value is one."""
        return type(value) is bool

    def __str__(self) -> str:
        return "true or false"


@dataclass(frozen=True, slots=True)
class Never:
    """False: the variant that it would turn on is not built."""

    def accepts(self, value: object) -> bool:
        """Whether the value is that."""
        return value is False

    def __str__(self) -> str:
        return "false; the variant that it turns on can be exported to .pt2 (docs/hugging-face.md)"


@dataclass(frozen=True, slots=True)
class Word:
    """One of a few words."""

    choices: tuple[str, ...]

    def accepts(self, value: object) -> bool:
        """Whether the value is one."""
        return isinstance(value, str) and value in self.choices

    def __str__(self) -> str:
        return f"one of: {', '.join(self.choices)}"


@dataclass(frozen=True, slots=True)
class Many:
    """A list of up to MAX_ITEMS values of one kind."""

    kind: Scalar

    def accepts(self, value: object) -> bool:
        """Whether the value is one."""
        return isinstance(value, list) and len(value) <= MAX_ITEMS and all(self.kind.accepts(item) for item in value)

    def __str__(self) -> str:
        return f"a list of up to {MAX_ITEMS}, each {self.kind}"


@dataclass(frozen=True, slots=True)
class Side:
    """A number of pixels, or its height and width."""

    maximum: int

    def accepts(self, value: object) -> bool:
        """Whether the value is one."""
        pair = value if isinstance(value, list) else [value, value]
        return len(pair) == 2 and all(Whole(1, self.maximum).accepts(side) for side in pair)

    def __str__(self) -> str:
        return f"a whole number from 1 to {self.maximum}, or two of them"


@dataclass(frozen=True, slots=True)
class Optional:
    """A value of one kind, or null."""

    kind: Scalar

    def accepts(self, value: object) -> bool:
        """Whether the value is one."""
        return value is None or self.kind.accepts(value)

    def __str__(self) -> str:
        return f"{self.kind}, or null"


Scalar = Whole | Number | Flag | Word
Kind = Scalar | Never | Many | Side | Optional

_WIDTH = Whole(1, 16_384)
_DEPTH = Whole(1, 128)
_RATIO = Number(1 / 64, 64)
_EPSILON = Number(0, 1)
_FLAG = Flag()
FALSE = Never()
# Of transformers' table; each is a function without tensors of its own.
_ACTIVATION = Word(
    (
        *("gelu", "gelu_10", "gelu_fast", "gelu_new", "gelu_pytorch_tanh", "gelu_python", "hardswish", "leaky_relu"),
        *("linear", "mish", "quick_gelu", "relu", "relu6", "sigmoid", "silu", "swish", "tanh"),
    )
)

# By name; a family that means another thing by one of them says so itself.
KINDS: Mapping[str, Kind] = {
    "attention_ratio": _RATIO,
    "base_attn_unit_dims": _WIDTH,
    "batch_norm_eps": _EPSILON,
    "cls_token": _FLAG,
    "conv_kernel_size": Whole(1, 31),
    "depth": _DEPTH,
    "depth_coefficient": Number(1 / 64, 8),
    "depth_divisible_by": Whole(1, 256),
    "depth_divisor": Whole(1, 256),
    "depth_multiplier": Number(1 / 64, 16),
    "depths": _DEPTH,
    "depthwise_padding": Whole(0, 64),
    "down_pad": Whole(0, 16),
    "down_patch_size": Side(64),
    "down_stride": Whole(1, 16),
    "downsample_in_bottleneck": _FLAG,
    "downsample_in_first_stage": _FLAG,
    "downsamples": _FLAG,
    "embed_dim": _WIDTH,
    "embed_dim_multiplier": Number(1, 8),
    "embed_dims": _WIDTH,
    "embedding_dynamic_padding": _FLAG,
    "embedding_size": _WIDTH,
    "expand_ratio": _RATIO,
    "expand_ratios": Whole(1, 64),
    "ffn_multiplier": Whole(1, 64),
    "finegrained_output": _FLAG,
    "first_layer_is_expansion": _FLAG,
    "focal_levels": Whole(1, 8),
    "focal_windows": Whole(1, 31),
    "global_padding": Optional(Word(("SAME", "VALID"))),
    "groups_width": _WIDTH,
    "hidden_act": _ACTIVATION,
    "hidden_dim": Whole(1, 65_536),
    "hidden_size": _WIDTH,
    "hidden_sizes": _WIDTH,
    "image_size": Side(4096),
    "in_channels": _WIDTH,
    "intermediate_size": Whole(1, 65_536),
    "kernel_qkv": Whole(1, 31),
    "kernel_size": Whole(1, 31),
    "kernel_sizes": Whole(1, 31),
    "key_dim": Whole(1, 1024),
    "layer_norm_eps": _EPSILON,
    "layer_scale_init_value": Number(0, 1e6),
    "layer_type": Word(("basic", "bottleneck", "x", "y", "preactivation")),
    "layerscale_value": Number(-1e6, 1e6),
    "linear_attention": _FLAG,
    "masked_unit_attention": _FLAG,
    "masked_unit_size": Whole(1, 64),
    "min_depth": Whole(1, 1024),
    "mlp_ratio": _RATIO,
    "mlp_ratios": Whole(1, 64),
    "n_attn_blocks": _DEPTH,
    "neck_hidden_sizes": _WIDTH,
    "normalize_modulator": _FLAG,
    "num_attention_heads": Whole(1, 256),
    "num_block_repeats": Whole(1, 64),
    "num_channels": Whole(1, 64),
    "num_encoder_blocks": Whole(1, MAX_ITEMS),
    "num_groups": Whole(1, 1024),
    "num_heads": Whole(1, 256),
    "num_hidden_layers": _DEPTH,
    "num_query_pool": Whole(0, MAX_ITEMS),
    "num_register_tokens": Whole(0, 64),
    "num_stages": Whole(1, MAX_ITEMS),
    "out_channels": _WIDTH,
    "output_stride": Whole(1, 64),
    "padding": Whole(0, 64),
    "padding_kv": Whole(0, 16),
    "padding_q": Whole(0, 16),
    "patch_padding": Whole(0, 64),
    "patch_size": Side(256),
    "patch_sizes": Whole(1, 64),
    "patch_stride": Whole(1, 64),
    "pool_size": Whole(1, 31),
    "pooler_act": _ACTIVATION,
    "pooler_output_size": Optional(_WIDTH),
    "pooling_type": Word(("mean", "max")),
    "pretrained_window_sizes": Whole(0, 64),
    "qkv_bias": _FLAG,
    "qkv_projection_method": Word(("dw_bn", "avg", "linear")),
    "query_stride": Whole(1, 16),
    "reshape_last_stage": _FLAG,
    "squeeze_expansion_ratio": Number(1 / 256, 4),
    "sr_ratios": Whole(1, 64),
    "stride": Whole(1, 64),
    "stride_kv": Whole(1, 16),
    "stride_q": Whole(1, 16),
    "strides": Whole(1, 64),
    "tf_padding": _FLAG,
    "use_absolute_embeddings": _FLAG,
    "use_absolute_position_embeddings": _FLAG,
    "use_conv_embed": _FLAG,
    "use_layer_scale": _FLAG,
    "use_layerscale": _FLAG,
    "use_mask_token": _FLAG,
    "use_mean_pooling": _FLAG,
    "use_post_layernorm": _FLAG,
    "use_post_layernorm_in_modulation": _FLAG,
    "use_relative_position_bias": _FLAG,
    "use_shared_relative_position_bias": _FLAG,
    "use_swiglu_ffn": _FLAG,
    "width_coefficient": Number(1 / 64, 16),
    "width_factor": Whole(1, 16),
    "width_multiplier": Number(1 / 64, 16),
    "window_size": Whole(1, 64),
}
