"""Types that are like no class of Python: enumerations of pybind11, and memory that only the buffer protocol reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def enumeration(name: str, members: dict[str, int]) -> type:
    """An enumeration as pybind11 makes them: no integer, equal to its own members only."""

    def construct(cls: type, value: Any) -> Any:
        if not hasattr(type(value), "__index__"):
            raise TypeError(f"__init__(): incompatible constructor arguments for {name}: {value!r}")
        made: Any = object.__new__(cls)
        object.__setattr__(made, "_value", value.__index__())
        return made

    def called(self: Any) -> str:
        return next((key for key, value in members.items() if value == self._value), "???")

    def compare(operation: str) -> Callable[[Any, Any], bool]:
        def compared(self: Any, other: Any) -> bool:
            if type(other) is not type(self):
                raise TypeError("Expected an enumeration of matching type!")
            return bool(getattr(self._value, operation)(other._value))

        return compared

    short = name.rpartition(".")[2]
    space: dict[str, Any] = {
        "__slots__": ("_value",),
        "__qualname__": name,
        "__new__": construct,
        "__init__": lambda self, value: None,
        "name": property(called),
        "value": property(lambda self: self._value),
        "__index__": lambda self: self._value,
        "__int__": lambda self: self._value,
        "__hash__": lambda self: hash(self._value),
        "__eq__": lambda self, other: type(other) is type(self) and self._value == other._value,
        "__repr__": lambda self: f"<{short}.{self.name}: {self._value}>",
        "__str__": lambda self: f"{short}.{self.name}",
        **{name: compare(name) for name in ("__lt__", "__le__", "__gt__", "__ge__")},
    }
    if name == "DataType":
        space["itemsize"] = property(lambda self: ITEM_SIZES[self.name])
    kind = type(short, (), space)
    made: dict[str, Any] = {key: kind(value) for key, value in members.items()}
    for key, member in made.items():
        setattr(kind, key, member)
    kind.__members__ = made  # type: ignore[attr-defined]
    return kind


ITEM_SIZES = {"FLOAT": 4, "HALF": 2, "BF16": 2, "INT8": 1, "INT32": 4, "INT64": 8, "BOOL": 1, "UINT8": 1, "FP8": 1}


def host_memory(space: dict[str, Any]) -> type:
    """Bytes that only the buffer protocol reads: no length, no items, as IHostMemory has none."""

    def refuse(self: Any, *args: Any) -> Any:
        raise TypeError("'IHostMemory' object has no length and no items: take bytes() or a memoryview of it")

    allowed = {"nbytes", "dtype"} | {name for name in space if name in ("__enter__", "__exit__")}

    def get(self: Any, name: str) -> Any:
        if name in allowed or (name.startswith("__") and name.endswith("__")):
            return object.__getattribute__(self, name)
        raise AttributeError(f"'IHostMemory' object has no attribute '{name}'")

    names = ("__len__", "__getitem__", "__iter__", "__contains__", "__add__", "__mul__", "__mod__", "__rmul__")
    library = space["_library"]
    space = {
        **{name: value for name, value in space.items() if name not in ("__slots__", "_library")},
        **dict.fromkeys(names, refuse),
        "__getattribute__": get,
        "__eq__": lambda self, other: self is other,
        "__hash__": lambda self: id(self),
        "__repr__": lambda self: "<IHostMemory>",
        "nbytes": property(lambda self: memoryview(self).nbytes),
        "dtype": property(lambda self: library.constant("DataType.INT8")),
        "__setattr__": lambda self, name, value: _no_setting(name),
    }
    return type("IHostMemory", (bytes,), space)


def _no_setting(name: str) -> None:
    raise AttributeError(f"'IHostMemory' object has no attribute '{name}' that can be set")
