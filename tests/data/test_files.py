from __future__ import annotations

import json

import pytest
from datasets import Dataset, DatasetDict

from fastrlhf.data.files import load_file
from fastrlhf.data.validate import SHOWN, DataError

ROWS = [{"prompt": f"{number} + 1 =", "completion": f" {number + 1}"} for number in range(3)]


def write_jsonl(path, lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def written(folder, name):
    """The rows in the format of this name."""
    path, dataset = folder / name, Dataset.from_list(ROWS)
    if name.endswith(".jsonl"):
        write_jsonl(path, ROWS)
    elif name.endswith(".json"):
        path.write_text(json.dumps(ROWS))
    elif name.endswith(".csv"):
        dataset.to_csv(path)
    elif name.endswith(".tsv"):
        dataset.to_csv(path, sep="\t")
    elif name.endswith(".parquet"):
        dataset.to_parquet(path)
    elif name == "several":
        path.mkdir()
        write_jsonl(path / "b.jsonl", ROWS[1:])
        write_jsonl(path / "a.jsonl", ROWS[:1])
        (path / "README.md").write_text("not rows")
    else:
        saved = dataset if name == "saved" else DatasetDict(train=dataset, test=dataset.select([0]))
        saved.save_to_disk(path)
    return path


@pytest.mark.parametrize(
    "name", ["r.jsonl", "r.json", "r.csv", "r.tsv", "r.parquet", "several", "saved", "saved-splits"]
)
def test_every_format_gives_the_rows(tmp_path, name):
    assert load_file(written(tmp_path, name)).to_list() == ROWS


def test_a_field_that_the_first_row_has_not(tmp_path):
    rows = [{"chosen": "a", "rejected": "b"}, {"chosen": "c", "rejected": "d", "margin": 2.0}]
    dataset = load_file(write_jsonl(tmp_path / "r.jsonl", rows))
    assert dataset["margin"] == [None, 2.0]


def test_a_split_of_a_saved_dataset(tmp_path):
    path = written(tmp_path, "saved-splits")
    assert load_file(path, split="test").to_list() == ROWS[:1]
    with pytest.raises(DataError, match=r"has no split 'dev', but train, test"):
        load_file(path, split="dev")


def test_conversations_and_blank_lines_and_a_byte_order_mark(tmp_path):
    rows = [{"messages": [{"role": "user", "content": "höher?"}]}] * 2
    path = tmp_path / "r.jsonl"
    text = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert load_file(path).to_list() == rows


def test_bad_lines_are_named_with_line_and_field(tmp_path):
    lines = [ROWS[0], '{"prompt": "1', {"prompt": "2"}, ROWS[1], {"prompt": 5, "completion": "x"}]
    path = write_jsonl(tmp_path / "r.jsonl", lines)
    with pytest.raises(DataError) as error:
        load_file(path)
    first, *named = str(error.value).split("\n  ")
    assert "3 rows of" in first and "on_bad_rows='skip'" in first
    assert named == [
        f"{path}, line 2: is not JSON: Unterminated string starting at at column 12",
        f"{path}, line 3, field 'completion': is missing",
        f"{path}, line 5, field 'prompt': is 5 (int), expected a text",
    ]


def test_bad_lines_are_left_out_with_one_warning(tmp_path):
    path = write_jsonl(tmp_path / "r.jsonl", ["[1]", *ROWS, "nonsense"])
    with pytest.warns(UserWarning) as caught:
        assert load_file(path, on_bad_rows="skip").to_list() == ROWS
    (message,) = (str(warning.message) for warning in caught)
    assert message.startswith("2 of 5 rows of")
    assert f"{path}, line 1: is a list" in message and f"{path}, line 5: is not JSON" in message


def test_the_first_bad_rows_are_shown_and_the_rest_not_looked_at(tmp_path):
    path = write_jsonl(tmp_path / "r.jsonl", [*ROWS, *["{"] * 100])
    with pytest.raises(DataError, match="were not looked at") as error:
        load_file(path)
    assert str(error.value).count("line") == SHOWN
    with pytest.warns(UserWarning, match="100 of 103 rows"):
        load_file(path, on_bad_rows="skip")


def test_csv_lines_count_line_breaks_within_fields(tmp_path):
    path = tmp_path / "r.csv"
    path.write_text('prompt,completion\n"two\nlines",yes\nonly one\n"a","b","c"\n')
    with pytest.raises(DataError) as error:
        load_file(path)
    assert f"{path}, line 4: has fewer fields than the header's 2" in str(error.value)
    assert f"{path}, line 5: has more fields" in str(error.value)


def test_parquet_rows_are_numbered(tmp_path):
    path = tmp_path / "r.parquet"
    Dataset.from_list([*ROWS, {"prompt": "1", "completion": None}]).to_parquet(path)
    with pytest.raises(DataError, match=r"r\.parquet, row 4, field 'completion': is missing"):
        load_file(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.txt", "words", r"r\.txt ends in \.txt, expected one of \.jsonl"),
        ("r.jsonl", "", r"r\.jsonl has no row that can be used"),
        ("r.jsonl", "{", r"has no row that can be used; .*line 1: is not JSON"),
        ("r.jsonl", '{"question": "?"}', r"line 1: a row has the fields question; expected"),
        ("r.jsonl", b'{"text": "\xff"}', r"line 1: is not UTF-8 \(byte 11 of the line\)"),
        ("r.parquet", "nonsense", r"r\.parquet is not Parquet"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        load_file(path)


def test_a_path_that_is_not_there_and_an_empty_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist: pass a file or folder"):
        load_file(tmp_path / "nothing.jsonl")
    with pytest.raises(DataError, match="holds no dataset and no"):
        load_file(tmp_path)
    with pytest.raises(ValueError, match="on_bad_rows is 'ignore', expected one of stop, skip"):
        load_file(written(tmp_path, "r.jsonl"), on_bad_rows="ignore")
