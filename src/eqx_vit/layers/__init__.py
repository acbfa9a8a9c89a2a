"""Building blocks that know no paper: one concept a file."""

from eqx_vit.layers.attention import (
    Attention as Attention,
    attend as attend,
    attention_scores as attention_scores,
    attention_values as attention_values,
    attention_weights as attention_weights,
    merge_heads as merge_heads,
    split_heads as split_heads,
)
from eqx_vit.layers.attention_pool import AttentionPool as AttentionPool
from eqx_vit.layers.batch_norm import BATCH_AXIS as BATCH_AXIS, BatchNorm as BatchNorm
from eqx_vit.layers.block import (
    PreNormBlock as PreNormBlock,
    add_branch as add_branch,
    make_layer_scale as make_layer_scale,
)
from eqx_vit.layers.buffer import Buffer as Buffer
from eqx_vit.layers.conv import Conv as Conv, convolve as convolve
from eqx_vit.layers.drop import (
    NO_KEY_HINT as NO_KEY_HINT,
    Dropout as Dropout,
    DropPath as DropPath,
    drop_path_schedule as drop_path_schedule,
    dropout_active as dropout_active,
)
from eqx_vit.layers.keys import check_key as check_key, split_or_none as split_or_none, stack_or_none as stack_or_none
from eqx_vit.layers.linear import (
    Linear as Linear,
    OutputProjection as OutputProjection,
    add_bias as add_bias,
    make_head as make_head,
)
from eqx_vit.layers.mlp import (
    MLP as MLP,
    Activation as Activation,
    SwiGLU as SwiGLU,
    gelu as gelu,
    gelu_tanh as gelu_tanh,
    hard_swish as hard_swish,
    quick_gelu as quick_gelu,
)
from eqx_vit.layers.norm import LayerNorm as LayerNorm, LayerScale as LayerScale, RMSNorm as RMSNorm
from eqx_vit.layers.parts import (
    Embedding as Embedding,
    MakeEmbedding as MakeEmbedding,
    MakeNorm as MakeNorm,
    MakeTokenLayer as MakeTokenLayer,
    Norm as Norm,
    TokenLayer as TokenLayer,
)
from eqx_vit.layers.patch import (
    PatchEmbedding as PatchEmbedding,
    flatten_map as flatten_map,
    patchify as patchify,
    unfold as unfold,
)
from eqx_vit.layers.peg import PEG as PEG
from eqx_vit.layers.pool import max_pool as max_pool, pool_tokens as pool_tokens
from eqx_vit.layers.posemb import (
    resize_grid as resize_grid,
    resize_grid_corners as resize_grid_corners,
    resize_table as resize_table,
    sincos_2d as sincos_2d,
)
from eqx_vit.layers.remat import remat_except_saved as remat_except_saved, save_for_backward as save_for_backward
from eqx_vit.layers.rotary import Rotation as Rotation, rotary_2d as rotary_2d, rotate as rotate
from eqx_vit.layers.stack import PeriodicStack as PeriodicStack, Stack as Stack
from eqx_vit.layers.unstacked import Unstacked as Unstacked
from eqx_vit.layers.window import (
    from_windows as from_windows,
    relative_position_index as relative_position_index,
    to_windows as to_windows,
)
