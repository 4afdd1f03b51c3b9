"""CLIP's text encoder with learned context, without computing what is never read.

CLIP's text transformer is causal, and only the end-of-text position is read. So features and
gradients stay the same as with all 77 positions (tests/clip/test_text.py) if

* nothing after a class's end-of-text token is computed;
* the tokens with which all classes begin (start token, unified context, fixed words) are computed
  once, and the classes attend to their keys and values;
* classes are grouped by length, so that short prompts are not padded to the longest one;
* in the last block only the end-of-text token is updated.

With routers, which read all 77 positions (MMoP), only the last of these is possible.

Where several processes train together, each encodes a part of the classes (``apd.ranks``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from clip.model import CLIP

# Smaller groups cost more (calls) than they save (padding).
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


def same_prompts(classnames: Sequence[str]) -> str:
    """Which classes share a prompt, in one line, or "": no image can tell them apart."""
    alike = listed(" = ".join(map(repr, group)) for group in read_alike(classnames))
    return alike and f"CLIP reads class names alike, so they share a prompt: {alike}"


def warn_of_same_prompts(source: str, classnames: Sequence[str]) -> None:
    """Print which classes share a prompt (``same_prompts``).

    It is a warning only, because ImageNet's published names have two such pairs.
    """
    if message := same_prompts(classnames):
        print(f"warning: {source}: {message}")


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
        ending: the text after the class name.
        position: of the class name: "end", "middle" (after half of the context) or "front"
            (CoOp, section 3.2); the latter two without fixed words.
        class_specific: the context differs by class (CSC), so that only the start token is common.
        routed: a router reads all positions with their padding, so that all are computed for each
            class.

    Raises:
        UserError: a prompt longer than the model's context (77 tokens), by class name.
    """

    embedding: Tensor  # (C, L, D)
    slots: Tensor  # (C, M)
    eot: Tensor  # (C,)

    def __init__(
        self,
        clip_model: CLIP,
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
        sequences, places = [], []
        for name in (name.replace("_", " ") for name in classnames):
            tokens = encode(f"{words} {name}{ending}")
            context, rest = tokens[:n_ctx], tokens[n_ctx:]
            before = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]
            # the tokenizer may merge the full stop with punctuation at the end of the name
            cut = 0 if position == "end" else min(len(encode(name)), len(rest))
            sequences.append(
                [start, *context[:before], *rest[:cut], *context[before:], *rest[cut:], end]
            )
            places.append([1 + m + (cut if m >= before else 0) for m in range(n_ctx)])
            if len(sequences[-1]) > clip_model.context_length:
                raise UserError(
                    f'the prompt of class "{name}" has {len(sequences[-1])} tokens, CLIP reads '
                    f"{clip_model.context_length}: use fewer context tokens or a shorter name"
                )
        length = clip_model.context_length if routed else max(map(len, sequences))
        ids = torch.tensor([tokens + [0] * (length - len(tokens)) for tokens in sequences])
        slots = torch.tensor(places, dtype=torch.long).reshape(len(ids), n_ctx)
        eot = torch.tensor([len(tokens) - 1 for tokens in sequences])

        # the common front ends before the first position that differs, and before any end token
        common = (ids == ids[0]).all(0)
        common[int(eot.min()) :] = False
        if class_specific:
            common[slots] = False
        else:  # a slot is common only where every class has the same slot
            differing = (slots != slots[0]).any(0)
            common[slots[:, differing]] = False
        self.prefix = 0 if routed else int(common.long().cumprod(0).sum())
        self.prefix_slots = int((slots[0] < self.prefix).sum())

        device = clip_model.token_embedding.weight.device
        with torch.no_grad():
            embedding = clip_model.token_embedding(ids.to(device))
        # not in checkpoints: they depend on the class names, not on the learned prompts
        buffer = partial(self.register_buffer, persistent=False)
        buffer("embedding", embedding)
        buffer("slots", slots.to(device))
        buffer("eot", eot.to(device))
        self._groups: dict = {}

    def groups(self, chunk: int = 0, share: tuple[int, int] = (0, 1)) -> list[tuple[Tensor, int]]:
        """Classes grouped by similar length, no more than ``chunk`` together (0: no bound).

        Args:
            share: (i, n): only the classes i, i + n, i + 2n, ... in the order of their lengths.

        Returns:
            Pairs of class indices and the number of positions that these classes need.
        """
        key = (chunk, share, self.eot.device)
        if key in self._groups:  # cached, because eot.tolist() below waits for the GPU
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
        with torch.inference_mode(False):  # cached: training cannot use inference tensors
            self._groups[key] = [
                (
                    torch.tensor(group, device=self.eot.device),
                    all_positions if self.routed else eot[group[-1]] + 1,
                )
                for group in groups
            ]
        return self._groups[key]


def encode_text(
    clip_model: CLIP,
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
    order = [torch.cat([group for group, _ in rank_groups]) for rank_groups in groups]
    if len(shares) > 1:
        features = ranks.gather(features, list(map(len, order)))
    return features[torch.cat(order).argsort()]


def encode_text_each(clip_model: CLIP, prompts: ClassPrompts, contexts: Sequence[Tensor]) -> Tensor:
    """Text features for each of B images with contexts of its own, (B, C, embed_dim).

    As ``encode_text``, but with contexts (B, M, D) that all classes share. The tokens with which
    all classes begin are computed once for each image.
    """
    count = len(contexts[0])
    past = front(clip_model, prompts, contexts)
    features, order = [], []
    for group, end in prompts.groups():
        rows = [context.repeat_interleave(len(group), dim=0) for context in contexts]
        expanded = [
            None
            if both is None
            else (
                both[0].repeat_interleave(len(group), dim=0),
                both[1].repeat_interleave(len(group), dim=0),
            )
            for both in past
        ]
        attended = to_last(
            clip_model, prompts, rows, expanded, group.repeat(count), end, of_rows=True
        )
        encoded = embed(clip_model, attended.tokens, attended.output)
        features.append(encoded.unflatten(0, (count, len(group))))
        order.append(group)
    return torch.cat(features, dim=1)[:, torch.cat(order).argsort()]


def front(
    clip_model: CLIP, prompts: ClassPrompts, contexts: Sequence[Context] = ()
) -> list[KeysValues | None]:
    """Keys and values, in each block, of the tokens with which all classes begin.

    Arguments as ``encode_text``; with contexts (B, M, D) of B images, keys and values of each.
    """
    if not prompts.prefix:
        return [None] * len(clip_model.transformer.resblocks)
    slots = prompts.prefix_slots
    x = prompts.embedding[:1, : prompts.prefix]
    # a prompt with routers has no prefix
    vectors = [context for context in contexts if isinstance(context, Tensor)]
    if slots and vectors and vectors[0].dim() == 3:
        x = x.expand(len(vectors[0]), -1, -1)
    past: list[KeysValues | None] = []
    for i, block in enumerate(clip_model.transformer.resblocks):
        if i < len(vectors) and slots:
            x = fill(x, vectors[i][..., :slots, :], prompts.slots[:1, :slots])
        if i == 0:
            x = x + clip_model.positional_embedding[: prompts.prefix].to(x.dtype)
        x, keys_values = residual_block(block, x, causal=True)
        past.append(keys_values)
    return past


def _encode_rest(clip_model: CLIP, *arguments) -> Tensor:
    """(len(group), embed_dim) of the classes of a group; arguments as ``to_last``."""
    attended = to_last(clip_model, *arguments)
    return embed(clip_model, attended.tokens, attended.output)


def to_last(
    clip_model: CLIP,
    prompts: ClassPrompts,
    contexts: Sequence[Context],
    past: Sequence[KeysValues | None],
    group: Tensor,
    end: int,
    of_rows: bool = False,
) -> Attended:
    """The end-of-text tokens' attention in the last block, for the classes of ``group``.

    Args:
        past: as ``front`` returns it.
        group: (N,), indices of classes.
        end: positions from here on are not computed. Keys and values are returned for positions 0
            to ``end``; those after a class's own end-of-text token mean nothing.
        of_rows: whether contexts (N, M, D) belong to the rows of ``group``, not to the classes.
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
            context = contexts[i]
            if not isinstance(context, Tensor):
                context = context_vectors(context, block, outside_slots(x, slots))
            elif context.dim() == 3 and not of_rows:
                context = context[group]
            x = fill(x, context[..., shared:, :], slots)
        if i == 0:
            x = x + clip_model.positional_embedding[start:end].to(x.dtype)
        if i < len(blocks) - 1:
            x, _ = residual_block(block, x, past=keys_values, mask=causal)
    mask = causal[eot][:, None, None]
    return attend(blocks[-1], x, past=past[-1], mask=mask, select=end_of_text)


def embed(clip_model: CLIP, tokens: Tensor, output: Tensor) -> Tensor:
    """(N, embed_dim), from the end-of-text tokens and their last attention, each (N, 1, D)."""
    x = update(clip_model.transformer.resblocks[-1], tokens, output)
    return layer_norm(clip_model.ln_final, x[:, 0]) @ clip_model.text_projection


def fill(x: Tensor, context: Tensor, slots: Tensor) -> Tensor:
    """Put ``context`` (M, D) or (N, M, D) at the positions ``slots`` (N, M) of x (N, L, D)."""
    index = slots.unsqueeze(-1).expand(len(x), -1, x.shape[-1])
    return x.scatter(1, index, context.to(x.dtype).expand_as(index))


def outside_slots(x: Tensor, slots: Tensor) -> Tensor:
    """(N, L - M, D): the tokens (N, L, D) that are not at the positions ``slots`` (N, M)."""
    outside = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    return x[outside.scatter(1, slots, False)].view(len(x), -1, x.shape[-1])
