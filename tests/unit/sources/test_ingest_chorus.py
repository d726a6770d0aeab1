"""The adapter of the real data: its mistakes would look like bad models."""

import json
import shutil
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from minimal import make_config

from ray_app.base.errors import UserError
from ray_app.base.storage import Storage
from ray_app.sources.adapters.chorus import (
    label_files,
    log_files,
    product_files,
    read_ean_map,
    read_products_file,
)
from ray_app.sources.human_labels import load_human_labels
from ray_app.stages.ingest.stage import run as ingest
from ray_app.tables.manifest import read_output

CHORUS = Path(__file__).parents[3] / "../shared/data/chorus"
KEY = "ingest.pins.path"
PRODUCT = {
    "id": "7", "name": "MX-1", "title": "Acme MX-1 mouse Black", "supplier": "Acme", "ean": ["111", "222"],
    "short_description": "Wireless mouse", "date_released": "2009-12-10T00:00:00Z",
    "img_high": "http://i/high.jpg", "img_500x500": "http://i/500.jpg",
    "attr_t_device_type": "Pointer", "attr_t_product_type": "1", "attr_t_purpose": "N", "attr_t_suitable_for": "Black",
    "attr_t_compatibility": "- PC\\n- Mac", "attr_b_wifi": True,
}  # fmt: skip


def config(path, output="unused", **ingest):
    return make_config(output, ingest={"pins": {"adapter": "chorus", "path": str(path)}, **ingest})


def write_products(path, *products):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(path.stem, json.dumps(products))
    return path


def pin_of(folder, product):
    write_products(folder / "1.json.zip", product)
    (batch,) = read_products_file(product_files(str(folder), KEY)[0], "en-US")
    return {name: values[0] for name, values in batch.columns.items()}


def test_a_product_becomes_a_pin(tmp_path):
    pin = pin_of(tmp_path, PRODUCT)
    assert (pin["pin_id"], pin["title"], pin["description"], pin["image"], pin["created_at"], pin["locale"]) == (
        "7", "Acme MX-1 mouse Black", "Wireless mouse", "http://i/500.jpg", "2009-12-10T00:00:00Z", "en-US")  # fmt: skip


def test_link_texts_say_what_the_title_does_not(tmp_path):
    """Codes, booleans and words of the title would only push useful text out of the model's window."""
    pin = pin_of(tmp_path, PRODUCT)
    assert (pin["link_title"], pin["link_description"]) == ("", "Pointer, - PC - Mac")
    assert pin_of(tmp_path, PRODUCT | {"title": "Mouse"})["link_title"] == "Acme MX-1"


def test_every_ean_leads_to_its_product(tmp_path):
    write_products(tmp_path / "1.json.zip", PRODUCT, {"id": "8", "ean": "333"}, {"id": "9"})
    assert read_ean_map(product_files(str(tmp_path), KEY)) == {"111": "7", "222": "7", "333": "8"}


def test_a_clone_is_searched_by_file_name(tmp_path):
    for n in (1, 2):
        write_products(tmp_path / f"data-encoder/ecommerce/vectors/data/{n}.json.zip", PRODUCT)
    (tmp_path / "katas").mkdir()
    (tmp_path / "katas/Broad_Query_Set_rated.csv").write_text("query,docid,rating\n")
    (tmp_path / "katas/log_events.zip").write_bytes(b"")
    names = [f.basename for f in product_files(str(tmp_path), KEY) + label_files(str(tmp_path), KEY)]
    assert [*names, log_files(str(tmp_path), KEY)[0].basename] == [
        "1.json.zip", "2.json.zip", "Broad_Query_Set_rated.csv", "log_events.zip"]  # fmt: skip


@pytest.mark.parametrize(("find", "name"), [(product_files, "N.json.zip"), (label_files, "rated.csv"), (log_files, "log_events.zip")])  # fmt: skip
def test_a_folder_without_the_files_is_refused_by_name(tmp_path, find, name):
    (tmp_path / "other.txt").write_text("x")
    with pytest.raises(UserError, match=name):
        find(str(tmp_path), KEY)


def test_a_corrupt_product_file_is_named(tmp_path):
    (tmp_path / "1.json.zip").write_bytes(b"PK nonsense")
    with pytest.raises(UserError, match=r"1.json.zip is corrupt"):
        list(read_products_file(product_files(str(tmp_path), KEY)[0], "en-US"))


def test_each_raters_grade_is_a_row_and_the_final_file_decides_the_final_grade(tmp_path):
    """A pair without individual ratings is kept; one that the final file lacks has the final rating of its raters."""
    (tmp_path / "Broad_Query_Set_rated.csv").write_text('query,docid,rating\nmouse,7,3\nmouse,8,0\n"mouse, red",7,2\n')
    header = "query,docid,name,description,agent_1_rating,agent_2_rating,final_rating\n"
    body = "mouse,7,MX-1,a mouse,3,2,1\nmat,8,Mat,a mat,0,1,1\n"
    (tmp_path / "Broad_Query_Set_individual_ratings.csv").write_text(header + body)
    write_products(tmp_path / "1.json.zip", PRODUCT, PRODUCT | {"id": "8"})  # one file: read here, without a cluster
    cfg = config(tmp_path, tmp_path / "out", human_labels={"adapter": "chorus", "path": str(tmp_path)})
    store = Storage(cfg.output)
    rows = read_output(store, ingest(cfg, store).output("human_labels")).to_pylist()
    labels = {(r["query"], r["pin_id"], r["rater_id"]): r["grade"] for r in rows}
    assert [labels["mouse", "7", f"agent_{n}"] for n in (1, 2)] == [5, 4]
    assert [labels["mouse", pin, "final"] for pin in "78"] == [5, 1]
    assert labels["mat", "8", "final"] == 3
    assert labels["mouse, red", "7", "final"] == 4


def test_a_rated_file_for_evaluation_is_checked_like_the_labels(tmp_path):
    """`--set evaluate.human_labels=FILE`: a label for an unknown pin or a grade off the scale must not be scored."""
    path = tmp_path / "new.csv"
    path.write_text("query,docid,rating\nmouse,7,2\nmouse,404,2\nmouse,7,9\n")
    valid, quarantine = load_human_labels(config(tmp_path), str(path), lambda _: pa.array(["7"]))
    assert (valid["grade"].to_pylist(), quarantine["reason"].to_pylist()) == (
        [4], ["unknown_pin: pin_id is not in pins", "grade_off_scale: grade 9 is not in the grade map [0, 1, 2, 3]"])  # fmt: skip


@pytest.mark.parametrize(
    ("name", "why"), [("new.csv", "new.csv has no column 'docid'"), ("none.csv", "does not exist")]
)
def test_a_rated_file_that_cannot_be_read_is_refused_by_its_key(tmp_path, name, why):
    (tmp_path / "new.csv").write_text("query,sku,rating\nmouse,7,2\n")
    with pytest.raises(UserError, match=rf"evaluate.human_labels: .*{why}"):
        load_human_labels(config(tmp_path), str(tmp_path / name), lambda _: pa.array(["7"]))


def test_a_table_of_labels_uses_the_column_map_of_ingest(tmp_path):
    (tmp_path / "new.csv").write_text("q,sku,stars\nmouse,7,4\n")
    columns = {"query": "q", "pin_id": "sku", "grade": "stars"}
    constants = {"locale": "en-US", "rater_id": "final"}
    source = {"adapter": "table", "path": "old.csv", "columns": columns, "constants": constants}
    valid, _ = load_human_labels(
        config(tmp_path, human_labels=source), str(tmp_path / "new.csv"), lambda _: pa.array(["7"])
    )
    assert valid["grade"].to_pylist() == [4]


# --- the real files ---

needs_chorus = pytest.mark.skipif(not CHORUS.exists(), reason="../shared/data/chorus is not here")


@pytest.fixture(scope="module")
def catalogue():
    if not CHORUS.exists():
        pytest.skip("../shared/data/chorus is not here")
    return {p for f in product_files(str(CHORUS), KEY) for b in read_products_file(f, "en-US") for p in b.columns["pin_id"]}  # fmt: skip


@pytest.mark.chorus
def test_the_catalogue_has_all_products(catalogue):
    assert len(catalogue) == 19_406


@pytest.mark.chorus
@needs_chorus
def test_the_published_grades_all_load(catalogue):
    path = CHORUS / "Broad_Query_Set_rated.csv"
    valid, quarantine = load_human_labels(config(CHORUS), str(path), lambda _: pa.array(sorted(catalogue)))
    grades = {row["values"]: row["counts"] for row in pc.value_counts(valid["grade"]).to_pylist()}
    assert (grades, quarantine.num_rows) == ({1: 1368, 3: 168, 4: 63, 5: 967}, 0)


@pytest.mark.chorus
@needs_chorus
def test_the_log_loads_through_the_eans(tmp_path):
    shutil.copy(CHORUS / "log_events.zip", tmp_path)
    # One product file keeps this test small; objects of the other three are unknown pins.
    shutil.copy(CHORUS / "1.json.zip", tmp_path)
    limits = {"max_error_rate": 1.0}
    cfg = config(tmp_path, tmp_path / "out", search_log={"adapter": "chorus", "path": str(tmp_path)}, limits=limits)
    counts = ingest(cfg, Storage(str(tmp_path / "out"))).counts
    assert counts["search_log_in"] == 15_166 + 3_271 + 2_159  # shown, queries that showed nothing, engagements
