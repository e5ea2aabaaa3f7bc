"""What all tests share: no test reads or fills the user's cache, and golden files are rewritten on request only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="Write the golden files anew instead of comparing.")


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
