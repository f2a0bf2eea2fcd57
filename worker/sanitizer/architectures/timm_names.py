"""The image classifiers of timm that are built by plain name. A prefix such as hf-hub: would reach the network."""

from collections.abc import Mapping

# Of any size of image, or of the one size that their name has in timm; a line or more for each family.
_FREE = """
    resnet10t resnet14t resnet18 resnet18d resnet26 resnet26d resnet26t resnet34 resnet34d resnet50 resnet50c
    resnet50d resnet50s resnet50t resnet101 resnet101c resnet101d resnet101s resnet152 resnet152c resnet152d
    resnet152s resnet200 resnet200d resnet50_gn
    resnetaa34d resnetaa50 resnetaa50d resnetaa101d resnetblur18 resnetblur50 resnetblur50d resnetrs50 resnetrs101
    resnetrs152 resnetrs200 resnetrs270
    wide_resnet50_2 wide_resnet101_2 resnext50_32x4d resnext50d_32x4d resnext101_32x4d resnext101_32x8d
    resnext101_32x16d resnext101_64x4d
    seresnet18 seresnet34 seresnet50 seresnet50t seresnet101 seresnet152 seresnet152d seresnext26d_32x4d
    seresnext26t_32x4d seresnext50_32x4d seresnext101_32x4d seresnext101_32x8d seresnext101_64x4d senet154
    ecaresnet26t ecaresnet50d ecaresnet50t ecaresnet101d ecaresnetlight skresnet18 skresnet34 skresnet50
    skresnext50_32x4d
    legacy_senet154 legacy_seresnet18 legacy_seresnet50 legacy_seresnext50_32x4d legacy_xception
    res2net50_14w_8s res2net50_26w_4s res2net50_26w_6s res2net50_26w_8s res2net50_48w_2s res2net50d res2net101_26w_4s
    res2net101d res2next50
    resnest14d resnest26d resnest50d resnest101e resnest200e resnest269e
    resnetv2_18 resnetv2_18d resnetv2_34 resnetv2_34d resnetv2_50 resnetv2_50d resnetv2_50t resnetv2_101
    resnetv2_101d resnetv2_152 resnetv2_152d resnetv2_50d_gn resnetv2_50x1_bit resnetv2_50x3_bit resnetv2_101x1_bit
    resnetv2_101x3_bit resnetv2_152x2_bit
    vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn
    densenet121 densenet161 densenet169 densenet201 densenet264d densenetblur121d rdnet_tiny rdnet_small rdnet_base
    rdnet_large
    dla34 dla46_c dla46x_c dla60 dla60_res2net dla60_res2next dla60x dla60x_c dla102 dla102x dla102x2 dla169 dpn48b
    dpn68 dpn68b dpn92 dpn98 dpn107 dpn131
    cspresnet50 cspresnet50d cspresnet50w cspresnext50 cspdarknet53 darknet53 darknetaa53 cs3darknet_m cs3darknet_l
    cs3darknet_x cs3darknet_focus_m cs3darknet_focus_l cs3sedarknet_l cs3sedarknet_x cs3edgenet_x cs3se_edgenet_x
    hrnet_w18 hrnet_w18_small hrnet_w18_small_v2 hrnet_w30 hrnet_w32 hrnet_w40 hrnet_w44 hrnet_w48 hrnet_w64
    inception_v3 inception_v4 inception_resnet_v2 xception41 xception41p xception65 xception65p xception71
    nasnetalarge pnasnet5large
    inception_next_atto inception_next_tiny inception_next_small inception_next_base
    regnetx_002 regnetx_004 regnetx_006 regnetx_008 regnetx_016 regnetx_032 regnetx_040 regnetx_064 regnetx_080
    regnetx_120 regnetx_160 regnetx_320
    regnety_002 regnety_004 regnety_006 regnety_008 regnety_016 regnety_032 regnety_040 regnety_064 regnety_080
    regnety_120 regnety_160 regnety_320
    regnetv_040 regnetv_064 regnetz_005 regnetz_040 regnetz_b16 regnetz_c16 regnetz_d8 regnetz_d32 regnetz_e8
    repvgg_a0 repvgg_a1 repvgg_a2 repvgg_b0 repvgg_b1 repvgg_b1g4 repvgg_b2 repvgg_b2g4 repvgg_b3 repvgg_b3g4
    gernet_s gernet_m gernet_l
    mobileone_s0 mobileone_s1 mobileone_s2 mobileone_s3 mobileone_s4 repvit_m0_9 repvit_m1 repvit_m1_0 repvit_m1_1
    repvit_m1_5 repvit_m2 repvit_m2_3 repvit_m3 repghostnet_050 repghostnet_080 repghostnet_100 repghostnet_130
    repghostnet_150 repghostnet_200
    efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5 efficientnet_b6
    efficientnet_b7 efficientnet_lite0 efficientnet_lite1 efficientnet_lite2 efficientnet_lite3 efficientnet_lite4
    efficientnet_es efficientnet_em efficientnet_el
    tf_efficientnet_b0 tf_efficientnet_b1 tf_efficientnet_b2 tf_efficientnet_b3 tf_efficientnet_b4 tf_efficientnet_b5
    tf_efficientnet_b6 tf_efficientnet_b7 tf_efficientnet_b8 tf_efficientnet_l2 tf_efficientnet_lite0
    tf_efficientnet_lite1 tf_efficientnet_lite2 tf_efficientnet_lite3 tf_efficientnet_lite4 tf_efficientnet_es
    tf_efficientnet_em tf_efficientnet_el
    efficientnetv2_rw_t efficientnetv2_rw_s efficientnetv2_rw_m efficientnetv2_s efficientnetv2_m efficientnetv2_l
    efficientnetv2_xl tf_efficientnetv2_b0 tf_efficientnetv2_b1 tf_efficientnetv2_b2 tf_efficientnetv2_b3
    tf_efficientnetv2_s tf_efficientnetv2_m tf_efficientnetv2_l tf_efficientnetv2_xl
    mobilenetv1_100 mobilenetv1_125 mobilenetv2_035 mobilenetv2_050 mobilenetv2_075 mobilenetv2_100 mobilenetv2_110d
    mobilenetv2_120d mobilenetv2_140 mobilenetv3_small_050 mobilenetv3_small_075 mobilenetv3_small_100
    mobilenetv3_large_075 mobilenetv3_large_100 mobilenetv3_rw tf_mobilenetv3_small_075 tf_mobilenetv3_small_100
    tf_mobilenetv3_large_075 tf_mobilenetv3_large_100
    mobilenetv4_conv_small_035 mobilenetv4_conv_small_050 mobilenetv4_conv_small mobilenetv4_conv_medium
    mobilenetv4_conv_large mobilenetv4_conv_aa_medium mobilenetv4_conv_aa_large mobilenetv4_conv_blur_medium
    mobilenetv4_hybrid_medium mobilenetv4_hybrid_large
    mnasnet_050 mnasnet_075 mnasnet_100 mnasnet_140 mnasnet_small semnasnet_050 semnasnet_075 semnasnet_100
    semnasnet_140 spnasnet_100 fbnetc_100 fbnetv3_b fbnetv3_d fbnetv3_g mixnet_s mixnet_m mixnet_l mixnet_xl
    tf_mixnet_s tf_mixnet_m tf_mixnet_l
    ghostnet_050 ghostnet_100 ghostnet_130 ghostnetv2_100 ghostnetv2_130 ghostnetv2_160 lcnet_035 lcnet_050 lcnet_075
    lcnet_100 lcnet_150 tinynet_a tinynet_b tinynet_c tinynet_d tinynet_e rexnet_100 rexnet_130 rexnet_150 rexnet_200
    rexnet_300 rexnetr_100 rexnetr_200 rexnetr_300
    hardcorenas_a hardcorenas_b hardcorenas_c hardcorenas_d hardcorenas_e hardcorenas_f selecsls42b selecsls60
    selecsls60b vovnet39a vovnet57a ese_vovnet19b_dw ese_vovnet39b ese_vovnet57b tresnet_m tresnet_l tresnet_xl
    hgnet_tiny hgnet_small hgnet_base hgnetv2_b0 hgnetv2_b1 hgnetv2_b2 hgnetv2_b3 hgnetv2_b4 hgnetv2_b5 hgnetv2_b6
    nf_regnet_b0 nf_regnet_b1 nf_regnet_b2 nf_regnet_b3 nf_regnet_b4 nf_regnet_b5 nf_resnet26 nf_resnet50
    nf_resnet101 nf_ecaresnet26 nf_ecaresnet50 nf_seresnet26 nf_seresnet50 nfnet_f0 nfnet_f1 nfnet_f2 nfnet_f3
    nfnet_l0 dm_nfnet_f0 dm_nfnet_f1 dm_nfnet_f2 dm_nfnet_f3 eca_nfnet_l0 eca_nfnet_l1 eca_nfnet_l2 eca_nfnet_l3
    convnext_atto convnext_atto_ols convnext_femto convnext_femto_ols convnext_pico convnext_pico_ols convnext_nano
    convnext_nano_ols convnext_tiny convnext_tiny_hnf convnext_small convnext_base convnext_large convnext_large_mlp
    convnext_xlarge convnext_xxlarge convnextv2_atto convnextv2_femto convnextv2_pico convnextv2_nano convnextv2_tiny
    convnextv2_small convnextv2_base convnextv2_large convnextv2_huge
    convmixer_768_32 convmixer_1024_20_ks9_p14 convmixer_1536_20 mambaout_femto mambaout_kobe mambaout_tiny
    mambaout_small mambaout_base fasternet_t0 fasternet_t1 fasternet_t2 fasternet_s fasternet_m fasternet_l
    starnet_s1 starnet_s2 starnet_s3 starnet_s4
    poolformer_s12 poolformer_s24 poolformer_s36 poolformer_m36 poolformer_m48 poolformerv2_s12 poolformerv2_s24
    poolformerv2_s36 poolformerv2_m36 poolformerv2_m48 convformer_s18 convformer_s36 convformer_m36 convformer_b36
    caformer_s18 caformer_s36 caformer_m36 caformer_b36
    pvt_v2_b0 pvt_v2_b1 pvt_v2_b2 pvt_v2_b2_li pvt_v2_b3 pvt_v2_b4 pvt_v2_b5
    crossvit_9_240 crossvit_15_240 crossvit_18_240 crossvit_tiny_240 crossvit_small_240 crossvit_base_240
    mobilevit_xxs mobilevit_xs mobilevit_s mobilevitv2_050 mobilevitv2_075 mobilevitv2_100 mobilevitv2_125
    mobilevitv2_150 mobilevitv2_175 mobilevitv2_200 edgenext_xx_small edgenext_x_small edgenext_small edgenext_base
    efficientformer_l1 efficientformer_l3 efficientformer_l7 efficientvit_b0 efficientvit_b1 efficientvit_b2
    efficientvit_b3 efficientvit_l1 efficientvit_l2 efficientvit_l3
    fastvit_t8 fastvit_t12 fastvit_s12 fastvit_sa12 fastvit_sa24 fastvit_sa36 fastvit_ma36 shvit_s1 shvit_s2 shvit_s3
    shvit_s4 nextvit_small nextvit_base nextvit_large
    focalnet_tiny_srf focalnet_tiny_lrf focalnet_small_srf focalnet_small_lrf focalnet_base_srf focalnet_base_lrf
    davit_tiny davit_small davit_base davit_large
    tiny_vit_5m_224 tiny_vit_11m_224 tiny_vit_21m_224 tiny_vit_21m_384 tiny_vit_21m_512
"""
# Built for one size of image, which can be another: by the size that they have unless another is asked for.
_SIZED: Mapping[int, str] = {
    192: """
        swinv2_base_window12_192 swinv2_large_window12_192
    """,
    196: """
        eva_large_patch14_196
    """,
    224: """
        vit_tiny_patch16_224 vit_small_patch8_224 vit_small_patch16_224 vit_small_patch32_224 vit_base_patch8_224
        vit_base_patch16_224 vit_base_patch32_224 vit_large_patch14_224 vit_large_patch16_224 vit_large_patch32_224
        vit_huge_patch14_224 vit_base_patch16_224_miil vit_base_patch16_clip_224 vit_base_patch32_clip_224
        vit_large_patch14_clip_224 vit_huge_patch14_clip_224 vit_relpos_small_patch16_224
        vit_relpos_medium_patch16_224 vit_relpos_base_patch16_224 vit_small_r26_s32_224 vit_base_r50_s16_224
        vit_large_r50_s32_224 deit_tiny_patch16_224 deit_small_patch16_224 deit_base_patch16_224
        deit_tiny_distilled_patch16_224 deit_small_distilled_patch16_224 deit_base_distilled_patch16_224
        deit3_small_patch16_224 deit3_medium_patch16_224 deit3_base_patch16_224 deit3_large_patch16_224
        deit3_huge_patch14_224 beit_base_patch16_224 beit_large_patch16_224 beitv2_base_patch16_224
        beitv2_large_patch16_224 eva02_tiny_patch14_224 eva02_small_patch14_224 eva02_base_patch14_224
        eva02_large_patch14_224 swin_tiny_patch4_window7_224 swin_small_patch4_window7_224
        swin_base_patch4_window7_224 swin_large_patch4_window7_224 swin_s3_tiny_224 swin_s3_small_224
        swin_s3_base_224 swinv2_cr_tiny_224 swinv2_cr_tiny_ns_224 swinv2_cr_small_224 swinv2_cr_small_ns_224
        swinv2_cr_base_224 maxvit_tiny_tf_224 maxvit_small_tf_224 maxvit_base_tf_224 maxvit_large_tf_224
        maxvit_tiny_rw_224 maxvit_rmlp_small_rw_224 maxvit_rmlp_base_rw_224 coatnet_pico_rw_224 coatnet_nano_rw_224
        coatnet_0_rw_224 coatnet_1_rw_224 coatnet_2_rw_224 coatnet_3_rw_224 coatnet_bn_0_rw_224
        coatnet_rmlp_nano_rw_224 coatnet_rmlp_1_rw_224 coatnet_rmlp_2_rw_224 coatnet_0_224 coatnet_1_224
        coatnet_2_224 coatnext_nano_rw_224 levit_128 levit_128s levit_192 levit_256 levit_384 levit_512
        levit_conv_128s levit_conv_256 levit_conv_384 cait_xxs24_224 cait_xxs36_224 cait_s24_224 xcit_nano_12_p16_224
        xcit_nano_12_p8_224 xcit_tiny_12_p16_224 xcit_tiny_12_p8_224 xcit_tiny_24_p16_224 xcit_tiny_24_p8_224
        xcit_small_12_p16_224 xcit_small_12_p8_224 xcit_small_24_p16_224 xcit_small_24_p8_224 xcit_medium_24_p16_224
        xcit_medium_24_p8_224 xcit_large_24_p16_224 xcit_large_24_p8_224 mvitv2_tiny mvitv2_small mvitv2_base
        mvitv2_large mvitv2_small_cls mvitv2_base_cls pit_ti_224 pit_xs_224 pit_s_224 pit_b_224 twins_pcpvt_small
        twins_pcpvt_base twins_pcpvt_large twins_svt_small twins_svt_base twins_svt_large coat_tiny coat_mini
        coat_small coat_lite_tiny coat_lite_mini coat_lite_small coat_lite_medium convit_tiny convit_small
        convit_base mixer_s16_224 mixer_s32_224 mixer_b16_224 mixer_b32_224 mixer_l16_224 mixer_l32_224 resmlp_12_224
        resmlp_24_224 resmlp_36_224 resmlp_big_24_224 gmlp_ti16_224 gmlp_s16_224 gmlp_b16_224 gmixer_12_224
        gmixer_24_224 efficientformerv2_s0 efficientformerv2_s1 efficientformerv2_s2 efficientformerv2_l
        efficientvit_m0 efficientvit_m1 efficientvit_m2 efficientvit_m3 efficientvit_m4 efficientvit_m5
        swiftformer_xs swiftformer_s swiftformer_l1 swiftformer_l3 hiera_tiny_224 hiera_small_224 hiera_base_224
        hiera_base_plus_224 hiera_large_224 gcvit_xxtiny gcvit_xtiny gcvit_tiny gcvit_small gcvit_base visformer_tiny
        visformer_small nest_tiny nest_small nest_base volo_d1_224 volo_d2_224 volo_d3_224 sequencer2d_s
        sequencer2d_m sequencer2d_l tnt_s_patch16_224 tnt_b_patch16_224
    """,
    240: """
        flexivit_small flexivit_base flexivit_large
    """,
    256: """
        vit_small_patch16_dinov3 vit_base_patch16_dinov3 vit_large_patch16_dinov3 vit_wee_patch16_reg1_gap_256
        vit_little_patch16_reg4_gap_256 vit_medium_patch16_gap_256 vit_medium_patch16_reg4_gap_256
        vit_betwixt_patch16_reg4_gap_256 vit_base_patch16_reg4_gap_256 swinv2_tiny_window8_256
        swinv2_tiny_window16_256 swinv2_small_window8_256 swinv2_small_window16_256 swinv2_base_window8_256
        swinv2_base_window16_256 swinv2_base_window12to16_192to256 swinv2_large_window12to16_192to256
        maxvit_nano_rw_256 maxvit_pico_rw_256 maxvit_rmlp_pico_rw_256 maxvit_rmlp_nano_rw_256 maxvit_rmlp_tiny_rw_256
    """,
    336: """
        vit_large_patch14_clip_336 eva02_tiny_patch14_336 eva02_small_patch14_336 eva_large_patch14_336
    """,
    384: """
        vit_tiny_patch16_384 vit_small_patch16_384 vit_small_patch32_384 vit_base_patch16_384 vit_base_patch32_384
        vit_large_patch16_384 vit_large_patch32_384 vit_base_patch16_clip_384 vit_base_patch32_clip_384
        deit_base_patch16_384 deit_base_distilled_patch16_384 deit3_small_patch16_384 deit3_base_patch16_384
        deit3_large_patch16_384 beit_base_patch16_384 beit_large_patch16_384 swin_base_patch4_window12_384
        swin_large_patch4_window12_384 swinv2_base_window12to24_192to384 swinv2_large_window12to24_192to384
        maxvit_tiny_tf_384 maxvit_small_tf_384 maxvit_base_tf_384 maxvit_large_tf_384 cait_xxs24_384 cait_xxs36_384
        cait_xs24_384 cait_s24_384 cait_s36_384 cait_m36_384
    """,
    448: """
        eva02_base_patch14_448 eva02_large_patch14_448
    """,
    512: """
        beit_large_patch16_512 maxvit_tiny_tf_512
    """,
    518: """
        vit_small_patch14_dinov2 vit_base_patch14_dinov2 vit_large_patch14_dinov2 vit_small_patch14_reg4_dinov2
        vit_base_patch14_reg4_dinov2 vit_large_patch14_reg4_dinov2
    """,
}

# The size of image that each sized network has in timm.
SIZES: Mapping[str, int] = {name: size for size, names in _SIZED.items() for name in names.split()}
NAMES: tuple[str, ...] = (*_FREE.split(), *SIZES)
