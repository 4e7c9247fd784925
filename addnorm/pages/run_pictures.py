"""What a task shows of its last evaluation, on the page of a run, whatever the task.

A picture is an object of pictures.json with a ``title`` and a ``caption``:

* ``"kind": "matrix"``: counts, ``values`` with a row for each of ``rows`` and a column for each of
  ``columns``; shaded by its share of the row;
* ``"kind": "table"``: ``rows`` of cells under ``heads``; numbers stand on the right.

What is not understood is left out.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from addnorm.pages.look import clean
from addnorm.pages.numbers import exact

MOST = 200  # rows of a table
SHADES = 5  # of a matrix, from none to the whole row
LETTERS = 600  # of a cell


def pictures(content: Sequence[Any]) -> str:
    """All of them, one below the other."""
    return "".join(map(_picture, content))


def _picture(picture: Any) -> str:
    """A table under its title, as HTML; "" for what is not understood. Nothing in it is trusted."""
    kind = picture.get("kind") if isinstance(picture, dict) else None
    table = KINDS[kind](picture) if isinstance(kind, str) and kind in KINDS else ""
    if not table:
        return ""
    caption = f"<caption>{clean(picture.get('caption', ''))}</caption>"
    return (
        f"<h3>{clean(picture.get('title', ''))}</h3>"
        f"<div class='scroll' tabindex='0'><table class='plain'>{caption}{table}</table></div>"
    )


def _matrix(picture: Mapping[str, Any]) -> str:
    """The head and body of a table of counts; "" where rows, columns and values do not fit."""
    rows, columns, values = (_list(picture.get(name)) for name in ("rows", "columns", "values"))
    if not columns or len(rows) != len(values):
        return ""
    body = []
    for name, row in zip(rows, values, strict=True):
        counts = [n if isinstance(n, int) and n >= 0 else 0 for n in _list(row)]
        if len(counts) != len(columns):
            return ""
        total = max(sum(counts), 1)
        cells = "".join(
            f'<td class="num shade{-(-n * (SHADES - 1) // total)}">{n:,}</td>' for n in counts
        )
        body.append(f'<tr><th scope="row">{clean(name)}</th>{cells}</tr>')
    heads = "".join(f'<th scope="col" class="num">{clean(name)}</th>' for name in columns)
    corner = clean(picture.get("corner", ""))
    return f"<thead><tr><th>{corner}</th>{heads}</tr></thead><tbody>{''.join(body)}</tbody>"


def _table(picture: Mapping[str, Any]) -> str:
    """The head and body of a table of cells, ``MOST`` rows of it; rows that have not as many cells
    as there are heads are left out, and "" where none is left."""
    heads, rows = _list(picture.get("heads")), _list(picture.get("rows"))[:MOST]
    fitting = [row for row in rows if len(_list(row)) == len(heads)]
    if not heads or not fitting:
        return ""
    numeric = [all(isinstance(row[i], int | float) for row in fitting) for i in range(len(heads))]
    classes = [' class="num"' if number else "" for number in numeric]
    top = "".join(
        f'<th scope="col"{c}>{clean(name)}</th>' for name, c in zip(heads, classes, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(f"<td{c}>{_cell(v)}</td>" for v, c in zip(row, classes, strict=True))
        + "</tr>"
        for row in fitting
    )
    return f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody>"


def _cell(value: Any) -> str:
    """A number or any text, cut to ``LETTERS``, as HTML."""
    if isinstance(value, float):
        return exact(value)
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return clean(text if len(text) <= LETTERS else f"{text[:LETTERS]} ...")


def _list(value: Any) -> Sequence[Any]:
    """Empty for what is none."""
    return value if isinstance(value, list) else []


KINDS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {"matrix": _matrix, "table": _table}

STYLE = "\n".join(
    f".shade{i}{{background:color-mix(in srgb,var(--line) {12 * i}%,transparent)}}"
    for i in range(1, SHADES)
)
STYLE += "\n.scroll .plain td{white-space:normal;min-width:4em;max-width:60ch}\n"
