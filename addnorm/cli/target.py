"""Anybody's model, opened by a name: a file or what is in it, a module, a folder, a hub id.

What the user wrote is run, and its errors are told with the line of the user's own code.
"""

import ast
import contextlib
import importlib
import importlib.util
import inspect
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, final

from addnorm import reading
from addnorm.cli.models import open_model
from addnorm.cli.refusal import Refusal
from addnorm.words import did_you_mean, error_in_a_line, first_line, near_names

if TYPE_CHECKING:
    from torch import nn

MANY = 500_000_000  # parameters from which on it is said at once that this takes long
PATIENCE = 5.0  # seconds of silence
SHOWN = 300  # characters of an error of somebody else's


@final
@dataclass(frozen=True)
class Target:
    """A model, and what to call it with if its author said so."""

    name: str
    model: "nn.Module"
    inputs: Any = None
    note: str = ""
    """What a reader must know of how it came to be."""
    file: Path | None = None
    """The file, or the folder of the modules, that its author wrote."""


def open_target(target: str) -> Target:
    """What TARGET names; a ``Mendable`` says what is wrong with it."""
    with line_if_slow(f"loading or making {target}"):
        result = _open(target)
    tensors = [*result.model.parameters(), *result.model.buffers()]
    if empty := sum(t.is_meta for t in tensors):
        raise Refusal(
            f"{result.name} has no values: {empty} of its {len(tensors)} parameters and buffers "
            "are on the meta device. lint measures numbers: build the model on the CPU (no "
            "torch.device('meta'), no init_empty_weights)"
        )
    return result


def _open(target: str) -> Target:
    """``open_target``, whatever the model holds, tried in this order: a file of Python, a folder or
    a name of the hub, a module. A folder wins over a module of its name."""
    place, _, name = target.rpartition(":")
    if target.endswith(".py"):
        place, name = target, ""
    if place.endswith(".py"):
        file = reading.place(place)
        if not file.is_file():
            raise Refusal(f"there is no file {file}")
        with _users_code(target, file):
            module = _run_file(file)
        return _named_model(target, module, name, file)
    if reading.place(target).is_dir() or not place or "/" in place:
        return _from_folder(target)
    if not name:
        raise Refusal(f"{target} names no model: give module:NAME")
    with _users_code(target, Path.cwd()):
        sys.path.insert(0, str(Path.cwd()))
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name is not None and (place + ".").startswith(error.name + "."):
                raise Refusal(f"there is no module {place}, neither here nor installed") from None
            raise
        finally:
            sys.path.remove(str(Path.cwd()))
    return _named_model(target, module, name, Path.cwd())


def _run_file(file: Path) -> ModuleType:
    """A file as a module of a new name, which stays in ``sys.modules``; raises what it raises. Its
    folder is on the path while it runs, as when Python runs it."""
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
def _users_code(target: str, file: Path) -> Iterator[None]:
    """Runs code of the user's: what it prints goes to stderr, and its errors name that code.

    Meanwhile ``file`` is all that is in ``sys.argv``. What the code raises becomes a Refusal.
    """
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
        raise Refusal(f"{target} failed: {error_with_line(error, file)}") from None
    finally:
        sys.argv = words


def error_with_line(error: Exception, file: Path | None) -> str:
    """The error, and the last line of the user's own code that led to it; a library's only if
    there is none."""
    message = error_in_a_line(error, SHOWN)
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
    return f"{message}\n  {last.filename}:{last.lineno}, in {last.name}: {last.line}"


def _of_a_library(filename: str) -> bool:
    """Whether a file, as a traceback names it, is Python's own, installed, or of this package, and
    not the user's."""
    if filename.startswith("<") or {"site-packages", "dist-packages"} & set(Path(filename).parts):
        return True
    libraries = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib")]
    ours = str(Path(__file__).parent.parent)
    return any(Path(filename).is_relative_to(p) for p in (*libraries, ours))


def _named_model(target: str, module: ModuleType, name: str, file: Path) -> Target:
    """The model that a name of a module stands for; "": the one that it must be. A function or
    class is called, without arguments. A ``Refusal`` where it stands for none.

    ``target``: what the user wrote, for messages. ``file`` is the file of the module, or the folder
    in which it was looked for.
    """
    from torch import nn

    if not name:
        kinds = _candidates(module)
        if len(kinds) > 1 and set(kinds.values()) == {"a class"}:
            whole = _outermost_model(target, {n: getattr(module, n) for n in kinds}, file)
            if whole is not None:
                return whole
        name = _only_candidate(target, kinds)
        target = f"{target}:{name}"
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            near = did_you_mean(part, [n for n in dir(value) if n[0] != "_"])
            hint = near or _content_clause(value)
            raise Refusal(f"{target}: there is no {part!r} in it; {hint}")
        value = getattr(value, part)
    if isinstance(value, nn.Module):
        return Target(target, value, file=file)
    if not callable(value):
        raise Refusal(
            f"{target} is {_with_article(type(value).__name__)}, neither a model nor a function"
        )
    if names := _required_arguments(value):
        raise Refusal(
            f"{target} needs arguments ({', '.join(names)}): give a function without any, such as "
            f"def make(): return {name}(...)"
        )
    with _users_code(target, file):
        model = value()
    inputs = None
    if isinstance(model, tuple) and len(model) == 2 and isinstance(model[0], nn.Module):
        model, inputs = model
    if not isinstance(model, nn.Module):
        raise Refusal(
            f"{target} returned {type(model).__name__}; expected a torch.nn.Module, or "
            "(module, inputs)"
        )
    return Target(target, model, inputs, file=file)


def _with_article(noun: str) -> str:
    return f"a{'n' if noun[:1].lower() in 'aeiou' else ''} {noun}"


def _content_clause(holder: Any) -> str:
    """A clause, "there are A, B", of what is in a module, a class or a model: models, functions
    and classes."""
    from torch import nn

    home = getattr(holder, "__module__", getattr(holder, "__name__", None))
    parts = vars(holder) if hasattr(holder, "__dict__") else {}
    if isinstance(holder, nn.Module):
        parts = dict(holder.named_children())

    def own(value: Any) -> bool:
        code = inspect.isfunction(value) or inspect.isclass(value)
        return isinstance(value, nn.Module) or (code and value.__module__ == home)

    names = [name for name, value in parts.items() if not name.startswith("_") and own(value)]
    if not names:
        return "there is no model, no function and no class in it"
    return f"there {'are' if names[1:] else 'is'} {', '.join(names)}"


def _required_arguments(function: Any) -> list[str]:
    """The names of arguments without which it cannot be called; [] where Python cannot tell."""
    from addnorm.anatomy.signature import gathers, parameters_of

    parameters = (parameters_of(function) or {}).values()
    return [p.name for p in parameters if p.default is p.empty and not gathers(p)]


def _candidates(module: ModuleType) -> dict[str, str]:
    """{name: "a model", "a function" or "a class"} of what may stand for a model, all of one kind:
    models, else functions that return something and need nothing, else classes of models that need
    nothing. What was imported is left out, but for models."""
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
        elif inspect.isfunction(value) and not _required_arguments(value) and _returns(value):
            functions[name] = "a function"
        elif (
            inspect.isclass(value)
            and issubclass(value, nn.Module)
            and not _required_arguments(value)
        ):
            classes[name] = "a class"
    return dict.fromkeys(models.values(), "a model") or functions or classes


def _returns(function: Callable[..., Any]) -> bool:
    """Whether it returns a value, by its source; True where there is no source."""
    try:
        tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(function)))
    except (OSError, SyntaxError):
        return True
    return any(isinstance(n, ast.Return) and n.value is not None for n in ast.walk(tree))


def _outermost_model(
    target: str, classes: "dict[str, type[nn.Module]]", file: Path
) -> Target | None:
    """The model of the one class that has all the others in it, if there is one; classes are called
    to see."""
    for name, kind in reversed(classes.items()):  # what is made of parts stands below them
        others = [c for n, c in classes.items() if n != name]
        try:
            with _users_code(target, file):
                whole = kind()
        except Refusal:
            continue  # it is the whole that is looked for, and this cannot be it
        inner = [m for m in whole.modules() if m is not whole]
        if all(any(isinstance(m, c) for m in inner) for c in others):
            note = (
                f"Of {len(classes)} classes in the file, {name} was chosen: it contains the others."
            )
            return Target(f"{target}:{name}", whole, note=note, file=file)
    return None


def _only_candidate(target: str, kinds: Mapping[str, str]) -> str:
    """The name of the one candidate in a file; a Refusal if there is none or more than one.
    ``kinds`` is as ``_candidates`` has it."""
    if len(kinds) == 1:
        return next(iter(kinds))
    if not kinds:
        raise Refusal(
            f"{target} has no model and no function without arguments that returns one: add "
            f"def make(): return Model(...), and call lint with {target}:make"
        )
    listed = "\n".join(f"  {target}:{name}  ({kind})" for name, kind in kinds.items())
    raise Refusal(f"{target} has several models; choose one of\n{listed}")


# --- folders and the hub --------------------------------------------------------------------------


def _from_folder(target: str) -> Target:
    """The model in a folder, or of a name of the hub: one of ours, or one that transformers knows,
    whose weights may be missing; a ``Mendable`` where there is none."""
    from addnorm.files import folders
    from addnorm.pretrained import holds_run_or_adapter, is_ours

    path = reading.place(target)
    if holds_run_or_adapter(path):
        return Target(target, open_model(target).model)
    try:
        folder = folders.find(target)
    except folders.WeightsError as error:
        message = str(error) if path.exists() else _not_there(target, error.__cause__)
        raise Refusal(message) from None
    config = folders.read_json(folder / folders.CONFIG)
    weights = any((folder / name).exists() for name in folders.WEIGHTS)
    ours = (folder / folders.CHECKSUMS).exists() or is_ours(config.get("model_type"))
    if ours and weights:
        return Target(target, open_model(target).model)
    return _from_transformers(target, folder, weights)


def _not_there(target: str, error: BaseException | None) -> str:
    """The message that there is nothing of this name, with what may be meant; ``error`` is what the
    hub said, None if it was not asked."""
    hub = ""
    if error is not None:
        hub = (
            "\nIt could not be downloaded from the Hugging Face hub either: "
            f"{error_in_a_line(error)} (without a network, use a folder with config.json and "
            "the weights)"
        )
    file = Path(f"{target}.py").expanduser()
    inner = Path(target.replace(".", "/") + ".py")
    for near_file in (file, inner):
        if near_file.is_file():
            return f"{target} is not a folder; did you mean {near_file}?"
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
    """Whether Python could import it; nothing is imported."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # a module without a spec, as __main__ is
        return False


def _from_transformers(target: str, folder: Path, weights: bool) -> Target:
    """A model of the class that the configuration names, by transformers; without ``weights`` as it
    is initialized. A ``Refusal`` where transformers is not there or cannot."""
    try:
        from addnorm import hf
    except ImportError as error:
        raise Refusal(
            f"{target} is a model of transformers ({error.__cause__}): pip install 'addnorm[hf]'"
        ) from None
    try:
        model = hf.open_any(folder, weights)
    except Exception as error:  # foreign code, which raises whatever it likes
        line = first_line(str(error), SHOWN) or type(error).__name__
        raise Refusal(f"transformers cannot load {target}: {line}") from None
    note = "" if weights else "No weights there: built from config.json and initialized."
    return Target(target, model, note=note)


# --- patience -------------------------------------------------------------------------------------


@contextlib.contextmanager
def line_if_slow(doing: str, parameters: int = 0) -> Iterator[None]:
    """Where no bar is drawn, a line on stderr says what is done, ``doing``, if it takes longer
    than PATIENCE; at once if there are more than MANY ``parameters``."""
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
