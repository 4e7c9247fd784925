"""Beam search: the targets of a few sources, by a cache whose rows change places.

Of each source ``beams`` beginnings go on at once. At each step all their continuations are ranked
by the sum of their log-probabilities. Those that end among the best ``beams`` are results; the best
others go on. Results are compared by the sum over (their number of tokens) ** ``length_penalty``
(Wu et al. 2016, arXiv 1609.08144, section 7, of which this is the simpler form that transformers
has). A source is done when it has ``beams`` results and no beginning can do better.

What is found is what ``generate(num_beams=...)`` of transformers finds, early stopping included:
without it, a beginning can do better if it would even with no more loss and one token more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, final

import torch
from torch import Tensor

from addnorm.checks import is_number
from addnorm.errors import Mendable, value_in_short
from addnorm.generation.cache import StaticCache
from addnorm.generation.decode import LanguageModel, check_max_new_tokens, whole
from addnorm.temporary import evaluation_mode

DEAD = -1e8
"""A sum of log-probabilities below this is that of a beginning that is not one: there are fewer
beginnings than beams at first, and where few tokens are allowed."""

EarlyStopping = bool | Literal["never"]


@final
@dataclass(frozen=True, kw_only=True)
class SearchRules:
    """What a model's targets look like, whoever asks for them."""

    start: int
    """The id before a target."""
    end: int
    """The id that ends one."""
    pad: int
    """The id that fills up rows."""
    banned: tuple[tuple[int, ...], ...] = ()
    """Ids, or several in a row, that are not written."""
    forced_end: int | None = None
    """The id that a target ends with which reaches the most tokens; it costs nothing. None: such a
    target is cut off."""
    renormalize: bool = False
    """Whether the probabilities of what is not banned are made to sum to 1."""
    early_stopping: EarlyStopping = False
    """True: a source is done with ``beams`` results; "never": as long as a beginning could do
    better at the greatest length."""
    most: int | None = None
    """The most tokens of a target without its start; None: as many as the model can write."""


class SourceModel(LanguageModel, Protocol):
    """A language model of targets, each row of which belongs to a source that it has read."""

    def keep(self, rows: Tensor) -> None:
        """Only these rows of the sources, in this order, some of them several times."""


class Hypothesis(NamedTuple):
    """A target that was found."""

    ids: list[int]
    """Without its start, with its end, if it came; a forced prefix included."""
    score: float
    """The sum of the log-probabilities of ``ids``, over (their number) ** length_penalty; without
    those of a forced prefix."""


class _Beginning(NamedTuple):
    """A target that goes on, or may."""

    parent: int
    """The row that it continues."""
    token: int
    logprob: float


@final
class _Source:
    """What was found for one source: ``results``, the best first.

    ``number``: of the source, for messages. ``prefix``: what its targets must begin with, which is
    not scored. ``max_new_tokens``: the most behind it. ``beams``: how many results are kept.
    ``penalty``: the exponent of the length that a score is divided by.
    """

    def __init__(
        self, number: int, prefix: Sequence[int], max_new_tokens: int, beams: int, penalty: float
    ) -> None:
        self.number, self.prefix, self.beams, self.penalty = number, list(prefix), beams, penalty
        self.limit = len(prefix) + max_new_tokens
        self.results: list[Hypothesis] = []

    def take(self, ids: list[int], logprob: float) -> None:
        """One more result, put in its place, if it is better than the last of ``beams``. ``ids``:
        with the prefix; ``logprob``: the sum over what stands behind it."""
        score = logprob / (len(ids) - len(self.prefix)) ** self.penalty
        place = next((i for i, r in enumerate(self.results) if score > r.score), len(self.results))
        self.results.insert(place, Hypothesis(ids, score))
        del self.results[self.beams :]

    def forced(self, place: int, rules: SearchRules) -> int | None:
        """The only id that may come at a place of a target, which counts from 0 and has the prefix
        in it, by the prefix or by ``rules``; None: any may."""
        if place < len(self.prefix):
            return self.prefix[place]
        return rules.forced_end if place + 1 == self.limit else None

    def is_over(self, logprob: float, count: int, early_stopping: EarlyStopping) -> bool:
        """Whether nothing better can come, where the best beginning has ``count`` tokens, those of
        the prefix included, and ``logprob`` for their sum."""
        if count == self.limit or logprob < DEAD:
            return True
        if len(self.results) < self.beams:
            return False
        if early_stopping is True:
            return True
        longest = early_stopping == "never" and self.penalty > 0
        length = (self.limit if longest else count) - len(self.prefix)
        return logprob / length**self.penalty <= self.results[-1].score


@torch.inference_mode()
def search(
    model: SourceModel,
    rows: int,
    rules: SearchRules,
    *,
    max_new_tokens: int,
    beams: int = 1,
    length_penalty: float = 1.0,
    n_best: int = 1,
    prefixes: Sequence[Sequence[int]] | None = None,
) -> list[list[Hypothesis]]:
    """For each of the ``rows`` sources of the model its ``n_best`` targets, the best first.

    ``max_new_tokens``: the most of a target, without its start and its prefix.
    ``beams``: beginnings that go on at once; 1 takes the most probable token at each step.
    ``length_penalty``: above 0 favours long targets, below 0 short ones.
    ``prefixes``: what the targets must begin with, a list of ids for each source.

    The sources of ``model`` are used up: its ``keep`` is called, so that it is bound anew for
    another search. A ``FloatingPointError`` where its logits are not finite.
    """
    _check(rules, max_new_tokens, beams, length_penalty, n_best)
    prefixes = [[]] * rows if prefixes is None else prefixes
    _check_prefixes(prefixes, rows, rules, max_new_tokens, model.config.context_length)
    sources = [
        _Source(i, prefix, max_new_tokens, beams, length_penalty)
        for i, prefix in enumerate(prefixes)
    ]
    if not rows or not max_new_tokens:
        return [[Hypothesis(list(s.prefix), 0.0)] for s in sources]
    with evaluation_mode(model.modules()):
        _run(model, sources, rules, beams)
    return [source.results[:n_best] for source in sources]


def stacked(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Rows of unlike length as one tensor, (B, T), filled up at their ends."""
    ids = torch.full((len(rows), max(map(len, rows), default=0)), fill)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
    return ids


def _run(model: SourceModel, sources: list[_Source], rules: SearchRules, beams: int) -> None:
    """Step after step, until every source has its ``results``; a source that has them leaves the
    batch, the model's memory and the cache.

    Row ``i * beams + k`` of ``texts``, of the cache and of the model is beam k of the i-th source
    that is still searched.
    """
    device = next(model.parameters()).device
    model.keep(torch.arange(len(sources), device=device).repeat_interleave(beams))
    cache = StaticCache(max(source.limit for source in sources))
    texts: list[list[int]] = [[] for _ in range(len(sources) * beams)]
    sums = torch.full((len(sources), beams), 10 * DEAD, device=device)
    sums[:, 0] = 0.0  # all beginnings are the same at first: one of them counts
    last = torch.full((len(texts), 1), rules.start, device=device)
    place, early = 0, rules.early_stopping if beams > 1 else True
    while True:
        cache.reserve(1)
        logits = model(last, cache=cache, last=1)[:, -1].float()
        cache.advance(1)
        logprobs = logits.log_softmax(-1).unflatten(0, (-1, beams))
        logprobs = _ruled(logprobs, texts, rules, [s.forced(place, rules) for s in sources])
        width = logprobs.shape[-1]
        # at most ``beams`` of the best are ends, so twice as many leave ``beams`` that go on
        best = (logprobs + sums[..., None]).flatten(1).topk(min(2, width) * beams)
        place += 1
        still: list[_Source] = []
        beginnings: list[_Beginning] = []
        ranked = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        for i, (source, (values, choices)) in enumerate(zip(sources, ranked, strict=True)):
            continuations = [
                _Beginning(i * beams + choice // width, choice % width, value)
                for value, choice in zip(values, choices, strict=True)
            ]
            running = _settled(source, continuations, texts, place, rules)
            if not source.is_over(running[0].logprob, place, early):
                still.append(source)
                beginnings += running
        if not still:
            return
        parents = [beginning.parent for beginning in beginnings]
        if parents != list(range(len(texts))):
            index, unchanged = torch.tensor(parents, device=device), len(still) == len(sources)
            cache.keep(index, same_memory=unchanged)
            if not unchanged:
                model.keep(index)
        texts = [[*texts[parent], token] for parent, token, _ in beginnings]
        sums = torch.tensor([b.logprob for b in beginnings], device=device).view(-1, beams)
        last = torch.tensor([[b.token] for b in beginnings], device=device)
        sources = still


def _settled(
    source: _Source,
    continuations: Sequence[_Beginning],
    texts: list[list[int]],
    place: int,
    rules: SearchRules,
) -> list[_Beginning]:
    """The ``beams`` best continuations that go on. Those that end here and are among the best
    become results of the source. ``continuations``: the best first; ``texts``: of each row, what
    stands before; ``place``: how many tokens a target has with them. Where too few go on, the list
    is filled up with ones so improbable that they never count."""
    beams, running = source.beams, []
    for rank, one in enumerate(continuations):
        if one.logprob != one.logprob:
            raise FloatingPointError(
                f"the logits of source {source.number} are not finite at token {place}: the "
                "weights or the activations hold NaN or overflow"
            )
        if place < source.limit and one.token != rules.end:
            running.append(one)
        elif rank < beams and one.logprob > DEAD:
            source.take([*texts[one.parent], one.token], one.logprob)
    nobody = continuations[0]._replace(token=rules.end, logprob=10 * DEAD)
    return (running + [nobody] * beams)[:beams]


def _ruled(
    logprobs: Tensor, texts: list[list[int]], rules: SearchRules, forced: Sequence[int | None]
) -> Tensor:
    """The log-probabilities (sources, beams, V), changed in place: what the rules forbid at -inf,
    and what they force at 0. ``texts``: what each row has written; ``forced``: of each source the
    only id that may come, None: any may."""
    # a folder may ban the end itself, which transformers does not obey either: no target would end
    banned = [ids for ids in rules.banned if ids != (rules.end,)]
    if single := [ids[0] for ids in banned if len(ids) == 1]:
        logprobs[..., single] = -torch.inf
    beams = logprobs.shape[1]
    for *before, token in (ids for ids in banned if len(ids) > 1):
        for row, text in enumerate(texts):
            if [rules.start, *text][-len(before) :] == before:
                logprobs[row // beams, row % beams, token] = -torch.inf
    for i, only in enumerate(forced):
        if only is not None:
            logprobs[i] = -torch.inf
            logprobs[i, :, only] = 0.0
    return logprobs.log_softmax(-1) if rules.renormalize else logprobs


def _check(
    rules: SearchRules, max_new_tokens: int, beams: int, length_penalty: float, n_best: int
) -> None:
    """Raise a ``Mendable`` where one of these arguments of ``search``, or two together, makes no
    sense."""
    check_max_new_tokens(max_new_tokens)
    for name, value in (("beams", beams), ("n_best", n_best)):
        if not whole(value) or value < 1:
            raise Mendable(f"{name} must be a whole number of at least 1, got {value!r}")
    if n_best > beams:
        raise Mendable(f"n_best={n_best} results need as many beams, and beams={beams}")
    if not is_number(length_penalty):
        raise Mendable(f"length_penalty must be a number, got {value_in_short(length_penalty)}")
    if rules.early_stopping not in (True, False, "never"):
        raise Mendable(
            f"early_stopping must be true, false or 'never', got {rules.early_stopping!r}"
        )


def _check_prefixes(
    prefixes: Sequence[Sequence[int]],
    rows: int,
    rules: SearchRules,
    max_new_tokens: int,
    context: int,
) -> None:
    """Raise a ``Mendable`` unless there is one prefix for each of the ``rows`` sources, none of
    which ends a target, and each leaves room for the new tokens in the ``context``."""
    if len(prefixes) != rows:
        raise Mendable(f"{len(prefixes)} prefixes for {rows} sources")
    if any(rules.end in prefix for prefix in prefixes):
        raise Mendable("a prefix holds the id that ends a target")
    longest = max(map(len, prefixes), default=0)
    if longest + max_new_tokens > context:
        behind = f" behind a prefix of {longest}" if longest else ""
        raise Mendable(
            f"{max_new_tokens} new tokens{behind} are more than the context of {context}"
        )
