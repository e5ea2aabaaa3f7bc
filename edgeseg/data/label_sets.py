"""Label sets that everybody uses, as data: what a raw value or colour is called, and which class it is scored as.

`label_set = "cityscapes-ids"` in a data set's file takes one of them; `[label_map]` there changes single entries.
Names, ids, colours and groups are those that the data sets publish (cityscapesscripts' helpers/labels.py, the VOC
development kit, CamVid's label_colors.txt with the usual eleven groups, ADE20K's objectInfo150.txt).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgeseg.data.splits import Palette, default_palette

Colour = tuple[int, int, int]  # RGB
IGNORE = "ignore"


@dataclass(frozen=True, slots=True)
class LabelSet:
    """`raw`: what label files hold, by name; `group`: the class that a name is scored as, or "ignore"."""

    name: str
    raw: Mapping[str, tuple[int | Colour, ...]]
    group: Mapping[str, str]
    palette: Palette

    @property
    def classes(self) -> tuple[str, ...]:
        """The scored classes in the order of their indices."""
        return tuple(dict.fromkeys(group for group in self.group.values() if group != IGNORE))

    @property
    def colours(self) -> bool:
        """Whether labels hold colours rather than values."""
        return any(isinstance(raw, tuple) for values in self.raw.values() for raw in values)


# In the order of trainId: name, id of "labelIds" files, RGB.
CITYSCAPES: tuple[tuple[str, int, Colour], ...] = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
# Not scored. "polegroup" has the colour of "pole" and "license plate" that of "car": in colours they are one.
_CITYSCAPES_VOID: tuple[tuple[str, int, Colour], ...] = (
    ("unlabeled", 0, (0, 0, 0)),
    ("ego vehicle", 1, (0, 0, 0)),
    ("rectification border", 2, (0, 0, 0)),
    ("out of roi", 3, (0, 0, 0)),
    ("static", 4, (0, 0, 0)),
    ("dynamic", 5, (111, 74, 0)),
    ("ground", 6, (81, 0, 81)),
    ("parking", 9, (250, 170, 160)),
    ("rail track", 10, (230, 150, 140)),
    ("guard rail", 14, (180, 165, 180)),
    ("bridge", 15, (150, 100, 100)),
    ("tunnel", 16, (150, 120, 90)),
    ("polegroup", 18, (153, 153, 153)),
    ("caravan", 29, (0, 0, 90)),
    ("trailer", 30, (0, 0, 110)),
)
_SHARED_COLOURS = ("ego vehicle", "rectification border", "out of roi", "static", "polegroup")

_VOC = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
)
VOC: tuple[str, ...] = tuple(_VOC.split())

_CAMVID = "sky building pole road pavement tree sign fence car pedestrian bicyclist"
CAMVID: tuple[str, ...] = tuple(_CAMVID.split())
CAMVID_PALETTE: Palette = (
    *((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0)),
    *((192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)),
)
# The 32 labels as they were painted: name, RGB, group.
_CAMVID_RAW: tuple[tuple[str, Colour, str], ...] = (
    ("Sky", (128, 128, 128), "sky"),
    ("Building", (128, 0, 0), "building"),
    ("Column_Pole", (192, 192, 128), "pole"),
    ("Road", (128, 64, 128), "road"),
    ("Sidewalk", (0, 0, 192), "pavement"),
    ("Tree", (128, 128, 0), "tree"),
    ("SignSymbol", (192, 128, 128), "sign"),
    ("Fence", (64, 64, 128), "fence"),
    ("Car", (64, 0, 128), "car"),
    ("Pedestrian", (64, 64, 0), "pedestrian"),
    ("Bicyclist", (0, 128, 192), "bicyclist"),
    ("Archway", (192, 0, 128), "building"),
    ("Bridge", (0, 128, 64), "building"),
    ("Tunnel", (64, 0, 64), "building"),
    ("Wall", (64, 192, 0), "building"),
    ("TrafficCone", (0, 0, 64), "pole"),
    ("LaneMkgsDriv", (128, 0, 192), "road"),
    ("LaneMkgsNonDriv", (192, 0, 64), "road"),
    ("ParkingBlock", (64, 192, 128), "pavement"),
    ("RoadShoulder", (128, 128, 192), "pavement"),
    ("VegetationMisc", (192, 192, 0), "tree"),
    ("Misc_Text", (128, 128, 64), "sign"),
    ("TrafficLight", (0, 64, 64), "sign"),
    ("OtherMoving", (128, 64, 64), "car"),
    ("SUVPickupTruck", (64, 128, 192), "car"),
    ("Train", (192, 64, 128), "car"),
    ("Truck_Bus", (192, 128, 192), "car"),
    ("Animal", (64, 128, 64), "pedestrian"),
    ("CartLuggagePram", (64, 0, 192), "pedestrian"),
    ("Child", (192, 128, 64), "pedestrian"),
    ("MotorcycleScooter", (192, 0, 192), "bicyclist"),
    ("Void", (0, 0, 0), IGNORE),
)

_ADE20K = (
    "wall/building/sky/floor/tree/ceiling/road/bed/windowpane/grass/cabinet/sidewalk/person/earth/door/table/mountain/"
    "plant/curtain/chair/car/water/painting/sofa/shelf/house/sea/mirror/rug/field/armchair/seat/fence/desk/rock/"
    "wardrobe/lamp/bathtub/railing/cushion/base/box/column/signboard/chest of drawers/counter/sand/sink/skyscraper/"
    "fireplace/refrigerator/grandstand/path/stairs/runway/case/pool table/pillow/screen door/stairway/river/bridge/"
    "bookcase/blind/coffee table/toilet/flower/book/hill/bench/countertop/stove/palm/kitchen island/computer/"
    "swivel chair/boat/bar/arcade machine/hovel/bus/towel/light/truck/tower/chandelier/awning/streetlight/booth/"
    "television/airplane/dirt track/apparel/pole/land/bannister/escalator/ottoman/bottle/buffet/poster/stage/van/ship/"
    "fountain/conveyer belt/canopy/washer/plaything/swimming pool/stool/barrel/basket/waterfall/tent/bag/minibike/"
    "cradle/oven/ball/food/step/tank/trade name/microwave/pot/animal/bicycle/lake/dishwasher/screen/blanket/sculpture/"
    "hood/sconce/vase/traffic light/tray/ashcan/fan/pier/crt screen/plate/monitor/bulletin board/shower/radiator/glass/"
    "clock/flag"
)
ADE20K: tuple[str, ...] = tuple(_ADE20K.split("/"))


def _same(names: tuple[str, ...], more: Mapping[str, str]) -> dict[str, str]:
    return {name: name for name in names} | dict(more)


def _indices(
    name: str, classes: tuple[str, ...], first: int, void: str, raw: tuple[int, ...], palette: Palette
) -> LabelSet:
    values: dict[str, tuple[int | Colour, ...]] = {label: (first + index,) for index, label in enumerate(classes)}
    return LabelSet(name, values | {void: raw}, _same(classes, {void: IGNORE}), palette)


def _cityscapes() -> tuple[LabelSet, ...]:
    names = tuple(name for name, _, _ in CITYSCAPES)
    palette = tuple(colour for _, _, colour in CITYSCAPES)
    group = _same(names, {name: IGNORE for name, _, _ in _CITYSCAPES_VOID})
    every = (*CITYSCAPES, *_CITYSCAPES_VOID)
    own = [row for row in every if row[0] not in _SHARED_COLOURS]
    return (
        LabelSet("cityscapes-ids", {name: (raw,) for name, raw, _ in every}, group, palette),
        _indices("cityscapes-train-ids", names, 0, "unlabeled", (255,), palette),
        LabelSet("cityscapes-colours", {n: (c,) for n, _, c in own}, {n: group[n] for n, _, _ in own}, palette),
    )


def _voc() -> tuple[LabelSet, ...]:
    palette = default_palette(len(VOC))
    colours: dict[str, tuple[int | Colour, ...]] = {name: (c,) for name, c in zip(VOC, palette, strict=True)}
    colours["void"] = ((224, 224, 192),)  # what the colour map holds at 255: the border of objects
    return (
        _indices("voc", VOC, 0, "void", (255,), palette),
        LabelSet("voc-colours", colours, _same(VOC, {"void": IGNORE}), palette),
    )


LABEL_SETS: Mapping[str, LabelSet] = {
    found.name: found
    for found in (
        *_cityscapes(),
        *_voc(),
        _indices("ade20k", ADE20K, 1, "other", (0,), default_palette(len(ADE20K))),
        _indices("camvid", CAMVID, 0, "void", (11,), CAMVID_PALETTE),
        LabelSet(
            "camvid-colours",
            {name: (colour,) for name, colour, _ in _CAMVID_RAW},
            {name: group for name, _, group in _CAMVID_RAW},
            CAMVID_PALETTE,
        ),
    )
}
