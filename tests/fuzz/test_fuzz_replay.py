"""A short run of each fuzz target: seeds and the same mutations each time. `make fuzz MINUTES=30` runs them for long."""

import driver
import fuzz_adapters
import fuzz_images
import pytest


@pytest.mark.parametrize(("program", "inputs"), [(fuzz_adapters, 500), (fuzz_images, 4000)])
def test_the_target_survives(program, inputs):
    assert driver.replay(program.target, program.seeds(), program.TOKENS, inputs=inputs, seed=7) == inputs


def test_seeds_of_adapters_are_read_and_not_refused(monkeypatch):
    """A target whose seeds are all refused would test the refusal only."""
    kept = {}
    settle = fuzz_adapters.settle

    def counted(checked, rules):
        found = settle(checked, rules)
        kept[rules.table] = kept.get(rules.table, 0) + found[0].num_rows
        return found

    monkeypatch.setattr(fuzz_adapters, "settle", counted)
    for data in fuzz_adapters.seeds():
        fuzz_adapters.target(data)
    assert set(kept) == {"pins", "search_log", "human_labels", "boards"} and min(kept.values()) >= 3


def test_seeds_of_pictures_are_pictures():
    for data in fuzz_images.seeds():
        assert fuzz_images.decode(data, fuzz_images.LIMITS).mode == "RGB"


def test_a_failure_is_found_and_names_its_input():
    def target(data):
        assert b"NaN" not in data

    with pytest.raises(driver.FuzzFailure) as caught:
        driver.replay(target, [b'{"a": 1}'], [b"NaN"], inputs=1000)
    assert b"NaN" in caught.value.data
