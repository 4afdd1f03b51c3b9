"""One pre-norm residual attention block of CLIP, computed with the weights of ``clip.model``.

``clip.model.ResidualAttentionBlock`` cannot attend to stored keys of earlier tokens, cannot leave
out tokens that are not read, and casts its layer norms to float32. These functions compute the same
on the same weights, without these limits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from clip.model import ResidualAttentionBlock

KeysValues = tuple[Tensor, Tensor]
Context = Tensor | Callable[[Tensor], Tensor]  # vectors, or a router that makes them from tokens


def layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Layer norm in the precision of its own weights, result in the precision of ``x``."""
    weight, bias = norm.weight, norm.bias
    return F.layer_norm(x.to(weight.dtype), weight.shape, weight, bias, norm.eps).to(x.dtype)


def context_vectors(context: Context, block: ResidualAttentionBlock, tokens: Tensor) -> Tensor:
    """The context vectors of ``block``; a router computes them from the tokens (N, L, D).

    A router is given the tokens, without context, after the block's first layer norm.
    """
    return context(layer_norm(block.ln_1, tokens)) if callable(context) else context


class Attended(NamedTuple):
    """The attention of one block of width D with H heads, on N sequences.

    Attributes:
        tokens: (N, Q, D), the tokens that are updated, before the block.
        output: (N, Q, D), their attention, before the output projection.
        queries: (N, H, Q, D / H).
        keys, values: (N, H, P + L, D / H), of the P past and the L present tokens.
        own: keys and values of the L present tokens alone.
    """

    tokens: Tensor
    output: Tensor
    queries: Tensor
    keys: Tensor
    values: Tensor
    own: KeysValues


def residual_block(block: ResidualAttentionBlock, x: Tensor, **how) -> tuple[Tensor, KeysValues]:
    """Run one block on tokens ``x``: ``attend`` with the same arguments, then ``update``.

    Returns:
        The updated tokens, (N, L, D) or (N, Q, D), and the keys and values of x, for ``past``.
    """
    attended = attend(block, x, **how)
    return update(block, attended.tokens, attended.output), attended.own


def attend(
    block: ResidualAttentionBlock,
    x: Tensor,
    *,
    past: KeysValues | None = None,
    mask: Tensor | None = None,
    causal: bool = False,
    select: Callable[[Tensor], Tensor] | None = None,
) -> Attended:
    """The attention of a block on tokens ``x``, after ``past`` tokens with known keys and values.

    Args:
        block: a ``clip.model.ResidualAttentionBlock`` of width D with H heads.
        x: (N, L, D).
        past: keys and values of P earlier tokens, each (1 or N, H, P, D / H).
        mask: boolean, True where a query may look at a key; broadcastable to (N, H, L, P + L).
        causal: token i sees tokens up to i; instead of ``mask``, for x without ``past``.
        select: selects the tokens to update, (N, L, D) -> (N, Q, D), where the others are not read
            any more (in the last block of an encoder). All tokens are attended to.
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
            torch.cat([before.expand(now.shape[0], -1, -1, -1), now], dim=2)
            for before, now in zip(past, own)
        )
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    return Attended(x, y.transpose(1, 2).flatten(2), q, k, v, own)


def update(block: ResidualAttentionBlock, tokens: Tensor, output: Tensor) -> Tensor:
    """The tokens (N, Q, D) after a block whose attention gave ``output`` (N, Q, D) for them."""
    x = tokens + block.attn.out_proj(output)
    return x + block.mlp(layer_norm(block.ln_2, x))
