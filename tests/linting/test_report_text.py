"""What ``addnorm lint`` prints of a report."""

import json
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from addnorm.linting import Finding, Report, Unknown
from addnorm.linting.report_text import print_report


def report() -> Report:
    many = [f"layers.{i}.norm" for i in range(1, 6)]
    return Report(
        (
            Finding(
                rule="double-norm",
                severity="warning",
                module="layers.0.norm",
                evidence={"change": 0.123456, "wrong": True, "also_in": many, "list": [1, 2.5] * 4},
                message="layers.0.norm is second.",
                remedy="Remove one of them.",
            ),
            Finding(
                rule="position-blind",
                severity="note",
                module="",
                evidence={"name": "with spaces"},
                message="nothing tells " + "the model " * 30,
                remedy="Nothing, if meant.",
            ),
        ),
        (Unknown(rule="mask-nan", module="a.b", why="it does not run"),),
        ("double-norm", "position-blind", "mask-nan"),
        {"model": "Net", "parameters": 12, "seconds": 0.25},
    )


@pytest.mark.parametrize("width", [60, 100])
def test_output_fits_its_terminal(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(width=width, force_terminal=False, highlight=False, markup=False)
    print_report(report(), console)
    folded = capsys.readouterr().out
    lines = folded.splitlines()
    assert max(map(len, lines)) <= width
    assert lines == [line.rstrip() for line in lines]
    assert "warning  double-norm  layers.0.norm and 5 more" in lines
    assert "  layers.0.norm is second." in lines
    assert "change=0.123  wrong=yes" in folded
    assert "list=[1,2.5,1,2.5,+4]" in folded
    (note,) = [line for line in lines if line.startswith("note ")]
    assert note.startswith("note     position-blind  (the model)  Nothing tells")
    assert note.endswith("…")
    assert "Nothing, if meant." not in folded
    assert "  mask-nan (a.b): it does not run" in lines
    assert "1 warning, 1 note by 3 rules; 1 rule could not decide" in lines

    print_report(report(), console, notes=True)
    whole = capsys.readouterr().out
    assert "  fix   Nothing, if meant." in whole
    assert 'name="with spaces"' in whole


@pytest.mark.parametrize("width", range(40, 101, 3))
def test_a_shape_is_not_broken(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    found = replace(report(), facts={**report().facts, "inputs": {"ids": [3, 7], "x": [3, 11, 8]}})
    console = Console(width=width, force_terminal=False, highlight=False, markup=False)
    print_report(found, console)
    lines = capsys.readouterr().out.splitlines()
    header = lines[: lines.index("")]
    assert "(3, 7), x (3, 11, 8)" in " ".join(header)
    assert any("(3, 7)" in line for line in header)
    assert any("(3, 11, 8)" in line for line in header)
    assert max(map(len, header)) <= width


def unused(module: str, **more: Any) -> Finding:
    return Finding(
        rule="unused-parameter",
        severity="warning",
        module=module,
        evidence={"parameters": [f"{module}.weight", f"{module}.bias"], **more},
        message=f"The forward never reads {module}.weight.",
        remedy="Remove it.",
    )


def test_what_lies_in_a_dead_branch_is_one_line_below_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    dead = Finding(
        rule="dead-branch",
        severity="error",
        module="layers.0.mlp",
        evidence={"branch_over_stream": 0.0, "also_in": ["layers.1.mlp"]},
        message="This branch adds nothing.",
        remedy="Look for a factor of zero.",
    )
    milder = replace(dead, severity="warning", module="attn", evidence={"x": 1})
    inside = (
        unused("layers.0.mlp.up", also_in=["layers.1.mlp.up"]),
        unused("layers.0.mlp"),
        unused("layers.0.mlp.down", read_by_the_forward=True),
    )
    outside = (
        unused("layers.0.mlp2"),  # another module whose name begins alike
        unused("layers.1.mlp.gate", also_in=["layers.2.mlp.gate"]),  # partly
        unused("attn.q"),  # inside of what is no error
    )
    found = Report((dead, milder, *inside, *outside), (), ("dead-branch",), report().facts)
    console = Console(width=100, force_terminal=False, highlight=False, markup=False)
    print_report(found, console)
    lines = capsys.readouterr().out.splitlines()
    told = [line for line in lines if "unused-parameter" in line and "explain" not in line]
    assert told == [
        "warning  unused-parameter  layers.0.mlp2",
        "warning  unused-parameter  layers.1.mlp.gate and 1 more",
        "warning  unused-parameter  attn.q",
    ]
    at = lines.index("error    dead-branch  layers.0.mlp and 1 more")
    assert lines[at + 3] == (
        "  and 6 parameters inside it are never read, 2 parameters inside it are read and never "
        "trained"
    )
    assert any(line.startswith("1 error, 7 warnings") for line in lines)  # none is lost
    assert len(json.loads(found.to_json())["findings"]) == 8


def test_colours_at_a_terminal_only(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(report(), Console(width=80, force_terminal=True))
    assert "\x1b[1;33mwarning" in capsys.readouterr().out


def test_from_python_a_report_is_what_the_terminal_shows() -> None:
    text = str(report())
    assert repr(report()) == text
    assert "warning  double-norm  layers.0.norm and 5 more" in text
    assert 'report.of("note") prints notes in full' in text
    assert "\x1b" not in text
    assert str(report().findings[0]) == (
        "warning: double-norm in layers.0.norm\n  layers.0.norm is second.\n  Remove one of them."
    )


def test_what_did_not_run_is_not_called_fine() -> None:
    unknown = Unknown(rule="lint", module="", why="the model <fails>")
    nothing = Report((), (unknown,), (), {"model": "Net", "parameters": 12, "seconds": 0.25})
    assert not nothing.ran
    assert not nothing.ok
    assert str(nothing).endswith("\n\n  It could not be examined: the model <fails>")
    assert "could not be examined" in nothing._repr_html_()
    assert "the model &lt;fails&gt;" in nothing._repr_html_()
    broken = replace(report(), findings=(), unknown=(replace(unknown, rule="r", broke=True),))
    assert broken.ran
    assert not broken.ok
    assert replace(broken, unknown=(replace(unknown, rule="r"),)).ok


def test_in_a_notebook() -> None:
    page = report()._repr_html_()
    assert "<b>Net</b>: 1 warning, 1 note by 3 rules" in page
    assert page.count("<details") == page.count("</details>") == 2
    assert page.count(" open>") == 1  # a note is closed
    assert "wrong=True" in page
    (first, _) = report().findings
    assert first._repr_html_() in page


def test_the_kit_has_a_report_too() -> None:
    facts = {"kind": "layer", "widths": [8, 16], "formula": None, "seconds": 1.234}
    text = str(replace(report(), facts=facts))
    assert text.startswith("kind layer; widths [8,16]; formula None; seconds 1.23\n")
