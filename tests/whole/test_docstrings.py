"""What the docstrings of the public classes say."""

import ast
import inspect
import re
from itertools import pairwise

import pytest
from torch import nn

import addnorm


def public_classes() -> list[type]:
    """Those of ``addnorm.__all__``, and those of the modules that are in it."""
    classes = set()
    for value in [getattr(addnorm, name) for name in addnorm.__all__]:
        if inspect.ismodule(value):
            names = getattr(value, "__all__", None) or dir(value)
            inside = [getattr(value, name) for name in names if not name.startswith("_")]
            own = [v for v in inside if getattr(v, "__module__", "").startswith(value.__name__)]
            classes |= {v for v in own if inspect.isclass(v)}
        elif inspect.isclass(value):
            classes.add(value)
    classes -= {kind for kind in classes if issubclass(kind, Exception | dict)}
    return sorted(classes, key=lambda kind: (kind.__module__, kind.__name__))


def documentation(kind: type) -> str:
    """Its docstring, those of its constructor and of its bases here, and the names of the fields
    that say what they are, below or beside them."""
    texts = []
    for part in kind.__mro__:
        if part.__module__.startswith("addnorm"):
            source = inspect.getsource(part)
            (tree,) = ast.parse(source).body
            assert isinstance(tree, ast.ClassDef)
            texts += [inspect.getdoc(part) or "", inspect.getdoc(vars(part).get("__init__")) or ""]
            for field, below in pairwise(tree.body):
                if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                    texts.append(f"``{ast.unparse(field.target)}``")
            texts += [f"``{name}``" for name in re.findall(r"(?m)^    (\w+): .*  # ", source)]
    return " ".join(texts)


@pytest.mark.parametrize("kind", public_classes(), ids=lambda kind: kind.__name__)
def test_a_public_class_tells_of_its_arguments(kind: type) -> None:
    """In its docstring, or at its fields. compat's need only those that PyTorch's lack."""
    theirs = getattr(nn, kind.__name__, None) if kind.__module__ == "addnorm.compat" else None
    untold = {
        name
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if theirs is None or name not in inspect.signature(theirs).parameters
        if not re.search(rf"``[^`]*\b{name}\b[^`]*``", documentation(kind))
    }
    assert not untold
