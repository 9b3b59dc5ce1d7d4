"""Whatever the files of a model folder hold, the folder is read, or refused with the reason."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from quadrate.errors import ConfigError
from quadrate.runtime import folder
from quadrate.testing.model_folder import tiny_config, write_tiny_model
from tests.unit.test_families import MODERNBERT, NOMIC
from tests.unit.test_folder_layouts import PAIR, card, classifier, edit, modules, refusal, reranker, write

if TYPE_CHECKING:
    from pathlib import Path

QWEN3 = {
    **tiny_config(model_type="qwen3", architectures=["Qwen3ForCausalLM"], hidden_act="silu"),
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rope_theta": 1e6,
    "rope_scaling": None,
    "rope_parameters": None,
    "attention_bias": False,
    "use_sliding_window": False,
    "layer_types": None,
}
T5 = {
    "model_type": "t5",
    "d_model": 32,
    "num_layers": 2,
    "num_heads": 4,
    "d_ff": 64,
    "vocab_size": 64,
    "d_kv": 8,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "feed_forward_proj": "gated-gelu",
    "layer_norm_epsilon": 1e-6,
}
BERT = {
    **tiny_config(),
    "id2label": {"0": "LABEL_0"},
    "num_labels": 1,
    "sentence_transformers": None,
    "sbert_ce_default_activation_function": None,
    "is_decoder": False,
    "pad_token_id": 0,
}
CONFIGS = {str(config["model_type"]): config for config in (BERT, MODERNBERT, NOMIC, QWEN3, T5)}
KEYS = {
    "1_Pooling/config.json": ("pooling_mode", "pooling_mode_mean_tokens", "include_prompt"),
    "config_sentence_transformers.json": ("prompts", "default_prompt_name", "activation_fn"),
    "tokenizer_config.json": ("model_max_length", "do_lower_case", "model_input_names"),
    "sentence_bert_config.json": ("max_seq_length", "do_lower_case", "query_length", "modality_config", "processing_kwargs"),
}
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["mean", "linear", "gelu"])
ropes = st.dictionaries(st.sampled_from(["rope_type", "factor", "rope_theta", "full_attention", "text", "common"]), scalars, max_size=3)
values = st.recursive(
    scalars | ropes, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=6
)
said_of_models = st.sampled_from([(kind, key) for kind, config in CONFIGS.items() for key in config if key != "model_type"])


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder that is served."""
    return write_tiny_model(tmp_path_factory.mktemp("good"))


def attempt(path: Path) -> None:
    """Read a folder as an embedding model and as two kinds of reranker; each may be refused."""
    for said in (card(path), reranker(path), reranker(path, "causal", pair=PAIR, answers={"yes": "hello", "no": "mat"})):
        try:
            folder.read(path, said)
        except ConfigError as error:
            assert str(error)  # noqa: PT017 - being served is as good


def again(good: Path) -> Path:
    """Return a copy of a folder beside it."""
    path = good.parent / "again"
    shutil.rmtree(path, ignore_errors=True)
    return shutil.copytree(good, path)


@given(place=said_of_models, value=values)
@example(place=("bert", "hidden_act"), value=[])
@example(place=("bert", "architectures"), value=True)
@example(place=("bert", "sbert_ce_default_activation_function"), value=[])
@example(place=("modernbert", "global_attn_every_n_layers"), value=0)
@example(place=("nomic_bert", "rotary_emb_fraction"), value=float("inf"))
@example(place=("qwen3", "num_key_value_heads"), value=0)
@example(place=("qwen3", "rope_scaling"), value={"rope_type": "linear", "factor": "x"})
@example(place=("qwen3", "num_hidden_layers"), value=10**12)
def test_any_value_in_config_json_is_read_or_refused(good: Path, place: tuple[str, str], value: Any) -> None:
    """Any value of any key in a config.json is read or refused."""
    kind, key = place
    path = again(good)
    write(path, "config.json", {**CONFIGS[kind], key: value})
    attempt(path)


@given(name=st.sampled_from(sorted(KEYS)), place=st.integers(0, 4), value=values)
@example(name="1_Pooling/config.json", place=0, value=[])
def test_any_value_in_the_other_files_is_read_or_refused(good: Path, name: str, place: int, value: Any) -> None:
    """Any value in the files beside it is read or refused."""
    path = again(good)
    edit(path, name, **{KEYS[name][place % len(KEYS[name])]: value})
    attempt(path)


@pytest.mark.parametrize("name", ["config.json", "modules.json", "tokenizer.json", *sorted(KEYS)])
@pytest.mark.parametrize("text", [b"", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5_000])
def test_any_text_is_refused(good: Path, name: str, text: bytes) -> None:
    """A file that is no JSON object is refused, one that would overrun the parser's stack, too."""
    path = again(good)
    (path / name).write_bytes(text)
    attempt(path)


@pytest.mark.parametrize(
    ("place", "value"), [(("model", "vocab"), {}), (("post_processor", "pair"), [{"SpecialToken": {"id": "", "type_id": 0}}])]
)
def test_a_tokenizer_that_breaks_at_its_first_text_is_refused(good: Path, place: tuple[str, str], value: Any) -> None:
    """A tokenizer without a word for what it does not know, or with a template of tokens that it lacks, is refused."""
    path = again(good)
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    tokenizer[place[0]][place[1]] = value
    write(path, "tokenizer.json", tokenizer)
    write(path, "config.json", tiny_config(architectures=["BertForSequenceClassification"], id2label={"0": "LABEL_0"}))
    (path / "modules.json").unlink()
    assert "cannot read a text" in refusal(path, reranker(path))


def test_a_limit_that_leaves_no_room_for_a_text_is_refused(tmp_path: Path) -> None:
    """Files may not say a limit below that of cards."""
    path = write_tiny_model(tmp_path, max_tokens=7)
    assert "7 tokens leaves no room" in refusal(path, card(path))
    edit(path, "sentence_bert_config.json", max_seq_length=8)
    assert folder.read(path, card(path)).max_tokens == 8


@pytest.mark.parametrize(
    ("config", "changes", "said"),
    [
        (QWEN3, {"is_causal": False}, "is_causal"),
        (QWEN3, {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        (QWEN3, {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        (QWEN3, {"rope_scaling": {"rope_type": "yarn"}, "rope_parameters": {"rope_theta": 5.0}}, "yarn"),
        (QWEN3, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        (QWEN3, {"rope_scaling": {"type": "linear"}}, "factor"),
        (QWEN3, {"head_dim": 7}, "7 values of a head"),
        (QWEN3, {"attention_bias": "false"}, "attention_bias"),
        (MODERNBERT, {"norm_bias": "false"}, "norm_bias"),
        (NOMIC, {"rotary_emb_fraction": 1.5}, "rotary_emb_fraction"),
        (QWEN3, {"max_position_embeddings": 2**40}, "1099511627776 positions"),
        (NOMIC, {"n_positions": 2**40}, "1099511627776 positions"),
        (MODERNBERT, {"local_attention": -1}, "local_attention"),
        (T5, {"relative_attention_max_distance": 2**40}, "1099511627776"),
    ],
)
def test_what_changes_the_meaning_without_a_word_is_refused(good: Path, config: dict[str, Any], changes: dict[str, Any], said: str) -> None:
    """A key that changes what a model computes is refused where this version computes something else."""
    path = again(good)
    write(path, "config.json", {**config, **changes})
    assert said in refusal(path, card(path))


def test_mt5_has_a_gate_unless_its_config_says_otherwise(good: Path) -> None:
    """What a missing feed_forward_proj means depends on the family: T5 has no gate, mT5 has one."""
    plain = {key: value for key, value in T5.items() if key != "feed_forward_proj"}
    gates = []
    for kind in ("t5", "mt5"):
        path = again(good)
        write(path, "config.json", {**plain, "model_type": kind})
        gates.append(getattr(folder.read(path, card(path)).encoder, "gated"))  # noqa: B009 - of this family alone
    assert gates == [False, True]


def test_a_window_wider_than_the_longest_text_shows_all_of_it(good: Path) -> None:
    """A ModernBERT's near layers may see more than any text has, however much it is."""
    path = again(good)
    write(path, "config.json", {**MODERNBERT, "local_attention": 2**40})
    assert getattr(folder.read(path, card(path)).encoder, "window") == 8192  # noqa: B009 - of this family alone


def test_one_pooling_may_stand_in_a_list_and_two_may_not(tmp_path: Path) -> None:
    """Newer files may write the pooling as a list; several poolings side by side are not served."""
    path = write_tiny_model(tmp_path)
    write(path, "1_Pooling/config.json", {"pooling_mode": ["cls"]})
    assert folder.read(path, card(path)).pooling == "cls"
    write(path, "1_Pooling/config.json", {"pooling_mode": ["cls", "mean"]})
    assert "'cls', 'mean'" in refusal(path, card(path))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"modality_config": {"text": {"method": "forward", "method_output_name": "pooler_output"}}}, "pooler_output"),
        ({"modality_config": {"message": {"method": "forward", "method_output_name": "last_hidden_state"}}}, "message"),
        ({"processing_kwargs": {"text": {"max_length": 16}}}, "max_length"),
    ],
)
def test_other_ways_to_read_a_text_are_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    """A folder that wants texts read otherwise, or something else than token states, is refused."""
    path = write_tiny_model(tmp_path)
    text = {"method": "forward", "method_output_name": "last_hidden_state"}
    edit(path, "sentence_bert_config.json", transformer_task="feature-extraction", modality_config={"text": text})
    assert folder.read(path, card(path))
    edit(path, "sentence_bert_config.json", **changes)
    assert said in refusal(path, card(path))


@pytest.mark.parametrize("ids", [{"true_token_id": 10**9}, {"true_token_id": -1}, {"true_token_id": 2, "false_token_id": 2}])
def test_the_two_words_of_a_causal_reranker_are_two_rows_of_its_vocabulary(tmp_path: Path, ids: dict[str, int]) -> None:
    """The ids that a causal reranker compares must be two different ones of its vocabulary."""
    path = classifier(tmp_path)
    modules(path, "Transformer", "LogitScore")
    write(path, "1_LogitScore/config.json", {"module_input_name": "causal_logits", "true_token_id": 2, "false_token_id": 3})
    assert folder.read(path, reranker(path, "causal", pair=PAIR)).answers == (2, 3)
    edit(path, "1_LogitScore/config.json", **ids)
    assert "must differ" in refusal(path, reranker(path, "causal", pair=PAIR))
