"""Our language models in EleutherAI's lm-evaluation-harness: ``import addnorm.lm_eval`` registers
the model ``addnorm``.

The harness brings the tasks, this file the answers; on the command line, with all options of
``lm_eval``::

    python -m addnorm.lm_eval --model addnorm --model_args path=out/run --tasks lambada_openai

and in Python::

    import addnorm.lm_eval
    lm_eval.simple_evaluate("addnorm", model_args={"path": "out/run"}, tasks=["lambada_openai"])

Texts become ids, are cut and are windowed as the harness does for models of transformers (Gao et
al. 2021), so that figures can be compared. Everything that needs the harness is here.
"""

import json
import logging
from collections.abc import Sequence
from typing import Any, cast, final

import torch

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise ImportError(
        f"addnorm.lm_eval needs lm-evaluation-harness ({error}): pip install 'addnorm[lm-eval]'"
    ) from error

from addnorm.data.tokenizer import Tokenizer
from addnorm.errors import Mendable, unknown_name
from addnorm.generation import LanguageModel, generate
from addnorm.generation.choices import ScoredRow, score_rows
from addnorm.pretrained import kind_of, load
from addnorm.progress import ProgressBar
from addnorm.words import plural

LOG = logging.getLogger(__name__)
AUTO = 8  # rows at once, where the harness says "auto"
MOST_NEW = 256  # tokens of an answer, where a task does not say: the harness's own number
DTYPES = ("float32", "bfloat16", "float16", "float64")
SAMPLING = ("top_k", "top_p", "min_p", "repetition_penalty")
"""What a task may say of sampling, beside the temperature."""
NEUTRAL = (("top_k", 0), ("num_beams", 1))
"""What tasks say that changes nothing, as transformers has it."""


@final
@register_model("addnorm")
class HarnessLM(TemplateLM):  # type: ignore[misc]
    """A language model of ours, as the harness asks it.

    ``path``: a folder or hub id of a model, or the folder of a run.
    ``batch_size``: how many rows go through the model at once; "auto" are 8.
    ``device``: where it computes; None: on the accelerator, if there is one.
    ``dtype``: of its weights: float32, bfloat16, float16, float64.
    ``max_gen_toks``: the most tokens of an answer where a task does not say; None: 256, or half of
    the context, if that is less.
    """

    def __init__(
        self,
        path: str,
        batch_size: int | str = AUTO,
        device: str | None = None,
        dtype: str = "float32",
        max_gen_toks: int | None = None,
    ) -> None:
        super().__init__()
        if dtype not in DTYPES:
            raise Mendable(unknown_name("dtype", dtype, DTYPES))
        loaded = load(str(path), dtype=getattr(torch, dtype))
        kind = kind_of(loaded.model)
        if not kind.writes:
            raise Mendable(f"{path} is {kind.noun}, and lm_eval asks language models")
        if not isinstance(loaded.tokenizer, Tokenizer):
            raise Mendable(f"{path} has no tokenizer beside the model: save it with tokenizer=...")
        here = torch.accelerator.current_accelerator(check_available=True)
        self._device = torch.device(device) if device else here or torch.device("cpu")
        self.model = cast(LanguageModel, loaded.model.to(self._device))
        self.tokenizer: Tokenizer = loaded.tokenizer
        self.context = self.model.config.context_length
        self.batch_size = AUTO if batch_size == "auto" else int(batch_size)
        self.max_gen_toks = max_gen_toks or min(MOST_NEW, max(self.context // 2, 1))

    @property
    def eot_token_id(self) -> int:
        """What stands before a text of which nothing else does."""
        if self.tokenizer.eos_id is None:
            raise Mendable(
                "an empty context stands for the end of a text, and the model's tokenizer has no "
                "such token"
            )
        return self.tokenizer.eos_id

    @property
    def tokenizer_name(self) -> str:
        """What tells its requests from those of another tokenizer in the harness's cache."""
        return self.tokenizer.identity

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: object
    ) -> list[int]:
        """The ids of a text; nothing is put around them, whatever the harness would have."""
        return self.tokenizer.encode(string)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        **_: object,
    ) -> list[tuple[float, bool]]:
        """Of each (texts, ids of the context, ids of what follows) its log-probability, and whether
        it is what would be written greedily. Too long ones are cut on the left."""
        rows = []
        for texts, context, rest in requests:
            what = f"the continuation {texts[1]!r}" if texts else "a part of a text"
            if not rest:
                raise Mendable(f"{what} adds no token to its context")
            rows.append(ScoredRow([*context, *rest], len(rest), what))
        self._say_cut([len(row.ids) for row in rows], self.context + 1)
        with ProgressBar("scoring", hidden=disable_tqdm) as bar:
            scores = score_rows(self.model, rows, batch_size=self.batch_size, progress=bar.update)
        for (texts, *_ids), score in zip(requests, scores, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, tuple(score))
        return [(value, greedy) for value, greedy in scores]

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """The log-probability of each text after the end of another, by the harness's windows: each
        token once, the last window as long as the context."""
        windows, places = [], []
        for i, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            for pair in get_rolling_token_windows(ids, self.eot_token_id, self.context, 1):
                windows.append((None, *make_disjoint_window(pair)))
                places.append(i)
        totals = [0.0] * len(requests)
        scores = self._loglikelihood_tokens(windows, disable_tqdm)
        for i, (value, _) in zip(places, scores, strict=True):
            totals[i] += value
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What follows each context, up to one of its stop strings; greedily, unless the task says
        otherwise. Of a context there remains the end that leaves room for the answer."""
        groups: dict[str, list[int]] = {}  # those that are written alike go together
        for i, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(i)
        answers = [""] * len(requests)
        with ProgressBar("writing", len(requests), hidden=disable_tqdm) as bar:
            for group in groups.values():
                options, room = self._options(requests[group[0]].args[1])
                prompts = {i: self._prompt(requests[i].args[0]) for i in group}
                self._say_cut([len(ids) for ids in prompts.values()], room)
                group.sort(key=lambda i: -len(prompts[i]))  # little padding
                for first in range(0, len(group), self.batch_size):
                    part = group[first : first + self.batch_size]
                    rows = [prompts[i][-room:] for i in part]
                    texts = generate(self.model, rows, tokenizer=self.tokenizer, **options)
                    for i, result in zip(part, texts, strict=True):
                        answers[i] = result.text
                        self.cache_hook.add_partial("generate_until", requests[i].args, result.text)
                        bar.advance()
        return answers

    def _prompt(self, context: str) -> list[int]:
        """The ids of a context, at least one."""
        return self.tok_encode(context) or [self.eot_token_id]

    def _say_cut(self, lengths: Sequence[int], room: int) -> None:
        """Warn of rows for which there is no room."""
        if count := sum(length > room for length in lengths):
            LOG.warning(
                "%s of %d longer than the model's context of %d: cut on the left",
                plural(count, "request"),
                len(lengths),
                self.context,
            )

    def _options(self, wishes: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """What ``generate`` is given for a task's ``generation_kwargs``, and how many ids of a
        context it leaves room for."""
        rest = dict(normalize_gen_kwargs(wishes, self.max_gen_toks))
        most = rest.pop("max_gen_toks")
        if most >= self.context:
            raise Mendable(
                f"an answer of {most} tokens leaves no room in the model's context of "
                f"{self.context}: give less, as in --gen_kwargs max_gen_toks={self.context // 2}"
            )
        temperature = rest.pop("temperature", 1.0)
        temperature = temperature if rest.pop("do_sample") else 0.0
        stop = [word for word in rest.pop("until") if word]
        options = {"max_new_tokens": most, "temperature": temperature, "stop": stop}
        for name, value in rest.items():
            if (name, value) in NEUTRAL:
                continue
            if name not in SAMPLING:
                raise Mendable(f"{unknown_name('generation option', name, SAMPLING)}; got {value}")
            options[name] = value
        return options, self.context - most


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
