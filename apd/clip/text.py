"""CLIP's text encoder with learned context, without the work nobody reads.

CLIP's text transformer is causal and only the end-of-text position is read. So, exactly (same
features and gradients as the full 77 positions; tests/clip/test_text.py):

* nothing after a class's end-of-text token is computed;
* the tokens that all classes have in common at the front (start token, unified context, fixed
  words) are run once, and the classes attend to their keys and values;
* classes are grouped by length, so that short names do not pay for long ones;
* in the last block only the end-of-text token is updated.

Prompts whose context a router makes from all 77 positions (MMoP) have only the last of these.

Where several processes train together, each encodes its part of the classes (``apd.ranks``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache, partial

import torch
from clip.simple_tokenizer import SimpleTokenizer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from apd import ranks
from apd.clip.blocks import (
    Attended,
    Context,
    KeysValues,
    attend,
    context_vectors,
    layer_norm,
    residual_block,
    update,
)
from apd.errors import UserError, listed

# Groups smaller than this cost more in overhead than their padding would.
_MIN_GROUP = 64


@lru_cache(maxsize=1)
def tokenizer() -> SimpleTokenizer:
    """OpenAI's byte-pair tokenizer (1 s to build, hence shared)."""
    return SimpleTokenizer()


def read_alike(classnames: Sequence[str]) -> list[list[str]]:
    """Groups of class names that CLIP's tokenizer reads as the same words, and so as one prompt."""
    groups = defaultdict(list)
    for name in classnames:
        groups[tuple(tokenizer().encode(f"{name.replace('_', ' ')}."))].append(name)
    return [group for group in groups.values() if len(group) > 1]


def warn_of_same_prompts(source: str, classnames: Sequence[str]) -> None:
    """Print in one line which classes share a prompt: no image can tell them apart.

    No error: ImageNet as published names two pairs of classes alike.
    """
    if groups := read_alike(classnames):
        alike = listed(" = ".join(map(repr, group)) for group in groups)
        print(f"warning: {source}: CLIP reads class names alike, so they share a prompt: {alike}")


class ClassPrompts(nn.Module):
    """The token sequences of C classes, with M open slots for context vectors.

    A prompt is ``<start> context name . <end>``. Its text is tokenised as a whole, as CoOp does;
    the first ``n_ctx`` tokens of ``words`` are the slots, further words stay fixed (so MaPLe's
    "a photo of a" with 2 vectors learns two and keeps "of a").

    Args:
        clip_model: gives the token embeddings.
        classnames: underscores read as spaces.
        n_ctx: M, the number of slots; 0 for hand-written prompts.
        words: the words before the class name, at least n_ctx tokens.
        ending: what follows the class name.
        position: of the class name: "end", "middle" (after half of the context) or "front"
            (CoOp, section 3.2); the latter two with no fixed words.
        class_specific: the context differs by class (CSC), so classes share the start token only.
        routed: a router reads all positions, the padding too, so all are run for each class.

    Raises:
        UserError: a prompt longer than the model's context (77 tokens), by class name.
    """

    def __init__(
        self,
        clip_model: nn.Module,
        classnames: Sequence[str],
        *,
        n_ctx: int = 0,
        words: str = "",
        ending: str = ".",
        position: str = "end",
        class_specific: bool = False,
        routed: bool = False,
    ):
        super().__init__()
        self.routed = routed
        encode = tokenizer().encode
        start, end = tokenizer().encoder["<|startoftext|>"], tokenizer().encoder["<|endoftext|>"]
        if n_ctx > len(encode(words)):
            raise ValueError(f"{n_ctx} context slots do not fit the {len(encode(words))} words")
        sequences, slots = [], []
        for name in (name.replace("_", " ") for name in classnames):
            tokens = encode(f"{words} {name}{ending}")
            context, rest = tokens[:n_ctx], tokens[n_ctx:]
            before = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]
            # the full stop may join the name's own punctuation
            cut = 0 if position == "end" else min(len(encode(name)), len(rest))
            sequences.append(
                [start, *context[:before], *rest[:cut], *context[before:], *rest[cut:], end]
            )
            slots.append([1 + m + (cut if m >= before else 0) for m in range(n_ctx)])
            if len(sequences[-1]) > clip_model.context_length:
                raise UserError(
                    f'the prompt of class "{name}" has {len(sequences[-1])} tokens, CLIP reads '
                    f"{clip_model.context_length}: use fewer context tokens or a shorter name"
                )
        length = clip_model.context_length if routed else max(map(len, sequences))
        ids = torch.tensor([tokens + [0] * (length - len(tokens)) for tokens in sequences])
        slots = torch.tensor(slots, dtype=torch.long).reshape(len(ids), n_ctx)
        eot = torch.tensor([len(tokens) - 1 for tokens in sequences])

        # the common front ends before the first position that differs, and before any end token
        same = (ids == ids[0]).all(0)
        same[int(eot.min()) :] = False
        if class_specific:
            same[slots] = False
        else:  # a slot is common only where every class has the same slot
            differing = (slots != slots[0]).any(0)
            same[slots[:, differing]] = False
        self.prefix = 0 if routed else int(same.long().cumprod(0).sum())
        self.prefix_slots = int((slots[0] < self.prefix).sum())

        device = clip_model.token_embedding.weight.device
        with torch.no_grad():
            embedding = clip_model.token_embedding(ids.to(device))
        # not in any checkpoint: they belong to the class names at hand, not to the prompts
        buffer = partial(self.register_buffer, persistent=False)
        buffer("embedding", embedding)
        buffer("slots", slots.to(device))
        buffer("eot", eot.to(device))
        self._groups: dict = {}

    def groups(self, chunk: int = 0, share: tuple[int, int] = (0, 1)) -> list[tuple[Tensor, int]]:
        """Classes grouped by similar length, no more than ``chunk`` together (0: no bound).

        Args:
            share: (i, n): only the i-th of all classes in the order of their lengths (from 0), and
                each n-th on.

        Returns:
            Pairs of class indices and the number of positions that these classes need.
        """
        key = (chunk, share, self.eot.device)
        if key in self._groups:  # asked for at every step, and each look waits for the GPU
            return self._groups[key]
        eot = self.eot.tolist()
        groups: list[list[int]] = [[]]
        for c in sorted(range(len(eot)), key=eot.__getitem__)[share[0] :: share[1]]:
            group = groups[-1]
            longer = group and eot[c] > eot[group[-1]]
            if (longer and len(group) >= _MIN_GROUP) or (chunk and len(group) == chunk):
                groups.append(group := [])
            group.append(c)
        all_positions = self.embedding.shape[1]
        with torch.inference_mode(False):  # kept for training, whoever asks first
            self._groups[key] = [
                (
                    torch.tensor(group, device=self.eot.device),
                    all_positions if self.routed else eot[group[-1]] + 1,
                )
                for group in groups
            ]
        return self._groups[key]


def encode_text(
    clip_model: nn.Module,
    prompts: ClassPrompts,
    contexts: Sequence[Context] = (),
    *,
    chunk: int = 0,
) -> Tensor:
    """Text features of all classes, not normalised.

    Args:
        prompts: the token sequences of C classes, with M slots.
        contexts: J tensors (M, D), or (C, M, D) when class-specific: ``contexts[0]`` fills the
            slots of the embedded prompt, ``contexts[i]`` replaces them before block i. A deeper
            one may be a router (``context_vectors``), if the prompts are ``routed``.
        chunk: run at most so many classes at a time and recompute them in the backward pass, so
            that memory does not grow with C (0: all at once, no recomputation).

    Returns:
        (C, embed_dim).
    """
    past = front(clip_model, prompts, contexts)
    shares = [(0, 1)]
    if ranks.divides_text(len(prompts.eot)):
        shares = [(rank, ranks.size()) for rank in range(ranks.size())]
    groups = [prompts.groups(chunk, share) for share in shares]
    own = groups[ranks.rank() if len(shares) > 1 else 0]
    run = _encode_rest
    if chunk and torch.is_grad_enabled():
        run = partial(checkpoint, _encode_rest, use_reentrant=False)
    features = torch.cat([run(clip_model, prompts, contexts, past, *group) for group in own])
    order = [torch.cat([group for group, _ in part]) for part in groups]
    if len(shares) > 1:
        features = ranks.gather(features, list(map(len, order)))
    return features[torch.cat(order).argsort()]


def encode_text_each(
    clip_model: nn.Module, prompts: ClassPrompts, contexts: Sequence[Tensor]
) -> Tensor:
    """Text features for each of B images with contexts of its own, (B, C, embed_dim).

    As ``encode_text``, with contexts (B, M, D) that all classes share. The classes' common front
    is run once for each image.
    """
    count = len(contexts[0])
    past = front(clip_model, prompts, contexts)
    features, order = [], []
    for group, end in prompts.groups():
        rows = [context.repeat_interleave(len(group), dim=0) for context in contexts]
        expanded = [
            None if both is None else tuple(t.repeat_interleave(len(group), dim=0) for t in both)
            for both in past
        ]
        attended = to_last(
            clip_model, prompts, rows, expanded, group.repeat(count), end, of_rows=True
        )
        found = embed(clip_model, attended.tokens, attended.output)
        features.append(found.unflatten(0, (count, len(group))))
        order.append(group)
    return torch.cat(features, dim=1)[:, torch.cat(order).argsort()]


def front(
    clip_model: nn.Module, prompts: ClassPrompts, contexts: Sequence[Context] = ()
) -> list[KeysValues | None]:
    """Keys and values of the classes' common front in each block; arguments as ``encode_text``.

    For contexts of B images, as of ``encode_text_each``, B of them.
    """
    if not prompts.prefix:
        return [None] * len(clip_model.transformer.resblocks)
    slots = prompts.prefix_slots
    x = prompts.embedding[:1, : prompts.prefix]
    if slots and contexts and contexts[0].dim() == 3:
        x = x.expand(len(contexts[0]), -1, -1)
    past: list[KeysValues | None] = []
    for i, block in enumerate(clip_model.transformer.resblocks):
        if i < len(contexts) and slots:
            x = fill(x, contexts[i][..., :slots, :], prompts.slots[:1, :slots])
        if i == 0:
            x = x + clip_model.positional_embedding[: prompts.prefix].to(x.dtype)
        x, keys_values = residual_block(block, x, causal=True)
        past.append(keys_values)
    return past


def _encode_rest(clip_model: nn.Module, *which) -> Tensor:
    """(len(group), embed_dim) of the classes of a group; arguments as ``to_last``."""
    attended = to_last(clip_model, *which)
    return embed(clip_model, attended.tokens, attended.output)


def to_last(
    clip_model: nn.Module,
    prompts: ClassPrompts,
    contexts: Sequence[Context],
    past: Sequence[KeysValues | None],
    group: Tensor,
    end: int,
    of_rows: bool = False,
) -> Attended:
    """The end-of-text tokens' attention in the last block, for the classes of ``group``.

    ``past`` is what ``front`` gives; positions from ``end`` on are not run. The keys and values
    are those of positions 0 to ``end``; a class must not read what follows its end-of-text token.
    ``of_rows``: contexts (N, M, D) are those of the rows of ``group``, not of the classes.
    """
    blocks = clip_model.transformer.resblocks
    start, shared = prompts.prefix, prompts.prefix_slots
    eot = prompts.eot[group] - start
    length = end - start
    slots = prompts.slots[group, shared:] - start
    causal = torch.ones(length, start + length, dtype=torch.bool, device=eot.device).tril(start)
    rows = torch.arange(len(group), device=eot.device)

    def end_of_text(tokens: Tensor) -> Tensor:
        return tokens[rows, eot].unsqueeze(1)

    x = prompts.embedding[group, start:end]
    for i, (block, keys_values) in enumerate(zip(blocks, past)):
        if i < len(contexts) and slots.shape[1]:
            if callable(contexts[i]):
                context = context_vectors(contexts[i], block, _without(x, slots))
            else:
                context = contexts[i]
                context = context[group] if context.dim() == 3 and not of_rows else context
            x = fill(x, context[..., shared:, :], slots)
        if i == 0:
            x = x + clip_model.positional_embedding[start:end].to(x.dtype)
        if i < len(blocks) - 1:
            x, _ = residual_block(block, x, past=keys_values, mask=causal)
    mask = causal[eot][:, None, None]
    return attend(blocks[-1], x, past=past[-1], mask=mask, select=end_of_text)


def embed(clip_model: nn.Module, tokens: Tensor, output: Tensor) -> Tensor:
    """(N, embed_dim), from end-of-text tokens (N, 1, D) and what the last attention gives them."""
    x = update(clip_model.transformer.resblocks[-1], tokens, output)
    return layer_norm(clip_model.ln_final, x[:, 0]) @ clip_model.text_projection


def fill(x: Tensor, context: Tensor, slots: Tensor) -> Tensor:
    """Put ``context`` (M, D) or (N, M, D) at the positions ``slots`` (N, M) of x (N, L, D)."""
    index = slots.unsqueeze(-1).expand(len(x), -1, x.shape[-1])
    return x.scatter(1, index, context.to(x.dtype).expand_as(index))


def _without(x: Tensor, slots: Tensor) -> Tensor:
    """(N, L - M, D): the tokens (N, L, D) that are not at the positions ``slots`` (N, M)."""
    others = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    return x[others.scatter(1, slots, False)].view(len(x), -1, x.shape[-1])
