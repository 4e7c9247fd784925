"""Adapters: a few parameters that are trained beside a model that is frozen.

    adapt(model, "lora", rank=8)      in place: from now on only the adapter has gradients
    save(model, "out/adapter")        for ``load``, and for peft where GPT-2 is the model
    merge(model)                      LoRA and AdaLoRA go into the weights; ``unmerge`` undoes it

lora     W + scale * B A (Hu et al. 2021, arXiv 2106.09685)
adalora  W + scale * B diag(E) A; less important triplets are pruned (Zhang et al. 2023, 2303.10512)
prefix   learned keys and values that every query sees (Li & Liang 2021, 2101.00190)
prompt   learned tokens in front of a GPT's text (Lester et al. 2021, 2104.08691)
adapter  a bottleneck after each branch (Houlsby et al. 2019, 1902.00751)

Every parameter of the model keeps its name and, to the last bit, its value: what a scheme does to
its weights after each step is left out, since an optimizer moves none of them. docs/adapt.md.
"""

from addnorm.adapt.model import (
    Adapted,
    WordReader,
    adapt,
    adapted,
    apply,
    folded,
    merge,
    state,
    unmerge,
    with_room,
)
from addnorm.adapt.peft_files import export, load, save, why_not_peft
from addnorm.adapt.settings import APART, Adapt

__all__ = [
    "APART",
    "Adapt",
    "Adapted",
    "WordReader",
    "adapt",
    "adapted",
    "apply",
    "export",
    "folded",
    "load",
    "merge",
    "save",
    "state",
    "unmerge",
    "why_not_peft",
    "with_room",
]
