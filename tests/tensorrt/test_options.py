"""What a user may ask of a TensorRT build, and what is refused before anything is built."""

from __future__ import annotations

from typing import Any

import pytest

from edgeseg.backends.base import Engine, check_settings
from edgeseg.backends.tensorrt.options import Options, option_from, options_from, shapes_from
from edgeseg.errors import BadInput


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("workspace=2048", ("workspace_mb", 2048)),
        ("workspace=2GB", ("workspace_mb", 2048)),
        ("workspace=512 MiB", ("workspace_mb", 512)),
        ("level=5", ("level", 5)),
        ("tf32=off", ("tf32", False)),
        ("version-compatible", ("version_compatible", True)),
        ("version_compatible=no", ("version_compatible", False)),
        ("hardware=ampere+", ("hardware", "ampere+")),
        ("Hardware=Same-Capability", ("hardware", "same-capability")),
        ("sparse", ("sparse", True)),
        ("no-external-tactics", ("no_external_tactics", True)),
        ("dla=1", ("dla", 1)),
        ("shapes=1x180x240:1x360x480:4x720x960", ("shapes", "1x180x240:1x360x480:4x720x960")),
        ("cuda-graph=off", ("cuda_graph", False)),
        ("fallback", ("fallback", True)),
    ],
)
def test_what_is_typed_becomes_a_setting(text: str, setting: tuple[str, Any]) -> None:
    assert option_from(text) == setting


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("workspace", "workspace=2GB"),
        ("workspace=0", "workspace=2GB"),
        ("workspace=2TB", "workspace=2GB"),
        ("level=6", "level=0"),
        ("level=high", "wanted a number"),
        ("tf32=maybe", "on or off"),
        ("hardware=ada", "ampere+"),
        ("hardware", "ampere+"),
        ("dla=-2", "number of a core"),
        ("shapes=1x2x3", "LEAST:BEST:MOST"),
        ("shapes=2x8x8:1x8x8:4x8x8", "least <= best <= most"),
        ("shapes=0x8x8:1x8x8:4x8x8", "least <= best <= most"),
        ("shapes=1x8x8:1x8x8:1x8x8:1x8x8", "LEAST:BEST:MOST"),
        ("arithmetic=f16", "there is no option"),
        ("wrkspace=3", "there are: workspace"),
        ("", "there is no option"),
    ],
)
def test_what_is_mistyped_is_answered_with_what_there_is(text: str, says: str) -> None:
    with pytest.raises(BadInput) as refused:
        option_from(text)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    "options",
    [
        Options(),
        Options(workspace_mb=64, level=0, tf32=False, arithmetic="f16", sparse=True, dla=1),
        Options(version_compatible=True, hardware="ampere+", cuda_graph=False, fallback=True),
        Options(shapes=shapes_from("1x8x8:2x16x16:4x32x32")),
    ],
)
def test_options_survive_the_bundle(options: Options) -> None:
    settings = options.to_settings()
    assert options_from({**settings, "decision": "graph", "threads": 2}) == options
    assert all(isinstance(value, str | int | float | bool) for value in settings.values())


@pytest.mark.parametrize(
    "settings",
    [
        {"level": 9},
        {"level": True},
        {"tf32": 1},
        {"hardware": "all"},
        {"workspace_mb": -1},
        {"shapes": 3},
        {"dla": 99},
        {"arithmetic": "f8"},
    ],
)
def test_a_bundle_cannot_ask_for_what_does_not_exist(settings: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="is not one that a TensorRT engine can have"):
        options_from(settings)


def test_its_settings_pass_the_check_of_all_backends() -> None:
    check_settings(Engine("e", "tensorrt", "fp32", "g", {"g": b""}, {"level": 3, "decision": "graph"}))
    with pytest.raises(BadInput, match="arithmetic"):
        check_settings(Engine("e", "tensorrt", "fp32", "g", {"g": b""}, {"arithmetic": "f8"}))


def test_other_backends_do_not_take_them() -> None:
    with pytest.raises(BadInput, match="level"):
        check_settings(Engine("e", "openvino", "fp32", "g", {"g": b""}, {"level": 3}))
