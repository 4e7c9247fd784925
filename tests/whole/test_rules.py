"""The six rules of the road (docs/architecture.md), each as a test over every registered scheme."""

import copy
import os
import subprocess
import sys
import warnings
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from addnorm import GPT, EncoderDecoder, GPTConfig, compat, schemes
from addnorm.branches import MLP, Attention
from addnorm.context import Context, Here
from addnorm.joins import Slerp, Unit, unit
from addnorm.norms import LayerNorm, Norm
from addnorm.stream import AddNorm, Scheme, Site, Stack, Stream, Wiring
from addnorm.training.parallel import shard
from tests.nets import (
    DECODER_OF_BOTH,
    DIM,
    ENCODER_OF_BOTH,
    build,
    decoder,
    encoder,
    gradients,
    inputs,
    stir,
)
from tests.processes import run_side_by_side

NAMES = schemes.names()
by_name = pytest.mark.parametrize("name", NAMES)


# --- 1: a parameter is read inside the forward of its module, or of the Sublayer around it --------


@by_name
def test_forward_hooks_fire_on_every_norm(name: str) -> None:
    stack = build(name, DECODER_OF_BOTH)
    fired: Counter[str] = Counter()
    expected = set()
    for path, module in stack.named_modules():
        if isinstance(module, Norm | AddNorm):
            expected.add(path)
            module.register_forward_hook(lambda m, args, out, path=path: fired.update([path]))
    stack(*inputs(DECODER_OF_BOTH, dtype=torch.float32))
    assert set(fired) == expected
    assert set(fired.values()) <= {1}


def seen_by_hooks(sub: nn.Module, streams: list[Stream]) -> None:
    sub.register_forward_hook(lambda m, args, out: streams.append(out))


@pytest.mark.parametrize("text", [*NAMES, "with_layer_scale(pre_norm)", "parallel(rezero)"])
def test_no_parameter_travels_on_the_stream(text: str) -> None:
    """Nor a view of one: under FSDP its memory is freed before the next sublayer reads it, which
    may or may not show in the numbers."""
    stack = build(text, decoder(2))
    streams: list[Stream] = []
    for sub in stack.sublayers():
        seen_by_hooks(sub, streams)
    stack(*inputs(decoder(2), dtype=torch.float32))
    addresses = {p.untyped_storage().data_ptr() for p in stack.parameters()}
    for s in streams:
        parts = [s.h, s.v, s.keep, s.gain, *(s.taps or {}).values()]
        tensors = [t for t in parts if isinstance(t, torch.Tensor)]
        assert not addresses & {t.untyped_storage().data_ptr() for t in tensors}


# --- 2: what enters and leaves belongs to the Stack -----------------------------------------------


@by_name
def test_a_stack_holds_no_parameter_it_does_not_use(name: str) -> None:
    """The ends are modules of their own: nothing is built at embed or head and left over."""
    with_gradient: set[int] = set()
    stack = stir(build(name, decoder(2)).double())
    for p in stack.parameters():
        p.register_hook(lambda g, p=p: with_gradient.add(id(p)))
    gradients(stack, *inputs(decoder(2)))
    assert with_gradient == {id(p) for p in stack.parameters()}


# --- 3: what later sublayers read travels on the Stream; the Context is not written ---------------


def test_value_residual_survives_recomputation_and_leaves_no_trace() -> None:
    attention = partial(Attention, DIM, 4, causal=True, value_residual=(0.5, 0.5))
    torch.manual_seed(0)
    stack = Stack([("attn", attention), ("mlp", partial(MLP, DIM, 40))] * 3, DIM, schemes.pre_norm)
    x, ctx = torch.randn(2, 5, DIM), Context()
    want = gradients(stack, x, ctx)
    assert ctx == Context()
    assert all(torch.equal(want[k], g) for k, g in gradients(stack, x, ctx).items())
    stack.subs = nn.ModuleList(checkpoint_wrapper(sub) for sub in stack.sublayers())
    actual = gradients(stack, x, ctx)
    assert all(
        torch.equal(want[k.replace("._checkpoint_wrapped_module", "")], actual[k]) for k in actual
    )


class Offers(nn.Module):
    """A branch that says what it found on the stream, and leaves one more there."""

    def __init__(self, **_: object) -> None:
        super().__init__()

    def forward(self, u: torch.Tensor, here: Here) -> torch.Tensor:
        count = (here.taps or {}).get("count", torch.zeros(()))
        assert here.offers is not None
        here.offers["count"] = count + 1
        return count * torch.ones_like(u)


@pytest.mark.parametrize("name", [*schemes.names(), "parallel(pre_norm)", "drop_path(no_norm)"])
def test_what_a_branch_offers_passes_every_join(name: str) -> None:
    try:
        scheme = schemes.parse(name)
    except schemes.SchemeError:
        pytest.skip("a combinator: it needs a base")
    streams: list[Stream] = []
    stack = Stack([("attn", Offers), ("mlp", Offers)] * 2, DIM, scheme)
    for sub in stack.sublayers():
        seen_by_hooks(sub, streams)
    stack(torch.randn(1, 2, DIM))
    counts = [int(s.taps["count"]) for s in streams]  # type: ignore[index]
    # side by side, the second of a block sees what there was before the first
    assert counts == ([1, 2, 3, 4] if "parallel" not in name else counts)
    assert counts[-1] > counts[0]


@pytest.mark.parametrize("post", [False, True])
def test_of_two_offers_of_one_name_the_later_is_read(post: bool) -> None:
    scheme = schemes.post_norm if post else lambda s: Wiring()
    streams: list[Stream] = []
    stack = Stack([("mlp", Offers)] * 3, DIM, scheme)
    for sub in stack.sublayers():
        seen_by_hooks(sub, streams)
    x = torch.zeros(1, 1, DIM)
    y = stack(x)
    assert [int(s.taps["count"]) for s in streams] == [1, 2, 3]  # type: ignore[index]
    assert post or torch.equal(y, x + 0 + 1 + 2)


# --- 4: a Site holds all that a scheme may depend on ----------------------------------------------


def sites_of(kinds: list[str], side: str = "decoder") -> list[Site]:
    sites: list[Site] = []

    def scheme(s: Site) -> Wiring:
        sites.append(s)
        return Wiring()

    def make(**_: object) -> nn.Module:
        return nn.Identity()

    Stack([(kind, make) for kind in kinds], DIM, scheme, side=side)
    return sites


def test_a_block_begins_where_the_first_kind_comes_again() -> None:
    sites = sites_of(["attn", "cross", "mlp"] * 2 + ["attn", "mlp"])
    assert [s.kind for s in sites] == [
        "embed",
        *["attn", "cross", "mlp"] * 2,
        "attn",
        "mlp",
        "head",
    ]
    inside = sites[1:-1]
    assert [s.block for s in inside] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert [s.place for s in inside] == [0, 1, 2, 0, 1, 2, 0, 1]
    assert [s.index for s in inside] == list(range(8))
    assert {(s.total, s.blocks, s.dim, s.side, s.depths) for s in sites} == {
        (8, 3, DIM, "decoder", (0, 3))
    }
    ends = [(s.index, s.block, s.place) for s in (sites[0], sites[-1])]
    assert ends == [(-1, -1, 0), (8, 3, 0)]


def test_the_depths_of_both_stacks_reach_the_sites() -> None:
    sites: list[Site] = []

    def scheme(s: Site) -> Wiring:
        sites.append(s)
        return Wiring()

    EncoderDecoder(DIM, 4, (3, 2), scheme)
    assert {s.depths for s in sites} == {(3, 2)}
    assert {s.side for s in sites} == {"encoder", "decoder"}
    assert {s.depths for s in sites_of(["attn"], "encoder")} == {(1, 0)}


# --- 5: inner and init are rules ------------------------------------------------------------------


def test_inner_is_built_at_the_branch_own_width() -> None:
    stack = build("sub_ln", decoder(2))
    widths = {s.site.kind: s.branch.inner.dim for s in stack.sublayers()}
    assert widths == {"attn": DIM, "mlp": 40}


def test_init_is_told_every_role() -> None:
    stack = build("pre_norm", DECODER_OF_BOTH)
    for sub in stack.sublayers():
        attention = {f"{n}.weight": n for n in ("q", "k", "v", "out")}
        mlp = {"up.weight": "up", "down.weight": "down"}
        assert sub.roles == (mlp if sub.site.kind == "mlp" else attention)


# --- 6: care outside forward ----------------------------------------------------------------------


def trained(stack: nn.Module, x: torch.Tensor) -> torch.optim.Optimizer:
    """After a step of an optimizer of all its parameters."""
    optimizer = torch.optim.SGD(stack.parameters(), lr=0.1)
    stack(x).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def test_ngpt_without_after_step_raises_at_its_next_training_forward() -> None:
    x = torch.randn(2, 5, DIM)
    for stack in (build("ngpt", decoder(2)), copy.deepcopy(build("ngpt", decoder(2)))):
        trained(stack, x)
        with pytest.raises(RuntimeError, match="after_step"):
            stack(x)
        with torch.no_grad():
            stack(x)  # evaluation is not training
        stack.eval()(x)  # nor with gradients, as one looks for what a model looks at
        stack.train()
        stack.after_step(1)
        stack(x)
        stack(x)  # accumulation: several forwards to a step
        trained(stack, x)
        with pytest.raises(RuntimeError, match="after_step"):
            torch.compile(stack, backend="eager")(x)


def test_after_step_of_an_encoder_decoder_reaches_both() -> None:
    model = EncoderDecoder(DIM, 4, 1, schemes.ngpt)
    x = torch.randn(2, 5, DIM)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(x, x).sum().backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match="after_step"):
        model(x, x)
    model.after_step(1)
    model(x, x)


def test_an_optimizer_of_something_else_does_not_count() -> None:
    stack, other = build("ngpt", decoder(2)), nn.Linear(2, 2)
    trained(other, torch.randn(1, 2))
    stack(torch.randn(2, 5, DIM))
    trained(build("pre_norm", decoder(2)), torch.randn(2, 5, DIM))


def test_an_optimizer_of_some_of_the_weights_counts() -> None:
    """As where the rest is frozen, or another optimizer's."""
    stack = build("ngpt", decoder(2))
    trained(stack.subs[1].branch, torch.randn(2, 5, DIM))
    with pytest.raises(RuntimeError, match="after_step"):
        stack(torch.randn(2, 5, DIM))


def test_optimizers_and_forks_are_watched_only_where_something_needs_it(
    tmp_path: Path,
) -> None:
    """A hook on every optimizer of the process is not to come by an import."""
    code = """
import os, pathlib, sys, torch
from torch.optim import optimizer
forks = []
def register(**hooks):
    forks.extend(h for h in hooks.values() if "addnorm" in (getattr(h, "__module__", "") or ""))
os.register_at_fork = register
before, after = optimizer._global_optimizer_pre_hooks, optimizer._global_optimizer_post_hooks
import addnorm.training.run, addnorm.adapt.adalora
from addnorm import decoder, schemes
from addnorm.training import folder_lock
decoder(8, 2, 1, schemes.pre_norm)
assert (len(before), len(after), len(forks)) == (0, 0, 0)
for _ in range(2):
    decoder(8, 2, 1, schemes.ngpt)
    addnorm.adapt.adalora.AdaLoRA(torch.nn.Linear(4, 4), 2, 1.0, 0.0, 0.1)
    folder_lock.FolderLock(pathlib.Path(sys.argv[1], "lock"))
assert (len(before), len(after), len(forks)) == (1, 1, 1)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_ngpt_weights_are_back_on_the_sphere_after_a_step() -> None:
    stack = build("ngpt", decoder(2)).double()
    trained(stack, torch.randn(2, 5, DIM, dtype=torch.float64))
    stack.after_step(1)
    for sub in stack.sublayers():
        for name, role in sub.roles.items():
            side = 0 if role in ("out", "down") else 1
            lengths = sub.branch.get_parameter(name).norm(dim=side)
            torch.testing.assert_close(lengths, torch.ones_like(lengths))


# --- the stream keeps its precision ---------------------------------------------------------------


@by_name
def test_the_fp32_stream_stays_fp32_under_autocast(name: str) -> None:
    stack = build(name, DECODER_OF_BOTH)
    streams: list[Stream] = []
    for sub in stack.sublayers():
        seen_by_hooks(sub, streams)
    with torch.autocast("cpu", torch.bfloat16):
        stack(*inputs(DECODER_OF_BOTH, dtype=torch.float32))
    assert len(streams) == 6
    for s in streams:
        assert s.h.dtype == torch.float32
        assert (s.taps or {}).get("dual", s.h).dtype == torch.float32
    # ... while what waits to be added, where something waits, was computed in bfloat16
    assert all(s.v is None or s.v.dtype == torch.bfloat16 for s in streams)


@by_name
def test_autocast_rounds_nothing_that_only_passes_by(name: str) -> None:
    """Where the branches say 0 the stream is what it is without autocast, mixtures and spheres
    included: to float32's rounding, 6 sublayers of a dozen operations at 6e-8 each."""
    stack = stir(build(name, DECODER_OF_BOTH))
    silent = [m for s in stack.sublayers() for m in (s.out, s.branch) if m is not None]
    for p in (p for m in silent for p in m.parameters()):
        nn.init.zeros_(p)
    x, ctx = inputs(DECODER_OF_BOTH, dtype=torch.float32)
    want = stack(x, ctx)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(stack(x, ctx), want, rtol=1e-5, atol=1e-5)


def test_a_step_along_the_sphere_is_taken_in_float32() -> None:
    """What a branch says in bfloat16 is put on the sphere as the float32 number that it is."""
    join, h = Slerp(DIM), unit(torch.randn(2, 5, DIM))
    v = torch.randn(2, 5, DIM).bfloat16()
    assert torch.equal(join.write(h, v, {}).h, join.write(h, v.float(), {}).h)
    want = unit(v.float()).bfloat16()
    assert torch.equal(Unit()(Stream(v)).h, want)


COMBINED = ["drop_path(deepnorm, 0.2)", "with_layer_scale(sandwich, 0.5)", "parallel(pre_norm)"]


@pytest.mark.parametrize("text", [*NAMES, *COMBINED])
def test_a_stack_answers_in_the_dtype_of_its_stream(text: str) -> None:
    """Whatever the branches compute in, and not by way of it: then the answer would be rounded, as
    it is where the last branch is all that the stream holds."""
    rounded = text == "no_residual"
    for layout in (decoder(2), ENCODER_OF_BOTH, DECODER_OF_BOTH):
        stack = build(text, layout)
        for inside in (torch.bfloat16, torch.float16):
            with torch.autocast("cpu", inside):
                y = stack(*inputs(layout, dtype=torch.float32))
            assert y.dtype == torch.float32
            assert rounded or not torch.equal(y, y.to(inside).float())
        for weights in (torch.float32, torch.bfloat16):
            stack.to(weights)
            for stream in (torch.bfloat16, torch.float32, torch.float64):
                y = stack(*inputs(layout, dtype=stream))
                assert y.dtype == stream, f"{y.dtype} of a {stream} stream, {weights} weights"
                fits = torch.promote_types(weights, stream) == weights
                assert rounded or fits == torch.equal(y, y.to(weights).to(stream))


@by_name
def test_models_answer_in_the_dtype_of_what_enters(name: str) -> None:
    """Logits have that of the head, which under autocast is autocast's."""
    both = EncoderDecoder(DIM, 4, 1, schemes.parse(name), hidden=40)
    theirs = compat.Transformer(DIM, 4, 1, 1, 40, batch_first=True, scheme=name)
    config = GPTConfig(vocab_size=11, context_length=7, dim=DIM, n_layers=1, n_heads=4, scheme=name)
    model = GPT(config)
    x, ids = torch.randn(2, 5, DIM), torch.arange(10).view(2, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert both(x, x).dtype == theirs(x, x).dtype == torch.float32
        assert theirs.encoder(x).dtype == torch.float32
        assert model(ids).dtype == torch.bfloat16
    assert both.bfloat16()(x.bfloat16(), x.bfloat16()).dtype == torch.bfloat16
    assert theirs.bfloat16()(x.bfloat16(), x.bfloat16()).dtype == torch.bfloat16
    assert model.bfloat16()(ids).dtype == torch.bfloat16


# --- sharded over two processes -------------------------------------------------------------------

SHARDED = [*NAMES, "drop_path(with_layer_scale(pre_norm, 0.3), 0.0)", "parallel(rezero)"]


def _step(model: nn.Module, x: torch.Tensor) -> float:
    """One step of SGD on the mean square of the output."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    loss = (model(x) - 1.0).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    model.after_step(1)
    return loss.item()


def _worker(rank: int, store: str, failures: str) -> None:
    torch.set_num_threads(1)
    # FSDP2 warns that outputs are views, which matters to code that writes to them in place
    warnings.filterwarnings("ignore", ".*returned a view tensor")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        for name in SHARDED:
            _compare_with_one_process(name, rank)
        for name in NAMES:
            _check_precision(name)
        dist.barrier()  # gloo's threads do not take it well if the other process leaves first
    except BaseException as error:
        Path(failures, str(rank)).write_text(f"{name}: {type(error).__name__}: {error}")
        os._exit(1)
    # An interpreter that shuts down while a thread of gloo gives back its last tensor is ended by
    # C++ ("terminate called without an active exception"), which says nothing of what is tested.
    os._exit(0)


def _compare_with_one_process(name: str, rank: int) -> None:
    torch.manual_seed(0)
    one = stir(build(name, decoder(2)).double())
    two = shard(copy.deepcopy(one))
    assert isinstance(two, FSDPModule)
    x = torch.randn(4, 7, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    for _ in range(2):
        _step(one, x)
        _step(two, x[2 * rank : 2 * rank + 2])
    for (k, want), (_, p) in zip(one.named_parameters(), two.named_parameters(), strict=True):
        assert isinstance(p, DTensor)
        # Other summation order over the batch, twice: float64 rounding.
        error = (p.full_tensor() - want).abs().max().item()
        assert error < 1e-8, f"{k} differs by {error:.2g}"


def _check_precision(name: str) -> None:
    """With branches in bfloat16 the stream and the norms' parameters stay in float32."""
    stack = build(name, decoder(2))
    shard(stack, dtype=torch.bfloat16)
    streams: list[Stream] = []
    for sub in stack.sublayers():
        seen_by_hooks(sub, streams)
    branch_dtypes, norm_dtypes = set(), set()
    for module in stack.modules():
        if isinstance(module, LayerNorm):
            module.register_forward_hook(lambda m, a, o: norm_dtypes.add(m.weight.dtype))
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda m, a, o: branch_dtypes.add(m.weight.dtype))
    stack(torch.randn(2, 7, DIM)).sum().backward()
    assert {s.h.dtype for s in streams} == {torch.float32}
    assert branch_dtypes == {torch.bfloat16}
    assert norm_dtypes <= {torch.float32}


def test_two_processes_equal_one(tmp_path: Path) -> None:
    try:
        run_side_by_side(_worker, 2, str(tmp_path / "store"), str(tmp_path))
    except Exception:
        outputs = [p.read_text() for p in sorted(tmp_path.glob("[01]"))]
        raise AssertionError("\n".join(outputs) or "a process died without a word") from None


# --- norms over tokens ----------------------------------------------------------------------------


def test_a_scheme_that_is_not_called_is_named() -> None:
    scheme: Scheme = lambda s: schemes.pre_norm  # noqa: E731
    with pytest.raises(TypeError, match="Site -> Wiring"):
        build(scheme, encoder(2))
