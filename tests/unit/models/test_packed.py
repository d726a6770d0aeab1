"""Packing changes how fast a pair is read, never what is read: each pair's state is the one that it gets alone."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaModel, MistralConfig, MistralModel, Qwen2Config, Qwen2Model

from ray_app.models.packed import can_pack, group_pairs, pack, packed_states
from ray_app.models.tokens import PairIds

SIZES = {
    "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 256,
}  # fmt: skip


def model(config_class=LlamaConfig, model_class=LlamaModel, **values):
    torch.manual_seed(0)
    return model_class(config_class(**SIZES, **values)).eval()


def pair(pin, query):
    ids = [1, *pin, 2, *query]
    start = len(pin) + 2
    return PairIds(ids, (start, len(ids)), (1, len(pin) + 1), len(query))


def alone(net, pairs):
    """One forward pass per pair, with transformers' own attention."""
    net.set_attn_implementation("sdpa")
    with torch.inference_mode():
        return torch.stack([net(input_ids=torch.tensor([p.ids])).last_hidden_state[0, -1] for p in pairs])


def together(net, pairs, max_pairs=8, flex=False):
    with torch.inference_mode():
        return packed_states(net, pack(group_pairs(pairs, max_pairs)), "cpu", flex)


def random_pairs(seed, num_pins=5):
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(num_pins):
        pin = rng.integers(3, 50, rng.integers(0, 30)).tolist()
        for _ in range(rng.integers(1, 6)):
            query = rng.integers(3, 50, rng.integers(1, 9)).tolist()
            pairs.append(pair(pin[: len(pin) - rng.integers(0, 2)], query))  # a longer query cuts the pin shorter
    return pairs


@pytest.mark.parametrize("flex", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_each_pair_gets_the_state_that_it_gets_alone(seed, flex):
    net, pairs = model(), random_pairs(seed)
    torch.testing.assert_close(together(net, pairs, flex=flex), alone(net, pairs), atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("config_class", "model_class", "extra"),
    [(Qwen2Config, Qwen2Model, {}), (MistralConfig, MistralModel, {"sliding_window": None})],
)
def test_other_families_too(config_class, model_class, extra):
    net, pairs = model(config_class, model_class, **extra), random_pairs(9)
    assert can_pack(net, 128)
    torch.testing.assert_close(together(net, pairs), alone(net, pairs), atol=2e-5, rtol=0)


def test_a_pin_is_computed_once_for_all_its_queries():
    pin = list(range(3, 33))
    pairs = [pair(pin, [40 + i]) for i in range(8)]
    groups = group_pairs(pairs, 8)
    assert [len(group) for group in groups] == [8]
    assert len(pack(groups).input_ids) == 31 + 8 * 2


def test_groups_are_bounded_and_keep_the_order():
    pairs = [pair([5, 6, 7], [i]) for i in range(7)] + [pair([8, 9], [3])]
    groups = group_pairs(pairs, 3)
    assert [len(group) for group in groups] == [3, 3, 1, 1]
    assert [p for group in groups for p in group] == pairs


def test_pins_that_only_share_the_start_token_do_not_share():
    assert len(group_pairs([pair([], [5]), pair([], [6]), pair([7], [5])], 8)) == 3


def test_a_window_shorter_than_the_texts_is_not_packed():
    """Attention that forgets would need other masks: such a model is read pair by pair."""
    short = model(MistralConfig, MistralModel, sliding_window=16)
    assert not can_pack(short, 64)
    assert can_pack(short, 16)
