"""The layouts of model folders: modules, heads, pairs, prompts, tokenizers, and what of them is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, processors

from quadrate.config.models import FolderSource, ModelCard
from quadrate.errors import ConfigError
from quadrate.runtime import folder
from quadrate.runtime.graphs.after_pooling import Dense, LayerNorm
from quadrate.testing.model_folder import write_tiny_model
from quadrate.testing.tokenizers import letter_tokenizer
from tests.unit import checkpoints

if TYPE_CHECKING:
    from pathlib import Path

POOLING = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"
TRANSFORMER = "sentence_transformers.base.modules.transformer.Transformer"
PAIR = {"prefix": "hello", "query": "query : {query}", "document": " {document}", "suffix": "mat"}


def card(path: Path, **changes: Any) -> ModelCard:
    """Return the card of an embedding model in a folder."""
    return ModelCard(**{"served_name": "tiny", "task": "embed", "source": FolderSource(type="folder", path=path), **changes})


def reranker(path: Path, scoring: str = "cross_encoder", **changes: Any) -> ModelCard:
    """Return the card of a reranker in a folder."""
    return card(path, task="rerank", scoring=scoring, **changes)


def write(path: Path, name: str, value: object) -> None:
    """Write a JSON file of the folder."""
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).write_text(json.dumps(value))


def edit(path: Path, name: str, **changes: Any) -> None:
    """Change what a JSON file says."""
    write(path, name, {**json.loads((path / name).read_text()), **changes})


def modules(path: Path, *kinds: str) -> None:
    """Write modules.json; the module at place 2 lies in `2_Kind`, and so on."""
    entries = [
        {"idx": place, "name": str(place), "path": f"{place}_{kind.rpartition('.')[2]}" if place else "", "type": kind}
        for place, kind in enumerate(kind if "." in kind else f"sentence_transformers.models.{kind}" for kind in kinds)
    ]
    write(path, "modules.json", entries)


def classifier(path: Path, **changes: Any) -> Path:
    """Write a folder as CrossEncoder saves one: no modules, one label."""
    write_tiny_model(path, architectures=["BertForSequenceClassification"], id2label={"0": "LABEL_0"}, **changes)
    (path / "modules.json").unlink()
    return path


def refusal(path: Path, said: ModelCard) -> str:
    """Return what is said of a folder that is refused."""
    with pytest.raises(ConfigError) as caught:
        folder.read(path, said)
    return str(caught.value)


def test_a_cross_encoder_is_refused_as_an_embedding_model(tmp_path: Path) -> None:
    """The way out is another task, not a pooling that would make vectors which mean nothing; who names one in the card means it."""
    path = classifier(tmp_path)
    said = refusal(path, card(path))
    assert "architectures names 'BertForSequenceClassification', a classifier" in said
    assert "Set task rerank and scoring cross_encoder in its card." in said
    modules(path, "Transformer")
    assert refusal(path, card(path)) == said
    assert folder.read(path, card(path, pooling="mean", normalize=True)).head == "pooled"
    modules(path, "Transformer", "Pooling")
    write(path, "1_Pooling/config.json", {"pooling_mode": "cls"})
    assert folder.read(path, card(path)).pooling == "cls"


@pytest.mark.parametrize(("mode", "pooling"), [("mean", "mean"), ("cls", "cls"), ("lasttoken", "last")])
def test_folders_of_newer_sentence_transformers_are_read(tmp_path: Path, mode: str, pooling: str) -> None:
    """Newer folders name the pooling by a word, their classes by longer paths, and leave the limit to the tokenizer."""
    path = write_tiny_model(tmp_path)
    modules(path, TRANSFORMER, POOLING, "sentence_transformers.base.modules.normalize.Normalize")
    write(path, "1_Pooling/config.json", {"embedding_dimension": 32, "pooling_mode": mode, "include_prompt": True})
    write(path, "sentence_bert_config.json", {"transformer_task": "feature-extraction", "modality_config": {}})
    facts = folder.read(path, card(path))
    assert (facts.pooling, facts.normalize, facts.max_tokens, facts.head) == (pooling, True, 64, "pooled")


def test_layers_after_the_pooling_are_read(tmp_path: Path) -> None:
    """Linear layers and layer norms after the pooling are read in their order; a card may ask for a norm without weights."""
    path = write_tiny_model(tmp_path)
    modules(path, "Transformer", "Pooling", "Dense", "LayerNorm", "Dense", "Normalize")
    sizes = {"in_features": 32, "out_features": 16, "bias": True}
    write(path, "2_Dense/config.json", {**sizes, "activation_function": "torch.nn.modules.activation.Tanh"})
    write(path, "4_Dense/config.json", {"in_features": 16, "out_features": 8, "bias": False})
    edit(path, "4_Dense/config.json", activation_function="torch.nn.modules.linear.Identity")
    facts = folder.read(path, card(path, layer_norm=True))
    assert facts.after_pooling == (
        Dense("2_Dense", 32, 16, bias=True, activation="tanh"),
        LayerNorm("3_LayerNorm"),
        Dense("4_Dense", 16, 8, bias=False, activation="none"),
        LayerNorm(""),
    )
    edit(path, "2_Dense/config.json", module_input_name="token_embeddings")
    assert "module_input_name" in refusal(path, card(path))
    edit(path, "2_Dense/config.json", module_input_name="sentence_embedding", activation_function="my.Own")
    assert "my.Own" in refusal(path, card(path))


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        (["Transformer", "Pooling", "Normalize", "Dense"], "in this order"),
        (["Transformer", "Dense", "Pooling"], "in this order"),
        (["Transformer", "Pooling", "Pooling"], "in this order"),
        (["Pooling", "Normalize"], "in this order"),
        (["Transformer", "WeightedLayerPooling"], "WeightedLayerPooling"),
        (["custom_st.Transformer", "Pooling"], "code of the model's own"),
        (["Transformer", "SpladePooling", "Normalize"], "in this order"),
    ],
)
def test_other_modules_and_orders_are_refused(tmp_path: Path, kinds: list[str], said: str) -> None:
    """What stands in modules.json is served as it stands there, or refused by name."""
    path = write_tiny_model(tmp_path)
    modules(path, *kinds)
    assert said in refusal(path, card(path))


def test_an_encoder_in_a_folder_of_its_own_is_refused(tmp_path: Path) -> None:
    """Very old folders keep the encoder apart."""
    path = write_tiny_model(tmp_path)
    entries = json.loads((path / "modules.json").read_text())
    write(path, "modules.json", [{**entries[0], "path": "0_Transformer"}, *entries[1:]])
    assert "move the files in there beside modules.json" in refusal(path, card(path))
    write(path, "modules.json", [entries[0], {**entries[1], "path": "../elsewhere"}])
    assert "no folder beside it" in refusal(path, card(path))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"auto_map": {"AutoModel": "modeling.Own"}}, "runs none"),
        ({"architectures": ["JinaBertModel"]}, "'JinaBertModel'"),
        ({"architectures": ["BertForTokenClassification"]}, "'BertForTokenClassification'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
    ],
)
def test_what_is_another_model_than_its_type_says_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    """Code of the model's own, another class of the family, quantised weights."""
    path = write_tiny_model(tmp_path)
    edit(path, "config.json", **changes)
    assert said in refusal(path, card(path))


def test_adapters_and_wrong_cards_are_refused(tmp_path: Path) -> None:
    """An adapter changes another model's weights; a card that names another architecture describes another model."""
    path = write_tiny_model(tmp_path)
    assert "'modernbert'" in refusal(path, card(path, architecture="modernbert"))
    assert folder.read(path, card(path, architecture="bert")).architecture == "bert"
    write(path, "adapter_config.json", {})
    assert "merge_and_unload" in refusal(path, card(path))


def test_a_cross_encoder_reads_pairs_as_its_tokenizer_does(tmp_path: Path) -> None:
    """What stands before, between and after two texts is the tokenizer's; the second text has a type of its own."""
    path = classifier(tmp_path)
    facts = folder.read(path, reranker(path))
    assert facts.head == "classification"
    assert facts.pair is not None
    assert (facts.pair.prefix_ids, facts.pair.infix_ids, facts.pair.suffix_ids) == ((2,), (3,), (3,))
    assert facts.has_pair_types
    edit(path, "tokenizer_config.json", model_input_names=["input_ids", "attention_mask"])
    assert not folder.read(path, reranker(path)).has_pair_types


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("[CLS] $B:1 [SEP] $A [SEP]:1", "one after the other"),
        ("[CLS] $A [SEP]:1 $B:1 [SEP]:1", "the token types"),
    ],
)
def test_a_tokenizer_that_reads_pairs_otherwise_is_refused(tmp_path: Path, pair: str, said: str) -> None:
    """Query and document stand one after the other, and only the second one's part has a type of its own."""
    path = classifier(tmp_path)
    tokenizer = Tokenizer.from_buffer(letter_tokenizer())
    special = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair=pair, special_tokens=special)
    (path / "tokenizer.json").write_text(tokenizer.to_str())
    assert said in refusal(path, reranker(path))


@pytest.mark.parametrize(
    ("config", "sentence", "expected"),
    [
        ({}, {}, "sigmoid"),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, {}, "none"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid", "version": "4.0"}}, {}, "sigmoid"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, {}, "none"),
        ({}, {"model_type": "CrossEncoder", "activation_fn": "torch.nn.modules.linear.Identity"}, "none"),
    ],
)
def test_a_rerankers_activation_is_where_cross_encoder_finds_it(
    tmp_path: Path, config: dict[str, Any], sentence: dict[str, Any], expected: str
) -> None:
    """The three places where sentence-transformers has kept it, and the sigmoid where none says."""
    path = classifier(tmp_path)
    edit(path, "config.json", **config)
    edit(path, "config_sentence_transformers.json", **sentence)
    assert folder.read(path, reranker(path)).activation == expected
    assert folder.read(path, reranker(path, activation="none")).activation == "none"


def test_rerankers_that_cannot_be_served_right_are_refused(tmp_path: Path) -> None:
    """Several labels, unknown activations, and folders that are embedding models."""
    path = classifier(tmp_path / "classifier")
    edit(path, "config.json", id2label={"0": "no", "1": "yes"})
    assert "2 labels" in refusal(path, reranker(path))
    edit(path, "config.json", id2label=None, num_labels=None)
    assert "2 labels" in refusal(path, reranker(path))
    edit(path, "config.json", num_labels=1, sbert_ce_default_activation_function="my.Own")
    assert "my.Own" in refusal(path, reranker(path))
    embedder = write_tiny_model(tmp_path / "embedder", id2label={"0": "x"})
    assert "makes it an embedding model" in refusal(embedder, reranker(embedder))


def test_a_prompt_before_pairs_needs_a_card_that_says_where(tmp_path: Path) -> None:
    """A cross-encoder with a default prompt is refused, rather than read without it."""
    path = classifier(tmp_path)
    write(path, "config_sentence_transformers.json", {"prompts": {"query": "query: "}})
    assert folder.read(path, reranker(path)).pair is not None
    edit(path, "config_sentence_transformers.json", default_prompt_name="query")
    with pytest.raises(ConfigError, match="default prompt 'query' stands before pairs"):
        folder.read(path, reranker(path))


def test_a_causal_reranker_has_templates_and_two_words(tmp_path: Path) -> None:
    """The card's texts become ids around the two; the words are tokens, or stand in a LogitScore module."""
    path = write_tiny_model(tmp_path)
    (path / "modules.json").unlink()
    said = reranker(path, "causal", pair=PAIR, answers={"yes": "cat", "no": "dog"})
    facts = folder.read(path, said)
    assert facts.pair is not None
    assert (facts.head, facts.pooling, facts.activation) == ("yes_no", "last", "sigmoid")
    assert facts.answers == (7, 8)
    assert (facts.pair.prefix_ids, facts.pair.infix_ids, facts.pair.suffix_ids) == ((4,), (), (11,))
    assert facts.pair.query_text("sat") == "query : sat"
    assert "no token of the model" in refusal(path, reranker(path, "causal", pair=PAIR, answers={"yes": "indeed", "no": "dog"}))
    assert "give `answers`" in refusal(path, reranker(path, "causal", pair=PAIR))
    modules(path, "Transformer", "sentence_transformers.cross_encoder.modules.logit_score.LogitScore")
    write(path, "1_LogitScore/config.json", {"true_token_id": 5, "false_token_id": 6, "module_input_name": "causal_logits"})
    assert folder.read(path, reranker(path, "causal", pair=PAIR)).answers == (5, 6)
    assert "scoring causal" in refusal(path, card(path))


def test_a_splade_model_is_known_by_its_module_or_its_card(tmp_path: Path) -> None:
    """SpladePooling, or `pooling: splade` for folders without modules; what it saturates by is read."""
    path = write_tiny_model(tmp_path, architectures=["BertForMaskedLM"])
    modules(path, "sentence_transformers.sparse_encoder.models.MLMTransformer", "sentence_transformers.sparse_encoder.models.SpladePooling")
    write(path, "1_SpladePooling/config.json", {"pooling_strategy": "max", "activation_function": "log1p_relu"})
    facts = folder.read(path, card(path, outputs=["sparse"]))
    assert (facts.head, facts.pooling, facts.saturations) == ("splade", "splade", 2)
    assert "give sparse and not dense" in refusal(path, card(path, outputs=["dense"]))
    edit(path, "1_SpladePooling/config.json", pooling_strategy="sum")
    assert "pooling_strategy is 'sum'" in refusal(path, card(path))
    (path / "modules.json").unlink()
    facts = folder.read(path, card(path, pooling="splade"))
    assert (facts.head, facts.saturations) == ("splade", 1)


def test_bge_m3_is_known_by_its_two_heads(tmp_path: Path) -> None:
    """Both files beside the model make it one; one alone is half of a download."""
    path = write_tiny_model(tmp_path, pooling="cls")
    said = card(path, outputs=["dense", "sparse", "multi_vector"])
    assert "and not sparse" in refusal(path, said)
    checkpoints.save(path / "sparse_linear.pt", {"weight": np.ones((1, 32), np.float32)})
    assert "has sparse_linear.pt and not the other" in refusal(path, said)
    checkpoints.save(path / "colbert_linear.pt", {"weight": np.ones((32, 32), np.float32)})
    assert folder.read(path, said).head == "bge_m3"


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"query": "q: ", "passage": "p: "}, "p: "),
        ({"corpus": "c: "}, "c: "),
        ({"document": "d: ", "passage": "p: "}, "d: "),
        ({"document": "", "passage": "p: "}, None),
        ({"query": "q: "}, None),
    ],
)
def test_the_prompt_of_documents_goes_by_several_names(tmp_path: Path, found: dict[str, str], expected: str | None) -> None:
    """As the documentation of sentence-transformers' encode_document says: document, or else passage, or else corpus."""
    path = write_tiny_model(tmp_path, prompts=found)
    assert folder.read(path, card(path)).prompts.get("document") == expected


def test_the_place_of_an_instruction_is_found_in_a_known_prompt(tmp_path: Path) -> None:
    """A query's prompt in the form of instructed models tells where another instruction stands; a card may say it for others."""
    path = write_tiny_model(tmp_path, prompts={"query": "Instruct: Find what answers\nQuery:"})
    assert folder.read(path, card(path)).instruction_template == "Instruct: {instruction}\nQuery:"
    assert folder.read(path, card(path, instruction="{instruction}: ")).instruction_template == "{instruction}: "
    edit(path, "config_sentence_transformers.json", prompts={"query": "query: "})
    assert not folder.read(path, card(path)).instruction_template


def test_lower_casing_is_done_where_sentence_transformers_asks_for_it(tmp_path: Path) -> None:
    """A tokenizer that keeps capitals gets a step that lowers them, and only then."""
    path = write_tiny_model(tmp_path)
    parsed = json.loads((path / "tokenizer.json").read_text())
    assert folder.tokenizer_source(path) == (path / "tokenizer.json").read_bytes()
    for normalizer in (None, {"type": "NFC"}, {"type": "Sequence", "normalizers": [{"type": "NFC"}]}):
        write(path, "tokenizer.json", {**parsed, "normalizer": normalizer})
        write(path, "sentence_bert_config.json", {"max_seq_length": 48, "do_lower_case": True})
        lowered = Tokenizer.from_buffer(folder.tokenizer_source(path))
        assert lowered.encode("HELLO Cat").tokens == ["[CLS]", "hello", "cat", "[SEP]"]
    edit(path, "tokenizer_config.json", do_lower_case=False)
    write(path, "tokenizer.json", parsed)
    with pytest.raises(ConfigError, match="make them agree"):
        folder.tokenizer_source(path)


def test_a_folder_without_a_fast_tokenizer_is_refused_with_the_way_out(tmp_path: Path) -> None:
    """The files of slow tokenizers are not read."""
    path = write_tiny_model(tmp_path)
    (path / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match="save_pretrained"):
        folder.tokenizer_source(path)


@pytest.mark.parametrize("key", ["query_length", "document_length", "query_expansion"])
def test_limits_by_role_are_refused(tmp_path: Path, key: str) -> None:
    """Models that read queries otherwise than documents would be served wrong."""
    path = write_tiny_model(tmp_path)
    edit(path, "sentence_bert_config.json", **{key: 32})
    assert key in refusal(path, card(path))


def test_older_names_of_the_limits_file_are_known(tmp_path: Path) -> None:
    """sentence-transformers has named the file after the family."""
    path = write_tiny_model(tmp_path)
    (path / "sentence_bert_config.json").rename(path / "sentence_xlm-roberta_config.json")
    assert folder.read(path, card(path)).max_tokens == 48


def test_a_model_with_layers_after_the_pooling_gives_their_width(tmp_path: Path) -> None:
    """The graph has the layers in it, with weights of either format."""
    from quadrate.runtime.graphs import build  # noqa: PLC0415 - one test of many
    from quadrate.runtime.weights import Weights  # noqa: PLC0415

    path = write_tiny_model(tmp_path)
    modules(path, "Transformer", "Pooling", "Dense", "LayerNorm")
    write(path, "2_Dense/config.json", {"in_features": 32, "out_features": 16})
    checkpoints.save(path / "2_Dense" / "pytorch_model.bin", {"linear.weight": np.ones((16, 32), "f4"), "linear.bias": np.ones(16, "f4")})
    (path / "3_LayerNorm").mkdir()
    save_file({"norm.weight": np.ones(16, "f4"), "norm.bias": np.ones(16, "f4")}, path / "3_LayerNorm" / "model.safetensors")
    graph = build(folder.read(path, card(path)), Weights(path))
    assert {name: form.width for name, form in graph.outputs.items()} == {"pooled": 16, "unit": 16}
