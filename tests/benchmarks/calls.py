"""What is measured: the call of vit-flax's README and one preset for each of the 17, and who else has the model."""

from typing import Any, NamedTuple


class Call(NamedTuple):
    """One architecture's two settings and its peers."""

    peer: str  # module and class in vit-pytorch
    image_size: int  # of the seed's call
    arguments: dict[str, Any]  # the seed's keywords
    preset: str
    preset_peer: str | None = None  # the library besides ours that has the preset
    head_sizes: dict[str, int] | None = None  # what vit-pytorch must be told besides, to build heads of the same size


def some(**given: Any) -> dict[str, Any]:
    """Keywords as a dict."""
    return given


DROPOUT = some(dropout=0.1, emb_dropout=0.1)
SIZES = some(image_size=256, num_classes=1000, dim=1024, mlp_dim=2048)
PATCH_32 = SIZES | some(patch_size=32, heads=16, depth=6)
PATCH_16 = SIZES | some(patch_size=16, heads=8, depth=6) | DROPOUT
STAGES = some(num_classes=1000, dim=(64, 128, 256, 512), depth=(2, 2, 8, 2))

CAIT = PATCH_32 | DROPOUT | some(depth=12, cls_depth=2, layer_dropout=0.05)
MERGER = PATCH_16 | some(depth=12, patch_merge_layer=6, patch_merge_num_tokens=8)
CROSS_VIT = (
    some(image_size=256, num_classes=1000, depth=4, cross_attn_depth=2, cross_attn_heads=8)
    | some(sm_dim=192, sm_patch_size=16, sm_enc_depth=2, sm_enc_heads=8, sm_enc_mlp_dim=2048)
    | some(lg_dim=384, lg_patch_size=64, lg_enc_depth=3, lg_enc_heads=8, lg_enc_mlp_dim=2048)
    | DROPOUT
)
T2T = some(image_size=224, num_classes=1000, dim=512, depth=5, heads=8, mlp_dim=512)
T2T |= some(t2t_layers=((7, 4), (3, 2), (3, 2)))
PIT = some(image_size=224, patch_size=14, dim=256, num_classes=1000, depth=(3, 3, 3), heads=16, mlp_dim=2048) | DROPOUT
NEST = some(image_size=224, patch_size=4, dim=96, heads=3, num_hierarchies=3, block_repeats=(2, 2, 8), num_classes=1000)
LEVIT = some(image_size=224, num_classes=1000, stages=3, dim=(256, 384, 512), depth=4, heads=(4, 6, 8))
LEVIT |= some(mlp_mult=2, dropout=0.1)
CVT = (
    some(num_classes=1000, s1_emb_dim=64, s1_heads=1, s1_depth=1)
    | some(s2_emb_dim=192, s2_heads=3, s2_depth=2)
    | some(s3_emb_dim=384, s3_heads=4, s3_depth=10)
)
CROSSFORMER = STAGES | some(global_window_size=(8, 4, 2, 1), local_window_size=7)
REGION_VIT = STAGES | some(window_size=7, tokenize_local_3_conv=False, use_peg=False)
SCALABLE_VIT = some(num_classes=1000, dim=64, heads=(2, 4, 8, 16), depth=(2, 2, 20, 2), dropout=0.1)
SCALABLE_VIT |= some(ssa_dim_key=(40, 40, 40, 32), reduction_factor=(8, 4, 2, 1), window_size=(64, 32, None, None))
TWINS = some(num_classes=1000, s1_depth=1, s2_depth=1, s3_depth=5, s4_depth=4)
TWINS |= {f"s{stage}_emb_dim": 2 ** (5 + stage) for stage in (1, 2, 3, 4)}

HEADS_128, HEADS_32, HEADS_16 = some(dim_head=128), some(dim_head=32), some(dim_head=16)
CROSS_HEADS = some(sm_enc_dim_head=24, lg_enc_dim_head=48)

CALLS = {
    "vit": Call("vit.ViT", 256, PATCH_32 | DROPOUT, "vit_small_patch16_224", "timm"),
    "simple_vit": Call("simple_vit.SimpleViT", 256, PATCH_32, "simple_vit_s16"),
    "deepvit": Call("deepvit.DeepViT", 256, PATCH_32 | DROPOUT, "deepvit_S"),
    "cait": Call("cait.CaiT", 256, CAIT, "cait_xxs24_224", "timm"),
    "parallel_vit": Call("parallel_vit.ViT", 256, PATCH_16, "vit_small_patch16_18x2_224", "timm", HEADS_128),
    "patch_merger": Call(
        "vit_with_patch_merger.ViT", 256, MERGER, "patch_merger_small_patch32_224", head_sizes=HEADS_128
    ),
    "vit_small_datasets": Call("vit_for_small_dataset.ViT", 256, PATCH_16, "sl_vit_cifar10", head_sizes=HEADS_128),
    "cross_vit": Call("cross_vit.CrossViT", 256, CROSS_VIT, "crossvit_9_240", "timm", CROSS_HEADS),
    "t2t": Call("t2t.T2TViT", 224, T2T, "t2t_vit_7"),
    "pit": Call("pit.PiT", 224, PIT, "pit_ti_224", "timm", HEADS_16),
    "nest": Call("nest.NesT", 224, NEST, "nest_tiny_jx", "timm", HEADS_32),
    "levit": Call("levit.LeViT", 224, LEVIT, "levit_128s", "timm"),
    "cvt": Call("cvt.CvT", 256, CVT, "cvt-13", "transformers"),
    "crossformer": Call("crossformer.CrossFormer", 224, CROSSFORMER, "crossformer_tiny_patch4_group7_224"),
    "region_vit": Call("regionvit.RegionViT", 224, REGION_VIT, "regionvit_tiny_224"),
    "scalable_vit": Call("scalable_vit.ScalableViT", 256, SCALABLE_VIT, "scalable_vit_small"),
    "twins_svt": Call("twins_svt.TwinsSVT", 224, TWINS, "twins_svt_small", "timm"),
}
SETTINGS = ("seed", "preset")


def peer_library(architecture: str, setting: str) -> str | None:
    """The PyTorch library that has this setting of the architecture."""
    return "vit-pytorch" if setting == "seed" else CALLS[architecture].preset_peer
