"""Configurations become small by rule, and stay what they were."""

from types import SimpleNamespace

import pytest

from benchmarks.survey.shrink import LAYERS, POSITIONS, SIDE, WIDTH, WORDS, shrunk, size


class Config(SimpleNamespace):
    """As much of a configuration as the shrinking goes by."""

    model_type = "anything"

    def to_dict(self) -> dict[str, object]:
        return dict(vars(self))


@pytest.mark.parametrize(
    ("name", "value", "small"),
    [
        ("hidden_size", 4096, WIDTH),
        ("d_model", 512, WIDTH),
        ("num_hidden_layers", 32, LAYERS),
        ("encoder_layers", 2, 2),
        ("vocab_size", 128_000, WORDS),
        ("num_attention_heads", 32, 4),
        ("num_key_value_heads", 8, 2),
        ("num_key_value_heads", 1, 1),
        ("image_size", 224, SIDE),
        ("conv_kernel_size", 31, 31),
        ("type_vocab_size", 2, 2),
        ("num_labels", 2, 2),
        ("hidden_act", 0, 0),
        ("max_position_embeddings", 131_072, POSITIONS),
        ("sampling_rate", 16_000, 16_000),
        ("num_experts_per_tok", 8, 2),
        ("n_routed_experts", 256, 4),
    ],
)
def test_a_number_by_its_name(name: str, value: int, small: int) -> None:
    assert size(name, value) == small


def test_nested_configurations_shrink_and_the_original_stays() -> None:
    inner = Config(hidden_size=1024, num_attention_heads=16)
    small = shrunk(Config(text_config=inner, other={"hidden_size": 768, "name": "x"}))
    assert small.text_config.hidden_size == WIDTH
    assert small.other == {"hidden_size": WIDTH, "name": "x"}
    assert inner.hidden_size == 1024


def test_every_kind_of_layer_stays() -> None:
    """Lists with an entry for each layer are cut to the same layers."""
    kinds = ["sliding"] * 5 + ["full"] + ["sliding"] * 6
    small = shrunk(Config(num_hidden_layers=12, layer_types=kinds, windows=list(range(12))))
    assert small.layer_types == ["sliding", "sliding", "full"]
    assert small.num_hidden_layers == 3
    assert small.windows == [0, 1, 5]


def test_lists_keep_their_proportions() -> None:
    small = shrunk(Config(hidden_sizes=[64, 128, 320, 512], num_heads=(3, 6, 12), depths=[2, 18]))
    assert small.hidden_sizes == [16, 32, 80, 128]
    assert small.num_heads == (1, 2, 4)
    assert small.depths == [2, 2]


def test_special_words_stay_different_and_within_the_vocabulary() -> None:
    small = shrunk(
        Config(vocab_size=50_000, bos_token_id=49_999, eos_token_id=[49_998, 2], pad_token_id=None)
    )
    ids = [small.bos_token_id, *small.eos_token_id]
    assert len(set(ids)) == 3
    assert max(ids) < WORDS
    assert ids[-1] == 2
    assert small.pad_token_id is None


def test_the_parts_of_a_rotary_head_add_up() -> None:
    rope = {"mrope_section": [16, 24, 24], "rope_theta": 1e4, "long_factor": [1.5] * 64}
    small = shrunk(Config(head_dim=128, rope_parameters=rope))
    assert sum(small.rope_parameters["mrope_section"]) == small.head_dim // 2
    assert len(small.rope_parameters["long_factor"]) == small.head_dim // 2
    assert small.rope_parameters["rope_theta"] == 1e4


def test_one_number_by_two_names_stays_one() -> None:
    """The rotary part of a latent attention's head is what its rotary embedding is built for."""
    small = shrunk(Config(head_dim=64, qk_rope_head_dim=64, qk_nope_head_dim=128))
    assert small.head_dim == small.qk_rope_head_dim
    assert shrunk(Config(head_dim=128, qk_rope_head_dim=64)).head_dim == 16


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "t5", "swin", "gemma3", "mixtral"])
def test_models_of_transformers_are_small(model_type: str) -> None:
    """Of each, the configuration's defaults; a million numbers is what lint takes a second for."""
    transformers = pytest.importorskip("transformers")
    config = shrunk(transformers.AutoConfig.for_model(model_type))
    model = transformers.AutoModel.from_config(config)
    assert sum(p.numel() for p in model.parameters()) < 1_000_000
