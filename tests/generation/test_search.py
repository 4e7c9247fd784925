"""Beam search: against all targets there are, and the rules of what may be written."""

import math
from itertools import product
from typing import Any

import pytest
import torch

from addnorm.errors import Mendable
from addnorm.generation.search import Hypothesis, SearchRules, search, stacked
from addnorm.models.seq2seq import Seq2Seq
from addnorm.models.seq2seq_config import Seq2SeqConfig

START, END, V = 0, 1, 5
RULES = SearchRules(start=START, end=END, pad=START, banned=((START,),))


@pytest.fixture(scope="module")
def model() -> Seq2Seq:
    torch.manual_seed(3)
    config = Seq2SeqConfig(
        vocab_size=V,
        context_length=8,
        dim=8,
        encoder_layers=1,
        decoder_layers=2,
        n_heads=2,
        logits_bias=True,
    )
    model = Seq2Seq(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.4 * torch.randn_like(p))
        model.logits_bias.data[END] += 1.0
    return model.eval()


SOURCE = torch.tensor([[2, 3, 4], [4, 4, 2], [3, 2, 2]])
VALID = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])


def run(model: Seq2Seq, rules: SearchRules = RULES, **options: Any) -> list[list[Hypothesis]]:
    return search(model.bind(SOURCE, VALID), len(SOURCE), rules, **options)


def logprob(model: Seq2Seq, row: int, ids: list[int], first: int = 0) -> float:
    """By definition: one after the other, without a cache, from the token at ``first``."""
    source = SOURCE[row : row + 1, : int(VALID[row].sum())]
    total = 0.0
    for i in range(first, len(ids)):
        logits = model(source, torch.tensor([[START, *ids[:i]]]))[0, -1].double()
        total += float(logits.log_softmax(-1)[ids[i]].detach())
    return total


def every_target(longest: int) -> list[list[int]]:
    """All that end, and all that are cut off at the greatest length; the start is not written."""
    letters = [id for id in range(V) if id not in (START, END)]
    targets = [
        [*body, END] for n in range(longest) for body in map(list, product(letters, repeat=n))
    ]
    return targets + [list(body) for body in product(letters, repeat=longest)]


@pytest.fixture(scope="module")
def sums(model: Seq2Seq) -> list[dict[tuple[int, ...], float]]:
    """For each source every target of at most 3 tokens, and the log-probability of it."""
    return [
        {tuple(ids): logprob(model, row, ids) for ids in every_target(3)}
        for row in range(len(SOURCE))
    ]


@pytest.mark.parametrize("penalty", [1.0, 0.0, 2.0, -0.5])
def test_with_enough_beams_it_is_an_exhaustive_search(
    model: Seq2Seq, sums: list[dict[tuple[int, ...], float]], penalty: float
) -> None:
    """More beams than there are beginnings: nothing is given up, so the best are the best."""
    longest, beams = 3, 60
    results = run(model, max_new_tokens=longest, beams=beams, length_penalty=penalty, n_best=beams)
    for row, of_row in enumerate(results):
        scores = {ids: total / len(ids) ** penalty for ids, total in sums[row].items()}
        ranked = sorted(scores.items(), key=lambda pair: -pair[1])
        assert [tuple(h.ids) for h in of_row] == [ids for ids, _ in ranked]
        for hypothesis in of_row:  # float32 sums of at most 3 log-probabilities
            assert math.isclose(hypothesis.score, scores[tuple(hypothesis.ids)], abs_tol=1e-5)


def test_one_beam_takes_the_most_probable_token_at_each_step(model: Seq2Seq) -> None:
    for row, (best,) in enumerate(run(model, max_new_tokens=6)):
        ids: list[int] = []
        while len(ids) < 6 and END not in ids:
            choices = [(logprob(model, row, [*ids, id], len(ids)), id) for id in range(1, V)]
            ids.append(max(choices)[1])
        assert best.ids == ids
        assert math.isclose(best.score, logprob(model, row, ids) / len(ids), abs_tol=1e-5)


@pytest.mark.parametrize("early", [False, True, "never"])
def test_a_row_is_not_changed_by_the_rows_beside_it(model: Seq2Seq, early: Any) -> None:
    """Rows are given up when they are done: the others' memory and cache go with them."""
    rules = SearchRules(start=START, end=END, pad=START, early_stopping=early)
    options: dict[str, Any] = {"max_new_tokens": 7, "beams": 3, "n_best": 2}
    together = run(model, rules, **options)
    for row in range(len(SOURCE)):
        source = SOURCE[row : row + 1, : int(VALID[row].sum())]
        alone = search(model.bind(source), 1, rules, **options)[0]
        assert [h.ids for h in alone] == [h.ids for h in together[row]]
        for one, other in zip(alone, together[row], strict=True):
            assert math.isclose(one.score, other.score, abs_tol=1e-5)


def test_a_forced_prefix_comes_first_and_is_not_counted(model: Seq2Seq) -> None:
    prefixes = [[], [3], [4, 2, 3]]
    results = run(model, max_new_tokens=4, beams=3, n_best=3, prefixes=prefixes, length_penalty=1.3)
    for row, (prefix, of_row) in enumerate(zip(prefixes, results, strict=True)):
        assert len(of_row) == 3
        for ids, score in of_row:
            assert ids[: len(prefix)] == prefix
            count = len(ids) - len(prefix)
            assert 1 <= count <= 4
            want = logprob(model, row, ids, len(prefix)) / count**1.3
            assert math.isclose(score, want, abs_tol=1e-5)


def test_banned_ids_and_runs_of_ids_do_not_come(model: Seq2Seq) -> None:
    free = run(
        model, SearchRules(start=START, end=END, pad=START), max_new_tokens=6, beams=4, n_best=4
    )
    second = next(h.ids[:2] for of_row in free for h in of_row if len(h.ids) > 1)
    rules = SearchRules(
        start=START, end=END, pad=START, banned=((START,), (END,), tuple(second), (START, 4))
    )
    for of_row in run(model, rules, max_new_tokens=6, beams=4, n_best=4):
        for ids, _ in of_row:
            assert START not in ids
            assert ids[0] != 4, "with the start before it, it is a run"
            assert second not in [ids[i : i + 2] for i in range(len(ids))]
            assert END in ids or len(ids) == 6
    best = run(model, rules, max_new_tokens=6, beams=4, n_best=4)
    assert any(END in of_row[0].ids for of_row in best), "and the end cannot be banned"


def test_a_forced_end_costs_nothing_and_renormalizing_gives_what_is_left(model: Seq2Seq) -> None:
    with torch.no_grad():
        never = SearchRules(start=START, end=END, pad=START, forced_end=END, banned=((2, END),))
    for of_row in run(model, never, max_new_tokens=3, beams=2):
        ids, score = of_row[0]
        if len(ids) == 3:
            assert ids[-1] == END
            row = [h[0] for h in run(model, never, max_new_tokens=3, beams=2)].index(of_row[0])
            assert math.isclose(score, logprob(model, row, ids[:2]) / 3, abs_tol=1e-5)
    rules = SearchRules(start=START, end=END, pad=START, banned=((2,), (3,), (4,), (START,)))
    exact = SearchRules(**{**vars(rules), "renormalize": True})
    assert run(model, exact, max_new_tokens=2)[0] == [Hypothesis([END], 0.0)]
    assert run(model, rules, max_new_tokens=2)[0][0].score < 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 0}, "beams must be a whole number of at least 1, got 0"),
        ({"n_best": 2}, "n_best=2 results need as many beams, and beams=1"),
        ({"max_new_tokens": -1}, "max_new_tokens must be"),
        ({"length_penalty": math.nan}, "length_penalty must be a number, got nan"),
        ({"prefixes": [[2]]}, "1 prefixes for 3 sources"),
        ({"prefixes": [[2], [1], []]}, "a prefix holds the id that ends a target"),
        ({"prefixes": [[2] * 6, [], []]}, "3 new tokens behind a prefix of 6 are more than"),
    ],
)
def test_what_makes_no_sense_is_refused(model: Seq2Seq, options: Any, message: str) -> None:
    with pytest.raises(Mendable, match=message):
        run(model, **{"max_new_tokens": 3, **options})


def test_logits_that_are_not_finite_are_an_error() -> None:
    torch.manual_seed(0)
    model = Seq2Seq(
        Seq2SeqConfig(vocab_size=V, dim=8, encoder_layers=1, decoder_layers=1, n_heads=2)
    )
    with torch.no_grad():
        model.tokens.weight[START] = torch.nan
    with pytest.raises(FloatingPointError, match="the logits of source 0 are not finite at token"):
        search(model.bind(SOURCE), 3, RULES, max_new_tokens=3, beams=2)


def test_rows_of_unlike_length_are_filled_up() -> None:
    assert stacked([[1, 2], [], [3]], 9).tolist() == [[1, 2], [9, 9], [3, 9]]
    assert stacked([], 9).shape == (0, 0)
