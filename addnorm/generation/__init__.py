"""Generation: what a language model writes, and how probable it finds what others wrote.

``generate`` and ``stream_text`` for text, ``generate_ids`` for ids, ``perplexity`` and
``token_logprobs`` for given text. Models are known by a protocol only, ``LanguageModel``.
"""

from addnorm.generation.automaton import RegexError
from addnorm.generation.cache import StaticCache
from addnorm.generation.decode import LanguageModel, generate_ids, lay_out_for_decoding
from addnorm.generation.likelihood import Likelihood, perplexity, token_logprobs
from addnorm.generation.limits import Limits
from addnorm.generation.sampling import Sampling
from addnorm.generation.text import Generated, Piece, Writing, generate, stream_text

__all__ = [
    "Generated",
    "LanguageModel",
    "Likelihood",
    "Limits",
    "Piece",
    "RegexError",
    "Sampling",
    "StaticCache",
    "Writing",
    "generate",
    "generate_ids",
    "lay_out_for_decoding",
    "perplexity",
    "stream_text",
    "token_logprobs",
]
