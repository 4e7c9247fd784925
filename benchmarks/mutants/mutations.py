"""The changes that make a mutant: one place of a source file, replaced as text.

A place is found in the syntax tree and changed in the text, so that lines, layout and comments stay
as they are and a traceback of the mutant points into the file one knows. Left alone is what no test
can be asked to notice: docstrings, annotations, strings, what is raised, warned or asserted,
``__repr__``, decorators, and what only a type checker reads.
"""

import ast
import hashlib
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

COMPARISONS: dict[type[ast.cmpop], tuple[str, ...]] = {  # as it is written, then what replaces it
    ast.Lt: (r"<", "<=", ">="),
    ast.LtE: (r"<=", "<", ">"),
    ast.Gt: (r">", ">=", "<="),
    ast.GtE: (r">=", ">", "<"),
    ast.Eq: (r"==", "!="),
    ast.NotEq: (r"!=", "=="),
    ast.Is: (r"\bis\b", "is not"),
    ast.IsNot: (r"\bis\s+not\b", "is"),
    ast.In: (r"\bin\b", "not in"),
    ast.NotIn: (r"\bnot\s+in\b", "in"),
}
ARITHMETIC: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: (r"\+", "-"),
    ast.Sub: (r"-", "+"),
    ast.Mult: (r"\*", "/"),
    ast.Div: (r"/", "*"),
    ast.FloorDiv: (r"//", "*"),
    ast.Mod: (r"%", "//"),
    ast.Pow: (r"\*\*", "*"),
    ast.LShift: (r"<<", ">>"),
    ast.RShift: (r">>", "<<"),
    ast.BitAnd: (r"&", "|"),
    ast.BitOr: (r"\|", "&"),
    ast.BitXor: (r"\^", "&"),
}
OPPOSITES = {
    **{"min": "max", "amin": "amax", "argmin": "argmax", "minimum": "maximum"},
    **{"any": "all", "floor": "ceil"},
}
OPPOSITES |= {other: name for name, other in OPPOSITES.items()}

# The order of their arguments is nothing, or only what a message says.
SYMMETRIC = {"min", "max", "minimum", "maximum", "equal", "allclose", "gcd", "logaddexp", "print"}
UNTOUCHED_CALLS = {"warn", "cast", "Literal", "TypeVar", "NewType", "ParamSpec", "exit", "_exit"}
UNTOUCHED_KEYWORDS = {"strict", "stacklevel"}  # guards against mistakes that are made nowhere
UNTOUCHED_FUNCTIONS = {"__repr__", "__str__", "extra_repr"}
MESSAGES = re.compile(r"(Error|Warning|Exception)$")


@dataclass(frozen=True)
class Mutation:
    """One place of a file, and what stands there instead."""

    file: str
    function: str  # qualified name; "" at the level of the module
    kind: str
    before: str  # the line or lines of the place, without layout
    after: str
    occurrence: int  # among those of which all the above is the same
    start: int  # in bytes
    end: int
    text: str
    lines: tuple[int, int]  # of the statement; of a compound one, of its head
    within: str  # "body", "head" of the function, or "outside" of every function

    @property
    def key(self) -> str:
        """Eight hexadecimal digits that stay while the line stays, wherever it moves in its
        function."""
        parts = (self.file, self.function, self.kind, self.before, self.after, self.occurrence)
        return hashlib.sha1("\0".join(map(str, parts)).encode()).hexdigest()[:8]

    def applied(self, source: str) -> str:
        """The source with this one change."""
        data = source.encode()
        return (data[: self.start] + self.text.encode() + data[self.end :]).decode()


def mutations(
    source: str, file: str, required: dict[str, set[str]] | None = None
) -> list[Mutation]:
    """All changes of a file, in the order of their places.

    ``required`` says for the name of a function which parameters it has no default for: those
    keyword arguments are not dropped.
    """
    finder = _Finder(source, file, required or {})
    finder.visit(finder.tree)
    return sorted(finder.mutations, key=lambda m: (m.start, m.end, m.text))


def parses(mutation: Mutation, source: str) -> bool:
    """Whether the mutant is Python, and other Python than before."""
    try:
        after = ast.parse(mutation.applied(source))
    except (SyntaxError, ValueError):
        return False
    return ast.dump(after) != ast.dump(ast.parse(source))


def required_parameters(sources: list[str]) -> dict[str, set[str]]:
    """For each function or method (a class stands for its ``__init__``), by its bare name: the
    parameters that no function of that name has a default for."""
    required: dict[str, set[str]] = {}
    optional: dict[str, set[str]] = {}
    for tree in map(ast.parse, sources):
        for owner in ast.walk(tree):
            for node in ast.iter_child_nodes(owner):
                if not isinstance(node, ast.FunctionDef):
                    continue
                is_init = node.name == "__init__" and isinstance(owner, ast.ClassDef)
                name = owner.name if is_init and isinstance(owner, ast.ClassDef) else node.name
                plain = [a.arg for a in [*node.args.posonlyargs, *node.args.args]]
                defaults = {*plain[len(plain) - len(node.args.defaults) :]}
                for arg, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
                    plain.append(arg.arg)
                    defaults |= {arg.arg} if default is not None else set()
                required.setdefault(name, set()).update({*plain} - defaults)
                optional.setdefault(name, set()).update(defaults)
    return {name: names - optional[name] for name, names in required.items()}


class _Finder(ast.NodeVisitor):
    """Walks a file and collects its changes."""

    def __init__(self, source: str, file: str, required: dict[str, set[str]]) -> None:
        self.data, self.file, self.required = source.encode(), file, required
        self.tree = ast.parse(source)
        self.starts = [0]
        for line in self.data.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.bare = self._without_comments(source)
        self.mutations: list[Mutation] = []
        self.counts: Counter[tuple[str, ...]] = Counter()
        self.names: list[str] = []
        self.within, self.lines = "outside", (1, 1)

    # --- places -----------------------------------------------------------------------------------

    def span(self, node: ast.expr | ast.stmt | ast.keyword) -> tuple[int, int]:
        """From where to where a node stands, in bytes."""
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return (
            self.starts[node.lineno - 1] + node.col_offset,
            self.starts[node.end_lineno - 1] + node.end_col_offset,
        )

    def text(self, start: int, end: int) -> str:
        return self.data[start:end].decode()

    def _without_comments(self, source: str) -> bytes:
        """Blanks in the place of each comment: a mutant stays the same when one is reworded."""
        bare = bytearray(self.data)
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT:
                start = self.starts[token.start[0] - 1] + len(token.line[: token.start[1]].encode())
                end = start + len(token.string.encode())
                bare[start:end] = b" " * (end - start)
        return bytes(bare)

    def add(self, kind: str, start: int, end: int, text: str, newline: str = " \\\n") -> None:
        """Note a change; ``newline`` is what keeps the lines below where they are."""
        text += newline * (self.data.count(b"\n", start, end) - text.count("\n"))
        first = self.data.rfind(b"\n", 0, start) + 1
        last = self.data.find(b"\n", end)
        last = len(self.data) if last < 0 else last
        before = _plain(self.bare[first:last].decode())
        after = _plain(self.bare[first:start].decode() + text + self.bare[end:last].decode())
        function = ".".join(self.names)
        same = (self.file, function, kind, before, after)
        place = (start, end, text, self.lines, self.within)
        self.mutations.append(Mutation(*same, self.counts[same], *place))
        self.counts[same] += 1

    def between(
        self, kind: str, left: ast.expr, right: ast.expr, pattern: str, new: tuple[str, ...]
    ) -> None:
        """The operator between two operands."""
        start, end = self.span(left)[1], self.span(right)[0]
        where = re.search(pattern, self.text(start, end))
        assert where is not None, f"no {pattern} at line {left.lineno}"
        for text in new:
            self.add(kind, start + where.start(), start + where.end(), text)

    # --- where nothing is changed -----------------------------------------------------------------

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.stmt):
            if not _untouched(node):
                self.statement(node)
        elif not isinstance(node, ast.JoinedStr):
            super().visit(node)

    def statement(self, node: ast.stmt) -> None:
        """One statement, and in what it holds those below it."""
        outer = self.lines
        body = getattr(node, "body", None)
        end = node.end_lineno or node.lineno
        self.lines = (node.lineno, max(node.lineno, body[0].lineno - 1) if body else end)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            self.definition(node)
        else:
            self.deletion(node)
            super().visit(node)
        self.lines = outer

    def definition(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
        """A function's defaults and body, a class's body; no annotation, no decorator."""
        within = self.within
        self.names.append(node.name)
        if not isinstance(node, ast.ClassDef):
            self.within = "head"
            self.defaults(node.args)
            self.within = "body"
        for part in node.body:
            self.visit(part)
        self.names.pop()
        self.within = within

    def defaults(self, args: ast.arguments) -> None:
        plain = [*args.posonlyargs, *args.args]
        pairs: list[tuple[ast.arg, ast.expr | None]] = [
            *zip(plain[len(plain) - len(args.defaults) :], args.defaults, strict=True),
            *zip(args.kwonlyargs, args.kw_defaults, strict=True),
        ]
        for arg, default in pairs:
            if default is None:
                continue
            self.visit(default)
            if not _is_none(default) and _may_be_none(arg.annotation):
                self.add("default", *self.span(default), "None")

    # --- statements -------------------------------------------------------------------------------

    def deletion(self, node: ast.stmt) -> None:
        """``pass`` in the place of a statement that is there for what it does."""
        match node:
            case ast.Expr(value=ast.Call() as call):
                acts = not self.text(*self.span(call)).startswith("super().__init__(")
            case ast.Assign(targets=targets):
                acts = all(isinstance(t, ast.Attribute | ast.Subscript) for t in targets)
            case ast.AnnAssign(target=target, value=value):
                acts = value is not None and isinstance(target, ast.Attribute)
            case ast.Return(value=value):
                acts = value is None
            case ast.AugAssign() | ast.Delete() | ast.Continue() | ast.Break():
                acts = True
            case _:
                acts = False
        if acts:
            self.add("statement", *self.span(node), "pass", newline="\n")

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)
            if not _is_none(node.value) and _may_be_none(node.annotation):
                self.add("default", *self.span(node.value), "None")

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if type(node.op) in ARITHMETIC:
            pattern, new = ARITHMETIC[type(node.op)]
            self.between("arithmetic", node.target, node.value, pattern + "=", (new + "=",))
        self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> None:
        if isinstance(node.value, ast.Name | ast.Attribute | ast.Subscript):
            self.add("return", *self.span(node.value), "None")
        self.generic_visit(node)

    def condition(self, test: ast.expr, texts: tuple[str, ...] = ("True", "False")) -> None:
        if not isinstance(test, ast.Constant):
            for text in texts:
                self.add("condition", *self.span(test), text)

    def visit_If(self, node: ast.If) -> None:
        self.condition(node.test)
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        self.condition(node.test)
        self.generic_visit(node)

    # --- expressions ------------------------------------------------------------------------------

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.condition(node.test)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self.condition(test, ("True",))
        self.generic_visit(node)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self.defaults(node.args)
        self.visit(node.body)

    def visit_Compare(self, node: ast.Compare) -> None:
        operands = [node.left, *node.comparators]
        for op, left, right in zip(node.ops, operands, operands[1:], strict=False):
            pattern, *new = COMPARISONS[type(op)]
            self.between("comparison", left, right, pattern, tuple(new))
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if type(node.op) in ARITHMETIC and not _is_text(node) and not _is_type(node):
            pattern, new = ARITHMETIC[type(node.op)]
            self.between("arithmetic", node.left, node.right, pattern, (new,))
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        pattern, new = (r"\band\b", "or") if isinstance(node.op, ast.And) else (r"\bor\b", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self.between("boolean", left, right, pattern, (new,))
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        start, _ = self.span(node)
        if isinstance(node.op, ast.Not):
            space = re.match(r"not\s*", self.text(start, self.span(node.operand)[0]))
            assert space is not None
            self.add("not", start, start + space.end(), "")
        elif isinstance(node.op, ast.Invert) or (
            isinstance(node.op, ast.USub) and not isinstance(node.operand, ast.Constant)
        ):
            self.add("sign", start, start + 1, "")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            new = str(not value)
        elif isinstance(value, int):
            new = str({0: 1, 1: 0}.get(value, value + 1))
        elif isinstance(value, float):
            new = repr(value * 2 or 1.0)
        else:
            return
        self.add("constant", *self.span(node), new)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        bounds = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        for part in bounds:
            if isinstance(part, ast.Slice):
                for bound in (part.lower, part.upper, part.step):
                    if bound is not None and not _is_zero(bound):
                        self.add("slice", *self.span(bound), "")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = _name(node.func)
        if MESSAGES.search(name) or name in UNTOUCHED_CALLS:
            return
        if name in OPPOSITES:
            end = self.span(node.func)[1]
            self.add("opposite", end - len(name), end, OPPOSITES[name])
        if name not in SYMMETRIC:
            self.swaps(node)
        self.visit(node.func)
        for arg in node.args[:1] if name in ("isinstance", "issubclass") else node.args:
            self.visit(arg)
        required = self.required.get(name, set())
        for keyword in node.keywords:
            if keyword.arg in UNTOUCHED_KEYWORDS:
                continue
            if keyword.arg is not None and keyword.arg not in required:
                self.add("keyword", *self.argument(node, keyword), "", newline="\n")
            self.visit(keyword.value)

    def swaps(self, node: ast.Call) -> None:
        """Two positional arguments beside each other, each in the other's place."""
        for first, second in zip(node.args, node.args[1:], strict=False):
            if isinstance(first, ast.Starred) or isinstance(second, ast.Starred):
                break
            (start, middle), (after, end) = self.span(first), self.span(second)
            one, two = self.text(start, middle), self.text(after, end)
            if one != two and _name(node.func) not in ("isinstance", "issubclass"):
                self.add("arguments", start, end, two + self.text(middle, after) + one)

    def argument(self, node: ast.Call, keyword: ast.keyword) -> tuple[int, int]:
        """A keyword argument with one of the commas beside it."""
        start, end = self.span(keyword)
        close = self.span(node)[1]
        comma = re.match(rb"\s*,[ \t]*", self.data[end:close])
        if comma is not None:
            return start, end + comma.end()
        comma = re.search(rb",\s*$", self.data[:start])
        return (comma.start() if comma is not None else start), end


# --- what a node is -------------------------------------------------------------------------------


def _untouched(node: ast.stmt) -> bool:
    """Whether a statement is left alone with all that is in it."""
    match node:
        case ast.Raise() | ast.Assert() | ast.Import() | ast.ImportFrom():
            return True
        case ast.If(test=test):
            return _name(test) == "TYPE_CHECKING"
        case ast.FunctionDef(name=name, decorator_list=decorators):
            return name in UNTOUCHED_FUNCTIONS or any(_name(d) == "overload" for d in decorators)
        case ast.Assign(targets=[ast.Name()], value=value):
            return isinstance(value, ast.Subscript | ast.BinOp) and _is_type(value)
        case ast.AnnAssign(annotation=annotation):
            return _name(annotation) == "TypeAlias"
    return False


def _name(node: ast.expr) -> str:
    """The last name of a dotted one; "" for what is none."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_zero(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value == 0


def _may_be_none(annotation: ast.expr | None) -> bool:
    return annotation is not None and any(
        isinstance(part, ast.expr) and (_is_none(part) or _name(part) == "Optional")
        for part in ast.walk(annotation)
    )


def _is_text(node: ast.expr) -> bool:
    """Whether strings are put together, as far as one sees."""
    if isinstance(node, ast.BinOp):
        return _is_text(node.left) or _is_text(node.right)
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)
    )


def _is_type(node: ast.expr) -> bool:
    """Whether an expression is a type: ``int | None``, ``Callable[[Site], Wiring]``."""
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.BitOr) and (_is_type(node.left) or _is_type(node.right))
    if isinstance(node, ast.Subscript):
        name = _name(node.value)
        return name in ("dict", "list", "tuple", "set", "type") or name[:1].isupper()
    builtin = {"int", "float", "str", "bool", "bytes", "list", "dict", "tuple", "set", "type"}
    return _is_none(node) or _name(node) in builtin


def _plain(text: str) -> str:
    return " ".join(text.replace("\\\n", " ").split())


def functions(source: str) -> Iterator[tuple[str, tuple[int, int], set[str]]]:
    """The functions of a file: qualified name, first and last line of the body, names in it."""

    def walk(
        node: ast.AST, names: tuple[str, ...]
    ) -> Iterator[tuple[str, tuple[int, int], set[str]]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                here = (*names, child.name)
                if not isinstance(child, ast.ClassDef):
                    inside = {
                        _name(n) for b in child.body for n in ast.walk(b) if isinstance(n, ast.expr)
                    }
                    last = child.end_lineno or child.lineno
                    yield ".".join(here), (child.body[0].lineno, last), inside - {""}
                yield from walk(child, here)
            else:
                yield from walk(child, names)

    yield from walk(ast.parse(source), ())
