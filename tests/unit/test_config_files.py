"""The files operators write: what loads, what they mean, and one bad file for each error."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from quadrate.config.auth import AuthFile, digest, load_auth
from quadrate.config.rate_limits import RateLimitsFile, load_rate_limits
from quadrate.config.routing import RoutingFile, load_routing
from quadrate.config.yamlfile import parse
from quadrate.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

ROUTING = """\
embeddings:
  - {model: "bge-m3", served_name: "BAAI/bge-m3", enabled: true, upstream: {type: "infinity", url: "http://infinity-embed:7997", timeout_ms: 3000}}
  - {model: "frida", served_name: "ai-forever/FRIDA", enabled: true, upstream: {type: "infinity", url: "http://infinity-embed:7997", timeout_ms: 3000}}
rerank:
  - {model: "rerank-base", served_name: "cross-encoder/ms-marco-MiniLM-L-2-v2", enabled: true, max_top_k: 50, upstream: {type: "rerank", url: "http://rerank:9002", timeout_seconds: 10}}
"""  # noqa: E501 - the file as an earlier deployment has it
GRPC = 'embeddings: [{model: m, upstream: {type: grpc, url: "grpc://a:1"}}]'
HTTP = "embeddings: [{model: m, upstream: {type: openai, url: 'http://a:1'}}]"


def write(folder: Path, text: str) -> Path:
    """Write `text` where a loader can read it."""
    path = folder / "file.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(text: str, schema: type) -> str:
    """Return what loading `text` complains of."""
    with pytest.raises(ConfigError) as caught:
        parse(text, schema, name="file.yaml")
    return str(caught.value)


def test_routing_of_an_earlier_deployment_loads_and_means_the_same(tmp_path: Path) -> None:
    """The routing file of an earlier deployment loads unchanged, with names, addresses, timeouts and limits as written."""
    routing = load_routing(write(tmp_path, ROUTING))
    assert [route.names for route in routing.embeddings] == [("bge-m3", "BAAI/bge-m3"), ("frida", "ai-forever/FRIDA")]
    assert routing.embeddings[0].groups[0].targets == ("infinity-embed:7997",)
    assert routing.embeddings[0].groups[0].timeout == pytest.approx(3.0)
    assert routing.rerank[0].groups[0].timeout == pytest.approx(10.0)
    assert routing.rerank[0].max_top_k == 50


def test_auth_of_an_earlier_deployment_loads_and_keeps_no_key_in_its_repr(tmp_path: Path) -> None:
    """Plain keys load, are looked up by digest, are called by their first eight digits, and are not printed."""
    auth = load_auth(write(tmp_path, 'api_keys: ["production-key-1", "admin-key"]\nallow_anonymous_without_api_keys: false\n'))
    assert [key.digest for key in auth.api_keys] == [digest("production-key-1"), digest("admin-key")]
    assert auth.api_keys[1].principal == f"key-{digest('admin-key')[:8]}"
    assert "admin-key" not in repr(auth)


def test_rate_limits_of_an_earlier_deployment_load(tmp_path: Path) -> None:
    """Buckets are read by name."""
    text = "default: {capacity: 60, refill_rate: 30}\nanonymous: {capacity: 30, refill_rate: 15}\n"
    text += "per_api_key:\n  admin-key: {capacity: 120, refill_rate: 60}\n"
    limits = load_rate_limits(write(tmp_path, text))
    assert limits.default is not None
    assert (limits.default.capacity, limits.default.refill_rate) == (60, 30)
    assert limits.per_api_key["admin-key"].capacity == 120


def test_upstream_groups_stand_by_priority_and_replicas_count_once() -> None:
    """A list of upstreams is ordered by priority; an address that is written twice is one target."""
    text = """\
embeddings:
  - model: m
    upstreams:
      - {type: grpc, url: "grpc://b:1", priority: 1}
      - {type: grpc, url: "grpc://a:1", replicas: ["grpc://a:2", "grpc://a:1"]}
"""
    route = parse(text, RoutingFile, name="file.yaml").embeddings[0]
    assert [group.targets for group in route.groups] == [("a:1", "a:2"), ("b:1",)]


def test_an_address_over_http_keeps_its_path() -> None:
    """Two APIs of one host are two targets, and each has its URL."""
    text = HTTP.replace("http://a:1'", "https://a/v1/', replicas: ['https://a/other']")
    upstream = parse(text, RoutingFile, name="file.yaml").embeddings[0].groups[0]
    assert upstream.targets == ("a:443/v1", "a:443/other")
    assert upstream.url_of("a:443/v1") == "https://a/v1/"


def test_the_environment_switches_routes_and_holds_keys(tmp_path: Path) -> None:
    """`enabled_env` goes before `enabled` where it is set, `api_key_env` is read, and no key is printed."""
    text = HTTP.replace("model: m,", "model: m, enabled: false, enabled_env: M_ON,").replace(
        "http://a:1'", "http://a:1', api_key_env: 'M_KEY'"
    )
    path = write(tmp_path, text)
    off = load_routing(path, {}).embeddings[0]
    assert (off.enabled, off.groups[0].api_key) == (False, None)
    on = load_routing(path, {"M_ON": "true", "M_KEY": "a-secret"}).embeddings[0]
    assert on.enabled
    assert on.groups[0].api_key is not None
    assert on.groups[0].api_key.get_secret_value() == "a-secret"
    assert "a-secret" not in repr(on)
    assert "a-secret" not in on.model_dump_json()
    assert load_routing(
        write(tmp_path, f"embeddings: [{on.model_dump_json(exclude_defaults=True)}]"), {"M_KEY": "a-secret"}
    ).embeddings == (on,)
    write(tmp_path, text)
    with pytest.raises(
        ConfigError,
        match=r"file.yaml:1: embeddings\[0\].*api_key_env: model 'm': the variable M_KEY, which api_key_env names, is not set",
    ):
        load_routing(path, {"M_ON": "true"})
    with pytest.raises(ConfigError, match=r"file.yaml:1: embeddings\[0\].enabled_env: .*M_ON must be true or false"):
        load_routing(path, {"M_ON": "perhaps"})


@pytest.mark.parametrize(("switch", "enabled"), [("", True), ("true", True), ("false", False)])
def test_qwen3_over_http_has_variables_of_its_own(tmp_path: Path, switch: str, *, enabled: bool) -> None:
    """QWEN3_ENABLED and QWEN3_API_KEY mean every route over HTTP whose alias begins so, and neither has to be set."""
    path = write(tmp_path, HTTP.replace("model: m,", "model: qwen3-embedding-0.6b,"))
    route = load_routing(path, {"QWEN3_ENABLED": switch, "QWEN3_API_KEY": "k"}).embeddings[0]
    assert route.enabled is enabled
    assert route.groups[0].api_key is not None
    assert load_routing(path, {}).embeddings[0].groups[0].api_key is None
    with pytest.raises(ConfigError, match="the variable QWEN3_ENABLED must be true or false, not 'perhaps'"):
        load_routing(path, {"QWEN3_ENABLED": "perhaps"})
    others = load_routing(write(tmp_path, GRPC.replace("model: m,", "model: qwen3,")), {"QWEN3_ENABLED": "false"})
    assert others.embeddings[0].enabled


TWICE = """
embeddings:
- model: m
  upstreams: [{{type: grpc, url: "grpc://a:1"}},
    {{type: grpc, url: "{}"}}]
"""


def test_an_address_may_stand_twice_under_different_names(tmp_path: Path) -> None:
    """As where one server has several models or several keys."""
    path = write(tmp_path, TWICE.format('grpc://a:1", model: "other'))
    assert [group.model for group in load_routing(path, {}).embeddings[0].groups] == ["", "other"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ROUTING.replace("timeout_ms: 3000}}\nrerank", "timeout_m: 3000}}\nrerank"), "did you mean 'timeout_ms'?"),
        (ROUTING.replace("http://rerank:9002", "rerank:9002"), "file.yaml:5: rerank[0].upstream.url: 'rerank:9002' is no address"),
        (ROUTING.replace(":9002", ":90020"), "port outside 1 to 65535"),
        (ROUTING.replace("http://rerank:9002", "grpc://rerank"), "names no port"),
        (ROUTING.replace('"rerank-base"', '"bge-m3"'), "file.yaml:5: rerank[0].model: 'bge-m3' is the model of embeddings[0] already"),
        (
            ROUTING.replace('"ai-forever/FRIDA"', '"bge-m3"'),
            "file.yaml:3: embeddings[1].served_name: 'bge-m3' is the model of embeddings[0] already; the names of models must differ",
        ),
        (ROUTING.replace("timeout_seconds: 10", "timeout_seconds: 10, timeout_ms: 1"), "keep one"),
        (ROUTING.replace("max_top_k: 50", "max_top_k: 0"), "rerank[0].max_top_k"),
        (ROUTING + "rerank: []\n", "file.yaml:6: key 'rerank' is written twice"),
        ("embeddings:\n  - {model: m}\n", "needs either upstream or a list upstreams"),
        ("embeddings: [\n", "file.yaml:2"),
        (ROUTING.replace('"infinity", url: "http:', '"infinity", url: "grpc:'), "say type: grpc"),
        (ROUTING.replace("http://rerank:9002", "http://me:secret@rerank:9002"), "put a key into the variable that api_key_env names"),
        (ROUTING.replace("http://rerank:9002", "http://rerank:9002/?key=1"), "leave out what follows the path"),
        (GRPC.replace("grpc://a:1", "grpc://a:1/v1"), "has a path"),
        (GRPC.replace('"grpc://a:1"', '"grpc://a:1", takes_token_ids: true'), "takes_token_ids is for upstreams over HTTP"),
        (GRPC.replace("model: m,", "model: m, tokenizer: t,"), "tokenizer is for models that are served over HTTP"),
        (HTTP.replace("model: m,", "model: m, default_prompt_name: q,"), "is not among the prompts"),
        (HTTP.replace("model: m,", "model: m, instruction: q,"), "instruction must hold {instruction}"),
        (HTTP.replace("http://a:1", "http://a:1', api_key_env: 'no name"), "embeddings[0].upstream.api_key_env"),
        (HTTP.replace("http://a:1", "http://a:1', api_key: k, api_key_env: 'K"), "keep api_key_env"),
        (GRPC.replace("model: m,", "model: m, hedge_after_ms: .inf,"), "hedge_after_ms: Input should be a finite number, not inf"),
        (GRPC.replace("model: m,", "model: m, hedge_after_ms: x,"), "hedge_after_ms: Input should be a valid number, not 'x'"),
        (GRPC.replace('"grpc://a:1"', '"grpc://a:1", weight: -1'), "weight: Input should be greater than 0, not -1"),
        (
            GRPC.replace("grpc://a:1", "http://a:1"),
            "write it as grpc://host:port, or grpcs://host:port with TLS; if it is a server with an",
        ),
        (GRPC.replace("grpc://a:1", "https://a:1"), "HTTP API, say type: openai"),
        (GRPC.replace("grpc://a:1", "grpc://a b:1"), "'grpc://a b:1' is no address"),
        (HTTP.replace("http://a:1", "http://a:0"), "port outside 1 to 65535"),
        (HTTP.replace("http://a:1", "http://a:1', timeout_ms: true, model: 'm"), "upstream.timeout_ms: must be a number, not true"),
        (
            HTTP.replace("model: m,", "model: m, dimensions: 8, matryoshka_dimensions: [4, 16],"),
            "has 16, and dimensions says that the vectors",
        ),
        (HTTP.replace("model: m,", "model: m, matryoshka_dimensions: [4, yes],"), "matryoshka_dimensions: must be a number, not true"),
        (HTTP.replace("model: m,", "model: 'm ',"), "embeddings[0].model: the name begins or ends with a blank"),
        (TWICE.format("grpc://A:1"), "file.yaml:5: embeddings[0].upstreams[1].url: upstreams[0] is at 'grpc://A:1' already; keep one"),
    ],
)
def test_a_bad_routing_file_is_refused_with_line_and_way_out(text: str, expected: str) -> None:
    """Each mistake is named with its line, its key and what is allowed."""
    assert expected in refusal(text, RoutingFile)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("api_keys: [{name: a}]", "needs one of key, sha256 and secrets"),
        ("api_keys: [{sha256: abc}]", "api_keys[0].sha256"),
        ("api_keys: [a, a]", "file.yaml:1: api_keys[1]: the same key as that of api_keys[0]"),
        ("api_keys:\n  - a\n  - b\n  - a", "file.yaml:4: api_keys[2]: the same key as that of api_keys[0]"),
        ("api_keys: ['']", "is empty"),
        ("api_keys: ['secret ']", "holds a blank"),
        ("api_keys: [{key: k, expires: 2027-01-31T00:00:00}]", "needs a time and a time zone"),
        ("api_key: [a]", "did you mean 'api_keys'?"),
    ],
)
def test_a_bad_auth_file_is_refused_without_telling_a_key(text: str, expected: str) -> None:
    """Each mistake is named."""
    assert expected in refusal(text, AuthFile)


def test_a_bad_limit_is_refused() -> None:
    """A bucket without room would refuse everything, and a switch is no number, though Python takes it for one."""
    assert "default.capacity" in refusal("default: {capacity: 0, refill_rate: 1}", RateLimitsFile)
    told = refusal("default: {models: {m: {tokens_per_day: on}}}", RateLimitsFile)
    assert told == "file.yaml:1: default.models.m.tokens_per_day: must be a number, not true"


def test_a_word_that_yaml_takes_for_true_or_false_is_explained() -> None:
    """Nobody who writes `model: off` has a truth value in mind."""
    assert refusal(GRPC.replace("model: m", "model: off"), RoutingFile).endswith("put the word between quotes")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A path that is not there is told as it was given."""
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read: No such file"):
        load_routing(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("text", "schema", "told"),
    [
        ("per_api_key: {sk-hidden: {capacity: 0, refill_rate: 1}}", RateLimitsFile, "file.yaml:1: per_api_key.….capacity: Input should be"),
        (
            "per_api_key: {sk-hidden: {capcity: 1}}",
            RateLimitsFile,
            "per_api_key.….capcity: unknown key (did you mean 'capacity'?)",
        ),
        ("per_api_key:\n  sk-hidden: {}\n  sk-hidden: {}", RateLimitsFile, "file.yaml:3: a key is written twice"),
        ("per_api_key: {a: *sk-hidden}", RateLimitsFile, "file.yaml:1: found undefined alias"),
        ("api_keys:\n  - {key: sk-hidden, expires: 2027-13-01}", AuthFile, "file.yaml:2: this cannot be read: month must be in 1..12"),
        ("api_keys:\n  - {? [sk-hidden] : 1}", AuthFile, "file.yaml:2: found unhashable key"),
        ("api_keys:\n  - sk-hidden: {name: alice}", AuthFile, "file.yaml:2: api_keys[0].…: unknown key"),
        ("api_keys:\n  - {key: [sk-hidden]}", AuthFile, "file.yaml:2: api_keys[0].key: Input should be a valid string"),
        ("api_keys: [sk-hidden, sk-hidden]", AuthFile, "api_keys"),
    ],
)
def test_an_error_never_repeats_a_key(text: str, schema: type, told: str) -> None:
    """It goes to logs and to readiness, where others read it; the line is enough to find it."""
    found = refusal(text, schema)
    assert told in found
    assert "hidden" not in found
