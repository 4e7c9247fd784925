"""What every page is: the file around its body, the styles, and text that is safe in it."""

from html import escape


def clean(value: object) -> str:
    """Any text as a page may hold it: escaped, and with signs for what no page may hold."""
    return escape("".join(map(_letter, str(value))))


def _letter(c: str) -> str:
    """A character, or the sign for one that HTML does not allow: controls, surrogates and
    noncharacters."""
    code = ord(c)
    if code < 32 and c not in "\n\t":
        return chr(0x2400 + code)  # the sign for this control character
    unfit = 0x7F <= code < 0xA0 or 0xD800 <= code < 0xE000 or code & 0xFFFE == 0xFFFE
    return "\ufffd" if unfit else c


def figure(chart: str, caption: str = "", words: str = "") -> str:
    """A chart with its caption above it and its words below, both as HTML."""
    above = f"<figcaption>{caption}</figcaption>" if caption else ""
    below = f'<p class="small">{words}</p>' if words else ""
    return f"<figure>{above}{chart}{below}</figure>"


def document(title: str, body: str, style: str) -> str:
    """The whole file: ``title`` is any text, ``body`` HTML, ``style`` CSS that comes after what all
    pages have."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{clean(title)}</title>
<style>{STYLE}{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


STYLE = """
:root{--bg:#fbfaf7;--ink:#1c1e22;--muted:#5a5f69;--rule:#d8d4ca;--grid:#e9e6de;--line:#174a8c;
--others:#dedad0;--code:#f1eee6}
@media (prefers-color-scheme:dark){:root{--bg:#15171b;--ink:#e8e6e0;--muted:#a5a9b2;--rule:#3a3e47;
--grid:#262a31;--line:#8dbbff;--others:#30343d;--code:#1f2228}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,sans-serif;
-webkit-text-size-adjust:100%}
main{max-width:1160px;margin:0 auto;padding:40px 20px 64px}
h1{font-size:clamp(1.9rem,5vw,2.9rem);line-height:1.1;letter-spacing:-.02em;margin:.1em 0 .4em}
h2{margin:2.4em 0 .5em;padding-top:.7em;border-top:1px solid var(--rule);font-size:1.35rem}
h3{margin:0 0 .3em;font-size:1.1rem}
p{margin:.4em 0;max-width:74ch}
a{color:var(--line);text-underline-offset:2px}
a:focus-visible,pre:focus-visible,summary:focus-visible{outline:2px solid var(--line);
outline-offset:2px}
.kicker{color:var(--muted);font:600 .9rem ui-monospace,monospace}
.lead{font-size:1.15rem}
.small,small,caption,.muted{color:var(--muted)}
.small,caption{font-size:.875rem}
small{font-size:.8125rem;font-weight:400}
strong{font-weight:600;color:var(--ink)}
code{font-family:ui-monospace,monospace;font-size:.875rem}
pre{background:var(--code);padding:12px;border-radius:4px;white-space:pre-wrap;
overflow-wrap:anywhere}
figure{margin:0;min-width:0}
figcaption{font-weight:600;font-size:.9rem;margin-bottom:2px}
svg{display:block;max-width:100%;overflow:visible}
figure svg{width:100%;height:auto}
svg text{font:12px system-ui,sans-serif;fill:var(--muted)}
svg .name{fill:var(--ink)}
svg path{fill:none}
.grid{stroke:var(--grid)}
.axis{stroke:var(--rule)}
.line{stroke:var(--line);stroke-width:1.6;stroke-linejoin:round;stroke-linecap:round}
.band{fill:var(--line)!important;opacity:.16}
.dot{fill:var(--line)}
.pair{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:28px}
table{border-collapse:collapse;width:100%;margin-top:12px;font-size:.9375rem}
caption{text-align:left;padding-bottom:8px}
th,td{text-align:left;padding:5px 10px 5px 0;border-bottom:1px solid var(--grid);
vertical-align:middle;font-weight:400}
thead th{vertical-align:bottom;font-weight:600;border-bottom-color:var(--rule)}
.num{text-align:right;padding-right:18px;font-variant-numeric:tabular-nums}
@media (max-width:640px){
main{padding:24px 16px 48px}.pair{grid-template-columns:minmax(0,1fr)}
h2{margin-top:1.8em}}
"""
