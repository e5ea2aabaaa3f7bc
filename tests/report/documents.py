"""Result documents as bench and eval write them, small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg.measure.latency import summarize

MACHINE = {"cpu": "a processor", "architecture": "x86_64", "cores_usable": 2.0, "isa": ["avx2"], "memory_mb": 8000}
VERSIONS = {"edgeseg": "0.1.0", "numpy": "2.4.0"}


def bench(time: str | None = "2026-03-01T00:00:00Z", level: float = 10.0, **more: Any) -> dict[str, Any]:
    """A document edgeseg.bench/2 with 80 samples about `level` ms."""
    random = np.random.default_rng(int(level * 1000))
    samples = {kind: (level + extra + random.gamma(2, 0.1, 80)) for kind, extra in (("engine", 0), ("whole", 1))}
    engine, whole = (summarize([round(x * 1e6) for x in samples[kind]]) for kind in ("engine", "whole"))
    return {
        "schema": "edgeseg.bench/2",
        "bundle": "net",
        "path": "net.edgeseg",
        "graph": "abc",
        "variant": "openvino-int8",
        "backend": "openvino",
        "precision": "int8",
        "settings": {"arithmetic": "bf16"},
        "scenario": "single-stream",
        "run": "00ff",
        "latency_ms": engine.to_json(),
        "end_to_end_ms": whole.to_json(),
        "cold_ms": {"open": 80.0, "first_frame": 20.0},
        "fps": 1000 / engine.mean,
        "samples_ms": {kind: [round(float(x), 4) for x in some] for kind, some in samples.items()},
        "frames_digest": "0",
        "frame_size": [48, 64],
        "samples": 80,
        "slowdown": None,
        "roofline": None,
        "multi_stream": None,
        "offline": None,
        "camera": None,
        "machine": MACHINE | ({"time": time} if time else {}),
        "versions": VERSIONS,
        **more,
    }


def evaluation(time: str | None = "2026-03-01T00:00:00Z", miou: float = 0.6, **more: Any) -> dict[str, Any]:
    """A document edgeseg.eval/1 of two classes."""
    iou = {"road": miou + 0.1, "pole": miou - 0.1}
    return {
        "schema": "edgeseg.eval/1",
        "bundle": "net",
        "variant": "openvino-int8",
        "precision": "int8",
        "data": {"name": "street", "split": "val", "digest": "0"},
        "miou": miou,
        "dice": 0.7,
        "pixel_accuracy": 0.9,
        "iou": iou,
        "dice_per_class": iou,
        "frequency": {"road": 0.9, "pole": 0.1},
        "frames": 12,
        "skipped": [],
        "graph": "abc",
        "machine": MACHINE | ({"time": time} if time else {}),
        "versions": VERSIONS,
        **more,
    }


def build(**more: Any) -> dict[str, Any]:
    """A document edgeseg.build/1 with an FP32 and an INT8 engine."""
    engines = []
    for name, precision, ms, miou, size in (
        ("openvino-fp32", "fp32", 20.0, 0.61, 8_000_000),
        ("openvino-int8", "int8", 8.0, 0.6, 2_000_000),
    ):
        iou = {"road": miou + 0.1, "pole": miou - 0.1}
        engines.append(
            {
                "name": name,
                "backend": "openvino",
                "precision": precision,
                "settings": {},
                "miou": miou,
                "agreement": 0.99,
                "boundary_agreement": 0.9,
                "dice": 0.7,
                "pixel_accuracy": 0.9,
                "iou": iou,
                "bytes": size,
                "built": None,
                "latency_ms": summarize([round(ms * 1e6)] * 80).to_json(),
            }
        )
    return {
        "schema": "edgeseg.build/1",
        "name": "net",
        "classes": ["road", "pole"],
        "engines": engines,
        "chosen": "openvino-int8",
        "reasons": ["openvino-int8 is 2.50 times as fast as the fastest FP32 engine."],
        "rejected": [],
        "asked": "int8",
        "metric": "mIoU",
        "max_drop": 1.0,
        "intake": {"form": "exported", "opset": 17, "parity": {"overall": 1.0, "boundary": 1.0, "frames": 8}},
        "calibration": {
            "frames": 64,
            "split": "train",
            "recipe": {"name": "mse", "digest": "0"},
            "tensors": 9,
            "skipped": [],
        },
        "evaluation": {"frames": 12, "labelled": 12, "split": "val", "skipped": []},
        "machine": MACHINE | {"time": "2026-03-01T00:00:00Z"},
        "versions": VERSIONS,
        **more,
    }


def put(folder: Path, name: str, document: Any) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")
    return path
