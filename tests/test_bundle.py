"""Bundles: what is written comes back, nothing half-written is left, and nothing damaged or hostile gets in."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeseg.bundle import Bundle, Reference, Variant, read_bundle, write_bundle
from edgeseg.errors import BundleError, SpecError
from edgeseg.types import InputSpec, ModelSpec, OutputSpec

ROOT = Path(__file__).parents[1]
SIZE = (6, 9)


def a_bundle(*, frame: Any = "bgr", graph: bytes = b"graph" * 100) -> Bundle:
    rng = np.random.default_rng(3)
    references = tuple(
        Reference(
            name=f"seq 1/{i}",
            frame=rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8),
            mask=rng.integers(0, 3, SIZE, dtype=np.uint8),
            masks={"onnxruntime-int8": rng.integers(0, 3, SIZE, dtype=np.uint8)} if i == 0 else {},
        )
        for i in range(2)
    )
    return Bundle(
        spec=ModelSpec("net", InputSpec(SIZE, frame=frame), OutputSpec("out", ("sky", "road", "car"))),
        variants=(
            Variant("onnxruntime-fp32", "onnxruntime", "fp32", ("fp32/model.onnx",), {"threads": 2, "arena": True}),
            Variant("onnxruntime-int8", "onnxruntime", "int8", ("int8/model.onnx",), {"level": "all", "share": 0.5}),
            Variant("openvino-int8", "openvino", "int8", ("ov/model.xml", "ov/model.bin")),
        ),
        chosen="onnxruntime-int8",
        files={
            "int8/model.onnx": graph,
            "fp32/model.onnx": b"float" + graph,
            "ov/model.xml": b"<net/>",
            "ov/model.bin": bytes(range(256)),
            "scales.json": b"{}",
        },
        references=references,
        verdict={"why": "INT8 is 2.3 times faster, Straße", "miou": [0.6, None], "kept": True},
        created={"edgeseg": "0.1.0", "time": "2030-01-01T00:00:00Z"},
    )


def same(one: Bundle, other: Bundle) -> bool:
    return (
        (one.spec, one.variants, one.chosen, dict(one.files))
        == (other.spec, other.variants, other.chosen, dict(other.files))
        and (dict(one.verdict), dict(one.created)) == (dict(other.verdict), dict(other.created))
        and [r.name for r in one.references] == [r.name for r in other.references]
        and all(
            np.array_equal(a.frame, b.frame)
            and np.array_equal(a.mask, b.mask)
            and a.masks.keys() == b.masks.keys()
            and all(np.array_equal(a.masks[k], b.masks[k]) for k in a.masks)
            for a, b in zip(one.references, other.references, strict=True)
        )
    )


@pytest.mark.parametrize("frame", ["bgr", "rgb"])
@pytest.mark.parametrize("name", ["x.edgeseg", "folder", "deep/er/x.edgeseg"])
def test_what_is_written_comes_back(tmp_path: Path, name: str, frame: str) -> None:
    bundle = a_bundle(frame=frame)
    path = write_bundle(bundle, tmp_path / name)
    assert path.is_dir() == (name == "folder")
    assert same(read_bundle(path), bundle)
    assert not same(read_bundle(path), a_bundle(frame=frame, graph=b"other"))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_bundle_without_references_needs_no_opencv(tmp_path: Path) -> None:
    path = write_bundle(replace(a_bundle(), references=()), tmp_path / "x.edgeseg")
    code = f"import sys; sys.modules['cv2'] = None\nfrom edgeseg.bundle import read_bundle; read_bundle({str(path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_png_of_a_frame_has_true_colours_in_either_order(tmp_path: Path) -> None:
    red = np.zeros((*SIZE, 3), np.uint8)
    for frame, channel in (("rgb", 0), ("bgr", 2)):
        bundle = a_bundle(frame=frame)
        pixels = red.copy()
        pixels[..., channel] = 255
        reference = Reference("red", pixels, np.zeros(SIZE, np.uint8))
        path = write_bundle(replace(bundle, references=(reference,)), f"{tmp_path / frame}/")
        png = (path / "references" / "0000.frame.png").read_bytes()
        assert first_pixel(png) == (255, 0, 0)


def first_pixel(png: bytes) -> tuple[int, ...]:
    """Independent of OpenCV: the first pixel of any PNG filter is stored as it is (its neighbours count as 0)."""
    start, data = 8, b""
    while start < len(png):
        length, kind = struct.unpack(">I4s", png[start : start + 8])
        data += png[start + 8 : start + 8 + length] if kind == b"IDAT" else b""
        start += length + 12
    return tuple(zlib.decompress(data)[1:4])


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    bundle = a_bundle()
    shuffled = replace(bundle, files=dict(reversed(list(bundle.files.items()))))
    one, two = write_bundle(bundle, tmp_path / "a.edgeseg"), write_bundle(shuffled, tmp_path / "b.edgeseg")
    assert one.read_bytes() == two.read_bytes()
    again = write_bundle(read_bundle(write_bundle(bundle, tmp_path / "folder")), tmp_path / "c.edgeseg")
    assert again.read_bytes() == one.read_bytes()


def test_any_unzip_can_read_it(tmp_path: Path) -> None:
    bundle = a_bundle()
    with zipfile.ZipFile(write_bundle(bundle, tmp_path / "x.edgeseg")) as archive:
        assert archive.testzip() is None
        assert archive.namelist()[0] == "manifest.json"
        assert archive.read("ov/model.bin") == bundle.files["ov/model.bin"]


def test_variants_are_found_by_name() -> None:
    bundle = a_bundle()
    assert bundle.variant().precision == "int8"
    assert bundle.variant("onnxruntime-fp32").settings["threads"] == 2
    assert bundle.graph() == bundle.files["int8/model.onnx"]
    assert bundle.graph("openvino-int8") == bundle.graph(bundle.variant("openvino-int8")) == b"<net/>"
    with pytest.raises(BundleError, match=r"no variant 'tpu'.*onnxruntime-fp32, onnxruntime-int8, openvino-int8"):
        bundle.variant("tpu")


# --- writing ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def disk_full_after(limit: int) -> Iterator[None]:
    """A real write error in the middle of a file: the system refuses to let any file grow further."""
    resource = pytest.importorskip("resource", reason="needs file size limits")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", ["x.edgeseg", "folder"])
def test_a_failed_write_leaves_what_was_there(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    large = a_bundle(graph=os.urandom(400_000))
    with disk_full_after(100_000), pytest.raises(BundleError, match="cannot write"):
        write_bundle(large, path)
    assert list(tmp_path.iterdir()) == []

    write_bundle(a_bundle(), path)
    with disk_full_after(100_000), pytest.raises(BundleError, match="cannot write"):
        write_bundle(large, path)
    assert same(read_bundle(path), a_bundle())
    assert list(tmp_path.iterdir()) == [path]
    write_bundle(large, path)
    assert same(read_bundle(path), large)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["x.edgeseg", "folder"])
def test_an_interrupt_leaves_what_was_there(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_bundle(a_bundle(), tmp_path / name)

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(a_bundle(graph=b"new"), path)
    monkeypatch.undo()
    assert same(read_bundle(path), a_bundle())
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_no_bundle_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1").write_text("years of work")
    (tmp_path / "file").write_text("years of work")
    for name in ("thesis", "file"):
        with pytest.raises(BundleError, match="not overwritten"):
            write_bundle(a_bundle(), tmp_path / name)
    assert (tmp_path / "thesis" / "chapter1").read_text() == (tmp_path / "file").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    assert same(read_bundle(write_bundle(a_bundle(), tmp_path / "empty")), a_bundle())


def test_a_bundle_can_be_read_by_others(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.touch()
    assert write_bundle(a_bundle(), tmp_path / "x.edgeseg").stat().st_mode == other.stat().st_mode


def with_reference(**changes: Any) -> Callable[[Bundle], Bundle]:
    return lambda bundle: replace(bundle, references=(replace(bundle.references[0], **changes),))


def with_variant(**changes: Any) -> Callable[[Bundle], Bundle]:
    return lambda bundle: replace(bundle, variants=(replace(bundle.variants[1], **changes), *bundle.variants[2:]))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda b: replace(b, chosen="gone"), "chosen: wanted one of onnxruntime-fp32"),
        (lambda b: replace(b, variants=()), "variants: wanted at least one"),
        (lambda b: replace(b, variants=(b.variants[1],) * 2), "each with its own name"),
        (lambda b: replace(b, files={**b.files, "../evil": b""}), r"'\.\./evil'"),
        (lambda b: replace(b, files={**b.files, "references/a.png": b""}), "is for references"),
        (lambda b: replace(b, files={**b.files, "manifest.json": b""}), "'manifest.json'"),
        (lambda b: replace(b, files={**b.files, "Scales.json": b""}), "one file, at least on some systems"),
        (lambda b: replace(b, files={**b.files, "scales.json/x": b""}), "also the folder"),
        (lambda b: replace(b, verdict={"miou": float("nan")}), r"verdict.miou: wanted plain JSON, found float nan"),
        (
            lambda b: replace(b, verdict={"miou": [np.float32(1)]}),
            r"verdict.miou\[0\]: .* found float32",
        ),
        (lambda b: replace(b, created={3: 4}), "created: wanted texts as keys"),
        (with_variant(files=("gone.onnx",)), r"variants\[0\].files.*gone.onnx"),
        (with_variant(files=()), r"variants\[0\].files"),
        (with_variant(name="a/b"), r"variants\[0\]: name and backend"),
        (with_variant(precision="int4"), r"variants\[0\].precision: wanted fp32, fp16 or int8, found 'int4'"),
        (with_variant(settings={"x": [1]}), r"settings\['x'\]"),
        (with_variant(settings={"x": float("inf")}), r"settings\['x'\]"),
        (
            with_reference(frame=np.zeros((6, 8, 3), np.uint8)),
            r"frame: wanted uint8 \(6, 9, 3\), .* \(6, 8, 3\)",
        ),
        (with_reference(mask=np.zeros(SIZE, np.int64)), "mask: wanted uint8 .* found int64"),
        (with_reference(mask=np.full(SIZE, 3, np.uint8)), "mask: wanted classes below 3, found 3"),
        (with_reference(masks={"tpu": np.zeros(SIZE, np.uint8)}), "masks: wanted names of variants, found 'tpu'"),
        (with_reference(name=""), "name: wanted"),
        (lambda b: replace(b, references=b.references * 33), "at most 64"),
    ],
)
def test_an_inconsistent_bundle_is_not_written(tmp_path: Path, change: Callable[[Bundle], Bundle], says: str) -> None:
    with pytest.raises(BundleError, match=says):
        write_bundle(change(a_bundle()), tmp_path / "x.edgeseg")
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_with_an_unsound_spec_is_not_written(tmp_path: Path) -> None:
    bundle = a_bundle()
    spec = replace(bundle.spec, input=replace(bundle.spec.input, std=(0.0, 1.0, 1.0)))
    with pytest.raises(SpecError, match="std"):
        write_bundle(replace(bundle, spec=spec), tmp_path / "x.edgeseg")


def test_one_channel_masks_have_two_classes_whatever_is_named(tmp_path: Path) -> None:
    bundle = a_bundle()
    ship = replace(bundle.spec, output=OutputSpec(classes=("ship",)))
    one = Reference("a", np.zeros((*SIZE, 3), np.uint8), np.ones(SIZE, np.uint8))
    read_bundle(write_bundle(replace(bundle, spec=ship, references=(one,)), tmp_path / "a.edgeseg"))
    two = replace(one, mask=one.mask * 2)
    with pytest.raises(BundleError, match="below 2"):
        write_bundle(replace(bundle, spec=ship, references=(two,)), tmp_path / "b.edgeseg")
    unnamed = replace(bundle.spec, output=OutputSpec())
    read_bundle(write_bundle(replace(bundle, spec=unnamed, references=(two,)), tmp_path / "c.edgeseg"))


# --- reading what is damaged -----------------------------------------------------------------------------------------


def test_a_cut_file_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    whole = write_bundle(a_bundle(), tmp_path / "x.edgeseg").read_bytes()
    cut = tmp_path / "cut.edgeseg"
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(BundleError, match="again"):
            read_bundle(cut)
    for more in (b"\0", whole, b"PK\x05\x06" + b"\0" * 18):
        cut.write_bytes(whole + more)
        with pytest.raises(BundleError, match="again"):
            read_bundle(cut)
        cut.write_bytes(more + whole)
        with pytest.raises(BundleError, match="again"):
            read_bundle(cut)


def test_a_changed_byte_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    bundle = replace(a_bundle(), references=a_bundle().references[:1])
    whole = write_bundle(bundle, tmp_path / "x.edgeseg").read_bytes()
    path, refused = tmp_path / "changed.edgeseg", 0
    rng = np.random.default_rng(0)
    places = rng.permutation(len(whole))[:500]
    for place, bit in zip(places, rng.integers(0, 8, len(places)), strict=True):
        changed = bytearray(whole)
        changed[place] ^= 1 << int(bit)
        path.write_bytes(changed)
        try:
            assert same(read_bundle(path), bundle), place
        except BundleError:
            refused += 1
    assert refused > 0.8 * len(places)  # the rest are dates and attributes that ZIP stores and nobody reads


def test_each_file_of_a_folder_is_checked(tmp_path: Path) -> None:
    path = write_bundle(a_bundle(), tmp_path / "folder")
    for file in sorted(p for p in path.rglob("*") if p.is_file() and p.name != "manifest.json"):
        name, content = file.relative_to(path).as_posix(), file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(BundleError, match=f"'{name}' is not the file that was written: its SHA-256 differs"):
            read_bundle(path)
        file.write_bytes(content + b"x")
        with pytest.raises(BundleError, match=f"'{name}' has {len(content) + 1} bytes, wanted {len(content)}"):
            read_bundle(path)
        file.unlink()
        with pytest.raises(BundleError, match=f"'{name}' is missing"):
            read_bundle(path)
        file.write_bytes(content)
    assert same(read_bundle(path), a_bundle())
    (path / "extra.txt").write_text("?")
    with pytest.raises(BundleError, match=r"'extra.txt' does not belong.*Remove it"):
        read_bundle(path)


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    for name, content in {"empty": b"", "text": b"hello", "model.onnx": b"\x08\x07" * 500}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BundleError, match="never was a bundle"):
            read_bundle(tmp_path / name)
    with pytest.raises(BundleError, match="no bundle to read"):
        read_bundle(tmp_path / "gone.edgeseg")
    (tmp_path / "folder").mkdir()
    with pytest.raises(BundleError, match=r"no manifest\.json"):
        read_bundle(tmp_path / "folder")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(BundleError, match="neither"):
            read_bundle(tmp_path / "pipe")


# --- reading what is hostile -----------------------------------------------------------------------------------------


def unpacked(tmp_path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest and the files of a sound bundle, to be bent."""
    with zipfile.ZipFile(write_bundle(a_bundle(), tmp_path / "sound.edgeseg")) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    return json.loads(files.pop("manifest.json")), files


def packed(path: Path, manifest: Any, files: Mapping[str, bytes], *, listed: bool = True, how: int = 0) -> Path:
    """A bundle as an attacker writes it: with matching hashes."""
    if listed:
        rows = {k: {"size": len(v), "sha256": hashlib.sha256(v).hexdigest()} for k, v in files.items()}
        manifest = {**manifest, "files": rows}
    text = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    with zipfile.ZipFile(path, "w", how) as archive:
        archive.writestr("manifest.json", text)
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_the_attackers_tool_makes_sound_bundles_too(tmp_path: Path) -> None:
    assert same(read_bundle(packed(tmp_path / "x", *unpacked(tmp_path))), a_bundle())


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "a/../../evil",
        "/etc/evil",
        "a//b",
        "./a",
        "a/.",
        "..",
        "a\\b",
        "C:evil",
        "C:/evil",
        ".bashrc",
        "a/",
        "nul",
        "COM1.txt",
        "a.",
        "a b",
        "é",
        "a\x00b",
        "x" * 101,
        "/".join("abcdefghi"),
        "SCALES.JSON",
        "Manifest.json",
        "ov",
    ],
)
def test_names_with_tricks_are_refused_in_files_and_folders(tmp_path: Path, name: str) -> None:
    manifest, files = unpacked(tmp_path)
    with pytest.raises(BundleError, match=r"file names of ASCII|one file|also the folder"):
        read_bundle(packed(tmp_path / "x", manifest, {**files, name: b"evil"}))
    # The archive's own names are sound, the manifest's are not.
    path = write_bundle(a_bundle(), tmp_path / "folder")
    manifest["files"][name] = {"size": 4, "sha256": hashlib.sha256(b"evil").hexdigest()}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"file names of ASCII|one file|also the folder"):
        read_bundle(path)


def test_an_entry_twice_is_refused(tmp_path: Path) -> None:
    manifest, files = unpacked(tmp_path)
    path = packed(tmp_path / "x", manifest, files)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("scales.json", b"{}")
    with pytest.raises(BundleError, match="one file"):
        read_bundle(path)


def test_links_are_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"{}")  # even with the right content
    path = write_bundle(a_bundle(), tmp_path / "folder")
    (path / "scales.json").unlink()
    (path / "scales.json").symlink_to(secret)
    with pytest.raises(BundleError, match=r"'scales\.json' is a link"):
        read_bundle(path)
    path = write_bundle(a_bundle(), tmp_path / "folder2")
    (path / "ov").rename(tmp_path / "ov")
    (path / "ov").symlink_to(tmp_path / "ov", target_is_directory=True)
    with pytest.raises(BundleError, match="'ov' is a link"):
        read_bundle(path)

    manifest, files = unpacked(tmp_path)
    zipped = packed(tmp_path / "x", manifest, {k: v for k, v in files.items() if k != "scales.json"})
    link = zipfile.ZipInfo("scales.json")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(zipped, "a") as archive:
        archive.writestr(link, b"/etc/passwd")
    with pytest.raises(BundleError, match=r"'scales\.json' is a link"):
        read_bundle(zipped)


def test_a_compression_bomb_is_refused_before_it_unfolds(tmp_path: Path) -> None:
    manifest, files = unpacked(tmp_path)
    path = packed(tmp_path / "x", manifest, {**files, "bomb": bytes(50_000_000)}, how=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    with pytest.raises(BundleError, match="is compressed"):
        read_bundle(path)
    with pytest.raises(BundleError, match=r"bytes of content, wanted at most 40000000.*higher limit"):
        read_bundle(path, limit=40_000_000)
    bomb = packed(tmp_path / "y", b" " * 50_000_000, files, listed=False, how=zipfile.ZIP_DEFLATED)
    with pytest.raises(BundleError, match="larger than 4194304"):
        read_bundle(bomb)


def test_declared_sizes_are_not_believed(tmp_path: Path) -> None:
    path = write_bundle(a_bundle(), tmp_path / "x.edgeseg")
    whole = bytearray(path.read_bytes())
    at = whole.rindex(b"scales.json") - 46  # its row in the central directory
    whole[at + 20 : at + 28] = struct.pack("<2I", 1 << 30, 1 << 30)
    path.write_bytes(whole)
    with pytest.raises(BundleError, match="entries overlap"):
        read_bundle(path)
    whole[at + 20 : at + 28] = struct.pack("<2I", 100, 100)
    path.write_bytes(whole)
    with pytest.raises(BundleError, match="again"):
        read_bundle(path)


def test_very_many_entries_are_refused_before_they_are_listed(tmp_path: Path) -> None:
    manifest, files = unpacked(tmp_path)
    path = packed(tmp_path / "x", manifest, {**files, **{f"n{i}": b"" for i in range(4097)}})
    with pytest.raises(BundleError, match="wanted at most 4096"):
        read_bundle(path)
    folder = write_bundle(a_bundle(), tmp_path / "folder")
    for i in range(4097):
        (folder / f"n{i}").touch()
    with pytest.raises(BundleError, match="more than 4096"):
        read_bundle(folder)


def bent(**changes: Any) -> Callable[[dict[str, Any]], None]:
    """Set manifest fields by path: variants__0__name="x"; a value of ... removes the field."""

    def bend(manifest: dict[str, Any]) -> None:
        for path, value in changes.items():
            *parts, last = path.split("__")
            at: Any = manifest
            for part in parts:
                at = at[int(part)] if part.isdigit() else at[part]
            if value is ...:
                del at[last]
            else:
                at[last] = value

    return bend


@pytest.mark.parametrize(
    ("bend", "says"),
    [
        (bent(schema="edgeseg.bundle/2"), "newer edgeseg .*pip install --upgrade edgeseg"),
        (bent(schema="edgeseg.bundle/999"), "newer edgeseg"),
        (bent(schema="edgeseg.bundle/0"), "schema: wanted 'edgeseg.bundle/1', found 'edgeseg.bundle/0'"),
        (bent(schema="other/1"), "schema: wanted"),
        (bent(schema=1), "schema: wanted a text, found '1'"),
        (bent(schema=...), "schema is missing"),
        (bent(spec=...), "spec is missing"),
        (bent(spec=[]), "spec: wanted an object"),
        (bent(spec__input__size=[0, 0]), "spec: input.size: wanted"),
        (bent(spec__input__extra=1), "spec: .*'extra'"),
        (bent(chosen=3), "chosen: wanted a text, found '3'"),
        (bent(chosen="gone"), "chosen: wanted one of"),
        (bent(variants={}), "variants: wanted a list"),
        (bent(variants=[]), "variants: wanted at least one"),
        (bent(variants=["x"]), r"variants\[0\]: wanted an object, found 'x'"),
        (bent(variants__1__name=None), r"variants\[1\]: name: wanted a text, found 'None'"),
        (bent(variants__1__name="../x"), r"variants\[1\]: name and backend"),
        (bent(variants__1__backend=...), r"variants\[1\]: backend is missing"),
        (bent(variants__1__precision="int4"), r"variants\[1\].precision"),
        (bent(variants__1__files="scales.json"), r"variants\[1\]: files: wanted a list"),
        (bent(variants__1__files=[7]), r"variants\[1\].files\[0\]: wanted a text, found '7'"),
        (bent(variants__1__files=["references/0000.mask.png"]), r"variants\[1\].files: wanted names"),
        (bent(variants__1__settings={"a": {}}), r"variants\[1\].settings"),
        (bent(variants__1__run="rm -rf"), r"variants\[1\]: 'run' is unknown"),
        (bent(signature="x"), "'signature' is unknown.*newer"),
        (bent(verdict=[]), "verdict: wanted an object"),
        (bent(created="now"), "created: wanted an object"),
        (bent(files=[]), "files: wanted an object"),
        (bent(**{"files__scales.json": 2}), r"files\['scales.json'\]: wanted an object"),
        (bent(**{"files__scales.json__size": True}), r"files\['scales.json'\]: size: wanted a whole number"),
        (bent(**{"files__scales.json__size": 1e9}), r"files\['scales.json'\]: size: wanted a whole number"),
        (bent(**{"files__scales.json__size": 10**12}), "'scales.json' has 2 bytes, wanted 1000000000000"),
        (bent(**{"files__scales.json__size": -1}), "'scales.json' has 2 bytes, wanted -1"),
        (bent(**{"files__scales.json__sha256": "0" * 64}), "SHA-256"),
        (bent(**{"files__scales.json__mode": 1}), "'mode' is unknown"),
        (bent(references=[None]), r"references\[0\]: wanted an object"),
        (bent(references={}), "references: wanted a list"),
        (bent(references__0__name="\x1b[2J"), r"references\[0\].name"),
        (bent(references__0__frame="scales.json"), r"references\[0\].frame: wanted a listed file in references/"),
        (bent(references__0__frame="references/gone.png"), r"references\[0\].frame: wanted a listed file"),
        (bent(references__0__frame="references/0000.mask.png"), r"references\[0\].frame: wanted a PNG of 9x6"),
        (bent(references__0__mask="references/0000.frame.png"), r"references\[0\].mask: wanted a PNG of 9x6"),
        (bent(references__0__masks={"tpu": "references/0000.mask.png"}), r"references\[0\].masks: wanted names"),
        (bent(references__0__masks=[]), r"references\[0\]: masks: wanted an object"),
        (bent(spec__input__size=[8192, 8192], references=[{}] * 5), "references: wanted at most"),
        (bent(references=[{}] * 65), "references: wanted at most 64"),
        (bent(spec__input__size=[600, 900]), r"references\[0\].frame: wanted a PNG of 900x600.*found 9x6"),
        (bent(spec__output__classes=["a", "b"]), "wanted classes below 2, found 2"),
    ],
)
def test_a_bent_manifest_is_refused_by_the_name_of_the_field(
    tmp_path: Path, bend: Callable[[dict[str, Any]], None], says: str
) -> None:
    manifest, files = unpacked(tmp_path)
    bend(manifest)
    with pytest.raises(BundleError, match=says) as refused:
        read_bundle(packed(tmp_path / "x", manifest, files, listed=False))
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "not valid JSON"),
        (b"[]", "wanted an object"),
        (b"{", "not valid JSON"),
        (b"\xff{}", "not valid JSON"),
        (b'{"schema": NaN}', "NaN is no JSON"),
        (b'{"schema": -Infinity}', "Infinity is no JSON"),
        (b'{"schema": 1e999}', "not finite"),
        (b'{"schema": 1, "schema": 2}', "twice"),
        (b'{"schema": "\\ud800"}', "not valid JSON"),
        (b'{"schema": ' + b"[" * 100_000, "not valid JSON"),
        (b'{"schema": ' + b"[" * 60 + b"]" * 60 + b"}", "nested"),
        (b'{"schema": ' + b"9" * 100_000 + b"}", "not valid JSON|wanted a text"),
    ],
)
def test_a_manifest_that_is_no_json_is_refused(tmp_path: Path, text: bytes, says: str) -> None:
    with pytest.raises(BundleError, match=says):
        read_bundle(packed(tmp_path / "x", text, {}, listed=False))


def test_a_newer_bundle_says_so_even_if_its_form_is_unknown(tmp_path: Path) -> None:
    manifest = {"schema": "edgeseg.bundle/2", "anything": True}
    path = packed(tmp_path / "x", manifest, {"a.zst": b"x" * 1000}, listed=False, how=zipfile.ZIP_DEFLATED)
    with pytest.raises(BundleError, match="made by a newer edgeseg"):
        read_bundle(path)


def png_of(width: int, height: int, kind: int, data: bytes) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("png", "says"),
    [
        (b"", "not a PNG"),
        (b"GIF89a" + bytes(100), "not a PNG"),
        (png_of(2**31 - 1, 2**31 - 1, 2, b""), "found 2147483647x2147483647"),
        (png_of(9, 6, 6, bytes(6 * (1 + 9 * 4))), "found 9x6, 8 bits, colour type 6"),
        (png_of(6, 9, 2, bytes(9 * (1 + 6 * 3))), "found 6x9"),
        (png_of(9, 6, 2, bytes(6 * (1 + 9 * 3)))[:40], "damaged|decoded"),
    ],
)
def test_an_absurd_png_is_refused_undecoded(tmp_path: Path, png: bytes, says: str) -> None:
    manifest, files = unpacked(tmp_path)
    with pytest.raises(BundleError, match=says):
        read_bundle(packed(tmp_path / "x", manifest, {**files, "references/0000.frame.png": png}))


def test_a_png_by_hand_is_read_as_it_is(tmp_path: Path) -> None:
    manifest, files = unpacked(tmp_path)
    rows = np.arange(54, dtype=np.uint8).reshape(SIZE) % 3
    png = png_of(9, 6, 0, b"".join(b"\0" + row.tobytes() for row in rows))
    bundle = read_bundle(packed(tmp_path / "x", manifest, {**files, "references/0000.mask.png": png}))
    assert np.array_equal(bundle.references[0].mask, rows)


def test_the_module_loads_nothing_heavy() -> None:
    code = "import sys, edgeseg.bundle; print([m for m in ('cv2', 'torch', 'onnx', 'onnxruntime') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_the_end_record_with_another_length_is_refused(tmp_path: Path) -> None:
    whole = bytearray(write_bundle(a_bundle(), tmp_path / "x.edgeseg").read_bytes())
    for offset, width in ((4, 2), (6, 2), (8, 2), (12, 4), (16, 4), (20, 2)):
        changed = whole.copy()
        at = len(whole) - 22 + offset
        changed[at : at + width] = (int.from_bytes(whole[at : at + width], "little") + 1).to_bytes(width, "little")
        (tmp_path / "y.edgeseg").write_bytes(changed)
        with pytest.raises(BundleError, match="cut short"):
            read_bundle(tmp_path / "y.edgeseg")
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:  # unchanged, it is sound
        assert archive.testzip() is None
