"""How good translations are: BLEU and chrF by sacrebleu, with the signatures that say how."""

import re
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from addnorm.errors import Mendable

EXTRA = "bleu and chrf need sacrebleu: pip install 'addnorm[translate]'"
HAN, KANA = re.compile(r"[\u4e00-\u9fff]"), re.compile(r"[\u3040-\u30ff]")
"""Chinese characters, which Japanese has too, and the characters that only Japanese has."""
MOSTLY = 0.3
"""A share of Han characters among all that are no space, from which on a text is Chinese."""
KANA_IN_CHINESE = 0.1
"""Kana to a Han character, below which they are quotations: a Japanese text has more than one."""


def is_chinese(texts: Sequence[str]) -> bool:
    """Whether texts, taken together, have to be cut into characters, as Chinese has no spaces. With
    kana among them they are Japanese, and not taken for it."""
    text = "".join("".join(text.split()) for text in texts)
    han, kana = len(HAN.findall(text)), len(KANA.findall(text))
    return bool(text) and han > MOSTLY * len(text) and kana < KANA_IN_CHINESE * han


def bleu_and_chrf(outputs: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """``bleu`` and ``chrf`` from 0 to 100 over all ``outputs``, each beside its one reference, and
    as ``bleu_signature`` and ``chrf_signature`` how sacrebleu computed them; a ``Mendable`` where
    it is not installed."""
    try:
        metrics = import_module("sacrebleu.metrics")
    except ImportError:
        raise Mendable(EXTRA) from None
    bleu = metrics.BLEU(tokenize="zh" if is_chinese(references) else "13a")
    chrf = metrics.CHRF()
    scores: dict[str, Any] = {}
    for name, metric in (("bleu", bleu), ("chrf", chrf)):
        scores[name] = metric.corpus_score(list(outputs), [list(references)]).score
    for name, metric in (("bleu", bleu), ("chrf", chrf)):
        scores[f"{name}_signature"] = str(metric.get_signature())
    return scores


def translation_scores(outputs: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """What ``bleu_and_chrf`` gives, and as ``exact_match`` the share of outputs that are their
    reference to the letter; without sacrebleu that alone, and why, as ``note``."""
    right = sum(out == ref for out, ref in zip(outputs, references, strict=True))
    exact = {"exact_match": right / max(len(outputs), 1)}
    try:
        return {**bleu_and_chrf(outputs, references), **exact}
    except Mendable as error:
        return {**exact, "note": str(error)}
