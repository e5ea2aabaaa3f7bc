"""SPEC.toml: what is accepted, what is refused and in which words; nothing is lost on the way to JSON and back."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeseg.errors import SpecError
from edgeseg.spec import find_spec, read_spec, spec_for, spec_from_dict, spec_to_dict, template
from edgeseg.types import InputSpec, ModelSpec, OutputSpec

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SHARED = Path(os.environ.get("EDGESEG_SHARED", Path(__file__).parents[1] / ".." / "shared"))


def smallest(**changes: Any) -> dict[str, Any]:
    return {"name": "net", "input": {"size": [8, 16]}} | changes


def test_the_smallest_spec_has_the_documented_defaults() -> None:
    spec = spec_from_dict({"input": {"size": [8, 16]}}, "models/street.toml")
    assert spec == ModelSpec(
        name="street",
        input=InputSpec(
            size=(8, 16),
            color="rgb",
            frame="bgr",
            scale=255.0,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            resize="bilinear",
        ),
        output=OutputSpec(index=0, classes=(), activation="logits", threshold=0.5, align_corners=False),
        factory=None,
        factory_args={},
    )


def test_every_key_arrives(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(
        """
        name = "b"
        factory = "pkg.mod:make.net"
        [factory_args]
        width = 16
        blocks = [1, 2, {deep = true}]
        [input]
        size = [3, 8192]
        color = "bgr"
        frame = "rgb"
        scale = 1
        mean = [1, 2, 3.5]
        std = [0.5, 1, 2]
        resize = "area"
        [output]
        index = "out"
        classes = ["Straße", "car"]
        activation = "probabilities"
        threshold = 0.25
        align_corners = true
        """,
        encoding="utf-8",
    )
    assert read_spec(path) == ModelSpec(
        name="b",
        factory="pkg.mod:make.net",
        factory_args={"width": 16, "blocks": [1, 2, {"deep": True}]},
        input=InputSpec((3, 8192), "bgr", "rgb", 1.0, (1.0, 2.0, 3.5), (0.5, 1.0, 2.0), "area"),
        output=OutputSpec("out", ("Straße", "car"), "probabilities", 0.25, True),
    )


finite = st.floats(-1e6, 1e6).filter(lambda x: x == 0 or abs(x) > 1e-6)
positive = st.floats(1e-6, 1e6)
words = st.text("abcXYZ019_ äß道路", min_size=1, max_size=20).filter(str.strip)
plain = st.recursive(
    st.booleans() | st.integers(-(2**60), 2**60) | finite | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
specs = st.builds(
    ModelSpec,
    name=words,
    factory=st.none() | st.just("a.b:c"),
    factory_args=st.dictionaries(words, plain, max_size=3),
    input=st.builds(
        InputSpec,
        size=st.tuples(st.integers(1, 8192), st.integers(1, 8192)),
        color=st.sampled_from(["rgb", "bgr"]),
        frame=st.sampled_from(["rgb", "bgr"]),
        scale=positive,
        mean=st.tuples(finite, finite, finite),
        std=st.tuples(positive, positive, positive),
        resize=st.sampled_from(["bilinear", "nearest", "area", "bicubic"]),
    ),
    output=st.builds(
        OutputSpec,
        index=st.integers(-3, 9) | words,
        classes=st.lists(words, unique=True, max_size=8).map(tuple),
        activation=st.sampled_from(["logits", "probabilities"]),
        threshold=st.floats(0.001, 0.999),
        align_corners=st.booleans(),
    ),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(specs)
def test_a_spec_survives_json_exactly(spec: ModelSpec) -> None:
    there = json.dumps(spec_to_dict(spec), allow_nan=False)
    assert spec_from_dict(json.loads(there), "elsewhere.json") == spec


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (smallest(input={}), "no size"),
        ({"name": "net"}, r"\[input\]"),
        (smallest(input=3), r"\[input\]: wanted a table, found 3"),
        (smallest(input={"size": [8]}), r"input.size: wanted \[height, width\].*found \[8\]"),
        (smallest(input={"size": [0, 8]}), "input.size"),
        (smallest(input={"size": [8, 8193]}), "from 1 to 8192"),
        (smallest(input={"size": [8.0, 8]}), "input.size"),
        (smallest(input={"size": [True, 8]}), "input.size"),
        (smallest(input={"size": "88"}), "input.size"),
        (smallest(input={"size": [8, 8], "std": [1, 0, 1]}), "input.std: wanted a number above 0, found 0"),
        (smallest(input={"size": [8, 8], "std": [1, 1e-200, 1]}), "float32"),
        (smallest(input={"size": [8, 8], "std": [1, 1]}), "input.std: wanted three numbers"),
        (smallest(input={"size": [8, 8], "mean": [0, 0, float("nan")]}), "input.mean: wanted a number, found nan"),
        (smallest(input={"size": [8, 8], "mean": [0, 0, float("inf")]}), "input.mean"),
        (smallest(input={"size": [8, 8], "mean": [0, 0, 10**400]}), "input.mean"),
        (smallest(input={"size": [8, 8], "mean": [0, 0, "0"]}), "input.mean"),
        (smallest(input={"size": [8, 8], "scale": -255}), "input.scale: wanted a number above 0, found -255"),
        (smallest(input={"size": [8, 8], "scale": True}), "input.scale"),
        (smallest(input={"size": [8, 8], "color": "RGB"}), 'input.color: wanted "rgb" or "bgr", found \'RGB\''),
        (smallest(input={"size": [8, 8], "frame": ["rgb"]}), "input.frame"),
        (smallest(input={"size": [8, 8], "resize": "lanczos"}), "input.resize: .*bicubic"),
        (smallest(input={"size": [8, 8], "colour": "rgb"}), r"\[input\].*'colour'.*Did you mean 'color'"),
        (smallest(output={"class": ["a"]}), r"\[output\].*'class'.*Did you mean 'classes'"),
        (smallest(inputs={}), "'inputs'.*Did you mean 'input'"),
        (smallest(output=[]), r"\[output\]: wanted a table"),
        (smallest(output={"classes": "road"}), "output.classes: wanted a list"),
        (smallest(output={"classes": ["road", ""]}), "output.classes: wanted names"),
        (smallest(output={"classes": ["road", "a\x1b[2J"]}), "output.classes: wanted names"),
        (smallest(output={"classes": ["road", 3]}), "output.classes: wanted names"),
        (smallest(output={"classes": ["road", "car", "road"]}), "'road' more than once"),
        (smallest(output={"classes": [str(i) for i in range(257)]}), "257 names"),
        (smallest(output={"index": 1.0}), "output.index"),
        (smallest(output={"index": False}), "output.index"),
        (smallest(output={"index": ""}), "output.index"),
        (smallest(output={"threshold": 0}), "output.threshold"),
        (smallest(output={"threshold": 1.0}), "output.threshold"),
        (smallest(output={"threshold": "0.5"}), "output.threshold"),
        (smallest(output={"align_corners": 1}), "output.align_corners: wanted true or false, found 1"),
        (smallest(output={"activation": "sigmoid"}), "output.activation"),
        (smallest(factory="unet"), "factory: wanted \"module:function\".*found 'unet'"),
        (smallest(factory="a:b()"), "factory"),
        (smallest(factory=":b"), "factory"),
        (smallest(factory=7), "factory"),
        (smallest(factory_args=[1]), "factory_args: wanted a table"),
        (smallest(factory_args={"x": {"y": float("inf")}}), "factory_args.x.y"),
        (smallest(factory_args={"x": [object()]}), r"factory_args.x\[0\]"),
        (smallest(name=""), "name: wanted"),
        (smallest(name="../up"), "name: wanted"),
        (smallest(name=None), "name: wanted"),
        ([], "the spec: wanted a table"),
    ],
)
def test_a_wrong_spec_is_refused_by_the_name_of_the_key(data: Any, says: str) -> None:
    with pytest.raises(SpecError, match=says) as refused:
        spec_from_dict(data, "dir/x.toml")
    assert "dir/x.toml" in str(refused.value)
    assert len(str(refused.value)) < 600


def test_the_bounds_themselves_are_accepted() -> None:
    names = [str(i) for i in range(256)]
    spec = spec_from_dict(smallest(input={"size": [1, 8192]}, output={"classes": names, "index": -1}), "x")
    assert spec.input.size == (1, 8192)
    assert spec.output.classes == tuple(names)
    assert spec.output.index == -1


def test_arguments_nested_too_deep_are_refused() -> None:
    deep: Any = 1
    for _ in range(500):
        deep = [deep]
    with pytest.raises(SpecError, match="nested"):
        spec_from_dict(smallest(factory_args={"x": deep}), "x.toml")


def test_the_template_is_a_valid_spec_and_shows_every_key() -> None:
    text = template("dir/my net.pt")
    spec = spec_from_dict(tomllib.loads(text), "x.toml")
    assert spec.name == "my net"
    full = spec_to_dict(spec)
    keys = {*full["input"], *full["output"], "name", "factory"}
    assert [key for key in keys if f"{key} = " not in text] == []
    defaults = spec_from_dict(smallest(), "x.toml")
    assert spec.output == defaults.output
    assert (spec.input.color, spec.input.frame, spec.input.resize) == ("rgb", "bgr", "bilinear")
    assert tomllib.loads(template('we"ird\\name\n.pt'))["name"]


def test_only_the_exact_stem_is_found(tmp_path: Path) -> None:
    (tmp_path / "net.toml").write_text(template("net"))
    (tmp_path / "net.v2.toml").write_text(template("net"))
    assert find_spec(tmp_path / "net.pt2") == tmp_path / "net.toml"
    assert find_spec(tmp_path / "net.v2.onnx") == tmp_path / "net.v2.toml"
    assert find_spec(tmp_path / "net_torchscript.pt") is None
    assert find_spec(tmp_path / "net.v3.pt") is None


def test_a_missing_spec_is_answered_with_one_that_works(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as refused:
        spec_for(tmp_path / "net.pt")
    message = str(refused.value)
    wanted = tmp_path / "net.toml"
    assert f"Save this as {wanted}" in message
    wanted.write_text(message[message.index("name = ") :])
    assert spec_for(tmp_path / "net.pt") == read_spec(wanted)
    with pytest.raises(SpecError, match=r"gone\.toml does not exist"):
        spec_for(tmp_path / "net.pt", tmp_path / "gone.toml")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"name = ", "not valid TOML"),
        (b"\xff\xfe\x00", "not valid TOML"),
        (b"name = 'a'\nname = 'b'", "not valid TOML"),
        (b"x = " + b"[" * 100_000, "not valid TOML"),
        (b"#" * (1 << 20) + b"#", "larger than"),
        (b"[input]\nsize = [8, 8]\n[factory_args]\nday = 2020-01-01\n", "factory_args.day"),
    ],
)
def test_a_file_that_is_no_spec_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=says):
        read_spec(path)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read"):
        read_spec(tmp_path)


@pytest.mark.skipif(not (SHARED / "models").is_dir(), reason="needs models/ in EDGESEG_SHARED or ../shared")
def test_the_shared_model_has_a_sound_spec() -> None:
    spec = spec_for(SHARED / "models" / "unet_camvid.pt2")
    assert spec.input.size == (180, 240)
    assert spec.output.classes[3] == "road"
    assert spec.factory == "unet_camvid:unet"
    assert find_spec(SHARED / "models" / "unet_camvid_torchscript.pt") is None
