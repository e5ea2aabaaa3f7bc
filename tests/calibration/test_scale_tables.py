"""Recipes and tables: what is written is what is read, and what is wrong is refused by name."""

from __future__ import annotations

import ast
import doctest
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

import calibration
from calibration import (
    METHODS,
    BadActivations,
    BadRecipe,
    BadScaleTable,
    Recipe,
    ScaleTable,
    Scheme,
    Seen,
    StaleScaleTable,
    UnknownTensor,
    calibrate,
    check,
    from_json,
    load_recipe,
    merge_tables,
    quantizer,
    recipe_names,
    see,
    to_json,
)

Values = NDArray[np.float32]
MODEL, DATA = "m" * 64, "d" * 64
SCHEME = Scheme(signed=False, symmetric=False)


def frames(count: int, seed: int = 0) -> Iterator[dict[str, Values]]:
    rng = np.random.default_rng(seed)
    for i in range(count):
        values = rng.standard_normal((4, 8, 8)).astype(np.float32) * np.float32(1 + i)
        yield {"conv": values, "relu": np.maximum(values, 0), 'a "quoted"\nname': values * np.float32(1e-30)}


@pytest.fixture
def table() -> ScaleTable:
    return calibrate(frames(3), Recipe("99", "percentile", {"percent": 99.0}), model=MODEL, data=DATA)


# recipes


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_recipe_with_advice(name: str) -> None:
    recipe = load_recipe(name)
    assert (recipe.name, recipe.method) == (name, name)
    path = Path(calibration.__file__).parent / "recipes" / f"{name}.toml"
    assert path.read_text("utf-8").startswith("# ")
    assert load_recipe(path) == recipe
    assert name in recipe_names()


def test_digest_is_of_what_matters(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('method = "percentile"  # a comment\n[parameters]\npercent = 99.99\n')
    assert load_recipe(path).digest == load_recipe("percentile").digest == Recipe("x", "percentile").digest
    path.write_text('method = "percentile"\n[parameters]\npercent = 99.9\n')
    assert load_recipe(path).digest != load_recipe("percentile").digest
    assert len({load_recipe(name).digest for name in recipe_names()}) == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'method' is missing"),
        ('method = "kl"', "'kl' does not exist; it is one of minmax, moving-average, percentile, entropy, mse"),
        ("method = [1]", "does not exist"),
        ('method = "mse"\nsamples = 3', "unknown samples"),
        ('method = "mse"\nparameters = 3', "parameters must be a table"),
        ('method = "mse"\n[parameters]\npercent = 99', "unknown parameter percent; mse has none"),
        ('method = "percentile"\n[parameters]\npercent = 101', "from 50 to 100, got 101"),
        ('method = "percentile"\n[parameters]\npercent = nan', "must be a number"),
        ('method = "percentile"\n[parameters]\npercent = true', "must be a number"),
        ("method = ", "not a TOML file"),
        ("#" * 70_000, "a few lines was expected"),
    ],
)
def test_bad_recipes_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(BadRecipe, match=message):
        load_recipe(path)


def test_missing_recipe_names_those_that_exist() -> None:
    with pytest.raises(BadRecipe, match="neither one of entropy, minmax, moving-average, mse, percentile nor a file"):
        load_recipe("percntile")
    with pytest.raises(BadRecipe, match="neither one of"):
        load_recipe("")


# tables


def values_of(seen: Seen) -> Seen:
    return replace(seen, extremes=None)


def test_watching_sees_what_was_seen_so_far() -> None:
    kept: dict[int, dict[str, Seen]] = {}
    table = calibrate(
        frames(4), load_recipe("mse"), model=MODEL, data=DATA, watch=lambda n, tensors: kept.update({n: dict(tensors)})
    )
    assert list(kept) == [1, 2, 3, 4]
    for count, tensors in kept.items():
        assert tensors == calibrate(frames(count), load_recipe("mse"), model=MODEL, data=DATA).tensors
    assert kept[4] == table.tensors


def test_calibrate_sees_every_value_of_every_frame(table: ScaleTable) -> None:
    whole = [np.concatenate([frame[name].ravel() for frame in frames(3)]) for name in table.tensors]
    assert [values_of(seen) for seen in table.tensors.values()] == [values_of(see(values)) for values in whole]
    assert table.frames == 3
    assert table.quantizer("conv", SCHEME) == quantizer(table.seen("conv"), "percentile", SCHEME, {"percent": 99.0})
    other = table.with_recipe(load_recipe("minmax"))
    assert other.quantizer("conv", SCHEME) == quantizer(table.seen("conv"), "minmax", SCHEME)
    assert other.quantizer("conv", SCHEME) != table.quantizer("conv", SCHEME)


def test_calibrate_refuses_what_it_cannot_use() -> None:
    recipe = load_recipe("mse")
    with pytest.raises(BadActivations, match="got none"):
        calibrate([], recipe, model=MODEL, data=DATA)
    one = np.ones(3, np.float32)
    with pytest.raises(BadActivations, match=r"frame 1: the same tensors.*missing: b; new: c"):
        calibrate([{"a": one, "b": one}, {"a": one, "c": one}], recipe, model=MODEL, data=DATA)
    with pytest.raises(BadActivations, match="tensor 'a', frame 1: finite values"):
        calibrate([{"a": one}, {"a": one * np.float32("nan")}], recipe, model=MODEL, data=DATA)


def test_unknown_tensor_is_helped(table: ScaleTable) -> None:
    with pytest.raises(UnknownTensor, match=r"'conv_1' was not seen.*3 tensors. Did you mean 'conv'"):
        table.quantizer("conv_1", SCHEME)


def test_merged_tables_equal_one_run(table: ScaleTable) -> None:
    recipe = table.recipe
    all_frames = list(frames(3))
    parts = [calibrate(all_frames[i:j], recipe, model=MODEL, data=DATA) for i, j in ((0, 1), (1, 3))]
    for merged in (merge_tables(*parts), merge_tables(*parts[::-1])):
        assert replace(merged, tensors={}) == replace(table, tensors={})
        assert list(map(values_of, merged.tensors.values())) == list(map(values_of, table.tensors.values()))
    average, apart = (t.with_recipe(load_recipe("moving-average")) for t in (table, merge_tables(*parts)))
    for name in table.tensors:
        assert apart.quantizer(name, SCHEME).scale == pytest.approx(average.quantizer(name, SCHEME).scale, rel=1e-6)
    other = replace(parts[1], data="e" * 64)
    with pytest.raises(StaleScaleTable, match="data"):
        merge_tables(parts[0], other)
    assert merge_tables(parts[0], other, data=DATA) == merge_tables(*parts)
    with pytest.raises(StaleScaleTable, match="model"):
        merge_tables(parts[0], replace(parts[1], model="n" * 64), data=DATA)
    with pytest.raises(StaleScaleTable, match="such as 'relu'"):
        merge_tables(parts[0], replace(parts[1], tensors={k: v for k, v in parts[1].tensors.items() if k != "relu"}))


def test_fresh_table_is_accepted_and_stale_ones_are_not(table: ScaleTable) -> None:
    check(table, model=MODEL, data=DATA, recipe=Recipe("another name", "percentile", {"percent": 99}))
    with pytest.raises(
        StaleScaleTable, match=r"else: model \(mmmmmmmmmmmm in.*xxxx now: the network.*Calibrate again"
    ) as e:
        check(table, model="x" * 64, data=DATA, recipe=table.recipe)
    assert "data" not in str(e.value)
    with pytest.raises(StaleScaleTable, match=r"else: data \(dddddddddddd in.*Calibrate again"):
        check(table, model=MODEL, data="x" * 64, recipe=table.recipe)
    with pytest.raises(StaleScaleTable, match=r"else: recipe \(.*'99' then, 'mse' now.*need not be run again"):
        check(table, model=MODEL, data=DATA, recipe=load_recipe("mse"))
    with pytest.raises(StaleScaleTable, match=r"model .*; data .*; recipe .*Calibrate again"):
        check(table, model="x", data="y", recipe=load_recipe("mse"))


# JSON


@given(hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
@settings(max_examples=150, deadline=None)
def test_json_gives_back_the_same_bits(values: Values) -> None:
    table = ScaleTable(MODEL, DATA, load_recipe("mse"), 1, {"t": see(values)})
    text = to_json(table)
    assert from_json(text) == table
    assert to_json(from_json(text)) == text


def test_json_is_readable_and_stable(table: ScaleTable) -> None:
    text = to_json(table)
    assert from_json(text) == table
    assert to_json(replace(table, tensors=dict(reversed(list(table.tensors.items()))))) == text
    lines = text.splitlines()
    assert len(lines) == 9 + 6 * len(table.tensors)
    assert list(json.loads(text)["tensors"]) == sorted(table.tensors)


def broken(change: Callable[[dict[str, Any]], object]) -> Callable[[str], str]:
    def apply(text: str) -> str:
        content = json.loads(text)
        change(content)
        return json.dumps(content)

    return apply


def in_conv(**fields: object) -> Callable[[str], str]:
    return broken(lambda c: c["tensors"]["conv"].update(fields))


def histogram(change: Callable[[list[Any]], object]) -> Callable[[str], str]:
    return broken(lambda c: change(c["tensors"]["conv"]["histogram"]))


def in_extremes(**fields: object) -> Callable[[str], str]:
    return broken(lambda c: c["tensors"]["conv"]["extremes"].update(fields))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "not a scale table in JSON"),
        (lambda text: "", "not a scale table in JSON"),
        (lambda text: "[" * 100_000, "not a scale table in JSON"),
        (lambda text: "[]", "an object was expected, got a list"),
        (lambda text: text.replace('"frames": 3', '"frames": NaN'), "NaN is not a number"),
        (lambda text: text.replace('"frames": 3', '"frames": 3, "frames": 4'), "'frames' occurs twice"),
        (
            lambda text: text.replace('"frames": 3', '"frames": ' + "9" * 9999),
            "not a scale table|frames: a whole number",
        ),
        (broken(lambda c: c.pop("schema")), "schema: edgeseg.scales/2 was expected, got None"),
        (broken(lambda c: c.update(schema="edgeseg.scales/3")), "schema: edgeseg.scales/3 is newer"),
        (broken(lambda c: c.update(schema="other/1")), "schema: .*not a scale table"),
        (broken(lambda c: c.update(extra=1)), "unknown fields: extra"),
        (broken(lambda c: c.pop("data")), "missing fields: data"),
        (broken(lambda c: c.update(model=3)), "model: text was expected, got 3"),
        (broken(lambda c: c.update(data="")), "data: text was expected"),
        (broken(lambda c: c.update(frames=0)), "frames: a whole number from 1"),
        (broken(lambda c: c.update(frames=True)), "frames: a whole number"),
        (broken(lambda c: c.update(frames=1.5)), "frames: a whole number"),
        (broken(lambda c: c.update(tensors=[])), "tensors: an object was expected"),
        (broken(lambda c: c["tensors"].update(conv=3)), "tensors.conv: an object was expected"),
        (broken(lambda c: c["tensors"]["conv"].pop("zeros")), "tensors.conv: missing fields: zeros"),
        (broken(lambda c: c["recipe"].update(method="kl")), "recipe: .*does not exist"),
        (broken(lambda c: c["recipe"].update(method=["mse"])), "recipe.method: text was expected"),
        (broken(lambda c: c["recipe"]["parameters"].update(percent=98.0)), "recipe.digest"),
        (broken(lambda c: c["recipe"].pop("digest")), "recipe: missing fields: digest"),
        (in_conv(minimum="0"), "tensors.conv.minimum: a number"),
        (in_conv(minimum=10**400), "tensors.conv.minimum: a finite float32"),
        (in_conv(minimum=-0.1), "tensors.conv.minimum: a finite float32"),
        (in_conv(maximum=1e300), "tensors.conv.maximum: a finite float32"),
        (in_conv(maximum=False), "tensors.conv.maximum: a number"),
        (in_conv(maximum=-1e3 - 1), "tensors.conv.maximum: .*"),
        (in_conv(minimum=-1024.0), "tensors.conv.histogram: .* bins were expected"),
        (in_conv(zeros=-1), "tensors.conv.zeros: a whole number from 0"),
        (in_conv(zeros=1), "tensors.conv.count: 769 follows"),
        (in_conv(count=5), "tensors.conv.count"),
        (in_conv(bin_width=0.3), "tensors.conv.bin_width"),
        (in_conv(first_bin=None), "tensors.conv.first_bin"),
        (in_conv(histogram="1 2"), "tensors.conv.histogram: a list"),
        (in_conv(histogram=[]), r"tensors.conv.histogram: \d+ bins were expected.*got 0"),
        (in_conv(histogram=[-1_000_000_000_000]), r"tensors.conv.histogram\[0\]: a whole number"),
        (in_conv(histogram=[1] * 5000), "tensors.conv.histogram: .*got 5000"),
        (histogram(lambda h: h.__setitem__(0, 1.0)), r"tensors.conv.histogram\[0\]: a whole number"),
        (histogram(lambda h: h.__setitem__(0, 0)), r"tensors.conv.histogram\[0\]: empty bins"),
        (in_conv(extremes=3), "tensors.conv.extremes: an object"),
        (in_conv(extremes={"frames": 3}), "tensors.conv.extremes: missing fields: first, average"),
        (in_extremes(frames=0), "tensors.conv.extremes.frames: a whole number from 1"),
        (in_extremes(first=[0]), "tensors.conv.extremes.first: two numbers"),
        (in_extremes(first=[False, 1]), "tensors.conv.extremes.first: two numbers"),
        (in_extremes(average=[1, -1]), "tensors.conv.extremes.average: two numbers within .* in order"),
        (in_extremes(average=[-1e9, 0]), "tensors.conv.extremes.average: two numbers within"),
        (in_extremes(average=[0, 10**400]), "tensors.conv.extremes.average: two numbers within"),
        (histogram(lambda h: h.append(1)), "bins were expected"),
        (histogram(lambda h: h.__setitem__(0, 2**63)), r"tensors.conv.histogram\[0\]: a whole number"),
        (histogram(lambda h: h.__setitem__(0, h[0] + 1)), "tensors.conv.count"),
        (histogram(lambda h: h.__setitem__(slice(0, 2), [-1, h[0] + max(h[1], 0)])), "tensors.conv"),
    ],
)
def test_damaged_json_is_refused_by_name(table: ScaleTable, damage: Callable[[str], str], message: str) -> None:
    text = to_json(table)
    assert damage(text) != text
    with pytest.raises(BadScaleTable, match=message):
        from_json(damage(text))


def test_empty_ends_are_refused() -> None:
    seen = see(np.array([-1.0, 0.5, 1.0], np.float32))
    text = to_json(ScaleTable(MODEL, DATA, load_recipe("mse"), 1, {"t": seen}))
    content = json.loads(text)
    assert content["tensors"]["t"]["histogram"][0] == 1
    content["tensors"]["t"]["histogram"][0] = -1  # the count that moves to another bin
    content["tensors"]["t"]["zeros"] = 1
    with pytest.raises(BadScaleTable, match=r"tensors\.t\.histogram: the bins of the minimum and the maximum"):
        from_json(json.dumps(content))


def test_a_table_of_the_first_version_is_read(table: ScaleTable) -> None:
    """It has no extremes: every recipe but the one that needs them works, and that one says which tensor lacks them."""
    content = json.loads(to_json(table))
    content["schema"] = "edgeseg.scales/1"
    for block in content["tensors"].values():
        del block["extremes"]
    old = from_json(json.dumps(content))
    assert old.tensors == {name: values_of(seen) for name, seen in table.tensors.items()}
    assert old.quantizer("conv", SCHEME) == table.quantizer("conv", SCHEME)
    assert from_json(to_json(old)) == old
    assert merge_tables(old, table).seen("conv").extremes is None
    with pytest.raises(BadScaleTable, match=r"tensor 'conv': .*'moving-average' needs.*Calibrate again"):
        old.with_recipe(load_recipe("moving-average")).quantizer("conv", SCHEME)


# the package


def test_doctest_of_the_package() -> None:
    result = doctest.testmod(calibration)
    assert result.attempted >= 6
    assert result.failed == 0


def test_package_needs_numpy_only() -> None:
    standard = {"collections", "dataclasses", "difflib", "hashlib", "json", "math", "pathlib", "re", "sys", "typing"}
    allowed = standard | {"__future__", "calibration", "numpy", "tomllib", "tomli"}
    seen = set()
    for path in Path(calibration.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                seen |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                seen.add((node.module or "").partition(".")[0])
    assert "calibration" in seen
    assert seen <= allowed
