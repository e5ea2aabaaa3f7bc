"""Does a bundle's engine, here and now, give the masks that it gave where it was built?"""

from __future__ import annotations

from typing import Protocol

from edgeseg.backends import get
from edgeseg.backends.base import Value
from edgeseg.bundle import Bundle, Variant
from edgeseg.errors import AccuracyFailed
from edgeseg.measure.agreement import Agreement, agreement
from edgeseg.types import Frames, Masks

# Other processors and versions round differently; a wrong engine differs by far more than this.
LEAST_AGREEMENT = 0.98


class Runs(Protocol):
    @property
    def fresh(self) -> bool:
        """Whether it was built on this machine, and nobody has compared its masks yet."""

    def checked(self) -> None:
        """It was compared, and is right."""

    def run(self, frames: Frames) -> Masks: ...


def same_place(bundle: Bundle, variant: Variant) -> bool:
    """Whether this is the processor and the runtime's version that the bundle was measured with."""
    places = bundle.created.get("place", {})
    return isinstance(places, dict) and places.get(variant.backend) == place_now(variant.backend)


def place_now(backend: str) -> dict[str, Value]:
    """What the masks of an engine may depend on besides its files."""
    return dict(get(backend).place())


def gpu_of(backend: str) -> str | None:
    """The GPU that engines of this backend run on here; None for those that run on the processor."""
    found = place_now(backend).get("gpu")
    return None if found is None else str(found)


def check_references(bundle: Bundle, variant: Variant, engine: Runs) -> Agreement:
    """Agreement over all reference frames, with the masks of this variant or, where it has none, of the FP32 graph."""
    total = Agreement()
    for reference in bundle.references:
        expected = reference.masks.get(variant.name, reference.mask)
        total += agreement(expected, engine.run(reference.frame[None])[0])
    return total


def require_elsewhere(bundle: Bundle, variant: Variant, engine: Runs) -> None:
    """`require_references`, where this is not the place that the bundle was measured in, or nobody did it before."""
    if engine.fresh or not same_place(bundle, variant):
        require_references(bundle, variant, engine)


def require_references(bundle: Bundle, variant: Variant, engine: Runs) -> None:
    """Raise AccuracyFailed unless the reference masks are reproduced."""
    seen = check_references(bundle, variant, engine)
    if seen.overall < LEAST_AGREEMENT:
        others = ", ".join(other.name for other in bundle.variants if other.name != variant.name)
        raise AccuracyFailed(
            f"the engine '{variant.name}' reproduces {100 * seen.overall:.2f} % of the bundle's reference masks on "
            f"this machine, {100 * LEAST_AGREEMENT:g} % are needed. Do not use it here: open another variant "
            f"({others or 'there is none'}), or build the bundle on this machine."
        )
    if bundle.references:
        engine.checked()
