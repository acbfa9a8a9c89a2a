"""The calls of vit-flax's README, unchanged but for the import line and `jax.tree_*`, which is now `jax.tree.*`.

By default they are traced, which shows the shapes; the slow and flax sessions compute them, at their full size.
"""

from collections.abc import Callable

import jax
import numpy as np
import pytest

SNIPPETS: dict[str, Callable[[], None]] = {}


def snippet(function: Callable[[], None]) -> Callable[[], None]:
    SNIPPETS[function.__name__] = function
    return function


key = jax.random.PRNGKey(0)
init_rngs = {"params": jax.random.PRNGKey(1), "dropout": jax.random.PRNGKey(2), "emb_dropout": jax.random.PRNGKey(3)}


@snippet
def vit() -> None:
    from eqx_vit.flax import ViT

    img = jax.random.normal(key, (1, 256, 256, 3))

    v = ViT(
        image_size = 256,
        patch_size = 32,
        num_classes = 1000,
        dim = 1024,
        depth = 6,
        heads = 16,
        mlp_dim = 2048,
        dropout = 0.1,
        emb_dropout = 0.1,
    )  # fmt: skip

    params = v.init(init_rngs, img)
    output = v.apply(params, img, rngs=init_rngs)
    assert output.shape == (1, 1000)

    n_params_flax = sum(jax.tree.leaves(jax.tree.map(lambda x: np.prod(x.shape), params)))
    assert n_params_flax == 54_640_616


@snippet
def cait() -> None:
    from eqx_vit.flax import CaiT

    img = jax.random.normal(key, (1, 256, 256, 3))

    v = CaiT(
        image_size = 256,
        patch_size = 32,
        num_classes = 1000,
        dim = 1024,
        depth = 12,             # depth of transformer for patch to patch attention only
        cls_depth = 2,          # depth of cross attention of CLS tokens to patch
        heads = 16,
        mlp_dim = 2048,
        dropout = 0.1,
        emb_dropout = 0.1,
        layer_dropout = 0.05    # randomly dropout 5% of the layers
    )  # fmt: skip
    init_rngs = {
        "params": jax.random.PRNGKey(1),
        "dropout": jax.random.PRNGKey(2),
        "emb_dropout": jax.random.PRNGKey(3),
        "layer_dropout": jax.random.PRNGKey(4),
    }

    params = v.init(init_rngs, img)
    output = v.apply(params, img, rngs=init_rngs)
    assert output.shape == (1, 1000)


@snippet
def crossformer() -> None:
    from eqx_vit.flax import CrossFormer

    img = jax.random.normal(key, (1, 224, 224, 3))

    v = CrossFormer(
        num_classes = 1000,                # number of output classes
        dim = (64, 128, 256, 512),         # dimension at each stage
        depth = (2, 2, 8, 2),              # depth of transformer at each stage
        global_window_size = (8, 4, 2, 1), # global window sizes at each stage
        local_window_size = 7,             # local window size
    )  # fmt: skip

    params = v.init(init_rngs, img)
    output = v.apply(params, img, rngs=init_rngs)
    assert output.shape == (1, 1000)


@snippet
def crossvit() -> None:
    from eqx_vit.flax import CrossViT

    img = jax.random.normal(key, (1, 256, 256, 3))

    v = CrossViT(
        image_size = 256,
        num_classes = 1000,
        depth = 4,               # number of multi-scale encoding blocks
        sm_dim = 192,            # high res dimension
        sm_patch_size = 16,      # high res patch size (should be smaller than lg_patch_size)
        sm_enc_depth = 2,        # high res depth
        sm_enc_heads = 8,        # high res heads
        sm_enc_mlp_dim = 2048,   # high res feedforward dimension
        lg_dim = 384,            # low res dimension
        lg_patch_size = 64,      # low res patch size
        lg_enc_depth = 3,        # low res depth
        lg_enc_heads = 8,        # low res heads
        lg_enc_mlp_dim = 2048,   # low res feedforward dimensions
        cross_attn_depth = 2,    # cross attention rounds
        cross_attn_heads = 8,    # cross attention heads
        dropout = 0.1,
        emb_dropout = 0.1
    )  # fmt: skip

    params = v.init(init_rngs, img)
    output = v.apply(params, img, rngs=init_rngs)
    assert output.shape == (1, 1000)


@snippet
def cvt() -> None:
    from eqx_vit.flax import CvT

    img = jax.random.normal(key, (1, 256, 256, 3))

    v = CvT(
        num_classes = 1000,
        s1_emb_dim = 64,        # stage 1 - dimension
        s1_emb_kernel = 7,      # stage 1 - conv kernel
        s1_emb_stride = 4,      # stage 1 - conv stride
        s1_proj_kernel = 3,     # stage 1 - attention ds-conv kernel size
        s1_kv_proj_stride = 2,  # stage 1 - attention key / value projection stride
        s1_heads = 1,           # stage 1 - heads
        s1_depth = 1,           # stage 1 - depth
        s1_mlp_mult = 4,        # stage 1 - feedforward expansion factor
        s2_emb_dim = 192,       # stage 2 - (same as above)
        s2_emb_kernel = 3,
        s2_emb_stride = 2,
        s2_proj_kernel = 3,
        s2_kv_proj_stride = 2,
        s2_heads = 3,
        s2_depth = 2,
        s2_mlp_mult = 4,
        s3_emb_dim = 384,       # stage 3 - (same as above)
        s3_emb_kernel = 3,
        s3_emb_stride = 2,
        s3_proj_kernel = 3,
        s3_kv_proj_stride = 2,
        s3_heads = 4,
        s3_depth = 10,
        s3_mlp_mult = 4,
        dropout = 0.
    )  # fmt: skip

    params = v.init(init_rngs, img)
    output = v.apply(params, img, mutable=['batch_stats'], rngs=init_rngs)  # fmt: skip
    logits, updates = output
    assert logits.shape == (1, 1000)
    assert list(updates) == ["batch_stats"]


@snippet
def deepvit() -> None:
    from eqx_vit.flax import DeepViT

    img = jax.random.normal(key, (1, 256, 256, 3))

    v = DeepViT(
        image_size = 256,
        patch_size = 32,
        num_classes = 1000,
        dim = 1024,
        depth = 6,
        heads = 16,
        mlp_dim = 2048,
        dropout = 0.1,
        emb_dropout = 0.1
    )  # fmt: skip

    params = v.init(init_rngs, img)
    output = v.apply(params, img, rngs=init_rngs)
    assert output.shape == (1, 1000)


@snippet
def levit() -> None:
    from eqx_vit.flax import LeViT

    img = jax.random.normal(key, (1, 224, 224, 3))

    v = LeViT(
        image_size = 224,
        num_classes = 1000,
        stages = 3,             # number of stages
        dim = (256, 384, 512),  # dimensions at each stage
        depth = 4,              # transformer of depth 4 at each stage
        heads = (4, 6, 8),      # heads at each stage
        mlp_mult = 2,
        dropout = 0.1
    )  # fmt: skip
    init_rngs = {"params": jax.random.PRNGKey(1), "dropout": jax.random.PRNGKey(2)}

    params = v.init(init_rngs, img)
    output = v.apply(params, img, mutable=['batch_stats'], rngs=init_rngs)  # fmt: skip
    logits, updates = output
    assert logits.shape == (1, 1000)
    assert list(updates) == ["batch_stats"]


@snippet
def nest() -> None:
    from eqx_vit.flax import NesT

    img = jax.random.normal(key, (1, 224, 224, 3))

    v = NesT(
        image_size = 224,
        patch_size = 4,
        dim = 96,
        heads = 3,
        num_hierarchies = 3,        # number of hierarchies
        block_repeats = (2, 2, 8),  # the number of transformer blocks at each hierarchy, starting from the bottom
        num_classes = 1000
    )  # fmt: skip

    params = v.init(init_rngs, img)
    output = v.apply(params, img, rngs=init_rngs)
    assert output.shape == (1, 1000)


@snippet
def parallel_vit() -> None:
    from eqx_vit.flax import ParallelViT as ViT

    img = jax.random.normal(key, (1, 256, 256, 3))

    v = ViT(
        image_size = 256,
        patch_size = 16,
        num_classes = 1000,
        dim = 1024,
        depth = 6,
        heads = 8,
        mlp_dim = 2048,
        num_parallel_branches = 2,  # in paper, they claimed 2 was optimal
        dropout = 0.1,
        emb_dropout = 0.1
    )  # fmt: skip

    params = v.init(init_rngs, img)
    output = v.apply(params, img, rngs=init_rngs)
    assert output.shape == (1, 1000)


@snippet
def patch_merger() -> None:
    from eqx_vit.flax import PatchMerger, PatchMergerViT as ViT

    img = jax.random.normal(key, (1, 256, 256, 3))

    v = ViT(
        image_size = 256,
        patch_size = 16,
        num_classes = 1000,
        dim = 1024,
        depth = 12,
        heads = 8,
        patch_merge_layer = 6,        # at which transformer layer to do patch merging
        patch_merge_num_tokens = 8,   # the output number of tokens from the patch merge
        mlp_dim = 2048,
        dropout = 0.1,
        emb_dropout = 0.1
    )  # fmt: skip

    params = v.init(init_rngs, img)
    output = v.apply(params, img, rngs=init_rngs)
    assert output.shape == (1, 1000)

    features = jax.random.normal(key, (4, 256, 1024))  # (batch, num_patches, dimension)

    merger = PatchMerger(
        dim = 1024,
        num_tokens_out = 8   # output number of tokens
    )  # fmt: skip

    merger_params = merger.init(init_rngs, features)
    merger_output = merger.apply(merger_params, features)
    assert merger_output.shape == (4, 8, 1024)


@snippet
def pit() -> None:
    from eqx_vit.flax import PiT

    img = jax.random.normal(key, (1, 224, 224, 3))

    v = PiT(
        image_size = 224,
        patch_size = 14,
        dim = 256,
        num_classes = 1000,
        depth = (3, 3, 3),     # list of depths, the number of rounds of each stage before a downsample
        heads = 16,
        mlp_dim = 2048,
        dropout = 0.1,
        emb_dropout = 0.1
    )  # fmt: skip

    params = v.init(init_rngs, img)
    output = v.apply(params, img, rngs=init_rngs)
    assert output.shape == (1, 1000)


@snippet
def region_vit() -> None:
    from eqx_vit.flax import RegionViT

    img = jax.random.normal(key, (1, 224, 224, 3))

    v = RegionViT(
        dim = (64, 128, 256, 512),      # tuple of size 4, indicating dimension at each stage
        depth = (2, 2, 8, 2),           # depth of the region to local transformer at each stage
        window_size = 7,                # window size, which should be either 7 or 14
        num_classes = 1000,             # number of output classes
        tokenize_local_3_conv = False,  # whether to use a 3 layer convolution to encode the local tokens
        use_peg = False,                # whether to use positional generating module
    )  # fmt: skip
    init_rngs = {"params": jax.random.PRNGKey(1), "dropout": jax.random.PRNGKey(2)}

    params = v.init(init_rngs, img)
    output = v.apply(params, img, rngs=init_rngs)
    assert output.shape == (1, 1000)


@snippet
def scalable_vit() -> None:
    from eqx_vit.flax import ScalableViT

    img = jax.random.normal(key, (1, 256, 256, 3))

    v = ScalableViT(
        num_classes = 1000,
        dim = 64,                               # starting model dimension. at every stage, dimension is doubled
        heads = (2, 4, 8, 16),                  # number of attention heads at each stage
        depth = (2, 2, 20, 2),                  # number of transformer blocks at each stage
        ssa_dim_key = (40, 40, 40, 32),         # the dimension of the attention keys (and queries) for SSA
        reduction_factor = (8, 4, 2, 1),        # downsampling of the key / values in SSA
        window_size = (64, 32, None, None),     # window size of the IWSA at each stage
        dropout = 0.1,                          # attention and feedforward dropout
    )  # fmt: skip

    params = v.init(init_rngs, img)
    output = v.apply(params, img, rngs=init_rngs)
    assert output.shape == (1, 1000)


@snippet
def simple_vit() -> None:
    from eqx_vit.flax import SimpleViT

    img = jax.random.normal(key, (1, 3, 256, 256))

    v = SimpleViT(
        image_size = 256,
        patch_size = 32,
        num_classes = 1000,
        dim = 1024,
        depth = 6,
        heads = 16,
        mlp_dim = 2048
    )  # fmt: skip

    params = v.init(init_rngs, img)
    output = v.apply(params, img, rngs=init_rngs)
    assert output.shape == (1, 1000)


@snippet
def t2t() -> None:
    from eqx_vit.flax import T2TViT

    img = jax.random.normal(key, (1, 224, 224, 3))

    v = T2TViT(
        dim = 512,
        image_size = 224,
        depth = 5,
        heads = 8,
        mlp_dim = 512,
        num_classes = 1000,
        t2t_layers = ((7, 4), (3, 2), (3, 2)) # tuples of the kernel size and stride of each consecutive layer
    )  # fmt: skip

    params = v.init(init_rngs, img)
    output = v.apply(params, img, rngs=init_rngs)
    assert output.shape == (1, 1000)


@snippet
def twins_svt() -> None:
    from eqx_vit.flax import TwinsSVT

    img = jax.random.normal(key, (1, 224, 224, 3))

    v = TwinsSVT(
        num_classes = 1000,       # number of output classes
        s1_emb_dim = 64,          # stage 1 - patch embedding projected dimension
        s1_patch_size = 4,        # stage 1 - patch size for patch embedding
        s1_local_patch_size = 7,  # stage 1 - patch size for local attention
        s1_global_k = 7,          # stage 1 - global attention key / value reduction factor
        s1_depth = 1,             # stage 1 - number of transformer blocks
        s2_emb_dim = 128,         # stage 2 (same as above)
        s2_patch_size = 2,
        s2_local_patch_size = 7,
        s2_global_k = 7,
        s2_depth = 1,
        s3_emb_dim = 256,         # stage 3 (same as above)
        s3_patch_size = 2,
        s3_local_patch_size = 7,
        s3_global_k = 7,
        s3_depth = 5,
        s4_emb_dim = 512,         # stage 4 (same as above)
        s4_patch_size = 2,
        s4_local_patch_size = 7,
        s4_global_k = 7,
        s4_depth = 4,
        peg_kernel_size = 3,      # positional encoding generator kernel size
        dropout = 0.              # dropout
    )  # fmt: skip

    params = v.init(init_rngs, img)
    output = v.apply(params, img, rngs=init_rngs)
    assert output.shape == (1, 1000)


@snippet
def vit_for_small_datasets() -> None:
    from eqx_vit.flax import SPT, SmallDatasetViT as ViT

    img = jax.random.normal(key, (4, 256, 256, 3))

    v = ViT(
        image_size = 256,
        patch_size = 16,
        num_classes = 1000,
        dim = 1024,
        depth = 6,
        heads = 16,
        mlp_dim = 2048,
        dropout = 0.1,
        emb_dropout = 0.1
    )  # fmt: skip

    params = v.init(init_rngs, img)
    output = v.apply(params, img, rngs=init_rngs)
    assert output.shape == (4, 1000)

    spt = SPT(
        dim = 1024,
        patch_size = 16
    )  # fmt: skip

    spt_params = spt.init(init_rngs, img)
    spt_output = spt.apply(spt_params, img, rngs=init_rngs)
    assert spt_output.shape == (4, 256, 1024)


@pytest.mark.parametrize("name", SNIPPETS)
def test_traced(name: str) -> None:
    jax.eval_shape(SNIPPETS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SNIPPETS)
def test_computed(name: str) -> None:
    SNIPPETS[name]()
