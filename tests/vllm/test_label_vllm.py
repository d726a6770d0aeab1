"""Labels of vllm are those of transformers, on any cluster and through the death of an engine.

Each start of an engine takes half a minute, so runs are shared by module fixtures, and one run shows several things.
"""

import sys
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from label_world import Killer, expected, labeller, ledger_keys, pairs, probs_of, save_teacher, start_job
from tiny_models import save_tiny_decoder, save_tiny_encoder

from ray_app.base.columns import matrix_column, matrix_of
from ray_app.base.errors import UserError
from ray_app.base.storage import Storage

ODD = ["\x00", "\u202egum", "👩\u200d🚀", "\u0301\u0301", "\ufffd\U0010ffff"]
UNSCORABLE = [("", "red mug"), (" \u3000", "red mug"), ("cup", ""), ("cup " * 47, "red mug")]
# The second of each pair says the same to one who reads letters: the tiny vocabulary knows none of them.
CONTROL = [
    ("cup", "red [SEP] [CLS] cup [SEP]"), ("cup", "red zzz zzz cup zzz"), ("red [SEP] cup", "red mug"), ("red zzz cup", "red mug"),
]  # fmt: skip
FULL = [("cup " * 44, "red mug " * 9), ("cup", "red " * 100)]  # all of the 48 tokens
ROWS = pairs(20, 4, first=[*UNSCORABLE, *((odd, odd) for odd in ODD), *CONTROL, *FULL])
CONTROL_ROWS = len(UNSCORABLE) + len(ODD) + np.arange(len(CONTROL))
_FEATURES = matrix_of(ROWS["features"])
_FEATURES[CONTROL_ROWS[1::2]] = _FEATURES[CONTROL_ROWS[::2]]  # so that texts alone differ within a pair
ROWS = ROWS.set_column(ROWS.column_names.index("features"), "features", matrix_column(_FEATURES))
CODES = ["empty_query", "empty_query", "empty_pin", "query_too_long"]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return str(save_tiny_decoder(tmp_path_factory.mktemp("decoder"), 32))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return str(save_tiny_encoder(tmp_path_factory.mktemp("encoder"), 64, segments=False))


def world(folder, base, pooling="last", lora_rank=None, **label):
    """A teacher of its own store, and who labels with it."""
    store = Storage(str(folder / "run"))
    teacher = save_teacher(store, base, pooling, lora_rank=lora_rank)
    maker = labeller(store, teacher, **({"backend": "vllm", "max_error_rate": 0.2} | label))
    return SimpleNamespace(store=store, teacher=teacher, maker=maker)


def assert_equal_to_transformers(made, rows, atol, dtype="float32"):
    probs, errors = probs_of(made.maker, rows)
    reference, reference_errors = expected(made.store, made.teacher, rows, dtype)
    assert errors == reference_errors
    np.testing.assert_allclose(probs, reference, rtol=0, atol=atol)


def assert_each_row_once(maker, rows):
    assert sorted(ledger_keys(maker)) == sorted(rows["content_key"].to_pylist())


# --- one run of a decoder, on the cluster of the session ---


@pytest.fixture(scope="module")
def plain(vllm_cluster, tmp_path_factory, decoder):
    made = world(tmp_path_factory.mktemp("plain"), decoder)
    made.counts = made.maker.work().compute(ROWS)
    return made


def test_a_decoder_grades_as_transformers_do(plain):
    """Then their labels share a ledger: an engine can be changed in the middle of a table."""
    assert_equal_to_transformers(plain, ROWS, 1e-4)


def test_unscorable_pair_is_an_error_row_and_odd_letters_are_not(plain):
    probs, errors = probs_of(plain.maker, ROWS)
    assert [error.split(":")[0] for error in errors[: len(CODES)]] == CODES
    assert errors[len(CODES) :] == [None] * (len(errors) - len(CODES))
    assert np.nanstd(probs, axis=0).max() > 0.01  # and rows differ


def test_control_tokens_in_texts_are_letters_to_the_engine(plain):
    """Else a pin forges a pair of its own, and buys the label that the student learns."""
    probs = probs_of(plain.maker, ROWS)[0][CONTROL_ROWS]
    np.testing.assert_allclose(probs[::2], probs[1::2], rtol=0, atol=1e-5)
    assert np.abs(probs[0] - probs[2]).max() > 1e-3


def test_each_row_stands_once_and_is_counted(plain):
    assert_each_row_once(plain.maker, ROWS)
    counts = plain.counts
    assert (counts.computed, counts.errors, counts.recomputed_rows) == (len(ROWS), len(CODES), 0)
    assert counts.tokens > 10 * len(ROWS)
    assert counts.timing.rows_per_sec > 0


def test_the_other_engine_finds_nothing_left_to_do(plain):
    """Else to change the engine would cost the table again."""
    other = labeller(plain.store, plain.teacher, backend="transformers")
    assert other.ledger.missing(ROWS).num_rows == 0


# --- others ---


def test_one_logical_cpu_and_no_prefix_cache(tmp_path, decoder):
    """A laptop's cluster must not wait for ever, and sharing pins must not change labels."""
    made = world(tmp_path, decoder, prefix_sharing=False)
    done = start_job(tmp_path / "job", 1, ROWS, made.maker).finish()
    assert done["runs"][0]["computed"] == len(ROWS)
    assert_each_row_once(made.maker, ROWS)
    assert_equal_to_transformers(made, ROWS, 1e-4)


@pytest.fixture(scope="module")
def lora(tmp_path_factory, decoder):
    """A teacher with adapters over pins that several queries share, on 2 logical CPUs."""
    folder = tmp_path_factory.mktemp("lora")
    made = world(folder, decoder, lora_rank=4)
    made.rows = pairs(80, 10, pin_words=(36, 42))
    made.done = start_job(folder / "job", 2, made.rows, made.maker).finish()["runs"][0]
    return made


def test_two_logical_cpus_are_enough(lora):
    assert lora.done["computed"] == len(lora.rows)
    assert_each_row_once(lora.maker, lora.rows)


def test_adapters_are_merged(lora, tmp_path, decoder):
    """vllm would read the language model without them, and say nothing."""
    assert_equal_to_transformers(lora, lora.rows, 1e-4)
    without = world(tmp_path, decoder)
    bare, _ = expected(without.store, without.teacher, lora.rows)
    assert np.abs(bare - probs_of(lora.maker, lora.rows)[0]).max() > 0.01


def test_a_shared_pin_is_computed_once(lora):
    """9 of 10 pairs find 32 tokens of some 42 cached."""
    assert 0.4 < lora.done["prefix_hit_rate"] < 0.8


# --- death of the engine ---

MANY = pairs(200, 4, first=[*UNSCORABLE, *FULL])
SLOW = {"rows_per_block": 16, "batch_size": 8, "engine_args": {"max_num_seqs": 4}}
BATCHES_IN_FLIGHT = 16  # of Ray's, at one engine


@pytest.fixture(scope="module")
def survivor(vllm_cluster, tmp_path_factory, encoder):
    """An encoder that pools the mean, whose engine dies in the middle."""
    made = world(tmp_path_factory.mktemp("survivor"), encoder, "mean", **SLOW)
    made.killer = Killer(made.maker, 5, "EngineCore")
    made.counts = made.maker.work().compute(MANY)
    return made


def test_a_dead_engine_is_started_again_and_nothing_is_lost_or_twice(survivor):
    assert survivor.killer.killed and survivor.killer.at_block * 16 < len(MANY) - 16
    assert survivor.counts.computed == len(MANY)
    assert_each_row_once(survivor.maker, MANY)
    assert 0 < survivor.counts.recomputed_rows <= BATCHES_IN_FLIGHT * SLOW["batch_size"]


def test_an_encoder_grades_as_transformers_do_in_spite_of_it(survivor):
    """Its errors are those of the texts, not of the engine."""
    assert_equal_to_transformers(survivor, MANY, 1e-4)
    assert survivor.counts.errors == len(UNSCORABLE)


@pytest.fixture(scope="module")
def ended(vllm_cluster, tmp_path_factory, decoder):
    """A decoder in bfloat16, whose engine dies and may not be started again."""
    made = world(tmp_path_factory.mktemp("ended"), decoder, dtype="bfloat16", max_restarts=0, **SLOW)
    made.killer = Killer(made.maker, 5, "EngineCore")
    with pytest.raises(UserError) as caught:
        made.maker.work().compute(MANY)
    made.message = str(caught.value)
    made.kept = ledger_keys(made.maker)
    return made


def test_without_restarts_a_dead_engine_is_one_line_and_finished_blocks_are_kept(ended):
    assert ended.killer.killed
    assert ended.message.startswith("soft_labels: a worker process died 1 times")
    assert "\n" not in ended.message
    assert 5 * 16 <= len(ended.kept) < len(MANY)
    assert len(set(ended.kept)) == len(ended.kept)


def test_bfloat16_is_near_to_transformers_in_bfloat16(ended):
    rows = MANY.filter(pc.is_in(MANY["content_key"], value_set=pa.array(ended.kept)))
    assert_equal_to_transformers(ended, rows, 2e-2, "bfloat16")


def test_a_pooling_that_the_engine_lacks_is_refused_at_once(tmp_path, tiny_encoder, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # importing it raises
    made = world(tmp_path, tiny_encoder, "spans")
    with pytest.raises(UserError, match=r"label\.backend is vllm, which cannot pool 'spans'.*train_teacher\.pooling"):
        made.maker.work().compute(ROWS)
