"""The bytes of an engine of the double: a magic word, what it was built with, and the ONNX graph that it runs."""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.tensorrt.double.classes import Library
    from tests.tensorrt.double.config import Config
    from tests.tensorrt.double.network import Network

MAGIC = b"ftrtDOUBLE"  # engines of TensorRT begin with ftrt


@dataclass(frozen=True, eq=False)
class Plan:
    module: str
    version: str
    flags: tuple[str, ...]
    strongly_typed: bool
    profiles: tuple[dict[str, Any], ...]  # input name → least, best, most
    verbosity: str
    capabilities: tuple[str, ...]
    hardware: str
    dla: int
    level: int
    workspace: int
    precisions: dict[str, str]  # what the caller asked of a layer, by its name
    graph: bytes = field(repr=False)

    @staticmethod
    def of(library: Library, network: Network, config: Config) -> Plan:
        assert network.model is not None
        known = library.surface.classes["BuilderFlag"].enum or {}

        def text(value: Any) -> str:
            return value if isinstance(value, str) else str(value.name)

        return Plan(
            library.surface.module,
            library.surface.version,
            tuple(sorted(flag for flag in known if config.has(flag))),
            network.strongly_typed,
            tuple(profile.shapes for profile in config.profiles),
            text(config.profiling_verbosity),
            tuple(text(config.get_compute_capability(i)) for i in range(config.num_compute_capabilities)),
            text(config.hardware_compatibility_level),
            config.DLA_core if config.device() == "DLA" else -1,
            config.builder_optimization_level,
            config.pools.get("WORKSPACE", 0),
            {layer.name: layer.asked()[0] for layer in network.layers if layer.asked()},
            network.model.SerializeToString(),
        )

    def to_bytes(self) -> bytes:
        head = {**asdict(self), "graph": zlib.crc32(self.graph)}
        text = json.dumps(head).encode()
        return MAGIC + len(text).to_bytes(8, "little") + text + self.graph

    @staticmethod
    def from_bytes(data: bytes) -> Plan | None:
        """None for what is no engine, or a damaged one."""
        if not data.startswith(MAGIC):
            return None
        start = len(MAGIC) + 8
        size = int.from_bytes(data[len(MAGIC) : start], "little")
        graph = data[start + size :]
        try:
            head = json.loads(data[start : start + size])
        except ValueError:
            return None
        if not isinstance(head, dict) or head.pop("graph") != zlib.crc32(graph):
            return None
        profiles = tuple({n: tuple(map(tuple, s)) for n, s in profile.items()} for profile in head.pop("profiles"))
        head.update({key: tuple(head[key]) for key in ("flags", "capabilities")})
        return Plan(**head, profiles=profiles, graph=graph)

    def opens_in(self, module: str, version: str) -> bool:
        """The same release; a later one where it was built version compatible (8 in 10, 10 in 11, and within one)."""
        if (module, version) == (self.module, self.version):
            return True
        if module != self.module or "VERSION_COMPATIBLE" not in self.flags:
            return False
        mine, theirs = (tuple(map(int, v.split("."))) for v in (self.version, version))
        steps = {(8, 8), (8, 10), (10, 10), (10, 11), (11, 11)}
        return mine <= theirs and (mine[0], theirs[0]) in steps
