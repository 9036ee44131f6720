"""The picture of the architecture: rooms as boxes, imports as arrows, into docs/images/architecture.svg.

    python -m tools.architecture

A room is a package. The modules that lie directly in a package which has rooms of its own are drawn in as few boxes as
make no circle, since some are what its rooms stand on and others what opens them. An arrow leads from the importer down
to the imported; it is left out if a longer way of arrows says the same. An import that leads upwards closes a circle
between rooms and is drawn in red.
"""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate, pairwise
from pathlib import Path
from statistics import fmean

from tools.imports import circle_in, imports_of, modules_of, reached_from

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "images" / "architecture.svg"
FILLS = {"cavsam": "#dbeafe", "backend": "#dcfce7", "research": "#fef3c7", "tools": "#eeeeee"}
"""Top package -> colour of its boxes."""

PACKAGES = ("backend", "tools", "research", "cavsam")  # from left to right, before the boxes are ordered
DOWN, UP = "#64748b", "#dc2626"  # colours of arrows, and of the boxes' borders
BOX, GAP, BETWEEN, MARGIN = (
    172,
    26,
    46,
    20,
)  # width of a box, gap beside it, gap between rows, margin of the picture; px
LINE, SMALL = 16, 12  # height of the title's line and of a line of module names, px
SWEEPS = 24  # of the ordering of boxes within their rows

Graph = dict[str, set[str]]


@dataclass(frozen=True)
class Box:
    """A room, or a group of the modules that lie directly in a package with rooms."""

    package: str
    modules: tuple[str, ...]
    row: int

    @property
    def lines(self) -> list[str]:
        """The names of the modules, without the package's, broken into lines."""
        names = [name.removeprefix(f"{self.package}.") for name in self.modules if name != self.package]
        return textwrap.wrap(", ".join(names), 29, break_long_words=False)

    @property
    def height(self) -> int:
        """In pixels."""
        return LINE + SMALL * len(self.lines) + 12


@dataclass(frozen=True)
class Drawing:
    """Boxes from the ground up, and the arrows between them, by the boxes' index: importer, imported."""

    boxes: tuple[Box, ...]
    down: frozenset[tuple[int, int]]
    up: frozenset[tuple[int, int]]


def read(root: Path = ROOT) -> Drawing:
    """Read the packages' imports from their source."""
    modules = modules_of(root, FILLS)
    package = {name: name if path.name == "__init__.py" else name.rpartition(".")[0] for name, path in modules.items()}
    imports = {
        name: imports_of(path.read_text(encoding="utf-8"), modules).ever & modules.keys() - {name}
        for name, path in modules.items()
    }
    halls = {name for name in package.values() if any(other.startswith(f"{name}.") for other in package.values())}
    room = {name: name if package[name] in halls else package[name] for name in modules}
    graph: Graph = {name: set() for name in room.values()}
    weight: dict[tuple[str, str], int] = defaultdict(int)
    for name, imported in imports.items():
        for other in imported:
            if room[other] != room[name]:
                graph[room[name]].add(room[other])
                weight[room[name], room[other]] += 1
    upwards = _cut_circles(graph, weight)
    graph = {name: {other for other in found if (name, other) not in upwards} for name, found in graph.items()}
    box_of = _merged(graph, {name: package[name] for name in modules if package[name] in halls})
    rows = _rows(_joined(graph, box_of))

    grouped: dict[tuple[int, str, str], list[str]] = defaultdict(list)
    for name in modules:
        box = box_of[room[name]]
        grouped[rows[box], package[name], box].append(name)
    boxes = tuple(Box(key[1], tuple(names), key[0]) for key, names in sorted(grouped.items()))
    index = {name: number for number, box in enumerate(boxes) for name in box.modules}
    arrows = {
        (index[name], index[other])
        for name, imported in imports.items()
        for other in imported
        if index[name] != index[other]
    }
    down = {(a, b) for a, b in arrows if boxes[a].row > boxes[b].row}
    return Drawing(boxes, frozenset(_reduced(down)), frozenset(arrows - down))


def _cut_circles(graph: Graph, weight: Mapping[tuple[str, str], int]) -> set[tuple[str, str]]:
    """Choose the imports that lead upwards: of every circle the arrow with the fewest imports."""
    cut: set[tuple[str, str]] = set()
    while True:
        left = {name: {other for other in found if (name, other) not in cut} for name, found in graph.items()}
        in_circles = [
            (weight[name, other], name, other)
            for name, found in left.items()
            for other in found
            if name in reached_from([other], left)
        ]
        if not in_circles:
            return cut
        cut.add(min(in_circles)[1:])


def _merged(graph: Graph, package: Mapping[str, str]) -> dict[str, str]:
    """Merge the modules of a package, from the ground up, wherever no circle comes of it: node -> name of its box."""
    box_of = {name: name for name in graph}
    heights = _heights(graph)
    begun: dict[str, list[str]] = defaultdict(list)
    for name in sorted(package, key=lambda name: (heights[name], name)):
        for box in begun[package[name]]:
            tried = box_of | {name: box}
            if not circle_in(_joined(graph, tried)):
                box_of = tried
                break
        else:
            begun[package[name]].append(name)
    return box_of


def _joined(graph: Graph, box_of: Mapping[str, str]) -> Graph:
    joined: Graph = {box: set() for box in box_of.values()}
    for name, found in graph.items():
        joined[box_of[name]] |= {box_of[other] for other in found} - {box_of[name]}
    return joined


def _heights(graph: Graph) -> dict[str, int]:
    """The number of arrows on the longest way down from each node of a graph without circles."""
    known: dict[str, int] = {}

    def height(name: str) -> int:
        if name not in known:
            known[name] = max((height(other) + 1 for other in graph[name]), default=0)
        return known[name]

    return {name: height(name) for name in graph}


def _rows(graph: Graph) -> dict[str, int]:
    """The row of each node, the ground's being 0: as high as its importers allow, so that arrows are short."""
    rows = _heights(graph)
    for name in sorted(graph, key=lambda name: -rows[name]):
        importers = [other for other, found in graph.items() if name in found]
        rows[name] = min((rows[other] - 1 for other in importers), default=rows[name])
    return rows


def _reduced(arrows: set[tuple[int, int]]) -> set[tuple[int, int]]:
    """Leave out every arrow that a longer way of arrows replaces."""
    graph: dict[int, set[int]] = defaultdict(set)
    for a, b in arrows:
        graph[a].add(b)

    def reached(start: int) -> set[int]:
        return {start}.union(*(reached(other) for other in graph[start]))

    return {(a, b) for a, b in arrows if not any(b in reached(other) for other in graph[a] - {b})}


# ---- layout ----

Place = tuple[int, int, int]
"""Where an arrow begins, passes or ends: (box, -1, -1), or (importer, imported, row) between two boxes of that row."""


def _ways(drawing: Drawing) -> list[list[Place]]:
    """The places of each downward arrow, one in each row from the importer's to the imported's."""
    boxes = drawing.boxes
    return [
        [(a, -1, -1), *((a, b, row) for row in range(boxes[a].row - 1, boxes[b].row, -1)), (b, -1, -1)]
        for a, b in sorted(drawing.down)
    ]


def _columns(drawing: Drawing, ways: Sequence[Sequence[Place]]) -> dict[Place, float]:
    """The middle of every place along its row, in pixels from the picture's middle."""
    rows: dict[int, list[Place]] = defaultdict(list)
    for number, box in enumerate(drawing.boxes):
        rows[box.row].append((number, -1, -1))
    beside: dict[Place, list[Place]] = defaultdict(list)
    for way in ways:
        for place in way[1:-1]:
            rows[place[2]].append(place)
        for upper, lower in pairwise(way):
            beside[upper].append(lower)
            beside[lower].append(upper)
    columns: dict[Place, float] = {}
    for row in rows.values():
        row.sort(key=lambda place: (PACKAGES.index(drawing.boxes[place[0]].package.split(".")[0]), place))
        columns |= _packed(row)
    # each place moves to the middle of its neighbours above and below, again and again
    for sweep in range(SWEEPS):
        for number in sorted(rows, reverse=bool(sweep % 2)):
            row = rows[number]
            wanted = {p: fmean(columns[o] for o in beside[p]) if beside[p] else columns[p] for p in row}
            row.sort(key=lambda place: (wanted[place], place))
            columns |= _packed(row)
    return columns


def _packed(row: Sequence[Place]) -> dict[Place, float]:
    """Place a row's members side by side around the picture's middle."""
    widths = [BOX + GAP if place[1] < 0 else GAP for place in row]
    ends = list(accumulate(widths))
    return {place: end - width / 2 - ends[-1] / 2 for place, width, end in zip(row, widths, ends, strict=True)}


def draw(drawing: Drawing) -> str:
    """Write the picture as SVG."""
    ways = _ways(drawing)
    columns = _columns(drawing, ways)
    width = round(2 * max(abs(x) + BOX / 2 for x in columns.values()) + 2 * MARGIN)
    x = {place: round(column + width / 2) for place, column in columns.items()}
    top: dict[int, int] = {}
    height = MARGIN
    for row in range(max(box.row for box in drawing.boxes), -1, -1):
        top[row] = height
        height += max(box.height for box in drawing.boxes if box.row == row) + BETWEEN
    height += MARGIN - BETWEEN

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="DejaVu Sans, Verdana, sans-serif">',
        "<title>Packages of this repository and what they import</title>",
        "<defs>",
        *(
            f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            f'<path d="M0,0 L8,4 L0,8 z" fill="{colour}"/></marker>'
            for name, colour in (("down", DOWN), ("up", UP))
        ),
        "</defs>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<g fill="none" stroke="{DOWN}" stroke-width="1.2">',
    ]
    for way in ways:
        box = drawing.boxes[way[0][0]]
        path = f"M{x[way[0]]},{top[box.row] + box.height}"
        for step, place in enumerate(way[1:], 1):
            y = top[box.row - step]
            above = y - BETWEEN + 4
            path += f" L{x[way[step - 1]]},{above} C{x[way[step - 1]]},{y - 12} {x[place]},{above} {x[place]},{y}"
        parts.append(f'<path d="{path}" marker-end="url(#down)"/>')
    parts.append(f'</g>\n<g fill="none" stroke="{UP}" stroke-width="1.5">')
    for a, b in sorted(drawing.up):
        begin, end = x[a, -1, -1] + 12, x[b, -1, -1] + 12
        start, stop = top[drawing.boxes[a].row], top[drawing.boxes[b].row] + drawing.boxes[b].height
        parts.append(f'<path d="M{begin},{start} L{end},{stop}" marker-end="url(#up)"/>')
    parts.append('</g>\n<g text-anchor="middle">')
    for number, box in enumerate(drawing.boxes):
        middle, y = x[number, -1, -1], top[box.row]
        fill = FILLS[box.package.split(".")[0]]
        parts.append(
            f'<rect x="{middle - BOX // 2}" y="{y}" width="{BOX}" height="{box.height}" rx="5" fill="{fill}" '
            f'stroke="{DOWN}"/>'
        )
        parts.append(
            f'<text x="{middle}" y="{y + LINE}" font-size="12" font-weight="bold">{escape(box.package)}</text>'
        )
        parts += [
            f'<text x="{middle}" y="{y + LINE + SMALL * (line + 1)}" font-size="10">{escape(text)}</text>'
            for line, text in enumerate(box.lines)
        ]
    return "\n".join([*parts, "</g>", "</svg>"]) + "\n"


def main() -> None:
    PICTURE.write_text(draw(read()), encoding="utf-8")


if __name__ == "__main__":
    main()
