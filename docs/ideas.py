"""A picture of each paper's idea, where squares say it sooner than words: which positions take part in what.

A panel is a map of squares: `x` is the position that looks, `o` are those it looks at, `.` the rest. The colours are
the page's own, so that light and dark both work.
"""

from collections.abc import Sequence

SIDE, GAP, LINE = 13, 34, 16
FILL = {"x": ("var(--md-accent-fg-color)", 1.0), "o": ("var(--md-primary-fg-color)", 0.55)}
FILL |= {".": ("var(--md-default-fg-color)", 0.1)}
Panel = tuple[str, list[str]]


def grid(rows: int, columns: int, look: tuple[int, int] | None, sees: Sequence[tuple[int, int]] = ()) -> list[str]:
    """A map in which the position `look` sees some others; None: what looks is not in this map."""
    marks: dict[tuple[int, int] | None, str] = {**dict.fromkeys(sees, "o"), look: "x"}
    return ["".join(marks.get((row, column), ".") for column in range(columns)) for row in range(rows)]


def block(top: int, left: int, size: int) -> list[tuple[int, int]]:
    """The positions of a square window."""
    return [(row, column) for row in range(top, top + size) for column in range(left, left + size)]


def lattice(top: int, left: int, step: int, side: int = 8) -> list[tuple[int, int]]:
    """Every `step`-th position of a map, from (top, left) on."""
    return [(row, column) for row in range(top, side, step) for column in range(left, side, step)]


ALL = block(0, 0, 8)
PICTURES: dict[str, list[Panel]] = {
    "vit": [
        ("class token", ["x"]),
        ("sees all patches, and they each other", grid(8, 8, None, ALL)),
    ],
    "simple_vit": [
        ("a patch sees all", grid(8, 8, (3, 4), ALL)),
        ("the head reads the mean", ["x"]),
    ],
    "cait": [
        ("first: patches among themselves", grid(8, 8, (3, 4), ALL)),
        ("then: the class token alone looks", ["x"]),
        ("at patches that stay as they are", grid(8, 8, None, ALL)),
    ],
    "cross_vit": [
        ("small patches", grid(8, 8, None, ALL)),
        ("large patches", grid(4, 4, None)),
        ("class token of the large sees the small", ["x"]),
    ],
    "crossformer": [
        ("short distance: neighbours", grid(8, 8, (2, 1), block(0, 0, 4))),
        ("long distance: spaced evenly", grid(8, 8, (2, 1), lattice(0, 1, 2))),
    ],
    "cvt": [
        ("query: a convolution about it", grid(8, 8, (3, 3), block(2, 2, 3))),
        ("keys: a convolution with stride 2", grid(8, 8, None, lattice(0, 0, 2))),
    ],
    "levit": [
        ("stage 1", grid(8, 8, (3, 4), ALL)),
        ("stage 2", grid(4, 4, (1, 2), block(0, 0, 4))),
        ("stage 3", grid(2, 2, (0, 1), block(0, 0, 2))),
    ],
    "nest": [
        ("stage 1: windows apart", grid(8, 8, (0, 1), block(0, 0, 2))),
        ("stage 2: a quarter of the windows", grid(4, 4, (0, 1), block(0, 0, 2))),
        ("stage 3: one", grid(2, 2, (0, 1), block(0, 0, 2))),
    ],
    "patch_merger": [
        ("first half: all patches", grid(8, 8, None, ALL)),
        ("second half: 8 learned means of them", ["xxxxxxxx"]),
    ],
    "pit": [
        ("stage 1", grid(8, 8, (3, 4), ALL)),
        ("pooled: fewer, wider", grid(4, 4, (1, 2), block(0, 0, 4))),
        ("again", grid(2, 2, (0, 1), block(0, 0, 2))),
    ],
    "region_vit": [
        ("regions see regions", grid(4, 4, (1, 2), block(0, 0, 4))),
        ("then a region and its own window", ["x"]),
        ("see each other", grid(8, 8, None, block(2, 4, 2))),
    ],
    "scalable_vit": [
        ("SSA: all, at fewer positions", grid(8, 8, (3, 3), lattice(0, 0, 2))),
        ("IWSA: a window", grid(8, 8, (1, 1), block(0, 0, 4))),
    ],
    "t2t": [
        ("soft splits overlap", grid(8, 8, None, block(1, 1, 3))),
        ("next one", grid(8, 8, None, block(1, 3, 3))),
        ("a token each", [".x.x.x"]),
    ],
    "twins_svt": [
        ("LSA: inside a window", grid(8, 8, (1, 2), block(0, 0, 4))),
        ("GSA: a summary of the map", grid(8, 8, (1, 2), lattice(0, 0, 4))),
    ],
    "vit_small_datasets": [
        ("SPT: a patch, and half a patch beyond", grid(8, 8, None, block(1, 1, 6))),
        ("LSA: all patches but itself", grid(8, 8, (3, 4), ALL)),
    ],
}


def draw(name: str) -> str | None:
    """The picture of an architecture as SVG; None where there is none."""
    if name not in PICTURES:
        return None
    parts, left = [], 0
    tallest = max(len(rows) for _, rows in PICTURES[name]) * SIDE
    for title, rows in PICTURES[name]:
        wide = max(SIDE * max(map(len, rows)), 6 * len(title))
        parts.append(f'<text x="{left + wide / 2}" y="{LINE - 5}" text-anchor="middle">{title}</text>')
        x, y = left + (wide - SIDE * max(map(len, rows))) / 2, LINE + (tallest - SIDE * len(rows)) / 2
        for mark, (colour, opacity) in FILL.items():
            squares = "".join(
                f"M{x + SIDE * column} {y + SIDE * row}h{SIDE - 1}v{SIDE - 1}h-{SIDE - 1}z"
                for row, marks in enumerate(rows)
                for column, found in enumerate(marks)
                if found == mark
            )
            if squares:
                parts.append(f'<path d="{squares}" fill="{colour}" fill-opacity="{opacity}"/>')
        left += wide + GAP
    width, height = left - GAP, LINE + tallest
    label = "; ".join(title for title, _ in PICTURES[name])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{label}" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}">{"".join(parts)}</svg>'
    )
