"""Lint in a project's tests: a plugin that pytest finds by itself where addnorm is installed.

    def test_wiring(lint):
        lint(build_model())

A model with an error fails the test, with what ``addnorm lint`` would print. With
``pytest --addnorm-lint`` each of the ``targets`` under [tool.addnorm.lint] in pyproject.toml is a
test as well; the table's ``ignore`` holds for both.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, final

import pytest

if TYPE_CHECKING:
    import torch

    from addnorm.linting import Ignore, Report


class Lint(Protocol):
    """What the fixture ``lint`` is."""

    def __call__(
        self,
        model: "torch.nn.Module",
        inputs: Any = None,
        *,
        causal: bool | None = None,
        optimizer: "torch.optim.Optimizer | None" = None,
        guard: Any = None,
        ignore: "Iterable[str | Ignore]" = (),
        warnings: bool = False,
    ) -> "Report":
        """The report of ``addnorm.lint``, with the same arguments; the test fails if there is an
        error in it, with ``warnings`` a warning too, or if the model cannot be run."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--addnorm-lint``."""
    parser.getgroup("addnorm").addoption(
        "--addnorm-lint",
        action="store_true",
        help="also lint the targets that [tool.addnorm.lint] in pyproject.toml has",
    )


@pytest.fixture
def lint(pytestconfig: pytest.Config) -> Lint:
    """Examines a model, and fails the test if it is wired wrong; see ``addnorm.lint``."""
    return _lint_of(pytestconfig.rootpath)


def _lint_of(folder: Path) -> Lint:
    """The fixture, by the pyproject.toml of a folder or of one above it."""

    def lint(
        model: "torch.nn.Module",
        inputs: Any = None,
        *,
        ignore: "Iterable[str | Ignore]" = (),
        warnings: bool = False,
        **options: Any,
    ) -> "Report":
        from addnorm.cli.lint_config import read_config
        from addnorm.linting import lint

        __tracebackhide__ = True
        ignores = [*read_config(folder).ignore, *ignore]
        report = lint(model, inputs, ignore=ignores, **options)
        if not report.ok or (warnings and report.of("warning")):
            pytest.fail(str(report), pytrace=False)
        return report

    return lint


# --- the targets of pyproject.toml ----------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Add a test for each target, if it was asked for."""
    if not config.getoption("--addnorm-lint"):
        return
    from addnorm.cli.lint_config import FILE, read_config

    file = _LintFile.from_parent(session, path=config.rootpath / FILE)
    names = read_config(config.rootpath).targets
    items += [_LintItem.from_parent(file, name=name) for name in names]


@final
class _LintFile(pytest.File):
    """The pyproject.toml."""

    def collect(self) -> Iterator[pytest.Item]:
        """Nothing: it is asked for by the option, not found in a folder."""
        yield from ()


@final
class _LintItem(pytest.Item):
    """One target."""

    def runtest(self) -> None:
        """Fail if there is an error in the model."""
        from addnorm.cli.lint_config import read_config
        from addnorm.cli.target import open_target

        target = open_target(self.name)
        causal = read_config(self.config.rootpath).causal
        _lint_of(self.config.rootpath)(target.model, target.inputs, causal=causal)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """An error that the user can mend is told in its own words."""
        from addnorm.errors import Mendable

        if isinstance(excinfo.value, Mendable):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Where it is from, and what it is called."""
        return self.path, None, f"lint {self.name}"
