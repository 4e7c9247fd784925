"""A chart: axes, lines, bands, marks and names in one frame. Every page draws with it."""

from collections.abc import Iterable, Sequence
from typing import final

from addnorm.pages.curves import Pixel, band
from addnorm.pages.look import clean
from addnorm.pages.svg import Frame, grid, spread, trace, value_labels

ABOVE = 12  # how far over the plot proper marks begin


@final
class Plot:
    """What is drawn later lies above what was drawn before. A point is (share of the width, value);
    one whose value has no place in the frame is left out, and cuts a line in two."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self._parts: list[str] = []

    def add(self, element: str) -> None:
        """Any other element of SVG."""
        self._parts.append(element)

    def axes(self, across: Iterable[tuple[float, str]]) -> None:
        """Values upwards, and (share, label) from left to right."""
        self.add(grid(self.frame, value_labels(self.frame), across))

    def line(
        self,
        points: Iterable[tuple[float, float]],
        kind: str = "line",
        strength: float | None = None,
    ) -> None:
        """Through the points, by the style ``kind`` of the page. ``strength``, from 0 to 1, tells
        several lines apart: 1 is the darkest and widest; None: as the style has it."""
        style = ""
        if strength is not None:
            look = f"opacity:{strength:.2f};stroke-width:{0.8 + 1.4 * strength:.2f}"
            style = f' style="{look}"'
        self.add(f'<path class="{kind}"{style} d="{trace(self.frame, points)}"/>')

    def band(self, places: Sequence[Pixel], kind: str = "band") -> None:
        """From the lowest to the highest."""
        self.add(f'<path class="{kind}" d="{band(self.frame, places)}"/>')

    def dots(self, points: Iterable[tuple[float, float, str]], kind: str, radius: float) -> None:
        """(share, value, title) of single points, the title shown under the mouse; those beyond the
        edges are left out. ``kind`` is a style, ``radius`` in pixels."""
        for share, value, title in points:
            if self.frame.holds(value):
                place = f'cx="{self.frame.x(share):.1f}" cy="{self.frame.y(value):.1f}"'
                self.add(
                    f'<circle class="{kind}" {place} r="{radius}">'
                    f"<title>{clean(title)}</title></circle>"
                )

    def limit(self, value: float, label: str) -> None:
        """A line across with its label at the right, where there is a place for it: else nothing,
        as for NaN."""
        if self.frame.holds(value):
            left, right = self.frame.x(0), self.frame.x(1)
            self.add(f'<path class="limit" d="M{left} {self.frame.y(value):.1f}H{right}"/>')
            self.names([(value, label)])

    def crosses(self, shares: Iterable[float]) -> None:
        """Over the plot, where a number is not finite."""
        self._marks("cross", shares, "l8 8m0-8l-8 8")

    def wedges(self, shares: Iterable[float]) -> None:
        """Over the plot, where something was left out."""
        self._marks("wedge", shares, "h8l-4 8z")

    def _marks(self, kind: str, shares: Iterable[float], shape: str) -> None:
        """Marks of a style ``kind`` over the plot, one for each pixel at most; ``shape`` is the
        path from its upper left corner, 8 wide."""
        edges = dict.fromkeys(f"{self.frame.x(share) - 4:.0f}" for share in shares)
        if edges:
            path = "".join(f"M{edge} {self.frame.top - ABOVE}{shape}" for edge in edges)
            self.add(f'<path class="{kind}" d="{path}"/>')

    def squares(self, values: Sequence[Sequence[float]]) -> None:
        """A field for each value, the first row at the top, over the whole frame, whose values go
        from 0 to the number of rows; 1 is the darkest, and NaN and what is near 0 are not drawn."""
        frame = self.frame
        parts = []
        for i, row in enumerate(values):
            top, floor = frame.y(len(values) - i), frame.y(len(values) - i - 1)
            for k, value in enumerate(row):
                left, right = frame.x(k / len(row)), frame.x((k + 1) / len(row))
                if value >= 0.01:
                    parts.append(
                        f'<rect x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
                        f'height="{floor - top:.1f}" fill-opacity="{min(value, 1.0):.2f}"/>'
                    )
        self.add(f'<g class="squares">{"".join(parts)}</g>')

    def around(self, rows: Sequence[str], columns: Sequence[str], slant: float) -> None:
        """Names of the rows at the left, of the columns above, ``slant`` degrees steep, and lines
        between all of them, in a frame as ``squares`` has it. Names may be any text."""
        frame, left, right = self.frame, self.frame.x(0), self.frame.x(1)
        for i in range(len(rows) + 1):
            self.add(f'<path class="grid" d="M{left} {frame.y(i):.1f}H{right}"/>')
        for k in range(len(columns) + 1):
            x = frame.x(k / len(columns))
            self.add(f'<path class="grid" d="M{x:.1f} {frame.top}V{frame.floor}"/>')
        for i, name in enumerate(rows):
            y = frame.y(len(rows) - i - 0.5) + 4
            place = f'x="{left - 6}" y="{y:.1f}" text-anchor="end"'
            self.add(f'<text class="name" {place}>{clean(name)}</text>')
        for k, name in enumerate(columns):
            x = frame.x((k + 0.5) / len(columns)) + 3
            turn = f"translate({x:.1f} {frame.top - 6}) rotate({-slant:g})"
            self.add(f'<text class="name" transform="{turn}">{clean(name)}</text>')

    def names(self, ends: Iterable[tuple[float | None, str]]) -> None:
        """(value, label) beside the right edge, at or near the values."""
        has_place = self.frame.has_place
        labels = [(self.frame.y(v), label) for v, label in ends if v is not None and has_place(v)]
        self.beside(labels, gap=14, indent=9)

    def beside(
        self, labels: Sequence[tuple[float, str]], gap: int, indent: int, down: int = 0
    ) -> None:
        """(height, label) beside the right edge, in pixels: ``gap`` apart, closer only where they
        would not fit, ``indent`` away from the edge and from ``down`` below the top on. Labels may
        be any text."""
        frame = self.frame
        places = spread([y for y, _ in labels], gap, frame.top + down, frame.floor)
        for place, (_, label) in zip(places, labels, strict=True):
            at = f'x="{frame.x(1) + indent:.1f}" y="{place + 4:.1f}"'
            self.add(f'<text class="name" {at}>{clean(label)}</text>')

    def svg(self, words: str) -> str:
        """The chart as an element; ``words``, any text, say what it shows to those who do not see
        it."""
        return (
            f'<svg viewBox="0 0 {self.frame.width} {self.frame.height}" role="img" '
            f'aria-label="{clean(words)}">{"".join(self._parts)}</svg>'
        )
