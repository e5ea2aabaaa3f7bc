"""Reading back what an engine computes in. The samples in inspector/ have the structure of each version's output."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeseg.backends.tensorrt.inspection import (
    Precisions,
    absent,
    blockers,
    layers_of,
    precisions,
    summary,
    told,
    with_times,
)
from edgeseg.backends.tensorrt.layers import Layer
from edgeseg.errors import BadInput, CannotTell

SAMPLES = Path(__file__).parent / "inspector"


def sample(name: str) -> tuple[Layer, ...]:
    return layers_of((SAMPLES / f"{name}.json").read_text(encoding="utf-8"))


def one(**row: Any) -> Layer:
    (layer,) = layers_of(json.dumps({"Layers": [{"Name": "x", "LayerType": "", **row}]}))
    return layer


def tensors(*formats: str) -> list[dict[str, str]]:
    return [{"Name": f"t{index}", "Format/Datatype": text} for index, text in enumerate(formats)]


def layer(precision: Any = "int8", *, convolution: bool = True, ms: float | None = None, name: str = "c") -> Layer:
    return Layer(name, "CaskConvolution" if convolution else "TopK", precision, convolution, False, (), ms)


def test_int8_of_8_5() -> None:
    layers = sample("8.5-int8")
    found = {entry.nodes[-1] if entry.nodes else entry.name: entry for entry in layers}
    assert len(layers) == 10  # the constant runs nothing
    convolutions = {name: entry.precision for name, entry in found.items() if entry.convolution}
    assert convolutions == {
        "/conv1/Conv": "int8",  # its output is FP32, and it computes in INT8
        "/relu/Relu": "int8",  # so too with FP16 added at its end
        "/depthwise/Conv": "fp16",
        "/up/ConvTranspose": "fp32",
    }
    assert found["/relu/Relu"].nodes[-3:] == ("/conv2/Conv", "/add/Add", "/relu/Relu")
    assert found["/mul/Mul"].nodes == ("/gate/Sigmoid", "/mul/Mul")
    assert found["/mul/Mul"].precision == "fp16"
    assert found["/argmax/ArgMax"].precision == "fp32"
    assert sum(entry.reformat for entry in layers) == 3  # quantizing, changing layout, and doing nothing


def test_dynamic_shapes_leave_weights_and_tactics_to_tell() -> None:
    layers = sample("8.6-dynamic")
    assert [entry.precision for entry in layers] == ["int8", "fp16", "fp16", "other"]  # of the first profile only
    assert [entry.convolution for entry in layers] == [True, True, False, False]
    assert layers[0].nodes == ("/conv1/Conv", "/relu1/Relu")


def test_kernels_that_myelin_generates() -> None:
    layers = sample("10.3-fp16-myelin")
    found = {entry.name: entry for entry in layers}
    assert not any(entry.kind in ("signal", "wait") for entry in layers)
    assert {name for name, entry in found.items() if entry.reformat} == {"__myl_Tran_myl0_1", "__myl_MoveCast_myl0_5"}
    convolutions = {name: entry.precision for name, entry in found.items() if entry.convolution}
    assert convolutions == {
        "/conv1/Conv_myl0_2": "fp16",
        "/head/Conv_myl0_3": "fp16",  # a product of matrices that is a convolution of 1x1
        "__myl_FcAddCast_myl0_4": "fp32",  # nothing else holds /aux/Conv; one operand is FP32
    }
    assert found["/conv1/Conv_myl0_2"].nodes == ("/conv1/Conv", "/relu1/Relu")
    assert found["__myl_CastMulAdd_myl0_0"].precision == "fp32"


def test_names_of_convolutions_can_be_told() -> None:
    text = (SAMPLES / "10.3-fp16-myelin.json").read_text(encoding="utf-8")
    named = layers_of(text, {"/scale/Mul", "/conv1/Conv"})
    assert {entry.name for entry in named if entry.convolution} == {"__myl_CastMulAdd_myl0_0", "/conv1/Conv_myl0_2"}


def test_types_of_11() -> None:
    layers = sample("11.1-int8")
    assert [entry.precision for entry in layers] == ["int8", "int8", "fp16", "bf16", "bf16", "fp32"]
    assert [entry.reformat for entry in layers] == [False] * 4 + [True, False]
    assert blockers(layers, "int8") == ("/weightonly/Conv (FP16)", "/head/Conv (BF16)")


def test_names_only_tell_no_precision() -> None:
    layers = sample("10.3-names-only")
    assert len(layers) == 3
    assert {entry.precision for entry in layers} == {"other"}
    assert [entry.convolution for entry in layers] == [False, True, False]
    assert layers[0].reformat
    assert layers[2].nodes == ("/resize/Resize", "/decide/ArgMax")
    assert not told(layers)
    assert "does not tell" in summary(layers)
    for nothing in (layers, layers_of('{"Layers": []}'), layers_of("")):
        with pytest.raises(CannotTell, match="detailed"):
            absent(nothing, "int8")


@pytest.mark.parametrize(
    ("tactic", "precision"),
    [
        ("sm80_xmma_fprop_implicit_gemm_interleaved_i8f16_i8i32_f32_nchw_vect_c_32kcrs", "int8"),
        ("ampere_fp32_icudnn_int8x4_128x64_relu_medium_nn_v1", "int8"),
        ("turing_int8_i8816cudnn_int8_256x64_ldg16_relu_small_t1", "int8"),
        ("ampere_first_layer_filter3x3_imma_fwd", "int8"),
        ("sm80_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc", "fp16"),
        ("turing_fp16_s1688cudnn_fp16_128x128_ldg8_relu_f2f", "fp16"),
        ("trt_volta_h884cudnn_128x64_sliced1x2_ldg8_relu", "fp16"),
        ("sm80_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc", "bf16"),
        ("sm89_xmma_fprop_implicit_gemm_e4m3e4m3_e4m3f32_f32_nhwckrsc", "fp8"),
        ("sm80_xmma_fprop_implicit_gemm_f32f32_tf32f32_f32_nhwckrsc", "fp32"),
        ("volta_scudnn_128x64_relu_interior_nn_v1", "fp32"),
        ("cutlass_tensorop_who_knows", "other"),
        ("__myl_FcInt8Cast_0x12", "other"),
        ("", "other"),
    ],
)
def test_tactics(tactic: str, precision: str) -> None:
    assert one(LayerType="CaskConvolution", TacticName=tactic).precision == precision


@pytest.mark.parametrize(
    ("text", "precision"),
    [
        ("Row major Int8 format", "int8"),
        ("INT8", "int8"),
        ("UInt8", "other"),
        ("Row major INT32 format", "other"),
        ("Bool", "other"),
        ("Half", "fp16"),
        ("Float", "fp32"),
        ("BFloat16", "bf16"),
        ("FP8", "fp8"),
        ("N/A due to dynamic shapes", "other"),
    ],
)
def test_data_types(text: str, precision: str) -> None:
    assert one(LayerType="TopK", Inputs=tensors(text)).precision == precision


def test_what_is_trusted_first() -> None:
    both = {"LayerType": "CaskConvolution", "TacticName": "sm80_f32f32_f32f32_f32"}
    assert one(**both, Weights={"Type": "Int8"}, Inputs=tensors("Row major Int8 format")).precision == "int8"
    assert one(**both, Weights={"Type": "Int8"}, Inputs=tensors("Half")).precision == "fp16"  # weights only
    assert one(**both, Weights={"Type": "Half"}, Inputs=tensors("Row major Int8 format")).precision == "fp16"
    assert one(**both, Inputs=tensors("Half", "Float")).precision == "fp16"  # the bias is FP32
    assert one(LayerType="PointWiseV2", Inputs=tensors("Half", "Float")).precision == "fp32"
    assert one(LayerType="PointWiseV2", Inputs=tensors("Int32", "Half")).precision == "fp16"
    assert one(LayerType="CaskPooling", TacticName="sm50_xmma_pooling_fw_4d_cudnn").convolution is False


def test_nonsense_is_refused() -> None:
    for text in ("{", "[]", "7", '{"Layers": 3}', '{"Layers": [3]}', "{}", "[" * 100_000):
        with pytest.raises(BadInput, match="inspector"):
            layers_of(text)
    assert one(Inputs="x", Weights=[], Metadata=3, TacticName=None).precision == "other"


def test_times_by_name_and_by_parts() -> None:
    layers = (layer(name="a"), layer(name="a + b"), layer(name="c + d"), layer(name="e"))
    timed = with_times(layers, {"a": 1.0, "b": 2.0, "c + d": 4.0, "c": 9.0, "d": 9.0})
    assert [entry.ms for entry in timed] == [1.0, 3.0, 4.0, None]
    assert [entry.ms for entry in layers] == [None] * 4


def test_summary_of_a_profiled_engine() -> None:
    layers = [replace(layer(ms=4.0), name=f"c{i}") for i in range(17)] + [layer("fp16", ms=4.0)]
    layers += [layer("fp16", convolution=False, ms=17.0), layer("fp32", convolution=False, ms=7.0)]
    layers += [Layer("r", "Reformat", "fp32", False, True, (), 0.5) for _ in range(6)]
    assert summary(layers) == ("INT8 71 % of the time (17 of 18 convolutions), FP16 22 %, FP32 7 %; 6 reformats 3 %")
    found = precisions(layers)
    assert found.convolutions == {"int8": 17, "fp16": 1}
    assert found.layers == {"int8": 17, "fp16": 2, "fp32": 1}
    assert found.share("int8") == pytest.approx(68 / 96)
    assert found.reformat_share == pytest.approx(3 / 99)
    assert Precisions.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_summary_without_times() -> None:
    layers = sample("8.5-int8")
    assert summary(layers) == "INT8 50 % (2 of 4 convolutions), FP16 25 %, FP32 25 %; 3 reformats"
    found = precisions(layers)
    assert found.ms is None
    assert found.reformat_share is None
    assert Precisions.from_json(json.loads(json.dumps(found.to_json()))) == found
    half_timed = with_times(layers, {"/depthwise/Conv": 1.0})
    assert precisions(half_timed).ms is None  # shares of the time of one layer would mislead
    assert summary([layer("fp16", convolution=False)]) == "FP16 100 % (1 of 1 layers)"


@pytest.mark.parametrize(
    "value", [{}, {"convolutions": {"int3": 1}, "layers": {}, "ms": None, "reformats": 0, "reformat_ms": None}, []]
)
def test_precisions_from_nonsense(value: Any) -> None:
    with pytest.raises(BadInput, match="precisions"):
        Precisions.from_json(value)


def test_absent_precision() -> None:
    fp32 = [layer("fp32", name=f"/c{i}/Conv") for i in range(6)]
    why = absent(fp32, "fp16")
    assert why is not None
    assert "FP16 was asked for" in why
    assert "no convolution" in why
    assert "/c0/Conv (FP32)" in why
    assert "/c5/Conv" not in why  # only the first few
    assert absent(fp32, "fp32") is None
    assert absent([layer(), *fp32], "int8") is not None
    assert absent([*[layer()] * 6, *fp32], "int8") is None  # half is enough
    assert absent([layer()], "fp16") is None  # narrower is more than was asked for
    assert absent([layer("bf16")], "fp16") is None
    assert absent([layer("fp16")], "int8") is not None


def test_time_is_told_and_does_not_decide() -> None:
    slow, fast = layer("fp32", ms=9.0), layer("int8", ms=1.0)
    why = absent([slow, slow, fast], "int8")
    assert why is not None
    assert "1 of 3 convolutions, 5 % of their time" in why
    assert absent([slow, fast, fast], "int8") is None  # the narrow ones are fast, which is what they are for
    assert absent([replace(slow, ms=0.0), replace(fast, ms=0.0)], "int8") is None  # times of nothing: counted


def test_unknown_layers_that_would_decide() -> None:
    with pytest.raises(CannotTell, match="1 the inspector does not say"):
        absent([layer("int8"), layer("fp32"), layer("fp32"), layer("other")], "int8")
    assert absent([layer("other"), *[layer("fp32")] * 5], "int8") is not None
    assert absent([layer("int8"), layer("other")], "int8") is None


def test_networks_without_convolutions_are_judged_by_their_products() -> None:
    product = Layer("m", "gemm", "fp32", False, False)
    rest = [layer("fp16", convolution=False)] * 5
    assert absent([product, *rest], "fp16") is not None
    assert absent([replace(product, precision="fp16"), layer("fp32", convolution=False)], "fp16") is None
    assert absent(rest, "fp16") is None
