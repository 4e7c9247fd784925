"""What each rule finds, in a line and on a page.

The pages are ``../pages/RULE.md``: what the rule means, how it is decided, a program
that it finds and the same program mended, what it knows to be meant, how to silence it.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import final

from addnorm.errors import Mendable
from addnorm.words import near_names

RULES: dict[str, str] = {
    # norms by themselves
    "norm-not-normalizing": "what is called a norm does not normalize",
    "norm-wrong-axis": "a norm takes its statistics over positions, or more than one token",
    "norm-unbiased-variance": "a norm divides by n - 1 instead of n",
    "norm-eps-outside-sqrt": "a norm adds eps to the root, not under it",
    "norm-batch-dependent": "a norm takes its statistics over the batch",
    "norm-bad-gradient": "a norm's gradient is not that of its output",
    "norm-low-precision": "a norm takes its statistics with too few digits",
    # residual connections, and where norms sit on them
    "no-residual": "a sublayer that the residual stream does not go around",
    "residual-wrong-tensor": "a residual connection carries on something other than the stream",
    "double-norm": "two norms with nothing between them",
    "missing-final-norm": "a pre-norm stack whose end is read without a norm",
    "shared-norm": "one norm at several places",
    "unused-norm": "a norm that is built and never called",
    # branches
    "linear-mlp": "two matrices in a row with nothing nonlinear between",
    "dead-branch": "a sublayer that adds nothing, or whose result nobody reads",
    "one-signed-branch": "a sublayer that can only add values of one sign",
    # attention
    "attention-scale": "1/sqrt(d) is missing, doubled, misplaced or of the wrong width",
    "attention-not-normalized": "attention weights do not sum to one",
    # who sees whom
    "future-leak": "a causal model in which something sees what comes later",
    "no-causal-mask": "a causal model without any causal mask",
    "batch-leak": "one sample's output depends on the others in its batch",
    "batch-time-swapped": "attention runs over the batch instead of the text",
    "padding-leak": "padded tokens change the output of real ones",
    "mask-nan": "a mask that hides everything gives NaN",
    "ignored-argument": "an argument of forward that changes nothing",
    "position-blind": "nothing tells the model where its tokens stand",
    "positions-on-ids": "positions are added to token ids before they are looked up",
    "ignores-memory": "a decoder that does not read its encoder",
    "dropout-in-eval": "randomness that ignores eval(), or modules in different modes",
    # parameters and their start
    "identical-layers": "layers that start with the same random numbers",
    "unused-parameter": "a parameter that the forward never reads, or that gets no gradient",
    "module-in-forward": "a module made again in every forward",
    "untied-weights": "embedding and head that should be one tensor and are two",
    "init-residual-scale": "last matrices of branches that are not scaled by depth like the rest",
    "init-unstable": "a stream, gradient or logits that are too large or small before training",
    # the optimizer
    "decay-on-norm": "weight decay on the gains and biases of norms",
    "not-in-optimizer": "trainable parameters that no optimizer group holds",
    "duplicated-in-optimizer": "a parameter that the optimizer holds twice",
    "frozen-in-optimizer": "frozen parameters in the optimizer",
}
"""Rule -> what it finds."""

_PAGES = Path(__file__).parent.parent / "pages"


@final
class UnknownRule(Mendable):
    """There is no rule of that name; the message names the nearest ones."""


def known(rules: Iterable[str]) -> tuple[str, ...]:
    """The rules themselves, if there are such; otherwise an ``UnknownRule``."""
    names = tuple(rules)
    for name in names:
        if name not in RULES:
            near = near_names(name, RULES)
            near = near or [r for r in RULES if set(r.split("-")) & set(name.split("-"))][:3]
            hint = f"did you mean {' or '.join(near)}?" if near else "see addnorm lint --rules"
            raise UnknownRule(f"unknown rule {name!r}; {hint}")
    return names


def page(rule: str) -> str:
    """The page of a rule, in Markdown."""
    (name,) = known([rule])
    return (_PAGES / f"{name}.md").read_text(encoding="utf-8")
