"""Settings as a tree of dataclasses: read from TOML and ``key=value``, checked, and printed.

A class of settings is a frozen dataclass; its annotations are the types, the docstrings under its
fields are the help, its ``__post_init__`` says what makes no sense. A field may be a dataclass
itself: its fields are addressed with a dot, as in ``model.dim=128``. Whatever a user can get wrong
is a ``SettingsError`` that names the key, the value and what was expected. A field with ``FLAT``
adds its settings to those around it, without a dot: so a whole is made of parts that others bring.

Each setting also says of itself, with ``setting``, what a resumed run may do with it, and with
which others it has an effect. One that has none may not be set, and is not recorded.
"""

import ast
import dataclasses
import inspect
import json
import math
import re
import textwrap
import types
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import (
    Any,
    Literal,
    NamedTuple,
    Protocol,
    TypeVar,
    Union,
    final,
    get_args,
    get_origin,
    get_type_hints,
)

from addnorm import reading
from addnorm.errors import Mendable, unknown_name, value_in_short

Settings = TypeVar("Settings")


class Values(Protocol):
    """Some of the values that a setting may have: ``in`` asks for one, a message lists them."""

    def __contains__(self, value: Any, /) -> bool: ...
    def __iter__(self) -> Iterator[Any]: ...


Cases = tuple[Mapping[str, Values], ...]
"""When a setting has an effect: in each of these cases, which are values of settings beside it."""
HIDDEN = "hidden"
"""Metadata of a field that holds settings: names in them that are not the user's to set."""
INSIDE = "inside"
"""Metadata of a field that holds settings: name -> Cases, where their own class knows of none."""
NEEDS = "needs"
"""Metadata of a field: Cases."""
ELSEWHERE = "elsewhere"
"""Metadata of a field: where it has no effect, its value comes from elsewhere, and only another one
is wrong; whoever knows it compares."""
FLAT = "flat"
"""Metadata of a field that holds settings: their keys have no prefix."""
ASIDE = "aside"
"""Metadata of a field that is not a setting."""
AT_RESUME = "at_resume"
"""Metadata of a field: its ``AtResume``, and that of all settings it may hold."""


class AtResume(Enum):
    """What a resumed run may do with a setting."""

    FREELY = "can change freely"
    WITH_NOTICE = "can change; the run says that its numbers differ from then on"
    IF_SAME = "can be renamed, as after a file was moved, if the content is the same"
    BY_TUNING = "cannot change; a new run with another value can start from this run's weights"
    ANEW = "cannot change; a new run with another value starts from scratch"


def setting(
    default: Any, mark: AtResume, *cases: Mapping[str, Values], elsewhere: bool = False
) -> Any:
    """A field of a class of settings: ``mark`` says what a resumed run may do with it, ``cases``
    are what it ``NEEDS``, none: it always counts; ``elsewhere`` is ``ELSEWHERE``."""
    metadata = {AT_RESUME: mark, NEEDS: cases, ELSEWHERE: elsewhere}
    return dataclasses.field(default=default, metadata=metadata)


@final
class SettingsError(Mendable):
    """A setting that is not understood; the message says which and what was expected."""


@cache
def _types(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def entries(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, type, value) of every setting in the tree, in the order of the fields;
    ``prefix`` begins the keys."""
    for f, kind, value in _fields(settings):
        if dataclasses.is_dataclass(value):
            hidden, before = f.metadata.get(HIDDEN, ()), _prefix(f, prefix)
            for key, inner, v in entries(value, before):
                if key.removeprefix(before) not in hidden:
                    yield key, inner, v
        else:
            yield prefix + f.name, kind, value


def values_by_key(settings: Any) -> dict[str, Any]:
    """Every setting in the tree by its dotted key, in the order of the fields."""
    return {key: value for key, _, value in entries(settings)}


def changed(settings: Settings, *layers: Mapping[str, Any]) -> Settings:
    """New settings with some keys changed; values are of their type, or text that says one.

    Later layers win. A setting that has no effect any more has its default again, unless the layer
    that says it is as late as what takes its effect: then it keeps its value, for ``check_effect``
    to refuse. A key that there is not, and a value that does not fit, are a ``SettingsError``.
    """
    types_by_key = {key: kind for key, kind, _ in entries(settings)}
    values = values_by_key(settings)
    changes: dict[str, Any] = {}
    idle = without_effect(settings, values)
    errors = {*idle}  # of these, what no later layer takes the effect of
    for layer in layers:
        for key, value in layer.items():
            if key not in types_by_key:
                raise SettingsError(unknown_name("setting", key, types_by_key))
            values[key] = converted(key, types_by_key[key], value)
        idle = without_effect(settings, values)
        errors = (errors - layer.keys()) | (idle.keys() & layer.keys())
        changes |= layer
    by_itself, paths = defaults(settings), dict(_paths(settings))
    tree: dict[str, Any] = {}
    for key in {**changes, **idle}:
        *path, name = paths[key]
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        place[name] = values[key] if key not in idle or key in errors else by_itself[key]
    return _replaced(settings, tree, "", changes)


def defaults(settings: Any) -> dict[str, Any]:
    """Every key of a class of settings, or of an object of one, and its default; None where a field
    has none. The settings in a ``FLAT`` field are known of an object only, those of its value."""
    values: dict[str, Any] = {}
    for f in dataclasses.fields(settings):
        default: Any = f.default if f.default is not dataclasses.MISSING else None
        if f.metadata.get(ASIDE):
            continue
        if f.metadata.get(FLAT) and not isinstance(settings, type):
            values |= defaults(getattr(settings, f.name))  # of this kind, whatever is usual
            continue
        if f.default_factory is not dataclasses.MISSING:
            default = f.default_factory()
        inside = entries(default, _prefix(f)) if dataclasses.is_dataclass(default) else ()
        values |= {key: value for key, _, value in inside} or {f.name: default}
    return values


def at_resume(
    settings: Any, prefix: str = "", above: AtResume | None = None
) -> dict[str, AtResume]:
    """What a resumed run may do with each key; where a class does not say, nothing. ``prefix``
    begins the keys, and ``above`` is what a field around the settings says of them all, None:
    nothing; both are for the call of itself."""
    marks: dict[str, AtResume] = {}
    for f, _, value in _fields(settings):
        mark = above or f.metadata.get(AT_RESUME)
        if dataclasses.is_dataclass(value):
            marks |= at_resume(value, _prefix(f, prefix), mark)
        else:
            marks[prefix + f.name] = mark or AtResume.ANEW
    return marks


# --- settings without effect ----------------------------------------------------------------------


class Need(NamedTuple):
    """What a setting needs beside it to count: one of the cases. Else its value may come from
    ``elsewhere``."""

    cases: Cases
    elsewhere: bool

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether one of the cases does, with these values of all keys."""
        return any(all(values[key] in few for key, few in case.items()) for case in self.cases)

    def __str__(self) -> str:
        words = (
            " and ".join(f"{key}={' or '.join(map(str, few))}" for key, few in case.items())
            for case in self.cases
        )
        return " or ".join(words).replace("None", "none")


def needs(settings: Any, prefix: str = "", above: tuple[Need, ...] = ()) -> dict[str, list[Need]]:
    """What each key needs, all of it, what the whole it is a part of needs first; an empty list: it
    always counts. ``prefix`` begins the keys, and ``above`` is what the whole needs; both are for
    the call of itself."""
    needs_by_key: dict[str, list[Need]] = {}

    def own(cases: Cases, prefix: str, elsewhere: bool) -> list[Need]:
        """The need with whole keys; none where there are no cases."""
        with_keys = tuple({prefix + name: few for name, few in case.items()} for case in cases)
        return [Need(with_keys, elsewhere)] if with_keys else []

    for f, _, value in _fields(settings):
        here = [*above, *own(f.metadata.get(NEEDS, ()), prefix, f.metadata.get(ELSEWHERE, False))]
        if not dataclasses.is_dataclass(value):
            needs_by_key[prefix + f.name] = here
            continue
        inside = _prefix(f, prefix)
        needs_by_key |= needs(value, inside, tuple(here))
        for name, cases in f.metadata.get(INSIDE, {}).items():
            needs_by_key[f"{inside}{name}"] += own(cases, inside, False)
    return needs_by_key


def without_effect(settings: Any, values: Mapping[str, Any] | None = None) -> dict[str, Need]:
    """The keys that have no effect beside the others, and what each would need first of all;
    ``values``, if given, count instead of the settings' own."""
    values = values or values_by_key(settings)
    unmet = {
        key: [need for need in needs_of_it if not need.holds(values)]
        for key, needs_of_it in needs(settings).items()
        if key in values
    }
    return {key: first[0] for key, first in unmet.items() if first}


def check_effect(settings: Any) -> None:
    """Raise a ``SettingsError`` if a setting that has no effect has another value than its default,
    and nothing else decides what it is."""
    values = values_by_key(settings)
    by_itself = defaults(settings)
    for key, need in without_effect(settings).items():
        if not need.elsewhere and values[key] != by_itself[key]:
            now = ", ".join(assignment(name, values[name]) for case in need.cases for name in case)
            raise SettingsError(
                f"{assignment(key, values[key])} has no effect with {now}: it counts with {need}"
            )


# --- files and words ------------------------------------------------------------------------------


def from_assignments(words: Sequence[str]) -> dict[str, str]:
    """``key=value`` words as a mapping; the last one of a key counts. A ``SettingsError`` for any
    other word; keys and values are not looked at."""
    values = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or not key.strip():
            raise SettingsError(f"{word!r} is not key=value, such as steps=500 or model.dim=128")
        values[key.strip()] = value.strip()
    return values


def from_toml(file: Path) -> dict[str, Any]:
    """The values in a TOML file, of any type, tables as dotted keys; a ``SettingsError`` if it
    cannot be read."""
    tree = reading.toml_file(file, SettingsError)

    def flat(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for name, value in tree.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{name}.")
            else:
                yield prefix + name, value

    return dict(flat(tree, ""))


def to_toml(settings: Any) -> str:
    """Every setting, as a file that ``from_toml`` reads, each with what it is. Settings that are
    None, or have no effect, are comments."""
    lines: list[str] = []
    tables: dict[str, list[str]] = {}
    helps, idle = _helps(settings), without_effect(settings)
    for key, _, value in entries(settings):
        table, _, name = key.rpartition(".")
        line = f"# {name} is not set" if value is None else f"{name} = {_toml(value)}"
        if key in idle:
            line = f"# {name} counts with {idle[key]}"
        if key in helps:
            line = f"{line:28}  # {helps[key]}"  # the texts in a column, beside most lines
        (tables.setdefault(table, []) if table else lines).append(line)
    for table, rows in tables.items():
        lines += ["", *([f"# {helps[table]}"] if table in helps else []), f"[{table}]", *rows]
    return "\n".join(lines) + "\n"


def _helps(settings: Any, prefix: str = "") -> dict[str, str]:
    """The help of every key, and of every table of keys; ``prefix`` begins them."""
    kind: Any = type(settings)
    texts = help_texts(kind)
    helps: dict[str, str] = {}
    for f, _, value in _fields(settings):
        if dataclasses.is_dataclass(value):
            helps |= _helps(value, _prefix(f, prefix))
        if f.name in texts and not f.metadata.get(FLAT):
            helps[prefix + f.name] = texts[f.name].replace("``", "")  # code, in Python's help
    return helps


@cache
def help_texts(kind: Any) -> dict[str, str]:
    """Field -> the text under it in the class, or in one that it is made of, on one line."""
    texts = {}
    for part in reversed(kind.__mro__):
        if "__dataclass_fields__" not in vars(part):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(part))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, after in pairwise(body.body):
            if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr):
                text = ast.literal_eval(after.value)
                texts[ast.unparse(field.target)] = " ".join(text.split())
    return texts


def to_json(settings: Any) -> dict[str, Any]:
    """Every setting that has an effect by its dotted key, as JSON has it; ``changed`` reads it
    again."""
    idle = without_effect(settings)
    return {key: json_value(value) for key, _, value in entries(settings) if key not in idle}


def defaults_to_json(settings: Any) -> dict[str, Any]:
    """``defaults``, as JSON has them."""
    return {key: json_value(value) for key, value in defaults(settings).items()}


def json_value(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, tuple):
        return list(value)
    return value if isinstance(value, str | int | float | types.NoneType) else str(value)


def assignment(key: str, value: Any) -> str:
    """A setting as the command line takes it, ``key=value``."""
    if isinstance(value, list | tuple):
        return f"{key}={','.join(map(str, value))}"
    return f"{key}={str(value).lower() if value is None or isinstance(value, bool) else value}"


# --- values ---------------------------------------------------------------------------------------


def converted(key: str, kind: Any, value: Any) -> Any:
    """A value of the annotated type, from one that is, or from text; else a ``SettingsError``."""
    # "none" first: it is a text as well
    for option in sorted(_options(kind), key=lambda option: option is not types.NoneType):
        fits, result = _as(option, value)
        if fits:
            return result
    raise SettingsError(f"{key} must be {type_in_words(kind)}, got {value_in_short(value)}")


def type_in_words(kind: Any) -> str:
    """The type of a setting in words: one of those that ``_as`` knows, or a union of them."""
    words = []
    for option in _options(kind):
        if get_origin(option) is Literal:
            words += [str(a) for a in get_args(option)]
        elif get_origin(option) is tuple:
            words.append("words separated by commas")
        else:
            words.append(
                {
                    int: "a whole number",
                    float: "a number",
                    bool: "true or false",
                    str: "text",
                    Path: "a path",
                    types.NoneType: "none",
                }[option]
            )
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _options(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _as(kind: Any, value: Any) -> tuple[bool, Any]:
    """(whether the value is of this type or text that says one, the value of this type); where it
    is not, the second is of no meaning."""
    text = value.strip() if isinstance(value, str) else None
    if kind is types.NoneType:
        return value is None or (text is not None and text.lower() == "none"), None
    if get_origin(kind) is Literal:
        return value in get_args(kind), value
    if get_origin(kind) is tuple:
        if text is not None:
            value = [part.strip() for part in text.split(",") if part.strip()]
        fits = isinstance(value, list | tuple) and all(isinstance(v, str) for v in value)
        return fits, tuple(value) if fits else None
    if kind is bool:
        if text is not None:
            return text.lower() in ("true", "false"), text.lower() == "true"
        return isinstance(value, bool), value
    if kind is int:
        return _number(int, value)
    if kind is float:
        return _number(float, value)
    if kind is Path:
        fits = (
            isinstance(value, str | Path) and str(value) not in ("", ".") and "\0" not in str(value)
        )
        return fits, Path(value) if fits else None
    return isinstance(value, str), value


def _number(kind: type[int] | type[float], value: Any) -> tuple[bool, Any]:
    """``_as`` for numbers: whole ones of up to 63 bits, as in TOML, and finite floats, for which
    whole numbers do; True and False are none."""
    if isinstance(value, bool):
        return False, None
    if isinstance(value, str):
        try:
            value = kind(value)
        except (ValueError, OverflowError):
            return False, None
    if kind is float and isinstance(value, int):
        # before float() overflows, which it does at 1 << 1024
        value = float(value) if abs(value) < 1 << 1000 else math.inf
    if kind is int:
        return isinstance(value, int) and abs(value) < 1 << 63, value
    return isinstance(value, float) and math.isfinite(value), value


def _fields(settings: Any) -> Iterator[tuple[dataclasses.Field[Any], Any, Any]]:
    """(field, type, value) of an object of settings itself, those ``ASIDE`` left out."""
    kind: Any = type(settings)
    hints = _types(kind)
    for f in dataclasses.fields(settings):
        if not f.metadata.get(ASIDE):
            yield f, hints[f.name], getattr(settings, f.name)


def _prefix(f: dataclasses.Field[Any], prefix: str = "") -> str:
    """What the keys of the settings in a field begin with; ``prefix`` is that of the field."""
    return prefix if f.metadata.get(FLAT) else f"{prefix}{f.name}."


def _paths(settings: Any, prefix: str = "") -> Iterator[tuple[str, tuple[str, ...]]]:
    """(key, names of the fields that lead to its value), which differ where a field is ``FLAT``."""
    for f, _, value in _fields(settings):
        if dataclasses.is_dataclass(value):
            for key, path in _paths(value, _prefix(f, prefix)):
                yield key, (f.name, *path)
        else:
            yield prefix + f.name, (f.name,)


def _replaced(
    settings: Any, tree: Mapping[str, Any], prefix: str, changes: Mapping[str, Any]
) -> Any:
    """The settings with the values of ``tree``: field -> value, or again a tree where the field
    holds settings. Their keys begin with ``prefix``; what a class refuses becomes a
    ``SettingsError`` that names those of ``changes``, as the user gave them, that it is about."""
    new = {}
    for f, _, old in _fields(settings):
        if f.name in tree:
            value = tree[f.name]
            inside = dataclasses.is_dataclass(old)
            new[f.name] = _replaced(old, value, _prefix(f, prefix), changes) if inside else value
    try:
        return dataclasses.replace(settings, **new)
    except SettingsError:
        raise
    except Mendable as error:
        own = dict(_paths(settings, prefix))
        here = [key for key in changes if key in own]
        in_message = [
            key for key in here if re.search(rf"\b{key.rpartition('.')[2]}\b", str(error))
        ]
        words = ", ".join(assignment(key, changes[key]) for key in in_message or here)
        names = "|".join(f.name for f in dataclasses.fields(settings))
        # name=value, as the user types it
        message = re.sub(rf"(?<![\w.-])({names})(?==)", rf"{prefix}\1", str(error))
        raise SettingsError(f"{words}: {message}") from None


def _toml(value: Any) -> str:
    """A value as TOML writes it; JSON's strings are TOML's too."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(str(value), ensure_ascii=False)
