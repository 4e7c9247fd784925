"""What a task shows of its last evaluation, on the page of a run, whatever the task.

A picture is an object of pictures.json with a ``title`` and a ``caption``:

* ``"kind": "matrix"``: counts, ``values`` with a row for each of ``rows`` and a column for each of
  ``columns``; shaded by its share of the row;
* ``"kind": "table"``: ``rows`` of cells under ``heads``; numbers stand on the right;
* ``"kind": "heat"``: ``maps``, each with a name for each of its ``rows`` and ``columns`` and
  ``values`` from 0 to 1, which are drawn as squares;
* ``"kind": "passages"``: ``items``, each with a ``head``, a ``text`` of [part, marks] and ``notes``
  of [name, words]; marks are "right", "ours", both with a space between, or "".
* ``"kind": "gallery"``: ``items``, each with the bytes of a ``png`` in base64, its ``width`` in
  pixels, a ``head`` and ``notes`` of [name, words];
* ``"kind": "reached"``: what was ``asked`` and ``reached``, with its ``spread``, a number each, and
  ``levels`` of [value, name].

What is not understood is left out.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from addnorm.pages.heat import heat_map, numbers
from addnorm.pages.look import clean
from addnorm.pages.numbers import exact
from addnorm.pages.reached import reached_chart

MOST = 200  # rows of a table
SHADES = 5  # of a matrix, from none to the whole row
LETTERS = 600  # of a cell
SHORT = 24  # letters of a cell that needs no room of its own
PASSAGE = 4000  # letters of a part of a passage
MARKS = ("right", "ours")
BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
LARGEST = 4_000_000  # letters of a picture
NARROW = 100  # pixels, below which a picture is made larger, each pixel a square


def pictures(content: Sequence[Any]) -> str:
    """All of them, one below the other."""
    return "".join(map(_picture, content))


def _picture(picture: Any) -> str:
    """A picture under its title, as HTML, of which nothing is trusted; "" for what is not
    understood."""
    kind = picture.get("kind") if isinstance(picture, dict) else None
    content = KINDS[kind](picture) if isinstance(kind, str) and kind in KINDS else ""
    return content and f"<h3>{clean(picture.get('title', ''))}</h3>{content}"


def _in_table(picture: Mapping[str, Any], table: str) -> str:
    """The head and body of a table below its caption, which does not scroll with it; "" where there
    are none."""
    if not table:
        return ""
    name = clean(picture.get("title", ""))
    return (
        f'<p class="small">{clean(picture.get("caption", ""))}</p><div class="scroll" '
        f"tabindex='0'><table class='plain' aria-label=\"{name}\">{table}</table></div>"
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
    table = f"<thead><tr><th>{corner}</th>{heads}</tr></thead><tbody>{''.join(body)}</tbody>"
    return _in_table(picture, table)


def _table(picture: Mapping[str, Any]) -> str:
    """The head and body of a table of cells, ``MOST`` rows of it; rows that have not as many cells
    as there are heads are left out, and "" where none is left."""
    heads, rows = _list(picture.get("heads")), _list(picture.get("rows"))[:MOST]
    fitting = [row for row in rows if len(_list(row)) == len(heads)]
    if not heads or not fitting:
        return ""
    numeric = [all(isinstance(row[i], int | float) for row in fitting) for i in range(len(heads))]
    longest = [max(len(str(row[i])) for row in fitting) for i in range(len(heads))]
    kinds = [
        "num" if n else "long" if most > SHORT else "short"
        for n, most in zip(numeric, longest, strict=True)
    ]
    classes = [f' class="{kind}"' for kind in kinds]
    top = "".join(
        f'<th scope="col"{c}>{clean(name)}</th>' for name, c in zip(heads, classes, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(f"<td{c}>{_cell(v)}</td>" for v, c in zip(row, classes, strict=True))
        + "</tr>"
        for row in fitting
    )
    return _in_table(picture, f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody>")


def _heat(picture: Mapping[str, Any]) -> str:
    """Maps beside each other, of which the largest value is the darkest; "" where none can be
    drawn."""
    maps = _list(picture.get("maps"))
    most = max((v for content in maps for row in numbers(content) for v in row if v > 0), default=1)
    charts = "".join(heat_map(content, most) for content in maps)
    if not charts:
        return ""
    caption = f'<p class="small">{clean(picture.get("caption", ""))}</p>'
    return f"{caption}<div class='maps'>{charts}</div>"


def _passages(picture: Mapping[str, Any]) -> str:
    """Texts with what is marked in them; "" where there are none."""
    items = "".join(map(_passage, _list(picture.get("items"))[:MOST]))
    if not items:
        return ""
    return f'<p class="small">{clean(picture.get("caption", ""))}</p>{items}'


def _passage(item: Any) -> str:
    """One of them; "" for what is none."""
    if not isinstance(item, dict):
        return ""
    parts = []
    for part in _list(item.get("text")):
        if len(_list(part)) != 2:
            return ""
        words, marks = part[0], str(part[1]).split()
        classes = " ".join(mark for mark in MARKS if mark in marks)
        text = _cell(words, PASSAGE)
        parts.append(f'<mark class="{classes}">{text}</mark>' if classes else text)
    if not parts:
        return ""
    head = f"<h4>{_cell(item['head'])}</h4>" if item.get("head") else ""
    return f"<div class='passage'>{head}<p>{''.join(parts)}</p>{_notes(item)}</div>"


def _gallery(picture: Mapping[str, Any]) -> str:
    """Pictures beside each other; "" where there are none."""
    items = "".join(map(_shot, _list(picture.get("items"))[:MOST]))
    if not items:
        return ""
    caption = f'<p class="small">{clean(picture.get("caption", ""))}</p>'
    return f'{caption}<div class="gallery">{items}</div>'


def _shot(item: Any) -> str:
    """One of them; "" for what is none."""
    png = item.get("png") if isinstance(item, dict) else None
    if not isinstance(png, str) or len(png) > LARGEST or not BASE64.fullmatch(png):
        return ""
    width = item.get("width")
    narrow = isinstance(width, int) and 0 < width < NARROW
    words = clean(item.get("head", ""))
    size = f' class="grain" width="{width * -(-NARROW // width)}"' if narrow else ""
    shot = f'<img src="data:image/png;base64,{png}" alt="{words}"{size}>'
    return f"<figure>{shot}<figcaption>{words}{_notes(item)}</figcaption></figure>"


def _notes(item: Mapping[str, Any]) -> str:
    """The ``notes`` of an item below it; "" where it has none."""
    notes = [note for note in _list(item.get("notes")) if len(_list(note)) == 2]
    lines = "".join(f"<div><dt>{_cell(n)}</dt><dd>{_cell(words)}</dd></div>" for n, words in notes)
    return f"<dl>{lines}</dl>" if lines else ""


def _reached(picture: Mapping[str, Any]) -> str:
    """A chart below its caption; "" where it cannot be drawn."""
    chart = reached_chart(picture)
    return chart and f'<p class="small">{clean(picture.get("caption", ""))}</p>{chart}'


def _cell(value: Any, most: int = LETTERS) -> str:
    """A number or any text, cut to ``most`` letters, as HTML."""
    if isinstance(value, float):
        return exact(value)
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return clean(text if len(text) <= most else f"{text[:most]} ...")


def _list(value: Any) -> Sequence[Any]:
    """Empty for what is none."""
    return value if isinstance(value, list) else []


KINDS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "matrix": _matrix,
    "table": _table,
    "heat": _heat,
    "passages": _passages,
    "gallery": _gallery,
    "reached": _reached,
}

STYLE = "\n".join(
    f".shade{i}{{background:color-mix(in srgb,var(--line) {12 * i}%,transparent)}}"
    for i in range(1, SHADES)
)
STYLE += """
.scroll .plain{table-layout:auto}
.scroll .plain td,.scroll .plain th{white-space:normal;width:auto;padding-right:20px}
.scroll .plain .short,.scroll .plain th{overflow-wrap:break-word}
.scroll .plain .long{min-width:14em;max-width:60ch}
.scroll .plain .num{white-space:nowrap;min-width:4em}
div+h3{margin-top:1.6em}
.maps{display:flex;flex-wrap:wrap;gap:12px 28px;margin-top:12px;overflow-x:auto}
.maps figure{flex:none}
.squares{fill:var(--line)}
.passage{margin:14px 0;padding:2px 0 2px 14px;border-left:3px solid var(--rule);max-width:80ch}
.passage h4{margin:0;font-size:1rem}
.passage p{margin:.3em 0;max-width:none;white-space:pre-line;overflow-wrap:anywhere}
.passage dl,.gallery dl{margin:.3em 0 0;font-size:.9rem}
.passage dt,.passage dd,.gallery dt,.gallery dd{display:inline;margin:0}
.passage dt,.gallery dt{color:var(--muted)}
.passage dt::after,.gallery dt::after{content:": "}
.gallery{display:flex;flex-wrap:wrap;gap:16px 20px;margin:12px 0 24px}
.gallery figure{flex:none;max-width:200px;margin:0}
.gallery img{max-width:200px;max-height:200px;border:1px solid var(--rule)}
.gallery .grain{image-rendering:pixelated}
.gallery figcaption{font-size:.9rem;overflow-wrap:anywhere;margin-top:4px}
.gallery dl{font-weight:400}
mark{background:none;color:inherit}
mark.ours{background:color-mix(in srgb,var(--line) 26%,transparent);border-radius:2px}
mark.right{border-bottom:2px solid var(--ink)}
"""
