"""Runs of words and of letters that texts share."""

from benchmarks.datasets.shared_runs import letters, runs, runs_of_all, shared, words


def test_runs() -> None:
    assert runs(letters("A-b, c_D 3 f")) == {"abcd3", "bcd3f"}
    assert runs(words("one, Two three four")) == set()
    assert runs_of_all(["abcde", "fghij", "abcde"]) == {"abcde", "fghij"}


def test_what_is_shared() -> None:
    train = runs_of_all([words("one two three four five six")])
    new = runs(words("Two, three four five SIX. seven"))
    assert shared(new, train) == (1, 2)
    assert shared(new, train).share == 0.5
    assert shared(set(), train).share == 0.0
