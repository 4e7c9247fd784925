"""Find what is wired wrong in any Transformer, before training.

TARGET is path.py:NAME or module:NAME, where NAME is a model, or a function without arguments that
returns a model or (model, inputs). Or it is a folder or hub id with a model of addnorm or
transformers. The exit status is 1 if an error is found. docs/lint.md explains the report.
"""

import ast
import contextlib
import importlib
import importlib.util
import inspect
import json
import shutil
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal, final

from rich.console import Console
from rich.text import Text

from addnorm import reading
from addnorm.cli import Positional, Refusal, UseAppendAction, arg
from addnorm.cli.models import open_model
from addnorm.progress import ProgressBar
from addnorm.words import a_few, did_you_mean, error_in_a_line, first_line, near_names, plural

if TYPE_CHECKING:
    from torch import nn

    from addnorm.anatomy.difference import Difference
    from addnorm.linting import Finding, Report

WIDTH = 100  # of what is printed, at most
NARROWEST = 40
MANY = 500_000_000  # parameters from which on it is said at once that this takes long
GLUE = "\ue000"  # a blank at which no line is broken, until it is printed
PATIENCE = 5.0  # seconds of silence
LOUD = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan"}
ITEMS = 4  # of a list in the evidence


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
    as_json: Annotated[bool, arg(name="json")] = False
    """Print the whole report as one JSON object."""
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


FLAGS = ("--causal", "--no-causal", "--notes", "-v", "--json", "--rules")
VALUED = {
    "--ignore": "the name of a rule",
    "--explain": "the name of a rule",
    "--weights": "copied or own",
}
"""What each of the other options wants."""


def arranged(args: Sequence[str]) -> list[str]:
    """Targets may stand anywhere; what is missing, superfluous or unknown is an error in words."""
    if {"-h", "--help"} & set(args):
        return list(args)
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
        elif name in VALUED:
            if not equals and (not todo or todo[0].startswith("-")):
                raise Refusal(f"{name} needs {VALUED[name]} after it")
            words += [name, value if equals else todo.pop(0)]
        elif name in FLAGS and not equals:
            words.append(name)
        else:
            known = [*FLAGS, *VALUED, "--diff"]
            hint = did_you_mean(name, known) or "addnorm lint --help lists them"
            raise Refusal(f"unknown option {word}; {hint}")
    if two and len(targets) != 2:
        given = ", ".join(targets) or "none"
        raise Refusal(
            f"--diff takes exactly two targets, as in addnorm lint --diff A B; got {given}"
        )
    if not two and len(targets) > 1:
        two_only = f"; to compare two: addnorm lint --diff {' '.join(targets[:2])}"
        raise Refusal(
            f"lint takes one target, got {len(targets)} ({', '.join(targets)}): call it once for "
            f"each{two_only if len(targets) == 2 else ''}"
        )
    return [*words, "--diff", *targets] if two else [*words, *targets]


def run(options: Options) -> int:
    """Returns the exit status."""
    if options.rules:
        return _list_rules()
    from addnorm.linting.rules import known, page

    if options.explain is not None:
        print(page(options.explain).rstrip())
        return 0
    known(options.ignore)
    if options.causal and options.no_causal:
        raise Refusal("--causal and --no-causal exclude each other: use one, or neither")
    if options.diff:
        return _diff(options)
    if not options.target:
        raise Refusal("no target: give path.py:NAME, module:NAME, a folder or a hub id")
    return _lint(options)


# --- the report -----------------------------------------------------------------------------------


def _lint(options: Options) -> int:
    found = open_target(options.target)
    from addnorm.linting import lint

    causal = True if options.causal else False if options.no_causal else None
    with (
        _not_hung(*_running(found)),
        ProgressBar("examining") as bar,
        contextlib.redirect_stdout(sys.stderr),
    ):
        report = lint(found.model, found.inputs, causal=causal, progress=bar.update)
    report = report.without(options.ignore)
    undone = next((u.why for u in report.unknown if u.rule == "lint"), None)
    if options.as_json:
        print(json.dumps(json.loads(report.to_json()) | {"target": options.target}, indent=2))
    elif undone is None:
        print_report(report, found, _console(), notes=options.notes, ignored=options.ignore)
    if undone is not None:
        refused = _inputs_refused(found) or _undone(undone)
        raise Refusal(f"{found.name} cannot be examined: {refused}")
    return 0 if report.ok else 1


def _undone(why: str) -> str:
    """Why none of the made-up inputs worked, and what to do; any other reason as it is."""
    if "kinds of call were tried" not in why:
        return why
    told, same = _each_once(why)
    doubt = "The error is the same with all inputs: it may be in forward itself.\n" if same else ""
    return (
        f"{told}\n{doubt}"
        "To use your own inputs, let a function return (model, inputs), with a tensor, a tuple of\n"
        "positional arguments or a dict of keyword arguments as inputs"
    )


def _each_once(why: str) -> tuple[str, bool]:
    """The calls that were tried, those with one and the same error in one line; and whether there
    is no other."""
    head, *lines = why.partition("\nGive a batch")[0].splitlines()
    calls: dict[str, list[str]] = {}
    for line in lines:
        call, _, error = line.strip().partition(": ")
        calls.setdefault(error, []).append(call)
    told = [f"  {a_few(same_error, 1)}: {error}" for error, same_error in calls.items()]
    return "\n".join([head, *told]), len(calls) == 1 and len(lines) > 1


def _inputs_refused(found: "Found") -> str | None:
    """What the model says of the inputs that its author gave, with the line; None: there are
    none, or they run."""
    if found.inputs is None:
        return None
    import torch

    from addnorm.anatomy.inputs import inputs_from
    from addnorm.temporary import isolated

    try:
        inputs = inputs_from(found.inputs)
    except TypeError as error:
        return str(error)
    shapes = ", ".join(
        f"{'' if name.isdecimal() else name + ' '}{tuple(t.shape)} of "
        f"{str(t.dtype).removeprefix('torch.')}"
        for name, t in inputs.tensors().items()
    )
    try:
        with isolated(), torch.no_grad(), contextlib.redirect_stdout(sys.stderr):
            inputs.call(found.model.eval())
    except Exception as error:  # a stranger's forward may raise anything
        return (
            f"its forward fails on the inputs returned with it ({shapes or 'no tensors'}): "
            f"{_where(error, found.file)}"
        )
    return None


@contextlib.contextmanager
def _not_hung(doing: str, parameters: int = 0) -> Iterator[None]:
    """Where no bar is drawn, a line says what is being done if that takes long."""
    errors = sys.stderr
    if errors.isatty():
        yield
        return

    def tell() -> None:
        print(f"addnorm: {doing}", file=errors, flush=True)

    timer = threading.Timer(PATIENCE, tell)
    timer.daemon = True
    if parameters > MANY:
        tell()
    else:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _running(*all_found: "Found") -> tuple[str, int]:
    """What is being done to these models, and how large they are together."""
    count = sum(p.numel() for found in all_found for p in found.model.parameters())
    names = " and ".join(found.name for found in all_found)
    return f"running {names} ({count:,} parameters) many times; this may take minutes", count


def _console() -> Console:
    console = Console(highlight=False, markup=False, emoji=False)
    here = shutil.get_terminal_size((WIDTH, 0)).columns  # COLUMNS counts in a pipe as well
    console.width = max(min(here, WIDTH), NARROWEST)
    return console


def print_report(
    report: "Report",
    found: "Found",
    console: Console,
    *,
    notes: bool = False,
    ignored: Sequence[str] = (),
) -> None:
    """For a reader who is tired and knows nothing of this program."""
    _wrapped(_header(report.facts, found), console)
    folded = []
    under = _under(report.findings)
    inside = {id(f) for found_there in under.values() for f in found_there}
    for finding in report.findings:
        if id(finding) in inside:
            continue
        if finding.severity == "note" and not notes:
            folded.append(finding)
        else:
            console.print()
            _print_finding(finding, console, under.get(id(finding), ()))
    if folded:
        console.print()
        for finding in folded:
            console.print(_folded(finding), no_wrap=True, overflow="ellipsis")
        console.print(Text("      --notes prints notes in full", style="dim"))
    if report.unknown:
        console.print()
        _print_unknown(report, console)
    console.print()
    _wrapped(_verdict(report, ignored), console)


_CAUSES = ("dead-branch", "ignores-memory", "no-residual")
"""Rules whose errors leave parameters unused."""


def _modules(finding: "Finding") -> list[str]:
    others = next((finding.evidence[n] for n in _OTHERS if n in finding.evidence), ())
    return [finding.module, *(others if isinstance(others, list | tuple) else ())]


def _under(findings: "Sequence[Finding]") -> "dict[int, list[Finding]]":
    """id of an error -> the unused parameters that are all inside its modules."""
    under: dict[int, list[Finding]] = {}
    causes = [f for f in findings if f.rule in _CAUSES and f.severity == "error" and f.module]
    for finding in findings:
        for cause in causes:
            if (finding.rule, finding.severity) == ("unused-parameter", "warning") and all(
                any(m == c or m.startswith(f"{c}.") for c in _modules(cause))
                for m in _modules(finding)
            ):
                under.setdefault(id(cause), []).append(finding)
                break
    return under


def _unused(findings: "Sequence[Finding]") -> str:
    """How many parameters are unused inside a module that has an error."""
    said = []
    for read, what in ((False, "never read"), (True, "read and never trained")):
        count = 0
        for f in findings:
            names = f.evidence.get("parameters", ())
            if bool(f.evidence.get("read_by_the_forward")) is read and isinstance(names, list):
                count += len(names) * len(_modules(f))
        if count:
            said.append(
                f"{plural(count, 'parameter')} inside it {'is' if count == 1 else 'are'} {what}"
            )
    return "and " + ", ".join(said)


def _header(facts: Mapping[str, Any], found: "Found") -> Text:
    parts = [
        plural(facts["parameters"], "parameter"),
        plural(facts.get("residual_connections", 0), "residual connection"),
        plural(facts.get("attentions", 0), "attention"),
        plural(facts.get("norms", 0), "norm"),
    ]
    inputs = facts.get("inputs", {})
    given = "inputs" if found.inputs is not None else "made-up inputs"
    shapes = ", ".join(
        f"{name + ' ' if not name.isdecimal() else ''}({f',{GLUE}'.join(map(str, shape))})"
        for name, shape in inputs.items()
    )
    took = f"{facts['seconds']:.1f}s on {given} {shapes}"
    header = Text(str(facts["model"]), style="bold")
    header.append(f": {', '.join(parts)}; {took}", style="not bold")
    if found.note:
        header.append(f"\n{found.note}", style="not bold")
    return header


def _title(finding: "Finding") -> Text:
    return Text.assemble(
        (f"{finding.severity:<9}", LOUD[finding.severity]),
        (finding.rule, "bold"),
        f"  {_place(finding)}",
    )


_OTHERS = ("also_in", "also")
"""Evidence that lists the other modules with the same finding."""


def _place(finding: "Finding") -> str:
    """The module, and how many others."""
    others = next((finding.evidence[n] for n in _OTHERS if n in finding.evidence), ())
    count = finding.evidence.get("modules")
    more = count - 1 if isinstance(count, int) else len(others) if others else 0  # type: ignore[arg-type]
    return (finding.module or "(the model)") + (f" and {more} more" if more else "")


def _print_finding(finding: "Finding", console: Console, inside: "Sequence[Finding]" = ()) -> None:
    console.print(_title(finding), soft_wrap=False)
    evidence = "  ".join(
        f"{name}={_told(value)}" for name, value in finding.evidence.items() if name not in _OTHERS
    )
    _indented(Text(_sentence(finding)), console)
    _indented(Text(evidence, style="dim"), console, "seen")
    if inside:
        _indented(Text(_unused(inside)), console)
    _indented(Text(finding.remedy, style="green"), console, "fix")


def _indented(text: Text, console: Console, label: str = "") -> None:
    """Print it wrapped, with its label to the left."""
    _hung(text, console, (f"  {label:<6}" if label else "  ", "dim"))


def _hung(text: Text, console: Console, start: tuple[str, str]) -> None:
    """Print it wrapped to the right of its start, which is printed once."""
    head, style = start
    for line in text.wrap(console, console.width - len(head)):
        line.rstrip()
        console.print(Text.assemble((head, style), line))
        head = " " * len(head)


def _wrapped(text: Text, console: Console) -> None:
    """Print it wrapped, without blanks at the ends of lines."""
    for line in text.wrap(console, console.width):
        line.rstrip()
        line.plain = line.plain.replace(GLUE, " ")
        console.print(line)


def _folded(finding: "Finding") -> Text:
    line = _title(finding)
    line.append(f"  {_sentence(finding)}", style="dim")
    return line


def _print_unknown(report: "Report", console: Console) -> None:
    console.print(Text("could not decide", style="bold magenta"))
    whys: dict[str, list[str]] = {}
    for unknown in report.unknown:
        where = f" ({unknown.module})" if unknown.module else ""
        whys.setdefault(unknown.why, []).append(unknown.rule + where)
    for why, rules in whys.items():
        told = Text(a_few(rules, 6))
        told.append(f": {why}", style="dim")
        _indented(told, console)


def _verdict(report: "Report", ignored: Sequence[str]) -> Text:
    from addnorm.linting.report import SEVERITIES

    counts = [(severity, len(report.of(severity))) for severity in SEVERITIES]
    said = [plural(n, severity) for severity, n in counts if n]
    ran = len(report.checked)
    undecided = len({u.rule for u in report.unknown})
    verdict = Text(style="bold")
    if said:
        worst = next(severity for severity, n in counts if n)
        verdict.append(", ".join(said), style=LOUD[worst])
        verdict.append(f" by {ran} rules")
    else:
        verdict.append(f"nothing found by {ran - undecided} rules", style="bold green")
    if undecided:
        verdict.append(f"; {plural(undecided, 'rule')} could not decide")
    if ignored:
        verdict.append(f"; ignored: {', '.join(dict.fromkeys(ignored))}")
    if said:
        rule = report.findings[0].rule
        verdict.append(f"\naddnorm lint --explain {rule} says more", style="not bold dim")
    return verdict


def _sentence(finding: "Finding") -> str:
    """The message, with a capital unless it begins with a module's name."""
    text = finding.message
    named = bool(finding.module) and text.startswith(finding.module.split(".")[0])
    return text if named else text[:1].upper() + text[1:]


def _told(value: Any) -> str:
    """A value of the evidence, short."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list | tuple):
        shown = ",".join(_told(v) for v in value[:ITEMS])
        more = f",+{len(value) - ITEMS}" if len(value) > ITEMS else ""
        return f"[{shown}{more}]"
    text = str(value)
    return f'"{text}"' if " " in text else text


def _list_rules() -> int:
    from addnorm.linting.rules import RULES

    width = max(map(len, RULES))
    for rule, finds in RULES.items():
        print(f"{rule:{width}}  {finds}")
    return 0


# --- two models -----------------------------------------------------------------------------------


def _diff(options: Options) -> int:
    first, second = (open_target(t) for t in options.diff)
    from addnorm.anatomy.diff import NotComparable, diff

    try:
        with (
            _not_hung(*_running(first, second)),
            contextlib.redirect_stdout(sys.stderr),
        ):
            found = diff(first.model, second.model, first.inputs, weights=options.weights)
    except NotComparable as error:
        refused = _inputs_refused(first)
        told = f"{first.name}: {refused}" if refused else _undone(str(error))
        raise Refusal(f"{first.name} and {second.name} cannot be compared: {told}") from None
    if options.as_json:
        print(json.dumps(found.to_json() | {"a": options.diff[0], "b": options.diff[1]}, indent=2))
    else:
        print_difference(found, options.diff[0], options.diff[1], _console())
    return 0 if found.same else 1


def print_difference(found: "Difference", a: str, b: str, console: Console) -> None:
    """Print where two models first differ."""
    console.print(Text(f"A  {a}\nB  {b}"))
    console.print()
    for label, text in found.lines():
        _hung(Text(text), console, (f"{label:<10}", "bold"))
    console.print()
    style = "bold green" if found.same else "bold red"
    _wrapped(Text(found.verdict(), style=style), console)


# --- what is looked at ----------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Found:
    """A model, and what to call it with if its author said so."""

    name: str
    model: "nn.Module"
    inputs: Any = None
    note: str = ""
    """What a reader must know of how it came to be."""
    file: Path | None = None
    """The file, or the folder of the modules, that its author wrote."""


def open_target(target: str) -> Found:
    """What TARGET names; a ``Mendable`` says what is wrong with it."""
    with _not_hung(f"loading or making {target}"):
        found = _opened(target)
    tensors = [*found.model.parameters(), *found.model.buffers()]
    if empty := sum(t.is_meta for t in tensors):
        raise Refusal(
            f"{found.name} has no values: {empty} of its {len(tensors)} parameters and buffers are "
            "on the meta device. lint measures numbers: build the model on the CPU (no "
            "torch.device('meta'), no init_empty_weights)"
        )
    return found


def _opened(target: str) -> Found:
    place, _, name = target.rpartition(":")
    if target.endswith(".py"):
        place, name = target, ""
    if place.endswith(".py"):
        file = reading.place(place)
        if not file.is_file():
            raise Refusal(f"there is no file {file}")
        with _of_the_user(target, file):
            module = _run_file(file)
        return _made(target, module, name, file)
    if reading.place(target).is_dir() or not place or "/" in place:
        return _from_folder(target)
    if not name:
        raise Refusal(f"{target} names no model: give module:NAME")
    with _of_the_user(target, Path.cwd()):
        sys.path.insert(0, str(Path.cwd()))
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name is not None and (place + ".").startswith(error.name + "."):
                raise Refusal(f"there is no module {place}, neither here nor installed") from None
            raise
        finally:
            sys.path.remove(str(Path.cwd()))
    return _made(target, module, name, Path.cwd())


def _run_file(file: Path) -> ModuleType:
    name = f"linted_{file.stem}_{sum(m.startswith('linted_') for m in sys.modules)}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise Refusal(f"{file} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look for the module of what they annotate
    sys.path.insert(0, str(file.resolve().parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(file.resolve().parent))
    return module


@contextlib.contextmanager
def _of_the_user(target: str, file: Path) -> Iterator[None]:
    """Runs code of the user's: what it prints goes to stderr, and its errors name that code."""
    words = sys.argv
    sys.argv = [str(file)]
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except Refusal:
        raise
    except SystemExit as error:
        raise Refusal(
            f"{target} ends the program (exit status {error.code}) when it is imported: put "
            'everything but the model under if __name__ == "__main__":'
        ) from None
    except Exception as error:
        raise Refusal(f"{target} failed: {_where(error, file)}") from None
    finally:
        sys.argv = words


def _where(error: Exception, file: Path | None) -> str:
    """The error, and the last line of the user's own code that led to it; a library's only if
    there is none."""
    told = error_in_a_line(error, 300)
    if isinstance(error, SyntaxError):
        place = f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
        text = (error.text or "").rstrip()
        if not text.strip():
            return place
        cut = len(text) - len(text.lstrip())
        caret = " " * max((error.offset or 1) - 1 - cut, 0) + "^"
        return f"{place}\n  {text.strip()}\n  {caret}"
    frames = traceback.extract_tb(error.__traceback__)
    foreign = [f for f in frames if not f.filename.startswith(str(Path(__file__).parent))]
    theirs = [f for f in foreign if not _of_a_library(f.filename)]
    if file is not None:
        root = file if file.is_dir() else file.resolve().parent
        theirs = [f for f in theirs if Path(f.filename).resolve().is_relative_to(root)] or theirs
    last = (theirs or foreign or list(frames))[-1]
    return f"{told}\n  {last.filename}:{last.lineno}, in {last.name}: {last.line}"


def _of_a_library(filename: str) -> bool:
    """Python's own files, what is installed, and this package."""
    if filename.startswith("<") or {"site-packages", "dist-packages"} & set(Path(filename).parts):
        return True
    libraries = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib")]
    ours = str(Path(__file__).parent.parent)
    return any(Path(filename).is_relative_to(p) for p in (*libraries, ours))


def _made(target: str, module: ModuleType, name: str, file: Path) -> Found:
    """The model that a name of a module stands for."""
    from torch import nn

    if not name:
        there = _candidates(module)
        if len(there) > 1 and set(there.values()) == {"a class"}:
            whole = _holder(target, {n: getattr(module, n) for n in there}, file)
            if whole is not None:
                return whole
        name = _only(target, there)
        target = f"{target}:{name}"
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            near = did_you_mean(part, [n for n in dir(found) if n[0] != "_"])
            hint = near or _content(found)
            raise Refusal(f"{target}: there is no {part!r} in it; {hint}")
        found = getattr(found, part)
    if isinstance(found, nn.Module):
        return Found(target, found, file=file)
    if not callable(found):
        raise Refusal(
            f"{target} is {_with_article(type(found).__name__)}, neither a model nor a function"
        )
    if needed := _needed(found):
        raise Refusal(
            f"{target} needs arguments ({', '.join(needed)}): give a function without any, such as "
            f"def make(): return {name}(...)"
        )
    with _of_the_user(target, file):
        made = found()
    inputs = None
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module):
        made, inputs = made
    if not isinstance(made, nn.Module):
        raise Refusal(
            f"{target} returned {type(made).__name__}; expected a torch.nn.Module, or "
            "(module, inputs)"
        )
    return Found(target, made, inputs, file=file)


def _with_article(noun: str) -> str:
    return f"a{'n' if noun[:1].lower() in 'aeiou' else ''} {noun}"


def _content(holder: Any) -> str:
    """What of its own is in a module, a class or a model: models, functions and classes."""
    from torch import nn

    home = getattr(holder, "__module__", getattr(holder, "__name__", None))
    held = vars(holder) if hasattr(holder, "__dict__") else {}
    if isinstance(holder, nn.Module):
        held = dict(holder.named_children())

    def own(value: Any) -> bool:
        code = inspect.isfunction(value) or inspect.isclass(value)
        return isinstance(value, nn.Module) or (code and value.__module__ == home)

    names = [name for name, value in held.items() if not name.startswith("_") and own(value)]
    if not names:
        return "there is no model, no function and no class in it"
    return f"there {'are' if names[1:] else 'is'} {', '.join(names)}"


def _needed(function: Any) -> list[str]:
    """Arguments without which it cannot be called."""
    from addnorm.anatomy.signature import gathers, parameters_of

    parameters = (parameters_of(function) or {}).values()
    return [p.name for p in parameters if p.default is p.empty and not gathers(p)]


def _candidates(module: ModuleType) -> dict[str, str]:
    """Names that may stand for a model, and what they are: models, else functions that return
    something and need nothing, else classes of models that need nothing."""
    from torch import nn

    models: dict[int, str] = {}
    functions, classes = {}, {}
    for name, value in vars(module).items():
        if name.startswith("_"):
            continue
        if isinstance(value, nn.Module):
            models.setdefault(id(value), name)
        elif getattr(value, "__module__", None) != module.__name__:
            continue
        elif inspect.isfunction(value) and not _needed(value) and _returns(value):
            functions[name] = "a function"
        elif inspect.isclass(value) and issubclass(value, nn.Module) and not _needed(value):
            classes[name] = "a class"
    return dict.fromkeys(models.values(), "a model") or functions or classes


def _returns(function: Callable[..., Any]) -> bool:
    """Whether it returns a value."""
    try:
        tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(function)))
    except (OSError, SyntaxError):
        return True
    return any(isinstance(n, ast.Return) and n.value is not None for n in ast.walk(tree))


def _holder(target: str, classes: "dict[str, type[nn.Module]]", file: Path) -> Found | None:
    """The model of the one class that has all the others in it, if there is one."""
    for name, kind in reversed(classes.items()):  # what is made of parts stands below them
        others = [c for n, c in classes.items() if n != name]
        try:
            with _of_the_user(target, file):
                made = kind()
        except Refusal:
            continue  # it is the whole that is looked for, and this cannot be it
        inner = [m for m in made.modules() if m is not made]
        if all(any(isinstance(m, c) for m in inner) for c in others):
            note = (
                f"Of {len(classes)} classes in the file, {name} was chosen: it contains the others."
            )
            return Found(f"{target}:{name}", made, note=note, file=file)
    return None


def _only(target: str, there: Mapping[str, str]) -> str:
    """The one thing in a file that may be meant."""
    if len(there) == 1:
        return next(iter(there))
    if not there:
        raise Refusal(
            f"{target} has no model and no function without arguments that returns one: add "
            f"def make(): return Model(...), and call lint with {target}:make"
        )
    listed = "\n".join(f"  {target}:{name}  ({kind})" for name, kind in there.items())
    raise Refusal(f"{target} has several models; choose one of\n{listed}")


# --- folders and the hub --------------------------------------------------------------------------


def _from_folder(target: str) -> Found:
    from addnorm.files import folders
    from addnorm.pretrained import holds_run_or_adapter, is_ours

    path = reading.place(target)
    if holds_run_or_adapter(path):
        return Found(target, open_model(target).model)
    try:
        folder = folders.find(target)
    except folders.WeightsError as error:
        raise Refusal(str(error) if path.exists() else _nowhere(target, error.__cause__)) from None
    told = folders.read_json(folder / folders.CONFIG)
    weights = any((folder / name).exists() for name in folders.WEIGHTS)
    ours = (folder / folders.CHECKSUMS).exists() or is_ours(told.get("model_type"))
    if ours and weights:
        return Found(target, open_model(target).model)
    return _from_transformers(target, folder, weights)


def _nowhere(target: str, error: BaseException | None) -> str:
    """That there is nothing of this name, and what the hub said if it was asked."""
    hub = ""
    if error is not None:
        hub = (
            "\nIt could not be downloaded from the Hugging Face hub either: "
            f"{error_in_a_line(error)} (without a network, use a folder with config.json and "
            "the weights)"
        )
    file = Path(f"{target}.py").expanduser()
    inner = Path(target.replace(".", "/") + ".py")
    for there in (file, inner):
        if there.is_file():
            return f"{target} is not a folder; did you mean {there}?"
    first = target.partition(".")[0]
    if target.replace(".", "").isidentifier() and _is_module(first):
        return (
            f"{target} is a module: name the model in it, {target}:NAME, where NAME is a model or "
            f"a function that returns one{hub}"
        )
    beside = [p.name for p in file.parent.iterdir()] if file.parent.is_dir() else []
    near = [file.parent / name for name in near_names(file.name, beside, cutoff=0.75)]
    hint = f"; did you mean {' or '.join(map(str, near))}?" if near else ""
    return f"{target} is neither a file, nor a folder, nor a module{hint}{hub}"


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # a module without a spec, as __main__ is
        return False


def _from_transformers(target: str, folder: Path, weights: bool) -> Found:
    """The class that the configuration names, by transformers."""
    try:
        transformers: Any = importlib.import_module("transformers")
        importlib.import_module("addnorm.hf")  # so that its Auto classes know our models too
    except ImportError as error:
        raise Refusal(
            f"{target} is a model of transformers ({error}): pip install 'addnorm[hf]'"
        ) from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
        name = next(iter(getattr(config, "architectures", None) or ()), None)
        kind = getattr(transformers, name, None) if name else None
        if weights:
            return Found(target, (kind or transformers.AutoModel).from_pretrained(folder))
        made = kind(config) if kind else transformers.AutoModel.from_config(config)
    except Exception as error:  # foreign code, which raises whatever it likes
        line = first_line(str(error), 300) or type(error).__name__
        raise Refusal(f"transformers cannot load {target}: {line}") from None
    return Found(target, made, note="No weights there: built from config.json and initialized.")
