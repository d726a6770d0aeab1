"""Packing changes how fast a pair is read, never what is read: each pair's state is the one that it gets alone."""

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModel, LlamaConfig, LlamaModel

from ray_app.models.packed import (
    PLAIN_FAMILIES,
    can_pack,
    group_pairs,
    is_plain_causal,
    pack,
    packed_states,
    packs_alike,
)
from ray_app.models.tokens import PairIds

SIZES = {
    "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 256,
}  # fmt: skip


def model():
    torch.manual_seed(0)
    return LlamaModel(LlamaConfig(**SIZES)).eval()


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


# --- which decoders are packed ---

FAMILIES = {
    "GemmaConfig": {"head_dim": 8},
    "Gemma3TextConfig": {"head_dim": 8, "sliding_window": 64},
    "GraniteConfig": {"attention_multiplier": 0.3, "residual_multiplier": 0.7},
    "LlamaConfig": {},
    "Ministral3Config": {"head_dim": 8},
    "MistralConfig": {"sliding_window": 64},
    "Olmo2Config": {},
    "Phi3Config": {"pad_token_id": 0, "sliding_window": None},
    "Qwen2Config": {},
    "Qwen3Config": {"head_dim": 8},
    "SmolLM3Config": {"pad_token_id": 0, "no_rope_layers": [1, 0, 1]},
}


def of_family(name, **values):
    torch.manual_seed(0)
    net = AutoModel.from_config(getattr(transformers, name)(**(SIZES | values))).eval()
    for weight in net.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.3)  # else attention is a mean, and a leak hardly shows
    return net


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_that_we_pack_gives_the_states_of_the_pairs_alone(name):
    net = of_family(name, **FAMILIES[name])
    assert can_pack(net, 48)
    assert packs_alike(net, 48, "cpu")
    pairs = random_pairs(3)
    torch.testing.assert_close(together(net, pairs), alone(net, pairs), atol=1e-4, rtol=1e-4)


def test_no_family_is_packed_that_is_not_tested():
    assert {getattr(transformers, name).model_type for name in FAMILIES} == PLAIN_FAMILIES


@pytest.mark.parametrize(
    ("config_class", "values"),
    [
        ("Gemma3TextConfig", {"use_bidirectional_attention": True}),  # EmbeddingGemma
        ("LlamaConfig", {"is_causal": False}),
        ("MistralConfig", {"sliding_window": 16}),
        ("Qwen3Config", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
        ("Gemma3TextConfig", {"sliding_window": 16}),
        ("Lfm2Config", {"layer_types": ["conv", "full_attention", "conv"]}),
        ("GptOssConfig", {"sliding_window": 128}),
        ("MiniMaxConfig", {}),
        ("GraniteMoeHybridConfig", {"layer_types": ["mamba", "attention", "mamba"], "mamba_n_heads": 4}),
        ("Qwen3NextConfig", {}),
        ("Llama4TextConfig", {}),
    ],
)
def test_other_decoders_are_not_packed(config_class, values):
    """Recurrent layers, sinks, short windows, tokens that see what follows: a pair's label would hang on its neighbours."""
    config = getattr(transformers, config_class)(**(SIZES | values))
    assert not is_plain_causal(config, 64)


@pytest.mark.parametrize(
    ("config_class", "values"),
    [
        ("MistralConfig", {"sliding_window": 64}),
        ("Qwen3Config", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}),
        ("Qwen3Config", {"use_sliding_window": False, "sliding_window": 16}),
        ("Gemma3TextConfig", {"sliding_window": 64}),
    ],
)
def test_a_window_that_holds_the_whole_text_is_none(config_class, values):
    assert is_plain_causal(getattr(transformers, config_class)(**(SIZES | values)), 64)


@pytest.mark.parametrize(
    ("config_class", "values"),
    [
        ("Gemma3TextConfig", {"use_bidirectional_attention": True, "head_dim": 8}),
        ("MistralConfig", {"sliding_window": 16}),
        ("GptOssConfig", {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 128}),
        ("GraniteMoeHybridConfig", {
            "layer_types": ["mamba", "attention", "mamba"], "mamba_n_heads": 4, "mamba_d_head": 12, "mamba_expand": 2,
            "mamba_d_state": 16, "num_local_experts": 0, "shared_intermediate_size": 32,
        }),
    ],
)  # fmt: skip
def test_the_self_test_finds_a_family_that_should_not_be_on_the_list(config_class, values):
    """What the config does not tell, the states do; and the model then reads on as before."""
    net = of_family(config_class, **values)
    for name, weight in net.named_parameters():
        if name.endswith("sinks"):
            torch.nn.init.constant_(weight, 2.0)
    own, ids = net.config._attn_implementation, torch.tensor([[1, 5, 6, 7]])
    with torch.inference_mode():
        before = net(input_ids=ids).last_hidden_state
        assert not packs_alike(net, 48, "cpu")
        assert net.config._attn_implementation == own
        torch.testing.assert_close(net(input_ids=ids).last_hidden_state, before)


def test_states_that_are_not_finite_are_not_packed():
    net = model()
    torch.nn.init.constant_(net.norm.weight, torch.nan)
    assert not packs_alike(net, 48, "cpu")
