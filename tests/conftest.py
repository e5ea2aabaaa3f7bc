"""What all tests share: no test reads or fills the user's cache, and golden files are rewritten on request only."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="Write the golden files anew instead of comparing.")


def pytest_configure() -> None:
    # In the background of a script Ctrl-C is ignored, by all processes started there too; many tests send one.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """EDGESEG_CACHE in the test's own folder."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("EDGESEG_CACHE", str(folder))
    return folder


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """golden(name, text): compare with golden/name beside the test, or write it with --update-golden."""

    def compare(name: str, text: str) -> None:
        path = Path(request.path).parent / "golden" / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.is_file(), f"there is no {path}; write it with: pytest {request.path} --update-golden"
        assert text == path.read_text(encoding="utf-8"), f"differs from {path}; if it should: pytest --update-golden"

    return compare


@pytest.fixture(scope="session")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network (net.onnx, net.toml) and a small rendered data set (dataset.toml)."""
    from tests.quantize import making

    folder = tmp_path_factory.mktemp("street")
    (folder / "net.onnx").write_bytes(making.plain_network())
    (folder / "net.toml").write_text(making.PLAIN_SPEC, encoding="utf-8")
    (folder / "dataset.toml").write_text(making.STREET, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def built(street: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of an INT8 build of it with ONNX Runtime, whichever engine won; its cache lies beside it."""
    from edgeseg.pipeline import build

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGESEG_CACHE", str(street / "cache"))
        out = tmp_path_factory.mktemp("built") / "tiny.edgeseg"
        data = street / "dataset.toml"
        build(street / "net.onnx", data=data, precision="int8", backend="onnxruntime", quick=True, out=out)
    return out
