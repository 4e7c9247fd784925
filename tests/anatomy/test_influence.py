"""Who notices a change, asked of every module by itself."""

from torch import Tensor, nn

from addnorm.anatomy.influence import influence_of
from addnorm.anatomy.make_inputs import make_inputs
from addnorm.anatomy.specimen import Specimen
from tests.attention_hosts import TinyGPT, built


def test_what_writes_into_its_input_is_run_again_on_what_it_got() -> None:
    class Writes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mul_(1.5).add_(x.mean(-1, keepdim=True))

    model = built(lambda: TinyGPT(extra=Writes()))
    influence = influence_of(Specimen(model, make_inputs(model)))
    assert {m.path for m in influence.mixers} == {f"h.{i}.attn" for i in range(3)}
    assert not any(m.other_same or m.other_else for m in influence.module_influences)
