"""Result files: every format says the same, and what is odd is refused with its row."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_app.analysis.measurement.rankings import read_ranking, read_topics
from ray_app.base.errors import UserError

ROWS = [
    {"query": "red shoe", "locale": "en-US", "pin_id": "a", "score": 0.9},
    {"query": "red shoe", "locale": "en-US", "pin_id": "c", "score": 0.2},
    {"query": "red shoe", "locale": "en-US", "pin_id": "b", "score": 0.2},
    {"query": "schuh", "locale": "de-DE", "pin_id": "b", "score": -1.0},
    {"query": "schuh", "locale": "de-DE", "pin_id": "a", "score": 1e-12},
]
EXPECTED = {("red shoe", "en-US"): ["a", "c", "b"], ("schuh", "de-DE"): ["a", "b"]}


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def write_rows(folder, ending, rows):
    path = folder / f"ranking.{ending}"
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif ending == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines))
    return str(path)


def read(path, **kwargs):
    return read_ranking(path, "--control", "en-US", **kwargs)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_formats_and_the_order_of_rows_change_nothing(tmp_path, ending, flip):
    """b and c tie, and go by pin_id, descending as in trec_eval, whatever comes first."""
    assert read(write_rows(tmp_path, ending, ROWS[::-1] if flip else ROWS)).pins == EXPECTED


def test_rank_goes_before_score(tmp_path):
    assert read(write(tmp_path / "r.csv", "query,pin_id,rank,score\nq,a,2,9\nq,b,1,3\n")).pins == {
        ("q", "en-US"): ["b", "a"]
    }


def test_a_query_is_normalised_and_a_missing_locale_is_the_default(tmp_path):
    found = read_ranking(write(tmp_path / "r.csv", "query,pin_id,rank\nRed  SHOE,a,1\n"), "--control", "de-DE")
    assert found.pins == {("red shoe", "de-DE"): ["a"]}


def test_spellings_of_a_locale_are_one_and_a_locale_that_nobody_gave_is_none(tmp_path):
    """Else a query in two files meets nothing in the other, or meets the grades of another locale."""
    spelled = write(tmp_path / "r.csv", "query,locale,pin_id,rank\nshoe,en_us,a,1\nshoe,EN-US,b,2\n")
    assert read_ranking(spelled, "--control", None).pins == {("shoe", "en-US"): ["a", "b"]}
    for text, told in (("query,pin_id,rank\nq,a,1\n", "line 2: no locale; .*--locale"),
                       ("query,locale,pin_id,rank\nq,english,a,1\n", "line 2: locale 'english' is not a BCP 47")):  # fmt: skip
        with pytest.raises(UserError, match=told):
            read_ranking(write(tmp_path / "bad.csv", text), "--control", None)


def test_a_trec_run_is_read_by_score_with_encoded_queries(tmp_path):
    """Many tools write 0 or a wrong rank; trec_eval looks at the score alone."""
    run = "red%20shoe Q0 b 1 0.5 mine\nred%20shoe Q0 a 2 0.7 mine\n"
    assert read(write(tmp_path / "r.trec", run)).pins == {("red shoe", "en-US"): ["a", "b"]}


def test_topics_name_the_queries_of_a_trec_run(tmp_path):
    topics = read_topics(write(tmp_path / "t.tsv", "1\tred shoe\n2\tschuh\tde-DE\n"), "--topics")
    found = read(write(tmp_path / "r.run", "1 Q0 b 1 0.5 x\n2 Q0 a 1 0.7 x\n"), topics=topics)
    assert found.pins == {("red shoe", "en-US"): ["b"], ("schuh", "de-DE"): ["a"]}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "has no rows"),
        ("query,pin_id,rank\n", "has no rows"),
        ("query,pin,rank\nq,a,1\n", r"line 2: unknown column 'pin'; did you mean 'pin_id'\?"),
        ("query,local,pin_id,rank\nq,de,a,1\n", r"unknown column 'local'; did you mean 'locale'\?"),
        ("query,pin_id\nq,a\n", "line 2: neither rank nor score"),
        ("query,rank\nq,1\n", "line 2: pin_id is missing"),
        ("query,pin_id,rank\nq,a,1\nq,b\n", "line 3: 2 fields where the header has 3"),
        ("query,pin_id,rank\nq,a,1\nq,b,first\n", "line 3: rank must be a number, not 'first'"),
        ("query,pin_id,score\nq,a,nan\n", "line 2: score must be a number"),
        ("query,pin_id,rank\n ,a,1\n", "line 2: query is empty"),
        ("query,pin_id,rank\nq,,1\n", "line 2: pin_id is empty"),
        ("query,pin_id,rank\nq,a,1\nq,b,2\nq,a,3\n", r"line 4: pin 'a' of query 'q' \(en-US\) was in line 2"),
        ("query,pin_id,rank\nRed,a,1\nred,b,2\n", "line 3: 'red' is the query 'Red' of line 2 in another spelling"),
    ],
)
def test_what_is_odd_in_a_csv_file_is_refused_with_its_line(tmp_path, text, told):
    with pytest.raises(UserError, match=told):
        read(write(tmp_path / "r.csv", text))


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("r.jsonl", '{"query": "q", "pin_id": "a", "rank": 1}\n{"query": "q"', "line 2: not JSON"),
        ("r.jsonl", '{"query": "q", "pin_id": "a", "rank": null, "score": null}', "score must be a number, not None"),
        ("r.trec", "q Q0 a 1 0.5\n", "line 1: 5 fields, a TREC run has 6"),
        ("r.xlsx", "x", "cannot tell the format of r.xlsx"),
        ("r.parquet", "x", "is corrupt"),
        ("r.csv", b"query,pin_id,rank\n\xff\xfe,a,1\n", "not CSV in UTF-8"),
        ("r.run", "7 Q0 b 1 0.5 x\n", "line 1: the topics have no query with the id '7'"),
    ],
)
def test_what_is_odd_in_other_files_is_refused(tmp_path, name, text, told):
    topics = {"1": ("q", None)} if name == "r.run" else None
    with pytest.raises(UserError, match=told):
        read(write(tmp_path / name, text), topics=topics)


def test_a_file_that_is_not_there_names_the_argument(tmp_path):
    with pytest.raises(UserError, match=r"--control: .* does not exist"):
        read(str(tmp_path / "none.csv"))


@pytest.mark.parametrize(("text", "told"), [("1\n", "line 1: not an id"), ("1\ta\n1\tb\n", r"line 2: .* came before")])
def test_odd_topics_are_refused(tmp_path, text, told):
    with pytest.raises(UserError, match=told):
        read_topics(write(tmp_path / "t.tsv", text), "--topics")
