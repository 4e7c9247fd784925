"""The register of designs: schemes that know their text, other names, and the search."""

import copy
import pickle

import pytest

from addnorm import decoder, encoder, schemes
from addnorm.catalogue import ALIASES, combinators, entry
from addnorm.scheme_text import as_scheme
from addnorm.stream import Scheme, Site, Wiring

TEXTS = [
    "pre_norm",
    "mix_ln(frac=0.25)",
    "drop_path(mix_ln(frac=0.5), p=0.2)",
    "with_layer_scale(deepnorm, init=1e-05)",
    "parallel(pre_norm)",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_scheme_prints_the_text_from_which_it_is_made(text: str) -> None:
    scheme = schemes.parse(text)
    assert str(scheme) == repr(scheme) == text
    assert str(pickle.loads(pickle.dumps(scheme))) == str(copy.deepcopy(scheme)) == text


@pytest.mark.parametrize("name", [*schemes.names(), *combinators()])
def test_all_do(name: str) -> None:
    one = entry(name)
    needs_a_scheme = any(kind == Scheme for kind, _ in one.parameters().values())
    scheme = schemes.parse(f"{name}(pre_norm)" if needs_a_scheme else name)
    again = schemes.parse(str(scheme))
    assert str(again) == str(scheme)
    assert str(scheme).startswith(name)
    assert callable(scheme)


def test_made_by_calls_they_print_the_same() -> None:
    scheme = schemes.drop_path(schemes.mix_ln(0.5), 0.2)
    assert str(scheme) == TEXTS[2]
    assert str(schemes.sandwich) == "sandwich"

    # one of the user's own has no text, and its name stands for it
    def own(s: Site) -> Wiring:
        return schemes.pre_norm(s)

    assert "own" in str(schemes.drop_path(own, 0.2))


def test_other_names() -> None:
    for alias, text in ALIASES.items():
        assert str(schemes.parse(alias)) == str(schemes.parse(text))
        assert alias not in schemes.names()
    assert str(schemes.parse("drop_path(peri_ln, 0.1)")) == "drop_path(sandwich, p=0.1)"
    with pytest.raises(schemes.SchemeError, match="peri_ln"):
        schemes.parse("pery_ln")


def test_the_search() -> None:
    assert schemes.search("") == [*schemes.names(), *combinators()]
    assert schemes.search("Gemma") == ["sandwich"]
    assert "sub_ln" in schemes.search("magneto")
    assert "deepnorm" in schemes.search("depth")
    assert schemes.search("no such word") == []


@pytest.mark.parametrize("make", [encoder, decoder])
def test_a_word_will_do_for_a_scheme(make) -> None:
    by_word, by_scheme = make(16, 2, 2, "deepnorm"), make(16, 2, 2, schemes.deepnorm)
    assert repr(by_word) == repr(by_scheme)
    assert as_scheme("pre_norm") is as_scheme(schemes.pre_norm) is schemes.pre_norm
    with pytest.raises(schemes.SchemeError, match="did you mean deepnorm"):
        make(16, 2, 2, "depnorm")


def test_an_explanation_has_the_numbers_of_its_depth() -> None:
    shape = {"dim": 16, "n_heads": 2, "tokens": 4}
    shallow, deep = (str(schemes.explain("deepnet", blocks=n, **shape)) for n in (2, 8))
    assert shallow.startswith("deepnet: deepnorm\n")
    assert f"blocks 1 to 2: attn and mlp: Scaled(keep={4**0.25:.6g})" in shallow
    assert "blocks 1 to 8: attn and mlp: Scaled(keep=2)" in deep
    assert "joined" not in str(schemes.explain("pre_norm", blocks=2, **shape))
