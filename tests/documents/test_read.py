"""What is read comes back as written; what cannot be believed is refused with the file and the key."""

import json
from pathlib import Path

import pytest

from edgeseg.documents import read_documents
from edgeseg.errors import BadInput
from tests.report.documents import bench, build, evaluation


def test_one_alone_and_several_in_a_list(tmp_path: Path) -> None:
    documents = [bench(), evaluation(), build()]
    path = tmp_path / "a.json"
    for document in documents:
        path.write_text(json.dumps(document))
        assert read_documents(path) == [document]
    path.write_text(json.dumps(documents))
    assert read_documents(str(path)) == documents


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"schema": "edgeseg.bench/9"}', "a.json, schema: version 9 of edgeseg.bench is unknown"),
        ('{"schema": "edgeseg.bensh/1"}', "did you mean edgeseg.bench"),
        ('{"schema": 3}', "a.json, schema: wanted a text"),
        ("{}", "came None"),
        ("[]", "empty list"),
        ("", "is not JSON"),
        ("[" * 200_000, "is not JSON"),
        ("[3]", r"a.json, \[0\]: wanted an object"),
        ('{"schema": "edgeseg.eval/2", "iou": {"car": NaN}}', "a.json, iou.car: wanted a finite number"),
        ('{"schema": "edgeseg.eval/2", "x": [1, 1e999]}', r"a.json, x\[1\]: .* came Infinity"),
        ('[{"schema": "edgeseg.eval/2", "x": -Infinity}]', r"a.json, \[0\].x: .* came -Infinity"),
        ('{"schema": "edgeseg.eval/2", "x": 1, "x": 2}', "'x' stands there twice"),
    ],
)
def test_refused_with_file_and_key(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(BadInput, match=told) as caught:
        read_documents(path)
    assert "a.json" in str(caught.value)


def test_no_file_and_no_text(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        read_documents(tmp_path / "none.json")
    (tmp_path / "b.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="cannot be read"):
        read_documents(tmp_path / "b.json")
