"""The hash of a model file changes with everything that loading it reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgeseg.intake import fingerprint
from edgeseg.types import InputSpec, ModelSpec
from tests.intake.test_load import small_onnx

SPEC = ModelSpec("n", InputSpec((8, 8)))


def test_external_data_counts(tmp_path: Path) -> None:
    small_onnx(tmp_path / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=16)
    before = fingerprint(tmp_path / "net.onnx", SPEC)
    assert fingerprint(tmp_path / "net.onnx", SPEC) == before
    data = bytearray((tmp_path / "net.data").read_bytes())
    data[0] ^= 1
    (tmp_path / "net.data").write_bytes(data)
    assert fingerprint(tmp_path / "net.onnx", SPEC) != before


def test_the_factory_and_the_spec_count(tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(b"\x80 some weights")
    (tmp_path / "somewhere.py").write_text("def make(): ...\n")
    spec = replace(SPEC, factory="somewhere:make")
    seen = {fingerprint(tmp_path / "net.pt", SPEC), fingerprint(tmp_path / "net.pt", spec)}
    (tmp_path / "somewhere.py").write_text("def make(): return 1\n")
    seen.add(fingerprint(tmp_path / "net.pt", spec))
    seen.add(fingerprint(tmp_path / "net.pt", replace(spec, factory_args={"a": 1})))
    (tmp_path / "net.pt").write_bytes(b"\x80 other weights")
    seen.add(fingerprint(tmp_path / "net.pt", spec))
    assert len(seen) == 5
