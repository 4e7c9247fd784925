"""Find what is wired wrong in any Transformer, before training.

TARGET is path.py:NAME or module:NAME, where NAME is a model, or a function without arguments that
returns a model or (model, inputs). Or it is a folder or hub id with a model of addnorm or
transformers. Without one, those of [tool.addnorm.lint] in pyproject.toml are examined. The exit
status is 1 if an error is found. docs/lint.md explains the report.
"""

import contextlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, final

from addnorm.cli.arguments import Positional, UseAppendAction, arg, option_values
from addnorm.cli.refusal import Refusal
from addnorm.cli.target import Target, error_with_line, line_if_slow, open_target
from addnorm.cli.watch import watch
from addnorm.progress import ProgressBar
from addnorm.words import a_few, did_you_mean

if TYPE_CHECKING:
    from addnorm.cli.lint_config import LintConfig
    from addnorm.linting import Ignore, Report

NOUNS = {"RULE": "the name of a rule"}
"""What stands after an option, in words."""


@final
@dataclass(frozen=True)
class Options:
    """What ``addnorm lint`` is asked."""

    target: Positional[Annotated[str, arg(metavar="[TARGET]", help_behavior_hint="")]] = ""
    """path.py:NAME, module:NAME, a folder with a model, or a name such as openai-community/gpt2."""
    causal: bool = False
    """The model must be causal: no position may see later ones, whatever its config says."""
    no_causal: bool = False
    """The model need not be causal: positions may see later ones."""
    ignore: Annotated[
        UseAppendAction[tuple[str, ...]], arg(metavar="RULE", help_behavior_hint="(repeatable)")
    ] = ()
    """Leave out the findings of this rule."""
    notes: Annotated[bool, arg(aliases=["-v"])] = False
    """Print notes in full, instead of one line each."""
    format: Literal["text", "json", "github", "sarif"] = "text"
    """json: the whole report; github: annotations of a workflow; sarif: for other tools."""
    as_json: Annotated[bool, arg(name="json")] = False
    """The same as --format json."""
    watch: bool = False
    """Examine again whenever a file of Python in the target's folder changes."""
    rules: bool = False
    """Only list the rules."""
    explain: Annotated[str | None, arg(metavar="RULE", constructor=str, help_behavior_hint="")] = (
        None
    )
    """Only print the page that explains one rule."""
    diff: Annotated[tuple[str, ...], arg(metavar="A B", help_behavior_hint="")] = ()
    """Instead, find the first place where models A and B differ; exit status 1 if they do."""
    weights: Literal["copied", "own"] = "copied"
    """With --diff. copied: B gets the weights of A; own: both keep their own."""


def arrange(args: Sequence[str]) -> list[str]:
    """Targets may stand anywhere; what is missing, superfluous or unknown is an error in words."""
    if {"-h", "--help"} & set(args):
        return list(args)
    values = option_values(Options)
    words: list[str] = []
    targets: list[str] = []
    todo = list(args)
    two = False
    while todo:
        word = todo.pop(0)
        if not word.startswith("-") or word == "-":
            targets.append(word)
            continue
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        if name == "--diff":
            two = True
            targets += [value] if equals else []
        elif name not in values or (values[name] is None and equals):
            hint = did_you_mean(name, values) or "addnorm lint --help lists them"
            raise Refusal(f"unknown option {word}; {hint}")
        elif (metavar := values[name]) is None:
            words.append(name)
        elif not equals and (not todo or todo[0].startswith("-")):
            noun = NOUNS.get(metavar, metavar.strip("{}").replace(",", " or "))
            raise Refusal(f"{name} needs {noun} after it")
        else:
            words += [name, value if equals else todo.pop(0)]
    if two and len(targets) != 2:
        listed = ", ".join(targets) or "none"
        raise Refusal(
            f"--diff takes exactly two targets, as in addnorm lint --diff A B; got {listed}"
        )
    if not two and len(targets) > 1:
        two_only = f"; to compare two: addnorm lint --diff {' '.join(targets[:2])}"
        raise Refusal(
            f"lint takes one target, got {len(targets)} ({', '.join(targets)}): call it once for "
            f"each{two_only if len(targets) == 2 else ''}"
        )
    return [*words, "--diff", *targets] if two else [*words, *targets]


def run(options: Options) -> int:
    """List or explain rules, compare two models, or examine one, as the options say; returns the
    exit status: 1 if an error is found, or a difference."""
    if options.rules:
        return _list_rules()
    from addnorm.linting.check import rules_named

    if options.explain is not None:
        (rule,) = rules_named([options.explain])
        print(rule.page.rstrip())
        return 0
    rules_named(options.ignore)
    if options.causal and options.no_causal:
        raise Refusal("--causal and --no-causal exclude each other: use one, or neither")
    if options.diff:
        return _diff(options)
    from addnorm.cli.lint_config import read_config

    config = read_config(Path.cwd())
    targets = (options.target,) if options.target else config.targets
    if not targets:
        raise Refusal(
            "no target: give path.py:NAME, module:NAME, a folder or a hub id, or targets under "
            "[tool.addnorm.lint] in pyproject.toml"
        )
    if options.watch:
        return watch(targets)
    return _lint(options, targets, config)


# --- the report -----------------------------------------------------------------------------------


def _lint(options: Options, targets: Sequence[str], config: "LintConfig") -> int:
    """Examine models and print their reports; the exit status, 1 if there is an error in one."""
    from addnorm.cli.lint_formats import github_lines, sarif
    from addnorm.linting import Ignore
    from addnorm.linting.report_text import print_report, terminal_console

    form = "json" if options.as_json else options.format
    if options.as_json and options.format not in ("text", "json"):
        raise Refusal(f"--json and --format {options.format} exclude each other: use one")
    ignores = [*config.ignore, *(Ignore(rule=r, where="--ignore") for r in options.ignore)]
    causal = True if options.causal else False if options.no_causal else config.causal
    examined = []
    for i, name in enumerate(targets):
        target = open_target(name)
        report = _report(target, causal, ignores)
        reason = None if report.ran else report.unknown[0].why
        if form == "json":
            print(json.dumps(json.loads(report.to_json()) | {"target": name}, indent=2))
        if reason is not None:
            fault = _inputs_fault(target) or _reason_in_full(reason)
            raise Refusal(f"{target.name} cannot be examined: {fault}")
        if form == "text":
            print("\n" if i else "", end="")
            print_report(report, terminal_console(), remark=target.note, notes=options.notes)
        file = target.file if target.file is not None and target.file.is_file() else None
        examined.append((report, file))
    if form == "github":
        for line in (line for pair in examined for line in github_lines(*pair)):
            print(line)
    elif form == "sarif":
        print(json.dumps(sarif(examined), indent=2))
    return 0 if all(report.ok for report, _ in examined) else 1


def _report(target: Target, causal: bool | None, ignores: "Sequence[Ignore]") -> "Report":
    """What lint says of one model, with progress at a terminal."""
    from addnorm.linting import lint

    with (
        line_if_slow(*_work(target)),
        ProgressBar("examining") as bar,
        contextlib.redirect_stdout(sys.stderr),
    ):
        return lint(target.model, target.inputs, causal=causal, ignore=ignores, progress=bar.update)


def _reason_in_full(why: str) -> str:
    """Why none of the made-up inputs worked, and what to do; any other reason as it is. Goes by the
    words of ``CannotMakeInputs`` in ``anatomy.make_inputs``."""
    if "kinds of call were tried" not in why:
        return why
    calls, one_error = _calls_by_error(why)
    doubt = "The error is the same with all inputs: it may be in forward itself.\n"
    doubt = doubt if one_error else ""
    return (
        f"{calls}\n{doubt}"
        "To use your own inputs, let a function return (model, inputs), with a tensor, a tuple of\n"
        "positional arguments or a dict of keyword arguments as inputs"
    )


def _calls_by_error(why: str) -> tuple[str, bool]:
    """(the message with the calls of each error in one line, whether it is one error of several
    calls). ``why``: the message of ``anatomy.make_inputs``, a head and then lines of
    ``call: error``."""
    head, *lines = why.partition("\nGive a batch")[0].splitlines()
    calls: dict[str, list[str]] = {}
    for line in lines:
        call, _, error = line.strip().partition(": ")
        calls.setdefault(error, []).append(call)
    groups = [f"  {a_few(same_error, 1)}: {error}" for error, same_error in calls.items()]
    return "\n".join([head, *groups]), len(calls) == 1 and len(lines) > 1


def _inputs_fault(target: Target) -> str | None:
    """What the model says of the inputs that its author gave, with the line; None: there are
    none, or they run."""
    if target.inputs is None:
        return None
    import torch

    from addnorm.anatomy.inputs import inputs_from
    from addnorm.temporary import isolated

    try:
        inputs = inputs_from(target.inputs)
    except TypeError as error:
        return str(error)
    shapes = ", ".join(
        f"{'' if name.isdecimal() else name + ' '}{tuple(t.shape)} of "
        f"{str(t.dtype).removeprefix('torch.')}"
        for name, t in inputs.tensors().items()
    )
    try:
        with isolated(), torch.no_grad(), contextlib.redirect_stdout(sys.stderr):
            inputs.call(target.model.eval())
    except Exception as error:  # a stranger's forward may raise anything
        return (
            f"its forward fails on the inputs returned with it ({shapes or 'no tensors'}): "
            f"{error_with_line(error, target.file)}"
        )
    return None


def _work(*targets: Target) -> tuple[str, int]:
    """(what is being done to these models, how many parameters they have together), the arguments
    of ``line_if_slow``."""
    count = sum(p.numel() for target in targets for p in target.model.parameters())
    names = " and ".join(target.name for target in targets)
    return f"running {names} ({count:,} parameters) many times; this may take minutes", count


def _list_rules() -> int:
    """Print each rule with what it finds; the exit status, 0."""
    from addnorm.linting.check import rules_by_name

    rules = rules_by_name()
    width = max(map(len, rules))
    for name, rule in rules.items():
        print(f"{name:{width}}  {rule.finds}")
    return 0


# --- two models -----------------------------------------------------------------------------------


def _diff(options: Options) -> int:
    """Print where two models first differ; the exit status, 1 if they do."""
    first, second = (open_target(t) for t in options.diff)
    from addnorm.anatomy.compare_models import NotComparable, diff
    from addnorm.linting.report_text import print_difference, terminal_console

    try:
        with (
            line_if_slow(*_work(first, second)),
            contextlib.redirect_stdout(sys.stderr),
        ):
            difference = diff(first.model, second.model, first.inputs, weights=options.weights)
    except NotComparable as error:
        fault = _inputs_fault(first)
        reason = f"{first.name}: {fault}" if fault else _reason_in_full(str(error))
        raise Refusal(f"{first.name} and {second.name} cannot be compared: {reason}") from None
    if options.as_json:
        names = {"a": options.diff[0], "b": options.diff[1]}
        print(json.dumps(difference.to_json() | names, indent=2))
    else:
        print_difference(difference, options.diff[0], options.diff[1], terminal_console())
    return 0 if difference.same else 1
