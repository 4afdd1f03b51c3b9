"""One pre-norm residual attention block of CLIP, run from the weights of ``clip.model``.

``clip.model.ResidualAttentionBlock`` cannot attend to keys from elsewhere, cannot skip tokens
nobody reads, and casts its layer norms to float32. This function can, on the same weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KeysValues = tuple[Tensor, Tensor]


def layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Layer norm in the precision of its own weights, result in the precision of ``x``."""
    weight, bias = norm.weight, norm.bias
    return F.layer_norm(x.to(weight.dtype), weight.shape, weight, bias, norm.eps).to(x.dtype)


def residual_block(
    block: nn.Module,
    x: Tensor,
    *,
    past: KeysValues | None = None,
    mask: Tensor | None = None,
    causal: bool = False,
    select: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, KeysValues]:
    """Run one block on tokens ``x``, after ``past`` tokens whose keys and values are known.

    Args:
        block: a ``clip.model.ResidualAttentionBlock`` of width D with H heads.
        x: (N, L, D).
        past: keys and values of P earlier tokens, each (1 or N, H, P, D / H).
        mask: boolean, True where a query may look at a key; broadcastable to (N, H, L, P + L).
        causal: token i sees tokens up to i; instead of ``mask``, for x without ``past``.
        select: picks the tokens to update, (N, L, D) -> (N, Q, D), when the others will not be
            read again (the last block of an encoder); their keys and values still count.

    Returns:
        The updated tokens, (N, L, D) or (N, Q, D), and the keys and values of x, for ``past``.
    """
    attention = block.attn
    weight, bias, heads = attention.in_proj_weight, attention.in_proj_bias, attention.num_heads
    h = layer_norm(block.ln_1, x)
    if select is None:
        q, k, v = F.linear(h, weight, bias).chunk(3, dim=-1)
    else:
        width = x.shape[-1]
        q = F.linear(select(h), weight[:width], bias[:width])
        k, v = F.linear(h, weight[width:], bias[width:]).chunk(2, dim=-1)
        x = select(x)
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    own = (k, v)
    if past is not None:
        k, v = (
            torch.cat([before.expand(len(now), -1, -1, -1), now], dim=2)
            for before, now in zip(past, own)
        )
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    x = x + attention.out_proj(y.transpose(1, 2).flatten(2))
    return x + block.mlp(layer_norm(block.ln_2, x)), own
