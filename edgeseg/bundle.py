"""The artifact that travels: every variant of a network that was built, which one to run and why, and how to check it.

    write_bundle(bundle, "unet.edgeseg")   one ZIP file, stored and dateless: equal content gives equal bytes
    write_bundle(bundle, "unet/")          the same content as a folder
    bundle = read_bundle("unet.edgeseg")   whole and sound, or a BundleError

Both forms hold manifest.json (schema edgeseg.bundle/1: the spec, the variants, the verdict, and the size and SHA-256 of
every file), the variants' files, and references/*.png. A path is written as a folder if it ends with a slash, is a
folder already, or does not end with .edgeseg. A hash finds damage; it is no signature and proves no origin.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from edgeseg.bundle_io import (
    AGAIN,
    LIMIT,
    MANIFEST,
    MAX_MANIFEST,
    SUFFIX,
    Stored,
    check_names,
    decode_png,
    encode_png,
    opened,
    safe_part,
    write_file,
    write_folder,
)
from edgeseg.bundle_json import field_of, of_kind, only, parse, plain
from edgeseg.errors import BundleError, SpecError
from edgeseg.spec import spec_from_dict, spec_to_dict
from edgeseg.types import Mask, ModelSpec, Pixels, Precision

SCHEMA = "edgeseg.bundle/1"
MAX_REFERENCES = 64
MAX_REFERENCE_BYTES = 1 << 30  # of all references together, decoded
REFERENCES = "references/"

FP32 = "fp32.onnx"  # in Bundle.files: the graph that everything else was made from


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to run the network: a graph in one engine's dialect and the settings that were fastest with it."""

    name: str  # unique in the bundle, such as "onnxruntime-int8"
    backend: str
    precision: Precision
    files: tuple[str, ...]  # names in Bundle.files; the first is the graph
    settings: Mapping[str, str | int | float | bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """A frame with the masks that it gave where the bundle was built, so that a device can check itself."""

    name: str
    frame: Pixels  # uint8 (H, W, 3) at the network's input size, channels in the order of spec.input.frame
    mask: Mask  # uint8 (H, W): what the float network answered
    masks: Mapping[str, Mask] = field(default_factory=dict)  # by name of variant: what that one answered


@dataclass(frozen=True, slots=True, eq=False)
class Bundle:
    """All that a device needs. `verdict` and `created` are plain JSON: what was measured, and where and with what."""

    spec: ModelSpec
    variants: tuple[Variant, ...]
    chosen: str  # name of the variant to run unless told otherwise
    files: Mapping[str, bytes]
    references: tuple[Reference, ...] = ()
    verdict: Mapping[str, Any] = field(default_factory=dict)
    created: Mapping[str, Any] = field(default_factory=dict)

    def variant(self, name: str | None = None) -> Variant:
        """The variant of this name, or the chosen one. Raises BundleError naming those there are."""
        wanted = self.chosen if name is None else name
        for variant in self.variants:
            if variant.name == wanted:
                return variant
        there = ", ".join(variant.name for variant in self.variants) or "none"
        raise BundleError(f"The bundle has no variant {wanted!r}. It has: {there}. Name one of these.")

    def graph(self, variant: Variant | str | None = None) -> bytes:
        """The bytes of a variant's graph; of the chosen one by default."""
        chosen = variant if isinstance(variant, Variant) else self.variant(variant)
        return self.files[chosen.files[0]]


def write_bundle(bundle: Bundle, path: str | Path) -> Path:
    """Write the bundle as a file or a folder (see above) and return its path; parent folders are made.

    What stands at the path stays as it was until the new bundle is whole, and also when writing fails.
    Raises BundleError if the bundle is not consistent or the disk refuses, SpecError if its spec is not sound.
    """
    target = Path(path)
    _check(bundle, "the bundle to be written")
    spec = spec_to_dict(bundle.spec)
    spec_from_dict(spec, "the bundle to be written: spec")
    contents = dict(bundle.files)
    references = []
    for i, reference in enumerate(bundle.references):
        images = {"frame": _swapped(reference.frame, bundle.spec), "mask": reference.mask}
        images |= {f"mask.{name}": mask for name, mask in reference.masks.items()}
        names = {key: f"{REFERENCES}{i:04d}.{key}.png" for key in images}
        contents |= {names[key]: encode_png(image) for key, image in images.items()}
        masks = {name: names[f"mask.{name}"] for name in reference.masks}
        references.append({"name": reference.name, "frame": names["frame"], "mask": names["mask"], "masks": masks})
    manifest = {
        "schema": SCHEMA,
        "spec": spec,
        "chosen": bundle.chosen,
        "variants": [
            {
                "name": variant.name,
                "backend": variant.backend,
                "precision": variant.precision,
                "files": list(variant.files),
                "settings": dict(variant.settings),
            }
            for variant in bundle.variants
        ],
        "references": references,
        "verdict": plain(bundle.verdict, "verdict"),
        "created": plain(bundle.created, "created"),
        "files": {
            name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in contents.items()
        },
    }
    text = json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False).encode()
    total = len(text) + sum(map(len, contents.values()))
    if len(text) > MAX_MANIFEST or total > LIMIT:
        raise BundleError(
            f"{target}: a manifest of {len(text)} bytes and {total} in all; wanted at most {MAX_MANIFEST} and {LIMIT}. "
            f"Store less in the verdict, fewer references or fewer variants."
        )
    entries = {MANIFEST: text, **dict(sorted(contents.items()))}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BundleError(f"{target}: its folder cannot be made: {error}. Choose another path.") from error
    as_folder = str(path).endswith("/") or target.is_dir() or target.suffix != SUFFIX
    (write_folder if as_folder else write_file)(target, entries)
    return target


def read_bundle(path: str | Path, *, limit: int = LIMIT) -> Bundle:
    """Read a bundle, which may come from anybody; nothing in it is run, and `limit` bounds its content in bytes.

    Raises BundleError for one that is damaged, incomplete, newer, oversized, or made to do harm.
    """
    path = Path(path)
    with opened(path, limit) as stored:
        manifest = _manifest(stored, path)
        contents = _contents(manifest, stored, path)
    where = f"{path}: {MANIFEST}"
    try:
        spec = spec_from_dict(field_of(manifest, "spec", dict, where), f"{where}: spec")
    except SpecError as error:
        raise BundleError(f"{error} Build the bundle again.") from error
    variants = tuple(
        _variant(item, f"{where}: variants[{i}]") for i, item in enumerate(field_of(manifest, "variants", list, where))
    )
    bundle = Bundle(
        spec=spec,
        variants=variants,
        chosen=field_of(manifest, "chosen", str, where),
        files={name: content for name, content in contents.items() if not name.startswith(REFERENCES)},
        verdict=field_of(manifest, "verdict", dict, where),
        created=field_of(manifest, "created", dict, where),
    )
    _check(bundle, where)  # before anything is decoded
    rows = field_of(manifest, "references", list, where)
    _check_references(len(rows), len(variants), spec, where)
    bundle = replace(
        bundle,
        references=tuple(_reference(row, contents, bundle, f"{where}: references[{i}]") for i, row in enumerate(rows)),
    )
    _check(bundle, where)
    return bundle


def _manifest(stored: Stored, path: Path) -> dict[str, Any]:
    if MANIFEST not in stored.sizes:
        raise BundleError(f"{path}: has no {MANIFEST}, so this is no bundle. Give the path of a bundle. {AGAIN}")
    text = stored.read(MANIFEST, MAX_MANIFEST + 1)
    if len(text) > MAX_MANIFEST:
        raise BundleError(f"{path}: {MANIFEST} is larger than {MAX_MANIFEST} bytes. No edgeseg wrote this.")
    where = f"{path}: {MANIFEST}"
    manifest = parse(text, where)
    schema = field_of(manifest, "schema", str, where)
    if schema != SCHEMA:
        version = re.fullmatch(r"edgeseg\.bundle/([1-9][0-9]{0,8})", schema)
        if version and int(version[1]) > 1:
            raise BundleError(
                f"{path}: made by a newer edgeseg (schema {schema}, and this one reads {SCHEMA}). "
                f"Update with: pip install --upgrade edgeseg"
            )
        raise BundleError(f"{where}: schema: wanted {SCHEMA!r}, found {schema[:100]!r}. {AGAIN}")
    known = {"schema", "spec", "chosen", "variants", "references", "verdict", "created", "files"}
    only(manifest, known, where)
    return manifest


def _contents(manifest: Mapping[str, Any], stored: Stored, path: Path) -> dict[str, bytes]:
    """Every file that the manifest lists, with the size and hash that it lists; nothing missing, nothing besides."""
    where = f"{path}: {MANIFEST}"
    listed = field_of(manifest, "files", dict, where)
    check_names([MANIFEST, *listed], where)
    missing, unlisted = sorted(listed.keys() - stored.sizes), sorted(stored.sizes.keys() - listed - {MANIFEST})
    if missing:
        raise BundleError(f"{path}: {missing[0]!r} is missing ({len(missing)} in all). {AGAIN}")
    if unlisted:
        raise BundleError(
            f"{path}: {unlisted[0]!r} does not belong to the bundle: {MANIFEST} does not list it "
            f"({len(unlisted)} in all). Remove it if you put it there. {AGAIN}"
        )
    contents = {}
    for name, row in listed.items():
        at = f"{where}: files[{name!r}]"
        only(of_kind(row, dict, at), {"size", "sha256"}, at)
        size, digest = field_of(row, "size", int, at), field_of(row, "sha256", str, at)
        if size != stored.sizes[name]:
            raise BundleError(f"{path}: {name!r} has {stored.sizes[name]} bytes, wanted {size}. {AGAIN}")
        content = stored.read(name, size + 1)
        if len(content) != size or hashlib.sha256(content).hexdigest() != digest:
            raise BundleError(f"{path}: {name!r} is not the file that was written: its SHA-256 differs. {AGAIN}")
        contents[name] = content
    return contents


def _variant(row: Any, where: str) -> Variant:
    only(of_kind(row, dict, where), {"name", "backend", "precision", "files", "settings"}, where)
    files = field_of(row, "files", list, where)
    return Variant(
        name=field_of(row, "name", str, where),
        backend=field_of(row, "backend", str, where),
        precision=field_of(row, "precision", str, where),  # type: ignore[arg-type]  # checked with the rest in _check
        files=tuple(of_kind(name, str, f"{where}.files[{i}]") for i, name in enumerate(files)),
        settings=field_of(row, "settings", dict, where),
    )


def _reference(row: Any, contents: Mapping[str, bytes], bundle: Bundle, where: str) -> Reference:
    def image(name: Any, channels: int, key: str) -> Any:
        at = f"{where}.{key}"
        if not of_kind(name, str, at).startswith(REFERENCES) or name not in contents:
            raise BundleError(f"{at}: wanted a listed file in {REFERENCES}, found {name[:100]!r}. {AGAIN}")
        return decode_png(contents[name], bundle.spec.input.size, channels, at)

    only(of_kind(row, dict, where), {"name", "frame", "mask", "masks"}, where)
    masks = field_of(row, "masks", dict, where)
    _check_owners(masks, [variant.name for variant in bundle.variants], where)
    return Reference(
        name=field_of(row, "name", str, where),
        frame=_swapped(image(row.get("frame"), 3, "frame"), bundle.spec),
        mask=image(row.get("mask"), 1, "mask"),
        masks={variant: image(name, 1, f"masks[{variant[:100]!r}]") for variant, name in masks.items()},
    )


def _swapped(frame: Pixels, spec: ModelSpec) -> Pixels:
    """Between the spec's order and OpenCV's BGR, so that the PNGs look right in any viewer. Its own inverse."""
    return frame if spec.input.frame == "bgr" else frame[..., ::-1].copy()


def _check(bundle: Bundle, where: str) -> None:
    """What must hold between the parts of a bundle. The same on writing and on reading."""
    check_names([MANIFEST, *bundle.files], where)
    own = next((name for name in bundle.files if name.casefold().startswith(REFERENCES)), None)
    if own is not None:
        raise BundleError(f"{where}: files: {own!r} lies in {REFERENCES}, which is for references. Name it otherwise.")
    names = [variant.name for variant in bundle.variants]
    if not names or len({name.casefold() for name in names}) != len(names):
        raise BundleError(
            f"{where}: variants: wanted at least one, each with its own name, found {names}. Build again."
        )
    for i, variant in enumerate(bundle.variants):
        at = f"{where}: variants[{i}]"
        if not safe_part(variant.name) or not safe_part(variant.backend):
            raise BundleError(
                f"{at}: name and backend: wanted ASCII letters, digits and . _ -, "
                f"found {variant.name[:100]!r} and {variant.backend[:100]!r}. Build again."
            )
        if variant.precision not in get_args(Precision):
            raise BundleError(
                f"{at}.precision: wanted fp32, fp16 or int8, found {variant.precision!r:.100}. Build again."
            )
        absent = [name for name in variant.files if name not in bundle.files]
        if absent or not variant.files:
            raise BundleError(f"{at}.files: wanted names of the bundle's files, found {absent or 'none'}. Build again.")
        for key, value in variant.settings.items():
            finite = not isinstance(value, float) or math.isfinite(value)
            if not isinstance(key, str) or not isinstance(value, str | int | float | bool) or not finite:
                raise BundleError(
                    f"{at}.settings[{key!r:.100}]: wanted a text, number or truth value, found {value!r:.100}."
                )
    if bundle.chosen not in names:
        raise BundleError(
            f"{where}: chosen: wanted one of {', '.join(names)}, found {bundle.chosen!r:.100}. Build again."
        )
    _check_references(len(bundle.references), len(names), bundle.spec, where)
    # A network of one channel decides between two classes, whether or not the spec names the background.
    classes = max(2, len(bundle.spec.output.classes)) if bundle.spec.output.classes else 256
    for i, reference in enumerate(bundle.references):
        at, size = f"{where}: references[{i}]", bundle.spec.input.size
        if not reference.name or len(reference.name) > 200 or not reference.name.isprintable():
            raise BundleError(f"{at}.name: wanted 1 to 200 printable characters, found {reference.name!r:.100}.")
        if reference.frame.shape != (*size, 3) or reference.frame.dtype != "uint8":
            raise BundleError(
                f"{at}.frame: wanted uint8 {(*size, 3)}, found {reference.frame.dtype} {reference.frame.shape}."
            )
        for key, mask in {"mask": reference.mask, **reference.masks}.items():
            if mask.shape != size or mask.dtype != "uint8":
                raise BundleError(f"{at}.{key}: wanted uint8 {size}, found {mask.dtype} {mask.shape}. Build again.")
            if int(mask.max()) >= classes:
                raise BundleError(f"{at}.{key}: wanted classes below {classes}, found {mask.max()}. Build again.")
        _check_owners(reference.masks, names, at)


def _check_owners(masks: Mapping[str, object], names: list[str], where: str) -> None:
    strangers = [name for name in masks if name not in names]
    if strangers:
        raise BundleError(f"{where}.masks: wanted names of variants, found {strangers[0]!r:.100}. Build again.")


def _check_references(count: int, variants: int, spec: ModelSpec, where: str) -> None:
    """Judged before the first of them is decoded: a PNG of a few kilobytes may stand for gigabytes."""
    size = count * (4 + variants) * math.prod(spec.input.size)
    if count > MAX_REFERENCES or size > MAX_REFERENCE_BYTES:
        raise BundleError(
            f"{where}: references: wanted at most {MAX_REFERENCES} of {MAX_REFERENCE_BYTES} bytes together, "
            f"found {count} of {size}. Build with fewer."
        )
