"""The families of transformers that are built: their classes, the fields that shape them, those that do not matter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from worker.sanitizer.architectures.hugging_face.fields import FALSE, KINDS, Flag, Kind, Many, Number, Side, Whole, Word


@dataclass(frozen=True, slots=True)
class Family:
    """One model_type.

    Attributes:
        classes: Of image classifiers; the first is meant where a configuration names none.
        fields: What shapes the network: checked and handed on.
        derived: What the library works out from the fields; where the file has one of them, it must be equal.
        inert: What matters only to training, backbones, segmentation or masked pretraining: not looked at.
        module: In transformers.models, where it is not named after the model_type.
    """

    classes: tuple[str, ...]
    fields: Mapping[str, Kind]
    derived: frozenset[str] = frozenset()
    inert: frozenset[str] = frozenset()
    module: str = ""


def _kinds(one: str, many: str = "", **own: Kind) -> dict[str, Kind]:
    """The kinds of these fields: of single values, of lists, and those with bounds of their own."""
    listed: dict[str, Kind] = {name: KINDS[name] for name in one.split()}
    for name in many.split():
        kind = KINDS[name]
        assert isinstance(kind, Whole | Number | Flag | Word), name
        listed[name] = Many(kind)
    return {**listed, **own}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Of every configuration. Dropout and stochastic depth do nothing in evaluation; the rest says how to train, to save or
# to name things.
INERT = _words(
    "_attn_implementation_autoset _commit_hash _name_or_path _out_features _out_indices attention_probs_dropout_prob "
    "attn_dropout chunk_size_feed_forward classifier_dropout_prob drop_path_rate dtype encoder_stride ffn_dropout "
    "finetuning_task gradient_checkpointing hidden_dropout_prob initializer_range label2id out_features out_indices "
    "output_attentions output_hidden_states problem_type return_dict semantic_loss_ignore_index stage_names "
    "torch_dtype torchscript transformers_version use_bfloat16 use_cache"
)
# Read by config.py itself.
READ = frozenset({"architectures", "id2label", "model_type", "num_channels", "num_labels"})

_VIT = "hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act layer_norm_eps image_size "
_VIT += "patch_size num_channels qkv_bias pooler_output_size pooler_act"
_BEIT = "hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act layer_norm_eps image_size "
_BEIT += "patch_size num_channels use_mask_token use_absolute_position_embeddings use_relative_position_bias "
_BEIT += "use_shared_relative_position_bias layer_scale_init_value use_mean_pooling"
_BEIT_INERT = _words(
    "add_fpn auxiliary_channels auxiliary_concat_input auxiliary_loss_weight auxiliary_num_convs pool_scales "
    "reshape_hidden_states segmentation_indices use_auxiliary_head vocab_size"
)
_SWIN = "image_size patch_size num_channels embed_dim window_size mlp_ratio qkv_bias hidden_act "
_SWIN += "use_absolute_embeddings layer_norm_eps"
# `path_norm` stands in the configurations that Microsoft published, and transformers never read it.
_SWIN_INERT = frozenset({"path_norm"})
_SWIN_DERIVED = frozenset({"hidden_size", "num_layers", "num_hidden_layers", "num_attention_heads"})
_CONVNEXT = "num_channels patch_size num_stages hidden_act layer_norm_eps image_size"
_RESNET = "num_channels embedding_size layer_type hidden_act downsample_in_first_stage"
_DINOV2 = "hidden_size num_hidden_layers num_attention_heads hidden_act layer_norm_eps image_size patch_size "
_DINOV2 += "num_channels qkv_bias layerscale_value"
_BACKBONE_INERT = frozenset({"apply_layernorm", "reshape_hidden_states"})
_SEGMENTATION_INERT = frozenset({"aspp_dropout_prob", "aspp_out_channels", "atrous_rates"})

FAMILIES: Mapping[str, Family] = {
    "beit": Family(("BeitForImageClassification",), _kinds(_BEIT), inert=_BEIT_INERT),
    "bit": Family(
        ("BitForImageClassification",),
        _kinds(
            "num_channels embedding_size layer_type hidden_act global_padding num_groups embedding_dynamic_padding "
            "output_stride width_factor",
            "hidden_sizes depths",
        ),
    ),
    "convnext": Family(
        ("ConvNextForImageClassification",),
        _kinds(_CONVNEXT + " layer_scale_init_value", "hidden_sizes depths"),
        derived=frozenset({"num_hidden_layers"}),
    ),
    "convnextv2": Family(
        ("ConvNextV2ForImageClassification",),
        _kinds(_CONVNEXT, "hidden_sizes depths"),
        derived=frozenset({"num_hidden_layers"}),
    ),
    "cvt": Family(
        ("CvtForImageClassification",),
        _kinds(
            "num_channels layer_norm_eps",
            "patch_sizes patch_stride patch_padding embed_dim num_heads depth mlp_ratio qkv_bias cls_token "
            "qkv_projection_method kernel_qkv padding_kv stride_kv padding_q stride_q",
        ),
        inert=frozenset({"attention_drop_rate", "drop_rate"}),
    ),
    "data2vec-vision": Family(
        ("Data2VecVisionForImageClassification",),
        _kinds(_BEIT),
        inert=_BEIT_INERT,
        module="data2vec.modeling_data2vec_vision",
    ),
    "deit": Family(
        ("DeiTForImageClassification", "DeiTForImageClassificationWithTeacher"),
        _kinds(_VIT),
    ),
    "dinov2": Family(
        ("Dinov2ForImageClassification",),
        # The gated variant's file holds two layers in one tensor.
        _kinds(_DINOV2 + " use_mask_token", mlp_ratio=Whole(1, 64), use_swiglu_ffn=FALSE),
        inert=_BACKBONE_INERT,
    ),
    "dinov2_with_registers": Family(
        ("Dinov2WithRegistersForImageClassification",),
        _kinds(_DINOV2 + " num_register_tokens", mlp_ratio=Whole(1, 64), use_swiglu_ffn=FALSE),
        inert=_BACKBONE_INERT,
    ),
    "efficientnet": Family(
        ("EfficientNetForImageClassification",),
        _kinds(
            "num_channels image_size width_coefficient depth_coefficient depth_divisor squeeze_expansion_ratio "
            "hidden_act hidden_dim pooling_type batch_norm_eps",
            "kernel_sizes in_channels out_channels depthwise_padding strides num_block_repeats expand_ratios",
        ),
        derived=frozenset({"num_hidden_layers"}),
        inert=frozenset({"batch_norm_momentum", "dropout_rate", "drop_connect_rate"}),
    ),
    "focalnet": Family(
        ("FocalNetForImageClassification",),
        _kinds(
            "image_size patch_size num_channels embed_dim use_conv_embed hidden_act mlp_ratio use_layerscale "
            "layerscale_value use_post_layernorm use_post_layernorm_in_modulation normalize_modulator layer_norm_eps",
            "hidden_sizes depths focal_levels focal_windows",
        ),
    ),
    "hiera": Family(
        ("HieraForImageClassification",),
        _kinds(
            "num_channels embed_dim mlp_ratio embed_dim_multiplier num_query_pool hidden_act layer_norm_eps",
            "depths num_heads patch_stride patch_padding query_stride masked_unit_size masked_unit_attention",
            image_size=Many(Whole(1, 4096)),
            patch_size=Many(Whole(1, 256)),
        ),
        derived=frozenset({"hidden_size", "num_layers", "num_hidden_layers"}),
        inert=_words(
            "decoder_depth decoder_hidden_size decoder_num_heads layer_norm_init mask_ratio normalize_pixel_loss"
        ),
    ),
    "levit": Family(
        ("LevitForImageClassification", "LevitForImageClassificationWithTeacher"),
        # Its tables are made pair of positions by pair of positions, so that its images stay small.
        _kinds(
            "num_channels kernel_size stride padding",
            "hidden_sizes key_dim mlp_ratio attention_ratio num_attention_heads",
            image_size=Side(384),
            patch_size=Whole(16, 16),
            depths=Many(Whole(1, 16)),
        ),
        derived=frozenset({"down_ops"}),
    ),
    "mobilenet_v1": Family(
        ("MobileNetV1ForImageClassification",),
        _kinds("num_channels image_size depth_multiplier min_depth hidden_act tf_padding layer_norm_eps"),
    ),
    "mobilenet_v2": Family(
        ("MobileNetV2ForImageClassification",),
        _kinds(
            "num_channels image_size depth_multiplier depth_divisible_by min_depth expand_ratio output_stride "
            "first_layer_is_expansion finegrained_output hidden_act tf_padding layer_norm_eps"
        ),
    ),
    "mobilevit": Family(
        ("MobileViTForImageClassification",),
        _kinds(
            "num_channels image_size patch_size num_attention_heads mlp_ratio expand_ratio hidden_act conv_kernel_size "
            "output_stride layer_norm_eps qkv_bias",
            "hidden_sizes neck_hidden_sizes",
        ),
        inert=_SEGMENTATION_INERT,
    ),
    "mobilevitv2": Family(
        ("MobileViTV2ForImageClassification",),
        _kinds(
            "num_channels image_size patch_size expand_ratio hidden_act conv_kernel_size output_stride layer_norm_eps "
            "width_multiplier ffn_multiplier",
            "n_attn_blocks base_attn_unit_dims",
        ),
        inert=_SEGMENTATION_INERT,
    ),
    "poolformer": Family(
        ("PoolFormerForImageClassification",),
        _kinds(
            "num_channels patch_size stride pool_size mlp_ratio num_encoder_blocks hidden_act use_layer_scale "
            "layer_scale_init_value",
            "depths hidden_sizes patch_sizes strides padding",
        ),
    ),
    "pvt_v2": Family(
        ("PvtV2ForImageClassification",),
        _kinds(
            "image_size num_channels num_encoder_blocks hidden_act layer_norm_eps qkv_bias linear_attention",
            "depths sr_ratios hidden_sizes patch_sizes strides num_attention_heads mlp_ratios",
        ),
    ),
    "regnet": Family(("RegNetForImageClassification",), _kinds(_RESNET + " groups_width", "hidden_sizes depths")),
    "resnet": Family(
        ("ResNetForImageClassification",), _kinds(_RESNET + " downsample_in_bottleneck", "hidden_sizes depths")
    ),
    "segformer": Family(
        ("SegformerForImageClassification",),
        _kinds(
            "num_channels num_encoder_blocks hidden_act layer_norm_eps reshape_last_stage",
            "depths sr_ratios hidden_sizes patch_sizes strides num_attention_heads mlp_ratios",
        ),
        derived=frozenset({"num_hidden_layers"}),
        # `image_size` and `downsampling_rates` stand in published configurations and are read by nothing.
        inert=frozenset({"decoder_hidden_size", "image_size", "downsampling_rates"}),
    ),
    "swiftformer": Family(
        ("SwiftFormerForImageClassification",),
        _kinds(
            "image_size num_channels hidden_act down_patch_size down_stride down_pad use_layer_scale "
            "layer_scale_init_value batch_norm_eps",
            "depths embed_dims downsamples",
            mlp_ratio=Whole(1, 64),
        ),
        inert=frozenset({"drop_mlp_rate", "drop_conv_encoder_rate"}),
    ),
    "swin": Family(
        ("SwinForImageClassification",),
        _kinds(_SWIN, "depths num_heads"),
        derived=_SWIN_DERIVED,
        inert=_SWIN_INERT,
    ),
    "swinv2": Family(
        ("Swinv2ForImageClassification",),
        _kinds(_SWIN, "depths num_heads pretrained_window_sizes"),
        derived=_SWIN_DERIVED,
        inert=_SWIN_INERT,
    ),
    "vit": Family(("ViTForImageClassification",), _kinds(_VIT)),
    "vit_msn": Family(("ViTMSNForImageClassification",), _kinds(_VIT)),
}
