"""Names that people give for presets: the preset that each means is the first one that the error offers."""

import time

import pytest

from eqx_vit import MODELS
from eqx_vit.registry import find_preset

# What official codes, papers, repositories of weights and other libraries call our presets, and slips of the pen.
NAMES = {
    "cait_XXS24_224": "cait_xxs24_224",
    "cait_XXS24": "cait_xxs24_384",
    "cait_XXS36_224": "cait_xxs36_224",
    "cait_XXS36": "cait_xxs36_384",
    "cait_XS24": "cait_xs24_384",
    "cait_S24_224": "cait_s24_224",
    "cait_S24": "cait_s24_384",
    "cait_S36": "cait_s36_384",
    "cait_M36": "cait_m36_384",
    "cait_M48": "cait_m48_448",
    "CaiT-M48": "cait_m48_448",
    "CrossFormer-T": "crossformer_tiny_patch4_group7_224",
    "CrossFormer-S": "crossformer_small_patch4_group7_224",
    "CrossFormer-B": "crossformer_base_patch4_group7_224",
    "CrossFormer-L": "crossformer_large_patch4_group7_224",
    "CrossFormer++-S": "crossformer_pp_small_patch4_group_const_224",
    "CrossFormer++-B": "crossformer_pp_base_patch4_group_const_224",
    "CrossFormer++-L": "crossformer_pp_large_patch4_group_const_224",
    "CrossFormer++-H": "crossformer_pp_huge_patch4_group_const_224",
    "crossformer_tiny": "crossformer_tiny_patch4_group7_224",
    "crossvit_tiny_224": "crossvit_tiny_240",
    "crossvit_small_224": "crossvit_small_240",
    "crossvit_9_224": "crossvit_9_240",
    "crossvit_15_224": "crossvit_15_240",
    "crossvit_9_dagger_224": "crossvit_9_dagger_240",
    "crossvit_15_dagger_224": "crossvit_15_dagger_240",
    "crossvit_15_dagger_384": "crossvit_15_dagger_408",
    "crossvit_18_dagger_384": "crossvit_18_dagger_408",
    "CrossViT-18": "crossvit_18_240",
    "cross_vit_base": "crossvit_base_240",
    "cvt-13-224": "cvt-13",
    "cvt-21-224": "cvt-21",
    "CvT-13": "cvt-13",
    "cvt_13": "cvt-13",
    "microsoft/cvt-13": "cvt-13",
    "microsoft/cvt-21-384-22k": "cvt-21-384-22k",
    "CvT-13-384x384": "cvt-13-384",
    "cvt-w24": "cvt-w24-384-22k",
    "CvT-W24": "cvt-w24-384-22k",
    "DeepViT-16B": "deepvit_patch16_224_re_attn_16b",
    "DeepViT-24B": "deepvit_patch16_224_re_attn_24b",
    "DeepViT-32B": "deepvit_patch16_224_re_attn_32b",
    "DeepViT-S": "deepvit_S",
    "DeepViT-L": "deepvit_L",
    "deepvit_s": "deepvit_S",
    "LeViT_128S": "levit_128s",
    "LeViT_128": "levit_128",
    "LeViT_192": "levit_192",
    "LeViT_256": "levit_256",
    "LeViT_384": "levit_384",
    "facebook/levit-128S": "levit_128s",
    "facebook/levit-384": "levit_384",
    "levit_conv_128s": "levit_128s",
    "levit_conv_128": "levit_128",
    "nest_tiny_s196_224": "nest_tiny_jx",
    "nest_small_s196_224": "nest_small_jx",
    "nest_base_s196_224": "nest_base_jx",
    "nest_tiny_jx.goog_in1k": "nest_tiny_jx",
    "deit_small_patch16_36_ls": "deit_small_patch16_36_LS",
    "PatchMerger-B/32": "patch_merger_base_patch32_224",
    "PatchMerger ViT-L/16": "patch_merger_large_patch16_224",
    "patch_merger_H/14": "patch_merger_huge_patch14_224",
    "pit_ti": "pit_ti_224",
    "pit_xs": "pit_xs_224",
    "pit_s": "pit_s_224",
    "pit_b": "pit_b_224",
    "PiT-Ti": "pit_ti_224",
    "pit_ti_distilled": "pit_ti_distilled_224",
    "pit_b_distilled": "pit_b_distilled_224",
    "pit_tiny": "pit_ti_224",
    "RegionViT-Ti": "regionvit_tiny_224",
    "RegionViT-S": "regionvit_small_224",
    "RegionViT-M": "regionvit_medium_224",
    "RegionViT-B": "regionvit_base_224",
    "regionvit_small": "regionvit_small_224",
    "region_vit_base": "regionvit_base_224",
    "regionvit_base_w14_peg": "regionvit_base_w14_peg_224",
    "ScalableViT-S": "scalable_vit_small",
    "ScalableViT-B": "scalable_vit_base",
    "ScalableViT-L": "scalable_vit_large",
    "scalablevit_small": "scalable_vit_small",
    "mu/16": "simple_vit_mu16",
    "simple_vit_S/16": "simple_vit_s16",
    "SimpleViT-S/16": "simple_vit_s16",
    "SimpleViT-Ti/16": "simple_vit_ti16",
    "SimpleViT-B/32": "simple_vit_b32",
    "SimpleViT-L/16": "simple_vit_l16",
    "SimpleViT-H/14": "simple_vit_h14",
    "vit_s16_i1k_90ep": "simple_vit_s16_i1k_90ep",
    "vit_s16_i1k_150ep": "simple_vit_s16_i1k_150ep",
    "vit_s16_i1k_300ep": "simple_vit_s16_i1k_300ep",
    "vit_s16_i1k": "simple_vit_s16_i1k_90ep",
    "T2T-ViT-7": "t2t_vit_7",
    "T2T-ViT-14": "t2t_vit_14",
    "T2t_vit_14": "t2t_vit_14",
    "T2T_ViT_24": "t2t_vit_24",
    "T2T-ViTt-14": "t2t_vit_t_14",
    "T2T_ViTt_19": "t2t_vit_t_19",
    "T2T_ViTt_24": "t2t_vit_t_24",
    "T2T-ViT-14-384": "t2t_vit_14_384",
    "81.5_T2T_ViT_14": "t2t_vit_14",
    "alt_gvt_small": "twins_svt_small",
    "alt_gvt_base": "twins_svt_base",
    "alt_gvt_large": "twins_svt_large",
    "pcpvt_small_v0": "twins_pcpvt_small",
    "pcpvt_base_v0": "twins_pcpvt_base",
    "pcpvt_large_v0": "twins_pcpvt_large",
    "svt_small": "twins_svt_small",
    "Twins-SVT-S": "twins_svt_small",
    "Twins-PCPVT-L": "twins_pcpvt_large",
    "twins_svt_small.in1k": "twins_svt_small",
    "vit_s16": "vit_small_patch16_224",
    "vit_tinny": "vit_tiny_patch16_224",
    "ViT-B/16": "vit_base_patch16_224",
    "ViT-B_16": "vit_base_patch16_224",
    "ViT-L/32": "vit_large_patch32_224",
    "ViT-H/14": "vit_huge_patch14_224",
    "vit_b_16": "vit_base_patch16_224",
    "vit_l_16": "vit_large_patch16_224",
    "google/vit-base-patch16-224": "vit_base_patch16_224",
    "google/vit-base-patch16-384": "vit_base_patch16_384",
    "vit_base_patch16_224.augreg2_in21k_ft_in1k": "vit_base_patch16_224",
    "vit_base": "vit_base_patch16_224",
    "vit_small_patch16": "vit_small_patch16_224",
    "deit_tiny": "deit_tiny_patch16_224",
    "facebook/deit-base-distilled-patch16-224": "deit_base_distilled_patch16_224",
    "facebook/deit-small-patch16-224": "deit_small_patch16_224",
    "deit3_base": "deit3_base_patch16_224",
    "deit_base_patch16_LS": "deit3_base_patch16_224",
    "deit_small_patch16_LS": "deit3_small_patch16_224",
    "deit_huge_patch14_LS": "deit3_huge_patch14_224",
    "vit_base_patch16_reg4_gap": "vit_base_patch16_reg4_gap_256",
    "vit_giant": "vit_giant_patch14_224",
    "vit_huge_patch14": "vit_huge_patch14_224",
}


def offered(name: str) -> list[str]:
    with pytest.raises(ValueError, match="there is no preset") as error:
        find_preset(name)
    _, found, rest = str(error.value).partition("did you mean ")
    return rest.removesuffix("?").split(", ") if found else []


@pytest.mark.parametrize(("name", "preset"), NAMES.items())
def test_the_right_preset_is_offered_first(name: str, preset: str) -> None:
    names = offered(name)
    assert names[0] == preset
    assert len(names) <= 3


@pytest.mark.parametrize("name", MODELS)
def test_a_preset_without_its_case_and_separators_is_offered_first(name: str) -> None:
    for preset in MODELS[name].presets:
        assert offered(preset.replace("-", " ").replace("_", "-").upper() + " ")[0] == preset


@pytest.mark.parametrize("name", ["swin_tiny", "convnext_base", "", "???", "x" * 200])
def test_other_names_offer_nothing_far_fetched(name: str) -> None:
    assert offered(name) == []
    with pytest.raises(ValueError, match="list_models"):
        find_preset(name)


def test_long_names_take_no_time() -> None:
    start = time.perf_counter()
    for name in ("00", "ab" * 10**6, "a1" * 10**5, "vit" * 1000):
        with pytest.raises(ValueError, match="there is no preset") as error:
            find_preset(name)
        assert len(str(error.value)) < 500
    assert time.perf_counter() - start < 20
