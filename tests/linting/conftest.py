"""Each case of each rule is said in some test: ``said.txt`` lists one for each case, and that test
fails if it no longer says it."""

from collections.abc import Iterator

import pytest

from addnorm.linting.check import rules_by_name
from tests.linting.asking import SAID, cases_by_test, cases_said

_first_tests: dict[tuple[str, str], str] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    help_text = "write tests/linting/said.txt, after all of these tests have run in one process"
    parser.addoption("--write-said", action="store_true", help=help_text)


@pytest.fixture(autouse=True)
def listed_cases_are_said(request: pytest.FixtureRequest) -> Iterator[None]:
    """What is listed for the test is said in it."""
    listed = cases_by_test().get(request.node.nodeid, set())
    with cases_said() as cases:
        yield
    for case in cases:
        _first_tests.setdefault(case, request.node.nodeid)
    missing = listed - cases
    assert not missing or request.config.getoption("--write-said"), (
        f"it no longer says {missing}, for which {SAID.name} lists it: does another test say that?"
    )


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.getoption("--write-said"):
        lines = [
            f"{rule} | {case} | {test}\n"
            for (rule, case), test in sorted(_first_tests.items())
            if rule in rules_by_name()  # and not a test's own
        ]
        SAID.write_text("".join(lines))
