"""CLIP's encoders with prompts, written out plainly and slowly: all positions, every layer.

Only weights come from ``clip.model`` (its own layer norm would round to float32), and only
``clip.tokenize`` makes tokens; nothing comes from ``apd``.
"""

import clip
import torch

SLOT = -1


def assert_same(got, want, tolerance):
    """Equal up to ``tolerance`` of the largest value wanted, which is not 0."""
    assert got.shape == want.shape
    scale = want.abs().max()
    assert scale > 1e-6, "nothing to compare"
    error = ((got - want).abs().max() / scale).item()
    assert error <= tolerance, f"differs by {error:.2e} of the largest value"


def tokens(text):
    """Token ids without start and end."""
    ids = clip.tokenize(text)[0]
    return ids[1 : int(ids.argmax())].tolist()


def layout(name, n_ctx, words="", ending=".", position="end"):
    """One class's token ids from start to end token, SLOT where a context vector goes.

    As CoOp, the prompt is tokenised as a whole (punctuation may join), then cut. ``words`` are
    placeholders by default.
    """
    words = words or " ".join(["X"] * n_ctx)
    start, end = clip.tokenize("")[0, :2].tolist()
    name = name.replace("_", " ")
    rest = tokens(f"{words} {name}{ending}")[n_ctx:]
    cut, half = len(tokens(name)), n_ctx // 2
    middle = {
        "end": [SLOT] * n_ctx + rest,
        "middle": [SLOT] * half + rest[:cut] + [SLOT] * (n_ctx - half) + rest[cut:],
        "front": rest[:cut] + [SLOT] * n_ctx + rest[cut:],
    }[position]
    return [start, *middle, end]


def text_features(model, layouts, contexts, seen=None):
    """Unnormalised text features (C, d) over all 77 positions.

    contexts[i] is (M, D) or (C, M, D); it takes the slots before block i. Or it is a function from
    the other tokens (C, L - M, D), after the block's first layer norm, to these. ``seen`` is a dict
    that gets the last block's attention.
    """
    length = model.context_length
    dtype = model.positional_embedding.dtype
    n_ctx = layouts[0].count(SLOT)
    ids = torch.zeros(len(layouts), length, dtype=torch.long)
    where = torch.zeros(len(layouts), length, n_ctx, dtype=dtype)  # 1: slot m is at this position
    for c, sequence in enumerate(layouts):
        m = 0
        for position, token in enumerate(sequence):
            if token == SLOT:
                where[c, position, m] = 1
                m += 1
            else:
                ids[c, position] = token
    free = 1 - where.sum(-1, keepdim=True)
    causal = torch.full((length, length), float("-inf"), dtype=dtype).triu(1)

    x = model.token_embedding.weight[ids]
    for i, block in enumerate(model.transformer.resblocks):
        if i < len(contexts):
            context = contexts[i]
            if callable(context):
                others = [
                    [x[c, p] for p in range(length) if free[c, p]] for c in range(len(layouts))
                ]
                others = torch.stack([torch.stack(tokens) for tokens in others])
                context = context(_layer_norm(block.ln_1, others))
            x = free * x + where @ context
        if i == 0:
            x = x + model.positional_embedding
        x = _block(block, x, causal, seen)
    x = _layer_norm(model.ln_final, x)
    ends = [len(sequence) - 1 for sequence in layouts]
    return torch.stack([x[c, end] for c, end in enumerate(ends)]) @ model.text_projection


def image_features(visual, images, contexts, seen=None, tokens=None):
    """Unnormalised image features (B, d) of a ViT; contexts[i] is (M, D) or a function.

    ``tokens`` is a list that gets what each block is given.
    """
    patch = visual.conv1.kernel_size[0]
    patches = images.unfold(2, patch, patch).unfold(3, patch, patch)  # (B, 3, rows, columns, p, p)
    patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    x = patches @ visual.conv1.weight.flatten(1).t()
    x = torch.cat([visual.class_embedding.repeat(len(x), 1, 1), x], 1)
    x = x + visual.positional_embedding
    real = x.shape[1]
    for i, block in enumerate(visual.transformer.resblocks):
        if i < len(contexts):
            context = contexts[i]
            if callable(context):
                context = context(_layer_norm(block.ln_1, x[:, :real]))
            else:
                context = context.repeat(len(x), 1, 1)
            x = torch.cat([x[:, :real], context], 1)
        if i == 0:
            x = _layer_norm(visual.ln_pre, x)
        if tokens is not None:
            tokens.append(x)
        x = _block(block, x, torch.zeros((), dtype=x.dtype), seen)
    return _layer_norm(visual.ln_post, x)[:, 0] @ visual.proj


def _layer_norm(norm, x):
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / (variance + norm.eps).sqrt() * norm.weight + norm.bias


def _block(block, x, mask, seen):
    heads, width = block.attn.num_heads, x.shape[-1]
    size = width // heads
    h = _layer_norm(block.ln_1, x) @ block.attn.in_proj_weight.t() + block.attn.in_proj_bias
    queries, keys, values = h.split(width, -1)
    outputs = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = queries[..., part] @ keys[..., part].transpose(1, 2) / size**0.5 + mask
        outputs.append(scores.softmax(-1) @ values[..., part])
    output, out = torch.cat(outputs, -1), block.attn.out_proj
    if seen is not None:  # what a later block sees takes its place
        seen.update(queries=queries, keys=keys, values=values, output=output)
    x = x + output @ out.weight.t() + out.bias
    up, down = block.mlp.c_fc, block.mlp.c_proj
    h = _layer_norm(block.ln_2, x) @ up.weight.t() + up.bias
    return x + (h * torch.sigmoid(1.702 * h)) @ down.weight.t() + down.bias
