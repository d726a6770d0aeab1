"""The stage around build_pin_texts: counts, resume, and what is kept out of the pins' texts."""

import pytest
import side_world

from ray_app.base.config import Config
from ray_app.base.errors import UserError
from ray_app.base.storage import Storage
from ray_app.stages.enrich.stage import run as enrich
from ray_app.stages.ingest.stage import run as ingest
from ray_app.tables.manifest import read_output

SOURCES = {
    "pins": "pin_id,title\np1,shoe\np2,\n",
    "boards": "board_id,pin_id,board_title\nb1,p1,Outfits\n",
    "search_log": "event_id,timestamp,query,locale,pin_id,action,client_id\n"
    + "".join(
        f"e{i},2024-01-01,sneaker,en-US,p1,click,c{i}\nf{i},2024-01-01,trainers,en-US,p1,save,c{i}\n" for i in range(5)
    ),
    "human_labels": "query,locale,pin_id,rater_id,grade\nTrainers,en-US,p2,r1,1\n",
}


def config(folder, **sections):
    for name, text in SOURCES.items():
        (folder / f"{name}.csv").write_text(text)
    sources = {name: {"adapter": "table", "path": str(folder / f"{name}.csv")} for name in SOURCES}
    models = {
        "train_teacher": {"base_model": "m"},
        "distill": {"base_model": "m"},
        "features": {"zero_shot_model": "m"},
    }
    return Config.model_validate({"output": str(folder / "out"), "ingest": sources, **models, **sections})


@pytest.fixture
def store(tmp_path):
    store = Storage(str(tmp_path / "out"))
    ingest(config(tmp_path), store)
    return store


def test_labelled_queries_are_kept_out(tmp_path, store):
    table = read_output(store, enrich(config(tmp_path), store).output("pin_texts"))
    assert table["engaged_queries"].to_pylist() == [["sneaker"], None]


def test_rows_in_are_rows_out(tmp_path, store):
    counts = enrich(config(tmp_path), store).counts
    assert (counts["rows_in"], counts["rows_out"], counts["rows_quarantined"], counts["pins_without_text"]) == (
        2,
        2,
        0,
        1,
    )


def test_a_second_run_does_nothing(tmp_path, store):
    assert enrich(config(tmp_path), store).created_at == enrich(config(tmp_path), store).created_at


def test_another_setting_runs_again(tmp_path, store):
    first = enrich(config(tmp_path), store)
    assert enrich(config(tmp_path, enrich={"min_clients": 3}), store).fingerprint != first.fingerprint


def test_without_ingest_it_says_what_to_run(tmp_path):
    with pytest.raises(UserError, match=r"pipelines/ingest.py"):
        enrich(config(tmp_path), Storage(str(tmp_path / "empty")))


def test_a_run_of_an_older_version_says_what_to_run_again(tmp_path, store):
    side_world.ingested_by_an_older_version(config(tmp_path), store, "client_id")
    with pytest.raises(UserError, match=r"search_log/.* no column 'client_id'.*`python pipelines/ingest\.py --config"):
        enrich(config(tmp_path), store)


def engaged(folder, store, **sections):
    manifest = enrich(config(folder, **sections), store)
    return manifest, read_output(store, manifest.output("pin_texts"))["engaged_queries"].to_pylist()


def judged(folder, *queries):
    rows = "".join(f"{query},en-US,p1,r1,4\n" for query in queries)
    (folder / "judged.csv").write_text(f"query,locale,pin_id,rater_id,grade\n{rows}")
    return {"evaluate": {"human_labels": str(folder / "judged.csv")}}


def test_queries_that_the_run_will_be_measured_on_are_kept_out_with_their_near_duplicates(tmp_path, store):
    """Else the text of a pin tells the student the answer."""
    first, found = engaged(tmp_path, store, **judged(tmp_path, "Sneakers"))
    assert found == [None, None]
    again, _ = engaged(tmp_path, store, **judged(tmp_path, "sneaker"))
    assert again.created_at == first.created_at
    assert engaged(tmp_path, store, **judged(tmp_path, "boots"))[1] == [["sneaker"], None]


def test_a_back_dated_run_does_not_see_later_clicks(tmp_path, store):
    until = {"sample": {"until": "2024-01-01"}}
    assert engaged(tmp_path, store, **until)[1] == [None, None]
    assert engaged(tmp_path, store, sample={"until": "2024-01-02"})[1] == [["sneaker"], None]
