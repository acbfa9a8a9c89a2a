"""The accuracy that a preset's released weights are said to have, to hold a measured one against.

Top-1 in percent on the 50,000 validation images of ImageNet-1k, by source. A README is that of the authors' repository;
timm's file is its own measurement of the same weights, for those whose authors give no number.
Two numbers of one model may differ by 0.3 where they were measured with another crop.
"""

TIMM = "results/results-imagenet.csv of huggingface/pytorch-image-models"
_BY_SOURCE: dict[str, dict[str, float]] = {
    TIMM: {
        "vit_tiny_patch16_224": 75.452,
        "vit_tiny_patch16_384": 78.438,
        "vit_small_patch32_224": 76.010,
        "vit_small_patch32_384": 80.476,
        "vit_small_patch16_224": 81.402,
        "vit_small_patch16_384": 83.814,
        "vit_base_patch32_224": 80.732,
        "vit_base_patch32_384": 83.358,
        "vit_base_patch16_224": 85.108,
        "vit_base_patch16_384": 86.010,
        "vit_base_patch8_224": 86.252,
        "vit_large_patch32_384": 81.508,
        "vit_large_patch16_224": 85.856,
        "vit_large_patch16_384": 87.096,
        "vit_medium_patch16_gap_256": 84.442,
        "vit_medium_patch16_reg4_gap_256": 84.956,
        "vit_little_patch16_reg4_gap_256": 82.520,
        "vit_wee_patch16_reg1_gap_256": 80.262,
        "cait_xxs24_224": 78.400,
        "cait_xxs24_384": 80.954,
        "cait_xxs36_224": 79.750,
        "cait_xxs36_384": 82.204,
        "crossvit_tiny_240": 73.352,
        "crossvit_small_240": 81.036,
        "crossvit_base_240": 82.212,
        "crossvit_9_240": 73.994,
        "crossvit_15_240": 81.522,
        "crossvit_18_240": 82.390,
        "crossvit_9_dagger_240": 76.990,
        "crossvit_15_dagger_240": 82.302,
        "crossvit_18_dagger_240": 82.494,
        "crossvit_15_dagger_408": 83.842,
        "crossvit_18_dagger_408": 84.198,
    },
    "README_deit.md of facebookresearch/deit": {
        "deit_tiny_patch16_224": 72.2,
        "deit_small_patch16_224": 79.9,
        "deit_base_patch16_224": 81.8,
        "deit_base_patch16_384": 82.9,
        "deit_tiny_distilled_patch16_224": 74.5,
        "deit_small_distilled_patch16_224": 81.2,
        "deit_base_distilled_patch16_224": 83.4,
        "deit_base_distilled_patch16_384": 85.2,
    },
    "README_revenge.md of facebookresearch/deit": {
        "deit3_small_patch16_224": 81.4,
        "deit3_small_patch16_384": 83.4,
        "deit3_medium_patch16_224": 83.0,
        "deit3_base_patch16_224": 83.8,
        "deit3_base_patch16_384": 85.0,
        "deit3_large_patch16_224": 84.9,
        "deit3_large_patch16_384": 85.8,
        "deit3_huge_patch14_224": 85.2,
    },
    "README of google-research/big_vision": {"simple_vit_s16_i1k_90ep": 76.5},
    "abstract of arXiv 2205.01580": {"simple_vit_s16_i1k_300ep": 80.0},
    "README_cait.md of facebookresearch/deit": {
        "cait_s24_224": 83.5,
        "cait_xs24_384": 84.1,
        "cait_s24_384": 85.1,
        "cait_s36_384": 85.4,
        "cait_m36_384": 86.1,
        "cait_m48_448": 86.5,
    },
    "README of cheerss/CrossFormer": {
        "crossformer_tiny_patch4_group7_224": 81.5,
        "crossformer_small_patch4_group7_224": 82.5,
        "crossformer_base_patch4_group7_224": 83.4,
    },
    "README of microsoft/CvT": {
        "cvt-13": 81.6,
        "cvt-21": 82.5,
        "cvt-13-384": 83.0,
        "cvt-21-384": 83.3,
        "cvt-13-384-22k": 83.3,
        "cvt-21-384-22k": 84.9,
        "cvt-w24-384-22k": 87.6,
    },
    "README of zhoudaquan/dvit_repo": {
        "deepvit_patch16_224_re_attn_24b": 79.99,
        "deepvit_patch16_224_re_attn_32b": 80.90,
        "deepvit_S": 82.3,
        "deepvit_L": 83.1,
    },
    "README of facebookresearch/LeViT": {
        "levit_128s": 76.6,
        "levit_128": 78.6,
        "levit_192": 80.0,
        "levit_256": 81.6,
        "levit_384": 82.6,
    },
    "README of google-research/nested-transformer": {"nest_tiny_jx": 81.5, "nest_small_jx": 83.3, "nest_base_jx": 83.8},
    "README of naver-ai/pit": {
        "pit_ti_224": 73.0,
        "pit_xs_224": 78.1,
        "pit_s_224": 80.9,
        "pit_b_224": 82.0,
        "pit_ti_distilled_224": 74.6,
        "pit_xs_distilled_224": 79.1,
        "pit_s_distilled_224": 81.9,
        "pit_b_distilled_224": 84.0,
    },
    "README of yitu-opensource/T2T-ViT": {
        "t2t_vit_7": 71.7,
        "t2t_vit_10": 75.2,
        "t2t_vit_12": 76.5,
        "t2t_vit_14": 81.5,
        "t2t_vit_14_384": 83.3,
        "t2t_vit_19": 81.9,
        "t2t_vit_24": 82.3,
        "t2t_vit_t_14": 81.7,
        "t2t_vit_t_19": 82.4,
        "t2t_vit_t_24": 82.6,
    },
    "README of Meituan-AutoML/Twins": {
        "twins_pcpvt_small": 81.2,
        "twins_pcpvt_base": 82.7,
        "twins_pcpvt_large": 83.1,
        "twins_svt_small": 81.7,
        "twins_svt_base": 83.2,
        "twins_svt_large": 83.7,
    },
    "README of IBM/RegionViT": {
        "regionvit_tiny_224": 80.4,
        "regionvit_small_224": 82.6,
        "regionvit_medium_224": 83.1,
        "regionvit_base_224": 83.2,
    },
}

REPORTED: dict[str, tuple[float, str]] = {
    preset: (accuracy, source) for source, rows in _BY_SOURCE.items() for preset, accuracy in rows.items()
}


def find_reported(preset: str) -> tuple[float, str] | None:
    """(top-1 in percent, source) of a preset's released weights, None where no number is known."""
    return REPORTED.get(preset)
