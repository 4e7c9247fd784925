"""How a language model writes: the options of all commands that let one write."""

from dataclasses import dataclass
from typing import Annotated, final

from addnorm.cli.arguments import optional


@final
@dataclass(frozen=True)
class Drawing:
    """How the next token is chosen, and which texts there may be; docs/generation.md has the
    formulas and their order."""

    temperature: float = 1.0
    """Logits are divided by it; 0 always takes the most probable token."""
    top_k: Annotated[int | None, optional("K")] = None
    """Choose among the K most probable tokens only."""
    top_p: Annotated[float | None, optional("P")] = None
    """Choose among the most probable tokens only, as many as together reach probability P."""
    min_p: Annotated[float | None, optional("P")] = None
    """Choose among tokens only that are at least P times as probable as the most probable one."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that the model has read or written before become less likely."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of every token that is already in the text."""
    frequency_penalty: float = 0.0
    """Subtracted from the logit of a token once for each time it is already in the text."""
    stop: Annotated[tuple[str, ...], optional("TEXT [TEXT ...]")] = ()
    """Strings that end a text; they are not part of it."""
    banned_words: Annotated[tuple[str, ...], optional("TEXT [TEXT ...]")] = ()
    """Strings that must not occur in a text."""
    regex: Annotated[str | None, optional("REGEX")] = None
    """An expression that the whole text must match, such as "[0-9]+ (cats|dogs)"."""
