"""What is wired wrong in a Transformer, anybody's, before training.

TARGET is path.py:NAME or module:NAME, where NAME is a model or a function without arguments that
returns one, or (model, inputs); or a folder or hub id of a model of ours or of transformers. The
exit status is 1 if an error is found. docs/lint.md tells how to read what is said.
"""

import ast
import contextlib
import difflib
import importlib
import importlib.util
import inspect
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from addnorm.cli import Positional, Refusal, UseAppendAction, arg
from addnorm.cli.models import RUN, open_model

if TYPE_CHECKING:
    from torch import nn

    from addnorm.linting import Finding, Report
    from addnorm.linting.diff import Difference

WIDTH = 100  # of what is printed, at most
LOUD = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan"}
ITEMS = 4  # of a list in the evidence


@dataclass(frozen=True)
class Options:
    """What ``addnorm lint`` is asked."""

    target: Positional[Annotated[str, arg(metavar="[TARGET]", help_behavior_hint="")]] = ""
    """path.py:NAME, module:NAME, a folder with a model, or a name such as openai-community/gpt2."""
    causal: bool = False
    """A position must not see what comes after it, whatever the model says of itself."""
    no_causal: bool = False
    """A position may see what comes after it."""
    ignore: Annotated[
        UseAppendAction[tuple[str, ...]], arg(metavar="RULE", help_behavior_hint="(repeatable)")
    ] = ()
    """A rule that is not to be spoken of."""
    notes: Annotated[bool, arg(aliases=["-v"])] = False
    """Tell notes in full as well, not in one line each."""
    as_json: Annotated[bool, arg(name="json")] = False
    """All of it as one JSON object."""
    rules: bool = False
    """Only list the rules."""
    explain: Annotated[str | None, arg(metavar="RULE", constructor=str, help_behavior_hint="")] = (
        None
    )
    """Only print the page of one rule."""
    diff: Annotated[tuple[str, ...], arg(metavar="A B", help_behavior_hint="")] = ()
    """Instead, find the first place where two models differ, forward and backward; status 1 if
    they do."""
    weights: Literal["copied", "own"] = "copied"
    """With --diff: B is given the weights of A, or both keep their own."""


def run(options: Options) -> int:
    """Returns the exit status."""
    if options.rules:
        return _list_rules()
    from addnorm.linting.rules import UnknownRule, known, page

    try:
        if options.explain is not None:
            print(page(options.explain).rstrip())
            return 0
        known(options.ignore)
    except UnknownRule as error:
        raise Refusal(str(error)) from None
    if options.causal and options.no_causal:
        raise Refusal("--causal and --no-causal exclude each other: give one, or neither")
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
    with _progress() as progress, contextlib.redirect_stdout(sys.stderr):
        report = lint(found.model, found.inputs, causal=causal, progress=progress)
    report = report.without(options.ignore)
    undone = next((u.why for u in report.unknown if u.rule == "lint"), None)
    if options.as_json:
        print(json.dumps(json.loads(report.to_json()) | {"target": options.target}, indent=2))
    elif undone is None:
        print_report(report, found, _console(), notes=options.notes, ignored=options.ignore)
    if undone is not None:
        undone = undone.partition("\nGive a batch")[0]
        raise Refusal(
            f"{found.name} could not be looked at: {undone}\n"
            "To give inputs of your own, let a function return (model, inputs): a tensor, a tuple "
            "of\npositional arguments or a dict of keyword arguments"
        )
    return 0 if report.ok else 1


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int, str], None]]:
    columns = (TextColumn("looking"), BarColumn(), TextColumn("{task.description}"))
    errors = Console(stderr=True)
    with Progress(*columns, console=errors, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, of, rule: bar.update(task, completed=done, total=of, description=rule)


def _console() -> Console:
    console = Console(highlight=False, markup=False, emoji=False)
    console.width = min(console.width, WIDTH) if console.is_terminal else WIDTH
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
    for finding in report.findings:
        if finding.severity == "note" and not notes:
            folded.append(finding)
        else:
            console.print()
            _print_finding(finding, console)
    if folded:
        console.print()
        for finding in folded:
            console.print(_folded(finding), no_wrap=True, overflow="ellipsis")
        console.print(Text("      --notes tells notes in full", style="dim"))
    if report.unknown:
        console.print()
        _print_unknown(report, console)
    console.print()
    _wrapped(_verdict(report, ignored), console)


def _header(facts: Mapping[str, Any], found: "Found") -> Text:
    parts = [
        f"{facts['parameters']:,} parameters",
        _count(facts.get("residual_connections", 0), "residual connection"),
        _count(facts.get("attentions", 0), "attention"),
        _count(facts.get("norms", 0), "norm"),
    ]
    inputs = facts.get("inputs", {})
    given = "inputs" if found.inputs is not None else "made-up inputs"
    shapes = ", ".join(
        f"{name + ' ' if not name.isdecimal() else ''}({', '.join(map(str, shape))})"
        for name, shape in inputs.items()
    )
    parts += [f"{given} {shapes}", f"{facts['seconds']:.1f}s"]
    header = Text(str(facts["model"]), style="bold")
    header.append(": " + ", ".join(parts[:4]) + "; " + "; ".join(parts[4:]), style="not bold")
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


def _print_finding(finding: "Finding", console: Console) -> None:
    console.print(_title(finding), soft_wrap=False)
    evidence = "  ".join(
        f"{name}={_told(value)}" for name, value in finding.evidence.items() if name not in _OTHERS
    )
    _indented(Text(_sentence(finding)), console)
    _indented(Text(evidence, style="dim"), console, "seen")
    _indented(Text(finding.remedy, style="green"), console, "fix")


def _indented(text: Text, console: Console, label: str = "") -> None:
    """Wrapped, with its label to the left."""
    start = f"  {label:<6}" if label else "  "
    for line in text.wrap(console, console.width - len(start)):
        line.rstrip()
        console.print(Text.assemble((start, "dim"), line))
        start = " " * len(start)


def _wrapped(text: Text, console: Console) -> None:
    """Wrapped, without blanks at the ends of lines."""
    for line in text.wrap(console, console.width):
        line.rstrip()
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
        told = Text(", ".join(rules[:6]) + (f" and {len(rules) - 6} more" if rules[6:] else ""))
        told.append(f": {why}", style="dim")
        _indented(told, console)


def _verdict(report: "Report", ignored: Sequence[str]) -> Text:
    from addnorm.linting.report import SEVERITIES

    counts = [(severity, len(report.of(severity))) for severity in SEVERITIES]
    said = [_count(n, severity) for severity, n in counts if n]
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
        verdict.append(f"; {_count(undecided, 'rule')} could not decide")
    if ignored:
        verdict.append(f"; ignored: {', '.join(dict.fromkeys(ignored))}")
    if said:
        rule = report.findings[0].rule
        verdict.append(f"\naddnorm lint --explain {rule} tells more", style="not bold dim")
    return verdict


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


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
    if len(options.diff) != 2 or options.target:
        raise Refusal("--diff takes two targets and nothing else: addnorm lint --diff A B")
    first, second = (open_target(t) for t in options.diff)
    from addnorm.linting.diff import NotComparable, diff

    try:
        with contextlib.redirect_stdout(sys.stderr):
            found = diff(first.model, second.model, first.inputs, weights=options.weights)
    except NotComparable as error:
        raise Refusal(f"{first.name} and {second.name} cannot be compared: {error}") from None
    if options.as_json:
        print(json.dumps(found.to_json() | {"a": options.diff[0], "b": options.diff[1]}, indent=2))
    else:
        print_difference(found, options.diff[0], options.diff[1], _console())
    return 0 if found.same else 1


def print_difference(found: "Difference", a: str, b: str, console: Console) -> None:
    """Where two models part."""
    console.print(Text(f"A  {a}\nB  {b}"))
    console.print()
    for label, text in found.lines():
        console.print(Text.assemble((f"{label:<10}", "bold"), text))
    console.print()
    style = "bold green" if found.same else "bold red"
    console.print(Text(found.verdict(), style=style))


# --- what is looked at ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """A model, and what to call it with if its author said so."""

    name: str
    model: "nn.Module"
    inputs: Any = None
    note: str = ""
    """What a reader must know of how it came to be."""


def open_target(target: str) -> Found:
    """What TARGET names; a ``Refusal`` says what is wrong with it."""
    place, _, name = target.rpartition(":")
    if target.endswith(".py"):
        place, name = target, ""
    if place.endswith(".py"):
        file = Path(place).expanduser()
        if not file.is_file():
            raise Refusal(f"there is no file {file}")
        with _of_the_user(target, file):
            module = _run_file(file)
        return _made(target, module, name)
    if Path(target).expanduser().is_dir() or not place or "/" in place:
        return _from_folder(target)
    if not name:
        raise Refusal(f"{target} names no model: give module:NAME")
    with _of_the_user(target, Path.cwd()):
        sys.path.insert(0, str(Path.cwd()))
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name is not None and (place + ".").startswith(error.name + "."):
                raise Refusal(f"there is no module {place} here or among what is installed") from (
                    None
                )
            raise
        finally:
            sys.path.remove(str(Path.cwd()))
    return _made(target, module, name)


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
    """Code of the user's runs: what it prints goes to stderr, and its errors are told as his."""
    words = sys.argv
    sys.argv = [str(file)]
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except Refusal:
        raise
    except SystemExit as error:
        raise Refusal(
            f"{target} ends the program (exit status {error.code}) when it is run: put what is not "
            'the model under if __name__ == "__main__":'
        ) from None
    except Exception as error:
        raise Refusal(f"{target} failed: {_where(error)}") from None
    finally:
        sys.argv = words


def _where(error: Exception) -> str:
    """The error with file and line, in one line or two."""
    lines = str(error).strip().splitlines()
    told = type(error).__name__ + (f": {lines[0][:300]}" if lines else "")
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    here = str(Path(__file__).parent)
    theirs = [
        f
        for f in frames
        if not f.filename.startswith((here, "<frozen")) and "site-packages" not in f.filename
    ]
    theirs = [f for f in theirs if "importlib" not in f.filename] or list(frames[-1:])
    last = theirs[-1]
    return f"{told}\n  {last.filename}:{last.lineno}, in {last.name}: {last.line}"


def _made(target: str, module: ModuleType, name: str) -> Found:
    """The model that a name of a module stands for."""
    from torch import nn

    if not name:
        name = _only(target, module)
        target = f"{target}:{name}"
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, [n for n in vars(found) if n[0] != "_"], n=3)
            hint = f"; near it: {', '.join(near)}" if near else ""
            there = _candidates(module)
            if not near and there:
                hint = f"; there are {', '.join(there)}"
            raise Refusal(f"{target}: there is no {part!r} in it{hint}")
        found = getattr(found, part)
    if isinstance(found, nn.Module):
        return Found(target, found)
    if not callable(found):
        raise Refusal(f"{target} is a {type(found).__name__}: no model, nor a function")
    if needed := _needed(found):
        raise Refusal(
            f"{target} needs arguments ({', '.join(needed)}): give a function without any, such as "
            f"def make(): return {name}(...)"
        )
    with _of_the_user(target, Path(getattr(module, "__file__", None) or target)):
        made = found()
    inputs = None
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module):
        made, inputs = made
    if not isinstance(made, nn.Module):
        raise Refusal(
            f"{target} returned {type(made).__name__}; expected a torch.nn.Module, or "
            "(module, inputs)"
        )
    return Found(target, made, inputs)


def _needed(function: Any) -> list[str]:
    """Arguments without which it cannot be called."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    open_ended = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in open_ended]


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


def _only(target: str, module: ModuleType) -> str:
    """The one thing in a file that may be meant."""
    there = _candidates(module)
    if len(there) == 1:
        return next(iter(there))
    if not there:
        raise Refusal(
            f"{target} has no model and no function without arguments that returns one: add "
            f"def make(): return Model(...), and give {target}:make"
        )
    listed = "\n".join(f"  {target}:{name}  ({kind})" for name, kind in there.items())
    raise Refusal(f"{target} holds several that may be meant; give one of\n{listed}")


# --- folders and the hub --------------------------------------------------------------------------


def _from_folder(target: str) -> Found:
    from addnorm.models import configs, folders

    path = Path(target).expanduser()
    if path.is_dir() and not (path / folders.CONFIG).exists():
        inner = [path / RUN, path / "base"]
        if any((p / folders.CONFIG).exists() for p in inner):
            return Found(target, open_model(target)[0])
    try:
        folder = folders.find(target)
        told = folders.read_json(folder / folders.CONFIG)
    except (ValueError, OSError) as error:  # WeightsError is a ValueError
        hint = ""
        if not path.exists() and "/" not in target:
            hint = f"\nFor code, give path.py:NAME or module:NAME, such as {target}:make"
        raise Refusal(str(error) + hint) from None
    weights = any((folder / name).exists() for name in folders.WEIGHTS)
    ours = (folder / folders.CHECKSUMS).exists() or told.get("model_type") == configs.MODEL_TYPE
    if ours and weights:
        return Found(target, open_model(target)[0])
    return _from_transformers(target, folder, weights)


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
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise Refusal(f"transformers cannot load {target}: {lines[0][:300]}") from None
    return Found(target, made, note="No weights there: made from config.json, newly initialised.")
