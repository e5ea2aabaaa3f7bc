"""Classes that have exactly the recorded members and take exactly the recorded arguments, as pybind11 makes them.

What a member does is in the logic object behind each instance; a member that no logic knows raises
NotImplementedError, so that a test which needs it says so instead of passing for nothing.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from tests.tensorrt.double.surface import Argument, Class, Signature, Surface
from tests.tensorrt.double.values import enumeration, host_memory

# A method that the library calls on an object of the caller's: a Python class derives from these.
DERIVABLE = ("ILogger", "IProgressMonitor", "IProfiler", "IErrorRecorder", "IAlgorithmSelector", "IVersionedInterface")


class Library:
    """One release: its module, and how its objects and ours become each other."""

    def __init__(self, surface: Surface, logic: dict[str, type[Any]]) -> None:
        self.surface, self.logic = surface, logic
        self.module = ModuleType(surface.module)
        self.module.__dict__.update(__version__=surface.version, __double__=True)
        self.version = tuple(map(int, surface.version.split(".")))
        self.rtx = surface.module == "tensorrt_rtx"
        self.classes: dict[str, type] = {}
        for name, entry in sorted(surface.classes.items(), key=lambda pair: (pair[1].enum is None, "." in pair[0])):
            if entry.enum is not None:
                self.classes[name] = enumeration(name, entry.enum)
        waiting = [entry for entry in surface.classes.values() if entry.enum is None]
        while waiting:  # bases first
            entry = next(e for e in waiting if all(b in self.classes or b not in surface.classes for b in e.bases))
            waiting.remove(entry)
            self.classes[entry.name] = self._class(entry)
        self.module.__dict__.update({name: kind for name, kind in self.classes.items() if "." not in name})
        self.module.__dict__.update({name: self.constant(path) for name, path in surface.constants.items()})
        for name in surface.other:
            self.module.__dict__.setdefault(name, type(name, (), {"__init__": _unknown(name), "__slots__": ()}))

    def has(self, name: str, member: str) -> bool:
        """Whether this release has a class, and it a member (of an enumeration, too)."""
        entry = self.surface.classes.get(name)
        return entry is not None and (
            member in (entry.enum or {}) or member in entry.methods or member in entry.properties
        )

    def constant(self, path: str) -> Any:
        """The enumeration, or the member of one, of a dotted name: "ILogger.Severity.ERROR"."""
        if path in self.classes:
            return self.classes[path]
        owner, _, member = path.rpartition(".")
        return getattr(self.classes[owner], member)

    def resolve(self, kind: str) -> str | None:
        """The class that a type of a signature names: the C++ name of Builder is IBuilder."""
        if kind in self.classes:
            return kind
        return kind[1:] if kind[:1] == "I" and kind[1:] in self.classes else None

    def wrap(self, kind: str, value: Any) -> Any:
        """What the caller gets for a logic object, bytes of the library, lengths or the name of a member."""
        if value is None:
            return None
        if kind.lower().startswith("list[") and isinstance(value, list):
            return [self.wrap(kind[5:-1], item) for item in value]
        name = self.resolve(kind)
        if name is None or isinstance(value, self.classes[name]):
            return value
        if isinstance(value, str):
            return getattr(self.classes[name], value)
        if name == "IHostMemory":
            return bytes.__new__(self.classes[name], value)
        if name == "Dims":
            return self.classes[name](list(value))
        known = getattr(value, "wrapper", None)
        found = known() if known is not None else None
        if found is None:
            found = object.__new__(self.classes[name])
            found._logic = value
            value.wrapper = weakref.ref(found)
        return found

    def _class(self, entry: Class) -> type:
        space: dict[str, Any] = {"__slots__": (), "__module__": self.surface.module, "_library": self}
        bases = tuple(self.classes[name] for name in entry.bases if name in self.classes)
        if not bases:
            space["__slots__"] = ("_logic", "__weakref__")
        for name, signatures in entry.methods.items():
            space[name] = self._constructor(entry, signatures) if name == "__init__" else self._method(name, signatures)
        for name, accessors in entry.properties.items():
            space[name] = self._property(name, accessors)
        for name, path in entry.constants.items():
            space[name] = self.constant(path)
        if "__init__" not in space:
            space["__init__"] = _no_constructor(entry.name)
        if entry.name == "IHostMemory":
            return host_memory(space)
        if entry.name == "Dims":
            space.update(__repr__=lambda self: repr(tuple(self._logic.lengths)), __hash__=None)
        return Bound(entry.name, bases, space)

    def _constructor(self, entry: Class, signatures: Sequence[Signature]) -> Callable[..., None]:
        def construct(instance: Any, *args: Any, **kwargs: Any) -> None:
            values = self._arguments("__init__", "constructor", signatures, args, kwargs)[1]
            made = self.logic.get(entry.name)
            instance._logic = made(self, *values) if made is not None else Nothing()

        return construct

    def _method(self, name: str, signatures: Sequence[Signature]) -> Callable[..., Any]:
        def call(instance: Any, *args: Any, **kwargs: Any) -> Any:
            if name == "__enter__":
                return instance
            if name == "__exit__":
                return None
            found, values = self._arguments(name, "function", signatures, args, kwargs)
            action = getattr(instance._logic, name, None)
            if action is None:
                raise NotImplementedError(
                    f"the double of {self.surface.module} knows no {type(instance).__name__}.{name}"
                )
            return self.wrap(found.returns if found else "object", action(*values))

        call.__name__ = name
        return call

    def _property(self, name: str, accessors: dict[str, str]) -> property:
        def read(instance: Any) -> Any:
            if accessors["get"] == "object" and name == "gpu_allocator":
                raise AttributeError(f"property of '{type(instance).__name__}' object has no getter")
            if hasattr(instance._logic, name):
                return self.wrap(accessors["get"], getattr(instance._logic, name))
            return self._plain(accessors["get"])

        def write(instance: Any, value: Any) -> None:
            kind = accessors["set"]
            if not (value is None and self._is_object(kind)) and not self._fits(kind, value):
                raise TypeError(f"(): incompatible function arguments: {name} takes {kind}, not {value!r}")
            setattr(instance._logic, name, self._given(kind, value))

        return property(read, write if "set" in accessors else None)

    def _is_object(self, kind: str) -> bool:
        name = self.resolve(kind)
        return kind not in ("int", "float", "bool", "str") and (name is None or self.surface.classes[name].enum is None)

    def _plain(self, kind: str) -> Any:
        """What a property holds that nobody has set."""
        name = self.resolve(kind)
        if name is not None and (members := self.surface.classes[name].enum):
            return getattr(self.classes[name], min(members, key=lambda key: (members[key], key)))
        return {"int": 0, "float": 0.0, "bool": False, "str": ""}.get(kind)

    def _arguments(
        self, name: str, what: str, signatures: Sequence[Signature], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Signature | None, list[Any]]:
        for signature in signatures:
            values = self._bound(signature, args, kwargs)
            if values is not None:
                return signature, values
        if not signatures:
            if kwargs:
                raise NotImplementedError(f"{name} has no recorded signature")
            return None, list(args)
        supported = " ".join(f"{index}. {signature.text}" for index, signature in enumerate(signatures, 1))
        given = ", ".join([*map(repr, args), *(f"{key}={value!r}" for key, value in kwargs.items())])
        raise TypeError(
            f"{name}(): incompatible {what} arguments. The following argument types are supported: {supported} "
            f"Invoked with: {given}"
        )

    def _bound(self, signature: Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any] | None:
        left = dict(kwargs)
        values: list[Any] = []
        if len(args) > len(signature.arguments):
            return None
        for index, argument in enumerate(signature.arguments):
            if index < len(args):
                if argument.name in left:
                    return None
                value = args[index]
            elif argument.by_name and argument.name in left:
                value = left.pop(argument.name)
            elif argument.optional:
                if not any(later.name in left for later in signature.arguments[index:]):
                    return None if left else values
                raise NotImplementedError(f"the double does not skip {argument.name} in {signature.text}")
            else:
                return None
            if not self._takes(argument, value):
                return None
            values.append(self._given(argument.kind, value))
        return None if left else values

    def _takes(self, argument: Argument, value: Any) -> bool:
        return argument.nullable if value is None and argument.kind != "object" else self._fits(argument.kind, value)

    def _fits(self, kind: str, value: Any) -> bool:
        """Whether pybind11 would take the value for an argument of this type."""
        name = self.resolve(kind)
        if kind == "int":
            return hasattr(type(value), "__index__") and value.__index__() >= -(1 << 63)
        if kind == "float":
            return hasattr(type(value), "__float__") or hasattr(type(value), "__index__")
        if kind == "bool":
            return isinstance(value, bool | np.bool_)
        if kind == "str":
            return isinstance(value, str)
        if kind.lower() == "buffer":
            return _buffer(value) is not None
        if kind.partition("[")[0] in ("List", "list", "Sequence"):
            return _sequence(value) and all(self._fits(kind.partition("[")[2][:-1] or "object", item) for item in value)
        if kind in ("list", "tuple", "slice"):
            return type(value).__name__ == kind
        if name == "Dims":
            return isinstance(value, self.classes[name]) or (_sequence(value) and all(map(_whole, value)))
        return isinstance(value, self.classes[name]) if name is not None else True

    def _given(self, kind: str, value: Any) -> Any:
        """What the logic gets for an argument: its own objects, bytes, tuples; the caller's objects as they are."""
        if kind == "int" and value is not None:
            return value.__index__()
        if kind.lower() == "buffer":
            return _buffer(value)
        if self.resolve(kind) == "Dims":
            return tuple(int(length) for length in value)
        logic = getattr(value, "_logic", None)
        return (
            value
            if logic is None or isinstance(value, tuple(self.classes[n] for n in DERIVABLE if n in self.classes))
            else logic
        )


class Nothing:
    """Behind an object whose methods are the caller's."""


class Bound(type):
    """As pybind11: an instance whose class forgot the constructor of its base is none."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        made = super().__call__(*args, **kwargs)
        if not hasattr(made, "_logic"):
            raise TypeError(f"{cls.__mro__[1].__name__}.__init__() must be called when overriding __init__")
        return made


def _no_constructor(name: str) -> Callable[..., None]:
    def refuse(self: Any, *args: Any, **kwargs: Any) -> None:
        raise TypeError(f"{name}: No constructor defined!")

    return refuse


def _unknown(name: str) -> Callable[..., None]:
    def refuse(self: Any, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(f"the double knows {name} by name only")

    return refuse


def _buffer(value: Any) -> bytes | None:
    try:
        return bytes(memoryview(value))
    except TypeError:
        return None


def _sequence(value: Any) -> bool:
    return (
        not isinstance(value, str | bytes) and hasattr(type(value), "__len__") and hasattr(type(value), "__getitem__")
    )


def _whole(value: Any) -> bool:
    return hasattr(type(value), "__index__")
