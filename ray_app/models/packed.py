"""Pairs of a decoder packed into one sequence without padding, where pairs of one pin share the pin's tokens.

A pin's tokens and the query parts that follow it make a tree of depth two:

    pin pin pin pin | red mug | coffee cup | gift for her        next pin ...

Every token is computed once. A query's tokens see the pin before them and their own query, never another one's, and
their positions go on from the pin's; so each pair gets the states that it would get alone. This is what prefix caching
does in a serving engine, without a cache. The trunk is whatever the pairs have in common, so pins that longer queries
cut shorter share it too.

Shapes: N packed tokens, B pairs, H heads, D head size.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from ray_app.base.cache_folder import cache_folder
from ray_app.models.tokens import PairIds

ATTENTION = "ray_app_packed"


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A batch of pairs, ready for the language model."""

    input_ids: list[int]  # N
    position_ids: list[int]  # N
    last: list[int]  # B: position of each pair's last token
    trees: list["Tree"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tree:
    """Neighbouring tokens [start, stop) whose attention is defined by `branch` and `sees`."""

    start: int
    stop: int
    branch: list[int]  # of each token: 0 for the trunk, then 1, 2, ... for the pairs; one pair alone is all trunk
    sees: list[int]  # tokens of the trunk that each token may see, if they precede it


def group_pairs(pairs: Sequence[PairIds], max_pairs: int) -> list[list[PairIds]]:
    """Runs of at most `max_pairs` neighbours with a common prefix, so that the longest is a trunk for all."""
    groups: list[list[PairIds]] = []
    trunk: list[int] = []
    for pair in pairs:
        prefix = pair.ids[: pair.prefix]
        common = min(len(prefix), len(trunk))
        # Nothing before the query but the start token is nothing to share.
        if groups and len(groups[-1]) < max_pairs and common > 1 and prefix[:common] == trunk[:common]:
            groups[-1].append(pair)
            trunk = max(trunk, prefix, key=len)
        else:
            groups.append([pair])
            trunk = prefix
    return groups


def pack(groups: Sequence[Sequence[PairIds]]) -> Packed:
    """Pack groups of pairs; the pairs of a group share the tokens before their queries."""
    ids: list[int] = []
    positions: list[int] = []
    last: list[int] = []
    trees: list[Tree] = []
    for group in groups:
        start = len(ids)
        # A pair alone is all trunk.
        trunk = group[0].ids if len(group) == 1 else max((pair.ids[: pair.prefix] for pair in group), key=len)
        ids += trunk
        positions += range(len(trunk))
        branch, sees = [0] * len(trunk), [len(trunk)] * len(trunk)
        if len(group) == 1:
            last.append(len(ids) - 1)
        else:
            for number, pair in enumerate(group, 1):
                own = pair.ids[pair.prefix :]
                ids += own
                positions += range(pair.prefix, len(pair.ids))
                branch += [number] * len(own)
                sees += [pair.prefix] * len(own)
                last.append(len(ids) - 1)
        trees.append(Tree(start=start, stop=len(ids), branch=branch, sees=sees))
    return Packed(input_ids=ids, position_ids=positions, last=last, trees=trees)


# Families whose layers pass nothing from token to token but by softmax attention of queries, keys and values. Others may
# have recurrent or convolution layers, attention sinks or scores of their own, which our attention would leave out in silence.
PLAIN_FAMILIES = frozenset(
    "gemma gemma3_text granite llama ministral3 mistral olmo2 phi3 qwen2 qwen3 smollm3".split()
)  # fmt: skip
_ALIKE = 0.999  # cosine of a state packed and alone; guessed: rounding in bfloat16 stays far above, a leak far below


def is_plain_causal(config: Any, max_tokens: int) -> bool:
    """Return True if a state depends only on earlier tokens and their distances, up to `max_tokens`.

    Then what pairs have in common can be computed once. The list of families is what we know, so a new family is read
    pair by pair until it has been reviewed.
    """
    window = getattr(config, "sliding_window", None)
    # Without a list of layers a window is that of all.
    kinds = set(getattr(config, "layer_types", None) or ["full_attention" if window is None else "sliding_attention"])
    if window is not None and window >= max_tokens:
        kinds.discard("sliding_attention")
    return (
        config.model_type in PLAIN_FAMILIES
        and getattr(config, "rope_parameters", None) is not None  # positions come from position_ids alone
        and getattr(config, "attn_logit_softcapping", None) is None
        and not getattr(config, "use_bidirectional_attention", None)  # EmbeddingGemma
        and getattr(config, "is_causal", True)  # a config may turn any decoder of transformers into an encoder
        and kinds <= {"full_attention"}
    )


def can_pack(backbone: Any, max_tokens: int) -> bool:
    """Return True if, by its config, the model gives packed pairs the same states as alone; see `packs_alike`."""
    return getattr(backbone, "_supports_attention_backend", False) and is_plain_causal(backbone.config, max_tokens)


def packs_alike(backbone: Any, max_tokens: int, device: str) -> bool:
    """Test that packed pairs get the same states as alone: two of one pin, of maximum length, and one next to them.

    A model that does not pass reads on with its own attention.
    """
    import numpy as np
    import torch

    own = backbone.config._attn_implementation
    ids = np.random.default_rng(0).integers(0, backbone.config.vocab_size, max_tokens + 24).tolist()
    pins, queries = (ids[: max(max_tokens - 4, 2)], ids[-20:-12]), (ids[-12:-8], ids[-8:-5], ids[-5:])
    pairs = [
        PairIds([*pin, *query], (len(pin), len(pin) + len(query)), (0, len(pin)), len(query))
        for pin, query in zip((pins[0], *pins), queries, strict=True)
    ]
    with torch.inference_mode():
        alone = [
            backbone(input_ids=torch.tensor([pair.ids], device=device)).last_hidden_state[0, -1].float()
            for pair in pairs
        ]
        packed = packed_states(backbone, pack(group_pairs(pairs, len(pairs))), device)
    cosine = torch.nn.functional.cosine_similarity(torch.stack(alone), packed)
    if bool((cosine > _ALIKE).all()):  # not so with NaN
        return True
    backbone.set_attn_implementation(own)
    return False


def packed_states(backbone: Any, packed: Packed, device: str, flex: bool | None = None) -> Any:
    """Hidden state of each pair's last token, (B, hidden size) float32.

    Args:
        flex: All trees in one kernel with a sparse mask (FlexAttention), or tree by tree; None: the former on GPUs,
            where a call per tree costs more than its work.
    """
    import torch

    _use_packed_attention(backbone)
    masks = _flex_mask(packed, device) if (device == "cuda" if flex is None else flex) else _tree_masks(packed)
    hidden = backbone(
        input_ids=torch.tensor([packed.input_ids], device=device),
        position_ids=torch.tensor([packed.position_ids], device=device),
        use_cache=False,
        packed_masks=masks,
    ).last_hidden_state[0]
    return hidden[torch.tensor(packed.last, device=device)].float()


def _use_packed_attention(backbone: Any) -> None:
    """Let the model's layers call `_attend`; transformers passes them our masks unchanged."""
    from transformers import AttentionInterface

    if backbone.config._attn_implementation != ATTENTION:
        AttentionInterface.register(ATTENTION, _attend)
        backbone.set_attn_implementation(ATTENTION)


def _attend(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float | None = None,
    packed_masks: Any = None, **_: Any,
) -> tuple[Any, None]:  # fmt: skip
    """Attention of one layer: (1, H, N, D) -> (1, N, H, D). On CPUs tree by tree, which wastes nothing."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    if not isinstance(packed_masks, list):
        out = _flex(query.device.type).flex_attention(
            query, key, value, block_mask=packed_masks, scale=scaling, enable_gqa=True
        )
        return out.transpose(1, 2).contiguous(), None
    parts = [
        scaled_dot_product_attention(
            query[:, :, start:stop], key[:, :, start:stop], value[:, :, start:stop],
            attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True,
        )
        for start, stop, mask in packed_masks
    ]  # fmt: skip
    return torch.cat(parts, 2).transpose(1, 2).contiguous(), None


def _tree_masks(packed: Packed) -> list[tuple[int, int, Any]]:
    """(start, stop, which token sees which: (T, T) bool, or None for a pair alone, which is causal) of each tree."""
    import torch

    masks = []
    for tree in packed.trees:
        mask = None
        if tree.branch[-1]:
            branch, sees = torch.tensor(tree.branch), torch.tensor(tree.sees)
            place = torch.arange(len(tree.branch))
            trunk = (branch[None] == 0) & (place[None] < sees[:, None])
            mask = (trunk | (branch[None] == branch[:, None])) & (place[None] <= place[:, None])
        masks.append((tree.start, tree.stop, mask))
    return masks


def _flex_mask(packed: Packed, device: str) -> Any:
    """The same masks as one sparse block mask over all N tokens."""
    import torch

    num = len(packed.input_ids)
    start = torch.tensor([t.start for t in packed.trees for _ in t.branch], device=device)
    branch = torch.tensor([b for t in packed.trees for b in t.branch], device=device)
    sees = torch.tensor([s for t in packed.trees for s in t.sees], device=device)

    def allowed(_batch: Any, _head: Any, q: Any, k: Any) -> Any:
        trunk = (branch[k] == 0) & (k - start[k] < sees[q])
        return (k <= q) & (start[q] == start[k]) & (trunk | (branch[q] == branch[k]))

    return _flex(device).create_block_mask(allowed, None, None, num, num, device=device)


@lru_cache(maxsize=2)
def _flex(device: str) -> SimpleNamespace:
    """`create_block_mask` and `flex_attention`, compiled where that pays: uncompiled they hold N x N numbers."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    if device != "cuda":
        return SimpleNamespace(create_block_mask=create_block_mask, flex_attention=flex_attention)
    # Compiled code is loaded from there; torch's own default is a folder of /tmp that another user can create first.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder("torchinductor")))
    return SimpleNamespace(
        create_block_mask=torch.compile(create_block_mask, dynamic=True),
        flex_attention=torch.compile(flex_attention, dynamic=True),
    )
