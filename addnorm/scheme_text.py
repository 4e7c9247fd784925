"""A scheme from its text, ``"drop_path(mix_ln(0.25), p=0.1)"``, which is read, never evaluated."""

import ast
import inspect
from typing import Any

from addnorm.catalogue import ALIASES, SchemeError, entry
from addnorm.checks import MOST
from addnorm.stream import Scheme
from addnorm.words import did_you_mean, plural

LARGEST = 1e38  # of a number in the text of a scheme: float32 and bfloat16 hold it
LONGEST = 1000  # characters of the text of a scheme: any that means something is far shorter


def parse(text: str) -> Scheme:
    """A scheme from text, such as ``"drop_path(mix_ln(0.25), p=0.1)"``.

    Names of designs and combinators, or what papers and models call them, numbers, True and False;
    positional or named arguments. Anything else, and any value of the wrong type, is a
    ``SchemeError`` that says what would do.
    """
    return scheme(tree(text), text)


def as_scheme(value: Scheme | str) -> Scheme:
    """A scheme as it is, or the one that a text names."""
    return parse(value) if isinstance(value, str) else value


def tree(text: str) -> ast.expr:
    """The syntax tree of a scheme's text, of which ``scheme`` takes a small part; a
    ``SchemeError`` for what is no expression of Python."""
    if not isinstance(text, str):
        raise SchemeError(f"a scheme is named by text, got {type(text).__name__}: {text!r}")
    if len(text) > LONGEST:
        raise SchemeError(f"a scheme's text may have {LONGEST} characters, got {len(text)}")
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        why = error.msg if isinstance(error, SyntaxError) else error  # no place in a file
        raise SchemeError(
            f"cannot read {text!r}: write a name or name(argument, ...), {why}"
        ) from None


def scheme(node: ast.expr, text: str) -> Scheme:
    """The scheme that a node of the tree stands for, its arguments read and checked; else a
    ``SchemeError``. ``text`` is the whole, for messages."""
    if isinstance(node, ast.Name) and node.id in ALIASES:
        return parse(ALIASES[node.id])
    if isinstance(node, ast.Name):
        design, by_place, by_name = entry(node.id), [], []
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        design, by_place, by_name = entry(node.func.id), node.args, node.keywords
    else:
        raise SchemeError(
            f"cannot read {_source(node, text)!r} in {text!r}: expected a name or name(...)"
        )
    parameters = design.parameters()
    if len(by_place) > len(parameters):
        raise SchemeError(
            f"{design.name} takes {plural(len(parameters), 'argument')}, got {len(by_place)}: "
            f"{design.usage()}"
        )
    values = dict(zip(parameters, by_place, strict=False))
    for keyword in by_name:
        if keyword.arg is None or keyword.arg not in parameters:
            argument = "**" if keyword.arg is None else repr(keyword.arg)
            there = f"there are {', '.join(parameters)}" if parameters else "it takes none"
            hint = did_you_mean(keyword.arg, parameters) or there
            raise SchemeError(f"{design.name} has no argument {argument}; {hint}")
        if keyword.arg in values:
            raise SchemeError(f"{design.name}: argument {keyword.arg!r} is given twice")
        values[keyword.arg] = keyword.value
    for name, (_, default) in parameters.items():
        if default is inspect.Parameter.empty and name not in values:
            raise SchemeError(f"{design.name} needs {name!r}: {design.usage()}")
    arguments = {
        name: _value(design.name, name, parameters[name][0], value, text)
        for name, value in values.items()
    }
    result: Scheme = design.function if design.plain else design.function(**arguments)
    return result


def _value(owner: str, name: str, value_type: Any, node: ast.expr, text: str) -> Any:
    """The value of the argument ``name`` of a design, ``owner``: a scheme, or a constant of the
    ``value_type`` that the design's function is annotated with, where a whole number does for a
    float; else a ``SchemeError``."""
    if value_type is Scheme or value_type == Scheme:
        return scheme(node, text)
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        value = None  # refused below: it is of none of the types
    if value_type is float and type(value) in (int, float) and -LARGEST < value < LARGEST:
        return float(value)
    if value_type is not float and type(value) is value_type and -MOST <= value <= MOST:
        return value
    kinds = {float: "a number", int: "a whole number", bool: "True or False"}
    large = type(value) in (int, float) and not -MOST <= value <= MOST and value_type is not bool
    limit = f" below {LARGEST if value_type is float else MOST:g}" if large else ""
    raise SchemeError(
        f"{owner}: {name} must be {kinds[value_type]}{limit}, got {_source(node, text)} in {text!r}"
    )


def _source(node: ast.expr, text: str) -> str:
    return ast.get_source_segment(text.strip(), node) or ast.dump(node)
