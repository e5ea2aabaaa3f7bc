"""What a build is told: IBuilderConfig, optimisation profiles and timing caches."""

from __future__ import annotations

import hashlib
import json
import warnings
from typing import TYPE_CHECKING, Any

from tests.tensorrt.double import faults
from tests.tensorrt.double.network import Network, report

if TYPE_CHECKING:
    from tests.tensorrt.double.classes import Library

_CACHE = b"ptrtTIMINGS"  # what a serialized timing cache begins with


class Profile:
    """Behind IOptimizationProfile."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[tuple[int, ...], ...]] = {}
        self.extra_memory_target = 1.0

    def set_shape(self, name: str, least: tuple[int, ...], best: tuple[int, ...], most: tuple[int, ...]) -> None:
        self.shapes[name] = (least, best, most)

    def get_shape(self, name: str) -> list[tuple[int, ...]]:
        return list(self.shapes.get(name, ()))

    def wrong(self) -> str | None:
        """The input whose lengths are out of order."""
        for name, shapes in self.shapes.items():
            same = len(set(map(len, shapes))) == 1
            if not same or not all(0 <= a <= b <= c for a, b, c in zip(*shapes, strict=True)):
                return name
        return None


class Config:
    """Behind IBuilderConfig."""

    def __init__(self, library: Library, logger: Any) -> None:
        self.library, self.logger = library, logger
        self.reset()

    def reset(self) -> None:
        self.flags = 1 << (self.library.surface.classes["BuilderFlag"].enum or {})["TF32"]
        self.profiles: list[Profile] = []
        self.pools: dict[str, int] = {}
        self.cache: TimingCache | None = None
        self.default_device_type: Any = "GPU"
        self.DLA_core = -1
        self.max_aux_streams = -1
        self.avg_timing_iterations = 1
        self.max_num_tactics = -1
        self.profiling_verbosity: Any = "LAYER_NAMES_ONLY"
        self.hardware_compatibility_level: Any = "NONE"
        self.plugins_to_serialize: list[str] = []
        self._level = 3
        self._sources = sum(1 << number for number in self._tactic_sources())
        self._capabilities: list[Any] = []

    def has(self, flag: str) -> bool:
        known = self.library.surface.classes["BuilderFlag"].enum or {}
        return flag in known and bool(self.flags >> known[flag] & 1)

    def device(self) -> str:
        kind = self.default_device_type
        return kind if isinstance(kind, str) else str(kind.name)

    def set_flag(self, flag: Any) -> None:
        self.flags |= 1 << flag.value

    def clear_flag(self, flag: Any) -> None:
        self.flags &= ~(1 << flag.value)

    def get_flag(self, flag: Any) -> bool:
        return bool(self.flags >> flag.value & 1)

    @property
    def builder_optimization_level(self) -> int:
        return self._level

    @builder_optimization_level.setter
    def builder_optimization_level(self, level: int) -> None:
        self._level = min(max(level, 0), 5)

    @property
    def max_workspace_size(self) -> int:
        return self.pools.get("WORKSPACE", 0)

    @max_workspace_size.setter
    def max_workspace_size(self, size: int) -> None:
        self.pools["WORKSPACE"] = size

    def _tactic_sources(self) -> list[int]:
        return list((self.library.surface.classes["TacticSource"].enum or {}).values())

    def set_tactic_sources(self, tactic_sources: int) -> bool:
        if tactic_sources & ~sum(1 << number for number in self._tactic_sources()):
            return False
        self._sources = tactic_sources
        return True

    def get_tactic_sources(self) -> int:
        return self._sources

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.pools[pool.name] = size

    def get_memory_pool_limit(self, pool: Any) -> int:
        return self.pools.get(pool.name, 0)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def add_optimization_profile(self, profile: Profile) -> int:
        if (name := profile.wrong()) is not None:
            report(
                self.library,
                self.logger,
                "ERROR",
                f"IOptimizationProfile::isValid: Error Code 4: API Usage Error (Invalid optimization profiles for "
                f"input tensors {name}, please ensure that the optimization profiles satisfy MIN<=OPT<=MAX.)",
            )
            return -1
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, serialized: bytes) -> TimingCache | None:
        entries = TimingCache.read(serialized)
        if entries is None and not self.library.rtx:
            report(self.library, self.logger, "ERROR", "Error Code 1: Serialization (Timing cache is damaged)")
            return None
        if entries is None:
            report(self.library, self.logger, "WARNING", "Failed to deserialize timing cache. Returning an empty one.")
        return TimingCache(self.library, entries or {})

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        deprecated(self.library)
        if not ignore_mismatch and not cache.fits():
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> TimingCache | None:
        deprecated(self.library)
        return self.cache

    @property
    def num_compute_capabilities(self) -> int:
        return len(self._capabilities)

    @num_compute_capabilities.setter
    def num_compute_capabilities(self, count: int) -> None:
        self._capabilities = (self._capabilities + ["NONE"] * count)[:count]

    def set_compute_capability(self, capability: Any, index: int) -> bool:
        if not 0 <= index < len(self._capabilities):
            text = "IBuilderConfig::setComputeCapability: Error Code 3: API Usage Error (Index is not valid.)"
            report(self.library, self.logger, "ERROR", text)
            return False
        self._capabilities[index] = capability
        return True

    def get_compute_capability(self, index: int) -> Any:
        return self._capabilities[index] if 0 <= index < len(self._capabilities) else "NONE"

    def can_run_on_DLA(self, layer: Any) -> bool:
        return faults.dla_cores() > 0 and layer.type in ("CONVOLUTION", "ACTIVATION", "POOLING")


class TimingCache:
    """Behind ITimingCache: what each kind of layer took, and the release that measured it."""

    def __init__(self, library: Library, entries: dict[str, str]) -> None:
        self.library, self.entries = library, entries

    @staticmethod
    def read(serialized: bytes) -> dict[str, str] | None:
        """The entries, none of an empty one; None for what is no timing cache."""
        if not serialized:
            return {}
        if not serialized.startswith(_CACHE):
            return None
        try:
            return dict(json.loads(serialized[len(_CACHE) :]))
        except ValueError:
            return None

    def fits(self) -> bool:
        return all(version == self.library.surface.version for version in self.entries.values())

    def add(self, network: Network) -> None:
        for layer in network.layers:
            key = hashlib.sha256(f"{layer.type} {[t.shape for t in layer.inputs]}".encode()).hexdigest()[:16]
            self.entries[key] = self.library.surface.version

    def serialize(self) -> bytes:
        deprecated(self.library)
        return _CACHE + json.dumps(self.entries, sort_keys=True).encode()

    def combine(self, other: TimingCache, ignore_mismatch: bool) -> bool:
        deprecated(self.library)
        if not ignore_mismatch and not other.fits():
            return False
        self.entries.update(other.entries)
        return True

    def reset(self) -> bool:
        deprecated(self.library)
        self.entries.clear()
        return True


def deprecated(library: Library) -> None:
    """Warn of what TensorRT-RTX gave up; the warning is at the caller's line."""
    if library.rtx:
        text = "Deprecated in TensorRT-RTX 1.2. Timing cache operations are no-ops in TensorRT-RTX."
        warnings.warn(text, DeprecationWarning, stacklevel=4)  # past this, the method and its wrapper
