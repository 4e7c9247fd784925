"""Schemes from text."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from addnorm import schemes
from addnorm.catalogue import combinators
from addnorm.stream import Stack
from tests.nets import build, decoder


@pytest.mark.parametrize("name", schemes.names())
def test_every_name_is_a_scheme(name: str) -> None:
    assert isinstance(build(schemes.parse(name), decoder(2)), Stack)
    assert isinstance(build(schemes.parse(f" {name}() "), decoder(2)), Stack)


@pytest.mark.parametrize("name", combinators())
def test_every_combinator_takes_a_scheme(name: str) -> None:
    assert isinstance(build(schemes.parse(f"{name}(pre_norm)"), decoder(2)), Stack)


def test_a_composition_is_what_python_composes() -> None:
    torch.manual_seed(0)
    text = build(schemes.parse("drop_path(mix_ln(0.5), p=0.1)"), decoder(4))
    torch.manual_seed(0)
    python = build(schemes.drop_path(schemes.mix_ln(0.5), p=0.1), decoder(4))
    assert str(text) == str(python)
    for a, b in zip(text.parameters(), python.parameters(), strict=True):
        assert torch.equal(a, b)


def test_arguments_by_place_and_by_name() -> None:
    for spelled in ("mix_ln(0.5)", "mix_ln(frac=0.5)", "mix_ln( frac = 5e-1 )"):
        kinds = [s.post is not None for s in build(spelled, decoder(4)).sublayers()]
        assert kinds == [True] * 4 + [False] * 4
    assert build("hyper_connections(2)", decoder(1)).enter.n == 2
    assert build("layer_scale(1)", decoder(1)).sublayers()[0].join.start == 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pre_nrom", "unknown scheme 'pre_nrom'; did you mean pre_norm"),
        ("PreNorm", "did you mean"),
        ("drop_path(sandwhich)", "did you mean sandwich"),
        ("qqq", "there are no_residual"),
        ("mix_ln(fraction=0.5)", "no argument 'fraction'; did you mean frac"),
        ("mix_ln(**x)", "no argument"),
        ("mix_ln(0.2, frac=0.3)", "given twice"),
        ("mix_ln(0.2, 0.3)", r"takes 1 argument, got 2: mix_ln\(frac=0.25\)"),
        ("pre_norm(1)", "takes 0 arguments, got 1"),
        ("pre_norm(p=1)", "no argument 'p'; it takes none"),
        ("drop_path()", r"needs 'base': drop_path\(base, p=0.1\)"),
        ("drop_path(p=0.1)", "needs 'base'"),
        ("drop_path(pre_norm, p='0.1')", "p must be a number, got '0.1'"),
        ("drop_path(pre_norm, p=sandwich)", "p must be a number, got sandwich"),
        ("drop_path(0.1)", "expected a name or name"),
        ("mix_ln('0.25')", "frac must be a number"),
        ("mix_ln(True)", "frac must be a number, got True"),
        ("mix_ln(None)", "frac must be a number, got None"),
        ("mix_ln(1e999)", "frac must be a number"),
        ("mix_ln(1" + "0" * 400 + ")", r"frac must be a number below 1e\+38, got 1000"),
        ("layer_scale(-1e308)", r"init must be a number below 1e\+38, got -1e308"),
        ("hyper_connections(99999999999999999999)", r"n must be a whole number below 2.68435e\+08"),
        ("mix_ln(1.5)", "frac is a share of the blocks"),
        ("drop_path(pre_norm, 1.0)", "p is a probability below 1"),
        ("drop_path(pre_norm, -0.1)", "p is a probability below 1"),
        ("hyper_connections(4.0)", "n must be a whole number, got 4.0"),
        ("hyper_connections(0)", "at least 1"),
        ("fan_in(pre_norm, factors=1)", "factors must be True or False, got 1"),
        ("", "cannot read ''"),
        ("pre_norm(", "cannot read"),
        ("pre_norm; import os", "cannot read"),
        ("pre_norm.wiring", "expected a name or name"),
        ("(lambda: 0)()", "expected a name or name"),
        ("[pre_norm]", "expected a name or name"),
        ("'pre_norm'", "expected a name or name"),
        ("__import__('os').system('true')", "expected a name or name"),
        ("drop_path(__import__('os'))", "unknown scheme '__import__'"),
        ("drop_path(" * 300 + "pre_norm" + ")" * 300, "1000 characters"),
        ("pre_norm\0", "cannot read"),
    ],
)
def test_a_wrong_text_is_an_error_that_says_what_would_do(text: str, message: str) -> None:
    with pytest.raises(schemes.SchemeError, match=message):
        schemes.parse(text)
    with pytest.raises(ValueError, match=message):
        schemes.explain(text)


@pytest.mark.parametrize("thing", [None, 3, schemes.pre_norm, ["pre_norm"]])
def test_what_is_not_text_is_an_error(thing: object) -> None:
    with pytest.raises(schemes.SchemeError, match="named by text"):
        schemes.parse(thing)


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.text(max_size=40),
        st.lists(
            st.sampled_from(
                [*schemes.names(), *combinators(), "(", ")", ",", "=", "p", "0.1", "-", "True", " "]
            ),
            max_size=9,
        ).map("".join),
    )
)
def test_any_text_is_a_scheme_or_a_scheme_error(text: str) -> None:
    try:
        scheme = schemes.parse(text)
    except schemes.SchemeError:
        return
    assert callable(scheme)
