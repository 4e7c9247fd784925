"""List, explain and measure the designs of Add & Norm.

Without --list or --explain, the designs are measured at initialization, before any training: how
large the residual stream gets, how large gradients are, and how both grow with depth. A table goes
to the terminal, a page with plots and all numbers to the folder --out.
"""

import json
import shlex
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, final

from rich import box
from rich.console import Console
from rich.table import Table

from addnorm import disk, reading
from addnorm.cli.arguments import Positional, arg
from addnorm.cli.refusal import Refusal
from addnorm.lab.setup import Setup
from addnorm.pages import schemes as page
from addnorm.pages.numbers import digits, slope
from addnorm.progress import ProgressBar
from addnorm.words import plural

if TYPE_CHECKING:
    from addnorm.lab.measurement import LabReport
    from addnorm.spread import Spread

WIDTH = 100  # of what is printed


@final
@dataclass(frozen=True)
class Options:
    """What ``addnorm schemes`` is asked."""

    names: Positional[
        Annotated[tuple[str, ...], arg(metavar="[NAME ...]", help_behavior_hint="(default: all)")]
    ] = ()
    """Designs to measure, such as pre_norm or "drop_path(mix_ln(0.25), p=0.1)"."""
    setup: Setup = field(default_factory=Setup)
    out: Path = Path("out/schemes")
    """The folder for the page (schemes.html) and the numbers (schemes.json)."""
    listing: Annotated[bool, arg(name="list")] = False
    """Only print the table of names, equations and papers."""
    explain: Annotated[str | None, arg(metavar="NAME", constructor=str, help_behavior_hint="")] = (
        None
    )
    """Only explain one design, counted at --width, --heads, --tokens and the largest depth."""


def run(options: Options) -> int:
    """Print the table, or one design, or measure; returns the exit status, 0."""
    if options.listing:
        _print_list()
    elif options.explain is not None:
        _print_explanation(options.explain, options.setup)
    else:
        _measure(options)
    return 0


def command(names: tuple[str, ...], setup: Setup) -> str:
    """The command line that measures this again, whatever the defaults are by then: every option of
    ``setup`` is written out. ``names`` as the user gave them; none: all designs."""
    words = ["addnorm", "schemes", *names]
    for f in fields(setup):
        value, name = getattr(setup, f.name), "--" + f.name.replace("_", "-")
        if isinstance(value, bool):
            words += [name] if value else []
        else:
            words += [name, *map(str, value if isinstance(value, tuple) else (value,))]
    return shlex.join(words)


# --- telling --------------------------------------------------------------------------------------


def _print_list() -> None:
    """Print a table of all designs, and one of all combinators."""
    from addnorm.lab.measurement import register

    console = Console(width=WIDTH, highlight=False, markup=False, emoji=False)
    for title, entries in zip(
        ("designs", "combinators, around any design"), register(), strict=True
    ):
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("name", no_wrap=True)
        table.add_column("equation", ratio=3)
        table.add_column("year", no_wrap=True)
        table.add_column("paper", ratio=2)
        for e in entries:
            table.add_row(e.usage(), e.equation, str(e.year), e.paper)
        console.print(table)


def _print_explanation(name: str, setup: Setup) -> None:
    from addnorm import schemes

    shape = {"dim": setup.width, "n_heads": setup.heads, "tokens": setup.tokens}
    print(schemes.explain(name, blocks=max(setup.depths), **shape))


# --- measuring ------------------------------------------------------------------------------------


def _measure(options: Options) -> None:
    """Measure the designs, print a table and write page and numbers; a name that cannot be built is
    refused before anything is measured."""
    from addnorm.lab.measurement import compare, everything, resolve

    setup, names = options.setup, tuple(dict.fromkeys(options.names))
    texts = names or everything()
    for text in texts:
        resolve(text, setup)
    with reading.system_errors(options.out, Refusal, "write"):
        options.out.mkdir(parents=True, exist_ok=True)
    blocks = len(texts) * setup.seeds * sum(setup.depths)
    with ProgressBar(f"measuring {plural(len(texts), 'design')}", blocks) as bar:
        report = compare(texts, setup, command(names, setup), advance=bar.advance)
    _print_report(report)
    with reading.system_errors(options.out, Refusal, "write"):
        disk.write_text(options.out / page.NUMBERS, json.dumps(report.to_json(), allow_nan=False))
        page.write(options.out)
    for kind, name in (("plots", page.NAME), ("numbers", page.NUMBERS)):
        print(f"{kind}: {options.out / name}")


def _print_report(report: "LabReport") -> None:
    """Print what was measured as a table, a design in each row, at the largest of the depths, with
    the exponents over all of them; below it what the columns are."""
    from addnorm.lab.measurement import conditions

    console = Console(width=WIDTH, highlight=False, markup=False, emoji=False)
    deep = max(report.setup.depths)
    console.print(conditions(report.setup))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    table.add_column("design", overflow="fold")
    for title in (f"x^2\nL={deep}", "\ngrows as L^", f"|dW|\nL={deep}", "\ngrows as L^"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column(f"first/last\nL={deep}", justify="right", no_wrap=True)
    for d in report.designs:
        stream, last = d.value(deep, "stream_mean_square"), d.value(deep, "last_mlp_gradient")
        table.add_row(
            d.label,
            digits(stream.median),
            _exponent(d.exponent("stream_mean_square")),
            digits(last.median),
            _exponent(d.exponent("last_mlp_gradient")),
            digits(d.value(deep, "first_to_last").median),
        )
    console.print(table)
    depths = ", ".join(map(str, sorted(report.setup.depths)))
    print(
        "x^2: mean square of the residual stream after the last of L blocks.\n"
        "|dW|: norm of the loss's gradient for the last MLP's down weight.\n"
        "first/last: that of the first MLP over that of the last.\n"
        f"Exponents are fitted over L = {depths}. Medians over "
        f"{plural(report.setup.seeds, 'seed')} with\n[lowest, highest]. '-': "
        "not defined, as where a gradient is exactly 0.\n"
    )


def _exponent(e: "Spread | None") -> str:
    """An exponent with its extremes over the seeds; a hyphen where there is none."""
    return "-" if e is None else f"{slope(e.median)} [{slope(e.low)}, {slope(e.high)}]"
