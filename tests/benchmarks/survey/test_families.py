"""The split of the survey's families, which must never move."""

from collections import Counter

from benchmarks.survey.families import third


def test_the_split_does_not_move() -> None:
    """Figures at first sight are worth nothing once a family has changed its third."""
    names = ["transformers llama", "transformers gpt2", "transformers bert", "torch.nn"]
    assert [third(name) for name in names] == [third(name) for name in names]


def test_the_thirds_are_of_about_one_size() -> None:
    counts = Counter(third(f"family {i}") for i in range(3000))
    # Three binomials of 3000 draws at 1/3 have a deviation of 26; five of them are 130.
    assert all(abs(count - 1000) < 130 for count in counts.values())
