"""From flags and files to the plan of a mesh; nothing is started here."""

from __future__ import annotations

import dataclasses
import json
import shutil
import socket
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml

from quadrate.cli import assemble, catalogue, certs, check, local_routes, logfile, preflight, usage, watch
from quadrate.cli.assemble import Options
from quadrate.cli.banner import WITH_TERMINAL, command_name
from quadrate.cli.banner import text as banner_text
from quadrate.cli.plan import Folder, MeshState, ProcessState
from quadrate.config.models import FolderSource, ModelsFile
from quadrate.config.routing import EmbeddingRoute, RoutingFile, Upstream, load_routing
from quadrate.config.shipped import shipped
from quadrate.config.yamlfile import load
from quadrate.errors import ConfigError, StoreError
from quadrate.runtime import store
from quadrate.testing.issuer import Issuer
from quadrate.testing.model_folder import write_tiny_cross_encoder, write_tiny_model

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def options() -> Options:
    """Give the flags of a plain `quadrate up`."""
    return Options(config=shipped("configs"))


def configured(folder: Path, **texts: str) -> Path:
    """Copy the shipped configuration with some files replaced."""
    shutil.copytree(shipped("configs") / "golden", folder / "golden")
    for source in shipped("configs").glob("*.yaml"):
        (folder / source.name).write_text(texts.get(source.stem, source.read_text()))
    return folder


def embedder(folder: Path, architecture: str = "BertModel") -> Path:
    """Make a folder that looks like a model."""
    folder.mkdir()
    (folder / "config.json").write_text(f'{{"architectures": ["{architecture}"]}}')
    return folder


def test_a_plain_start_uses_the_files_as_they_are(options: Options, tmp_path: Path) -> None:
    """Without flags no file is written anew: edits of configs/ take effect, and the commands are those of the containers."""
    mesh = assemble.read(options)
    assert mesh.changed == frozenset()
    planned = assemble.plan(mesh, Folder(tmp_path))
    assert [process.name for process in planned.processes] == ["embed_worker", "rerank_worker", "gateway", "envoy"]
    worker, _, gateway, edge = planned.processes
    assert worker.command[1:] == ("-m", "embed_worker")
    assert worker.environment["EMBED_MODEL_NAME"] == "minilm"
    assert worker.environment["QUADRATE_MODELS_PATH"] == str(options.config / "models.yaml")
    assert gateway.command[1:] == ("-m", "gateway")
    assert gateway.environment["ROUTER_ROUTING_PATH"] == str(options.config / "routing.yaml")
    assert edge.address == planned.address == "127.0.0.1:8085"
    assert edge.after == ("gateway",)


def test_more_processes_have_ports_of_their_own_and_are_routed_to(options: Options, tmp_path: Path) -> None:
    """Each further worker is a replica in the routes, each further gateway a metrics peer; no port is given twice."""
    folder = Folder(tmp_path)
    folder.create()
    mesh = assemble.read(dataclasses.replace(options, gateways=2, embed_workers=3, rerank_workers=2))
    planned = assemble.plan(mesh, folder)
    addresses = [process.address for process in planned.processes]
    assert len(set(addresses)) == len(addresses) == 8
    assert len(mesh.ports()) == 2 + 2 * 7
    assemble.write(mesh, folder)
    routing = load_routing(folder.config / "routing.yaml")
    assert routing.embeddings[0].groups[0].targets == ("127.0.0.1:7997", "127.0.0.1:8007", "127.0.0.1:8017")
    assert routing.rerank[0].groups[0].targets == ("127.0.0.1:9002", "127.0.0.1:9012")
    gateways = [process for process in planned.processes if process.role == "gateway"]
    assert {process.environment["ROUTER_METRICS_PEERS"] for process in gateways} == {"127.0.0.1:8001,127.0.0.1:8011"}
    envoy = (folder.config / "envoy.yaml").read_text()
    assert "port_value: 8010" in envoy


def test_workers_of_a_kind_share_the_cores(options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One has them all; of several each has its part, at least one; whoever says otherwise in the environment is heard."""
    monkeypatch.setattr(assemble, "usable_cores", lambda: 8)
    monkeypatch.delenv("EMBED_THREADS", raising=False)

    def threads(count: int) -> set[str | None]:
        planned = assemble.plan(assemble.read(dataclasses.replace(options, embed_workers=count)), Folder(tmp_path))
        return {process.environment.get("EMBED_THREADS") for process in planned.processes if process.role == "embed_worker"}

    assert (threads(1), threads(3), threads(16)) == ({None}, {"2"}, {"1"})
    monkeypatch.setenv("EMBED_THREADS", "5")
    assert threads(3) == {None}


def test_a_plan_and_a_state_survive_their_files(options: Options, tmp_path: Path) -> None:
    """What is written is what is read."""
    folder = Folder(tmp_path)
    planned = assemble.plan(assemble.read(options), folder)
    folder.write_plan(planned)
    assert folder.read_plan() == planned
    state = MeshState("127.0.0.1:1", 7, processes=[ProcessState("gateway", "gateway", "127.0.0.1:2", ("a", "b"), "log")])
    folder.write_state(state)
    assert folder.read_state() == state
    assert Folder(tmp_path / "none").read_state() is None


def test_a_state_that_another_version_wrote_is_read(tmp_path: Path) -> None:
    """What a newer version's mesh left behind keeps an older one from nothing: what is not known is passed over."""
    folder = Folder(tmp_path)
    state = MeshState("127.0.0.1:1", 7, processes=[ProcessState("gateway", "gateway", "127.0.0.1:2", ("a",), "log")])
    folder.write_state(state)
    written = json.loads((tmp_path / "state.json").read_text())
    written["mood"] = written["processes"][0]["mood"] = "good"
    (tmp_path / "state.json").write_text(json.dumps(written))
    assert folder.read_state() == state
    del written["pid"]
    for unreadable in (written, [], {"processes": [{}]}):
        (tmp_path / "state.json").write_text(json.dumps(unreadable))
        assert folder.read_state() is None


def test_a_model_of_a_flag_is_described_and_routed(options: Options, tmp_path: Path) -> None:
    """A folder becomes a card and a route; what it is for is read from its own config.json."""
    flags = (f"mine={embedder(tmp_path / 'mine')}", f"judge={embedder(tmp_path / 'judge', 'BertForSequenceClassification')}")
    mesh = assemble.read(dataclasses.replace(options, models=flags))
    assert mesh.embed == ("minilm", "mine")
    assert mesh.rerank == ("minilm-rerank", "judge")
    folder = Folder(tmp_path / "state")
    folder.create()
    assemble.write(mesh, folder)
    written = load(folder.config / "models.yaml", ModelsFile).models
    assert written["mine"].source == FolderSource(type="folder", path=tmp_path / "mine")
    assert written["judge"].scoring == "cross_encoder"
    assert load_routing(folder.config / "routing.yaml") == mesh.routing


def test_routes_to_elsewhere_stay_as_they_are(options: Options, tmp_path: Path) -> None:
    """A file of an earlier deployment needs no worker here, so none is started."""
    routing = {
        "embeddings": [{"model": "bge-m3", "upstream": {"type": "infinity", "url": "http://infinity-embed:7997"}}],
        "rerank": [{"model": "far", "upstream": {"type": "grpc", "url": "grpc://10.0.0.7:9002"}}],
    }
    config = configured(tmp_path / "configs", routing=yaml.safe_dump(routing))
    mesh = assemble.read(dataclasses.replace(options, config=config, embed_workers=2))
    assert mesh.changed == frozenset()
    assert [process.role for process in assemble.plan(mesh, Folder(tmp_path)).processes] == ["gateway", "envoy"]


TWO_PORTS = """
embeddings:
  - model: minilm
    upstreams:
      - {type: grpc, url: "grpc://127.0.0.1:26997"}
      - {type: grpc, url: "grpc://127.0.0.1:26987", priority: 1}
  - {model: frida, upstream: {type: grpc, url: "grpc://127.0.0.1:26977"}}
  - {model: splade, upstream: {type: grpc, url: "grpc://127.0.0.1:26997", replicas: ["grpc://127.0.0.1:26977"]}}
  - {model: bge-m3, enabled: false, upstream: {type: grpc, url: "grpc://127.0.0.1:26967"}}
"""


def test_workers_run_at_the_ports_that_the_routes_name(options: Options, tmp_path: Path) -> None:
    """Each port of this machine gets a worker of what leads there, and the file stays as it is written."""
    config = configured(tmp_path / "configs", routing=TWO_PORTS)
    mesh = assemble.read(dataclasses.replace(options, config=config))
    workers = [process for process in assemble.plan(mesh, Folder(tmp_path)).processes if process.role == "embed_worker"]
    assert [(worker.name, worker.address, worker.models) for worker in workers] == [
        ("embed_worker", "127.0.0.1:26997", ("minilm", "splade")),
        ("embed_worker-2", "127.0.0.1:26987", ("minilm",)),
        ("embed_worker-3", "127.0.0.1:26977", ("frida", "splade")),
    ]
    assert mesh.changed == frozenset()
    assert {26997, 26998, 26987, 26988, 26977, 26978} <= set(mesh.ports())
    added = assemble.read(dataclasses.replace(options, config=config, models=(f"mine={embedder(tmp_path / 'mine')}",)))
    assert ["mine" in worker.aliases for worker in added.workers] == [True] * 3


@pytest.mark.parametrize(
    ("flags", "ports"),
    [({"embed_workers": 2}, [26997, 27007]), ({"embed_port": 7000}, [7000]), ({"embed_workers": 2, "embed_port": 7000}, [7000, 7010])],
)
def test_flags_of_workers_go_before_the_routes(flags: dict[str, int], ports: list[int], options: Options, tmp_path: Path) -> None:
    """Every worker then has every model, and each route leads to all of them, once."""
    config = configured(tmp_path / "configs", routing=TWO_PORTS)
    mesh = assemble.read(dataclasses.replace(options, config=config, **flags))
    assert [(worker.port, worker.aliases) for worker in mesh.workers] == [(port, ("minilm", "frida", "splade")) for port in ports]
    for route in mesh.routing.embeddings:
        assert [group.targets for group in route.groups] == [tuple(f"127.0.0.1:{port}" for port in ports)]


def test_a_route_without_a_card_is_named(options: Options, tmp_path: Path) -> None:
    """A model that a worker here should serve must be described."""
    routing = {"embeddings": [{"model": "unheard-of", "upstream": {"type": "grpc", "url": "grpc://localhost:7997"}}]}
    config = configured(tmp_path / "configs", routing=yaml.safe_dump(routing))
    with pytest.raises(ConfigError, match=r"routing\.yaml sends unheard-of to a worker .* and models.yaml does not describe it"):
        assemble.read(dataclasses.replace(options, config=config))


def test_a_card_among_the_wrong_routes_is_named(options: Options, tmp_path: Path) -> None:
    """A reranker does not embed."""
    routing = {"embeddings": [{"model": "minilm-rerank", "upstream": {"type": "grpc", "url": "grpc://localhost:7997"}}]}
    config = configured(tmp_path / "configs", routing=yaml.safe_dump(routing))
    with pytest.raises(ConfigError, match=r"minilm-rerank is for task rerank in models\.yaml and stands among the embed routes"):
        assemble.read(dataclasses.replace(options, config=config))


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("a=/models/a", ("a", "/models/a", "", None)),
        ("a=org/name", ("a", None, "org/name", None)),
        ("a=org/name@v2", ("a", None, "org/name", "v2")),
    ],
)
def test_a_model_flag_is_a_folder_or_a_hubs_name(flag: str, expected: tuple[str, str | None, str, str | None]) -> None:
    """What begins like a path is a path."""
    given = catalogue.Given.parse(flag)
    assert (given.alias, str(given.folder) if given.folder else None, given.repository, given.revision) == expected


@pytest.mark.parametrize("flag", ["a", "a=", "=b", ""])
def test_a_model_flag_without_both_sides_is_refused(flag: str) -> None:
    """The form is shown."""
    with pytest.raises(ConfigError, match="write ALIAS=FOLDER or ALIAS=ORG/NAME"):
        catalogue.Given.parse(flag)


@pytest.mark.parametrize("alias", ["my model", "-mine", "us/mine", "m" * 65])
def test_an_alias_that_cannot_be_one_is_told(alias: str) -> None:
    """The alias is shown, and what one is made of."""
    with pytest.raises(ConfigError, match=f"--model {alias}=/m: an alias is letters, digits"):
        catalogue.Given.parse(f"{alias}=/m")


@pytest.mark.parametrize(("text", "said"), [("[]", "is no JSON object"), ("{", "is no JSON object")])
def test_a_damaged_model_folder_is_named(tmp_path: Path, text: str, said: str) -> None:
    """A config.json that cannot be read is told with its folder."""
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(StoreError, match=said):
        catalogue.card_of(catalogue.Given.parse(f"mine={tmp_path}"))


def test_a_model_that_the_catalogue_describes_keeps_its_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Added by its alias from a folder, or by its name on the hub under another alias, it is served as its card demands."""
    monkeypatch.setattr(store, "hub_client", lambda: SimpleNamespace(resolve=lambda *_: "a" * 40))
    found = catalogue.load(shipped("configs"), [f"frida={tmp_path}", "e5=intfloat/multilingual-e5-large"]).models
    assert found["frida"].prompts["query"] == "search_query: "
    assert found["frida"].source == FolderSource(type="folder", path=tmp_path)
    assert found["e5"].prompts == {"query": "query: ", "document": "passage: "}
    assert (found["e5"].revision, "multilingual-e5-large" in found) == ("a" * 40, False)


def test_a_bad_alias_of_a_flag_is_refused(options: Options, tmp_path: Path) -> None:
    """An alias is checked as in models.yaml."""
    with pytest.raises(ConfigError, match="--model"):
        assemble.read(dataclasses.replace(options, models=(f"a b={embedder(tmp_path / 'mine')}",)))


def test_ports_that_meet_are_refused(options: Options) -> None:
    """Two processes that want one port are named, with a flag."""
    with pytest.raises(ConfigError, match="port 8000 is wanted by gateway and by the edge; move one with --gateway-port"):
        assemble.read(dataclasses.replace(options, port=8000)).ports()


def test_a_start_sweeps_what_a_former_mesh_has_left(options: Options, tmp_path: Path) -> None:
    """Files that it was killed while it wrote, and routes that its flags changed: keys of upstreams may stand in them."""
    folder = Folder(tmp_path / "state")
    folder.create()
    assemble.write(assemble.read(dataclasses.replace(options, embed_workers=2)), folder)
    (folder.path / ".state.json.4711").write_text("{")
    assert (folder.config / "routing.yaml").is_file()
    folder.create()
    assemble.write(assemble.read(options), folder)
    assert sorted(path.name for path in folder.path.rglob("*") if path.is_file()) == ["envoy.yaml"]


def test_workers_at_neighbouring_ports_are_refused(options: Options, tmp_path: Path) -> None:
    """The second one's port is the first one's for metrics and health, which nobody wrote: both are told, and where they can be moved."""
    upstreams = "upstreams: [{type: grpc, url: 'grpc://127.0.0.1:7997'}, {type: grpc, url: 'grpc://127.0.0.1:7998', priority: 1}]"
    config = configured(tmp_path / "configs", routing=f"embeddings: [{{model: minilm, {upstreams}}}]")
    said = "port 7998 is wanted by embed_worker and by embed_worker at 7997 for metrics and health; move one with --embed-port or in"
    with pytest.raises(ConfigError, match=said):
        assemble.read(dataclasses.replace(options, config=config)).ports()


def test_a_taken_port_is_named_with_its_owner_and_its_flag() -> None:
    """The message holds the port, what it is for, this very process, and the flag."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"Port {port}, for gateway, cannot be opened .*\(pid \d+\); free it.* --gateway-port"):
            preflight.check_ports("127.0.0.1", {port: ("gateway", "--gateway-port")})


def test_what_workers_would_refuse_is_refused_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that contradict each other do not get as far as a start."""
    preflight.check_environment("exact")
    monkeypatch.setenv("RERANK_QUANTIZATION", "int8")
    with pytest.raises(ConfigError, match="exact and small are asked for"):
        preflight.check_environment("exact")


@pytest.mark.parametrize("name", ["EMBED_THREADS", "RERANK_MAX_DOCUMENTS", "EDGE_THREADS", "ROUTER_PORT"])
def test_a_wrong_variable_of_any_process_is_named_before_a_start(
    name: str, options: Options, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A variable that one of the processes would refuse is named, whichever it is, by `up` and by `config check`."""
    monkeypatch.setenv(name, "many")
    with pytest.raises(ConfigError, match=f"^{name}: "):
        preflight.check_environment("exact")
    assert check.run(options, as_json=False) == 1
    assert f"BAD   environment: {name}: " in capsys.readouterr().out


def test_the_banner_shows_four_calls_that_fit(options: Options, tmp_path: Path) -> None:
    """Address and models are those of this mesh; where keys are needed, each call says where its key comes from."""
    folder = Folder(tmp_path / "state")
    for auth, wanted in (("allow_anonymous_without_api_keys: true", 0), ("api_keys: [one]", 3)):
        config = configured(tmp_path / f"configs{wanted}", auth=auth)
        mesh = assemble.read(dataclasses.replace(options, config=config, port=9999))
        text = banner_text(mesh, assemble.plan(mesh, folder), folder)
        for part in (
            "curl http://127.0.0.1:9999/v1/embeddings",
            'base_url="http://127.0.0.1:9999/v1"',
            "grpcurl -plaintext",
            "quadrate rerank",
            "logs -f --port 9999)",
            "down --port 9999.",
        ):
            assert part in text
        assert text.count("QUADRATE_API_KEY") == wanted


def test_the_banner_says_whom_to_trust(options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the certificate was given by hand, too: the authority that lies beside it, or else how to name one."""
    certs.make(tmp_path / "tls", [], days=1)
    monkeypatch.setenv("EDGE_TLS_CERT_PATH", str(tmp_path / "tls/edge.pem"))
    monkeypatch.setenv("EDGE_TLS_KEY_PATH", str(tmp_path / "tls/edge-key.pem"))
    mesh, folder = assemble.read(options), Folder(tmp_path / "state")
    text = banner_text(mesh, assemble.plan(mesh, folder), folder)
    assert f"curl --cacert {tmp_path}/tls/ca.pem https://" in text
    assert f"grpcurl -cacert {tmp_path}/tls/ca.pem" in text
    (tmp_path / "tls/ca.pem").unlink()
    text = banner_text(mesh, assemble.plan(mesh, folder), folder)
    assert "curl https://" in text
    assert f"Where {tmp_path}/tls/edge.pem is of an authority that is not trusted here: --cacert FILE (curl)" in text


def test_the_banner_warns_of_an_open_door(options: Options, tmp_path: Path) -> None:
    """Where others can reach the port and no key is asked for; not where one is."""
    for auth, is_told in (("allow_anonymous_without_api_keys: true", True), ("api_keys: [one]", False)):
        config = configured(tmp_path / f"configs{is_told}", auth=auth)
        mesh = assemble.read(dataclasses.replace(options, config=config, host="0.0.0.0"))
        folder = Folder(tmp_path / "state")
        assert ("keys new NAME" in banner_text(mesh, assemble.plan(mesh, folder), folder)) is is_told


def test_a_check_reads_the_file_of_signing_keys(options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a gateway would at its start."""
    path = tmp_path / "jwks.json"
    config = configured(tmp_path / "configs", auth=f"jwt: {{issuer: 'https://i', audience: a, jwks_path: {path}}}")
    for content, said in ((None, "cannot be read"), ("{}", "no JSON Web Key Set"), (Issuer().jwks().decode(), "by 1 key of")):
        if content is not None:
            path.write_text(content)
        check.run(dataclasses.replace(options, config=config), as_json=False)
        assert said in capsys.readouterr().out


def test_a_check_tells_a_fault_once(options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each where it is, though most parts need all of the files."""
    config = configured(tmp_path / "configs")
    (config / "rate_limits.yaml").write_text("default: {capacity: 5}")
    (config / "routing.yaml").write_text("embeddings: 7")
    assert check.run(dataclasses.replace(options, config=config), as_json=False) == 1
    told = capsys.readouterr().out
    assert [told.count(fault) for fault in ("capacity and refill_rate belong together", "embeddings:")] == [1, 1]
    assert told.count("BAD") == 2


def test_a_check_shows_loose_ends_apart_from_what_is_good(options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are no fault, so the exit status is that of a good folder."""
    config = configured(tmp_path / "configs", auth="api_keys: [{key: a, name: alice, models: [nope]}]")
    assert check.run(dataclasses.replace(options, config=config), as_json=False) == 0
    told = capsys.readouterr().out
    assert "note  all of them together: auth.yaml: alice may call nope" in told
    assert "good  auth.yaml: 1 key; " in told


@pytest.mark.parametrize(
    ("mapping", "told"),
    [
        ('{"ours": "nope"}', "note  all of them together: EMBED_MODEL_MAPPING: 'ours' stands for 'nope', which no route has as its name"),
        ('{"a": "b"}', "BAD   all of them together: EMBED_MODEL_MAPPING: 'a' is the name of 'a' already; choose another"),
    ],
)
def test_a_check_holds_names_that_variables_give_against_the_routes(
    mapping: str, told: str, options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the gateway does at its start."""
    monkeypatch.setenv("EMBED_MODEL_MAPPING", mapping)
    upstream = "upstream: {type: grpc, url: 'grpc://elsewhere:1'}"
    routing = f"embeddings: [{{model: a, {upstream}}}, {{model: b, {upstream}}}]"
    check.run(dataclasses.replace(options, config=configured(tmp_path / "configs", routing=routing)), as_json=False)
    assert told in capsys.readouterr().out


@pytest.mark.parametrize("routing", ["", "{}", 'embeddings: [{model: m, enabled: false, upstream: {type: grpc, url: "grpc://a:1"}}]'])
def test_a_mesh_that_could_serve_nothing_is_not_begun(
    routing: str, options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Routes of which none is enabled are told by `up` and by `config check`; a model that a flag adds is enough."""
    options = dataclasses.replace(options, config=configured(tmp_path / "configs", routing=routing))
    with pytest.raises(ConfigError, match=r"routing\.yaml: no model is enabled, so nothing can be served: add one"):
        assemble.read(options)
    assert check.run(options, as_json=False) == 1
    assert "routing.yaml: no model is enabled" in capsys.readouterr().out
    assert assemble.read(dataclasses.replace(options, models=(f"mine={embedder(tmp_path / 'mine')}",))).embed == ("mine",)


def test_a_check_holds_cards_against_the_files_that_are_here(options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a card says and its model cannot give is told before a start, and so are golden vectors that are not there."""
    models = {
        "minilm": {"served_name": "one", "task": "embed", "source": {"type": "folder", "path": str(tmp_path / "one")}, "max_tokens": 9999},
        "minilm-rerank": {
            "served_name": "two",
            "task": "rerank",
            "scoring": "cross_encoder",
            "source": {"type": "folder", "path": str(tmp_path / "two")},
            "golden": "golden/nowhere.json",
        },
    }
    write_tiny_model(tmp_path / "one")
    write_tiny_cross_encoder(tmp_path / "two")
    options = dataclasses.replace(options, config=configured(tmp_path / "configs", models=yaml.safe_dump({"models": models})))
    assert check.run(options, as_json=False) == 1
    told = capsys.readouterr().out
    assert f"models.yaml: minilm: {tmp_path}/one: max_tokens is 9999; the model has positions for" in told
    assert f"models.yaml: minilm-rerank: {tmp_path}/configs/golden/nowhere.json: cannot be read" in told


def test_a_mesh_in_the_background_is_not_stopped_by_a_key(options: Options, tmp_path: Path) -> None:
    """What `--detach` takes out of the banner is there to be taken out."""
    folder = Folder(tmp_path / "state")
    mesh = assemble.read(options)
    text = banner_text(mesh, assemble.plan(mesh, folder), folder)
    assert text.count(WITH_TERMINAL) == 1
    assert "To stop: quadrate down" in text.replace(WITH_TERMINAL, "")


def test_usage_asks_the_gateways_of_a_mesh_by_its_port(options: Options, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All of them; a port without a mesh is told, and so are two ways of saying whom to ask."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    folder, asked = Folder.of(28085), []
    folder.create()
    changed = dataclasses.replace(options, port=28085, gateways=2, gateway_port=28000)
    folder.write_plan(assemble.plan(assemble.read(changed), folder))

    def ask(gateway: str, _: str | None) -> dict[str, Any]:
        asked.append(gateway)
        return {"store": "local", "gateways": 1, "day": "2026-11-21", "rows": [], "limits": []}

    monkeypatch.setattr(usage, "_ask", ask)
    with folder.locked():
        assert usage.run([], None, port=28085, as_json=True) == 0
    assert asked == ["http://127.0.0.1:28001", "http://127.0.0.1:28011"]
    with pytest.raises(ConfigError, match="No mesh runs on port 28085 of this machine"):
        usage.run([], None, port=28085, as_json=True)
    with pytest.raises(ConfigError, match="keep one"):
        usage.run(["http://a"], None, port=28085, as_json=True)


def test_usage_says_that_a_scheme_is_missing() -> None:
    """With the address as it has to be written."""
    with pytest.raises(ConfigError, match=r"--gateway 127\.0\.0\.1:28001: http:// is missing; write http://127\.0\.0\.1:28001\."):
        usage.run(["127.0.0.1:28001"], None, as_json=True)


def test_a_day_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what the gateway says of it."""
    answer = httpx.Response(400, json={"error": "day must be a date such as 2026-11-21"})
    monkeypatch.setattr(httpx, "get", lambda *_, **__: answer)
    with pytest.raises(ConfigError, match="--day yesterday: day must be a date"):
        usage.run(["http://a"], "yesterday", as_json=True)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ROUTER_REFLECTION", "x", "ROUTER_REFLECTION: Input should be 'keyed', 'open' or 'off', not 'x'"),
        ("EMBED_THREADS", "many", "EMBED_THREADS: Input should be a valid integer, not 'many'"),
        ("EDGE_THREADS", "0", "EDGE_THREADS: Input should be greater than 0, not '0'"),
        ("OTEL_TRACES_SAMPLER_ARG", "x" * 60, f"OTEL_TRACES_SAMPLER_ARG: Input should be a valid number, not '{'x' * 39}…"),
    ],
)
def test_a_refused_variable_is_told_with_what_it_holds(name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In part, where that is long."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as refused:
        preflight.check_environment("exact")
    assert str(refused.value) == said


def test_logs_of_no_mesh_say_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody who forgot --port is left before an empty screen."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="no logs of a mesh on port 9999"):
        watch.logs(9999, None, lines=1, follow=False)


def test_the_banner_names_the_command_as_it_can_be_called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By its name where the PATH has it, by its path from here where it has not."""
    program = tmp_path / ".venv" / "bin" / "quadrate"
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [".venv/bin/quadrate", "up"])
    monkeypatch.setenv("PATH", "/nowhere")
    assert command_name() == ".venv/bin/quadrate"
    monkeypatch.setenv("PATH", str(program.parent))
    assert command_name() == "quadrate"
    monkeypatch.setattr(sys, "argv", ["/somewhere/quadrate/cli/__main__.py"])
    assert command_name() == "python -m quadrate.cli"


def test_a_log_is_bounded(tmp_path: Path) -> None:
    """A log over its limit is moved aside while its process goes on writing to the same file."""
    log = tmp_path / "gateway.log"
    with log.open("ab", buffering=0) as writer:
        writer.write(b"old\n" * 10)
        logfile.bound(log, limit_bytes=40)
        assert logfile.tail(log, 1) == ["old"]
        logfile.bound(log, limit_bytes=39)
        writer.write(b"new\n")
    assert log.read_bytes() == b"new\n"
    assert (tmp_path / "gateway.log.1").read_bytes() == b"old\n" * 10
    logfile.bound(tmp_path / "none.log")


def test_a_log_is_cut_even_where_it_cannot_be_kept(tmp_path: Path) -> None:
    """Where there is no room to move a log aside it is cut all the same, and nothing is raised."""
    log = tmp_path / "gateway.log"
    log.write_text("old\n" * 100)
    log.with_suffix(".log.1").mkdir()  # cannot be written, as on a full disk
    logfile.bound(log, limit_bytes=100)
    assert log.read_text() == ""


def test_the_end_of_a_log_is_whole_lines(tmp_path: Path) -> None:
    """No line that is being written is shown, a long one as a whole, and following begins after the last whole one."""
    log = tmp_path / "gateway.log"
    log.write_bytes(b"one\ntwo\nthr")
    assert logfile.tail(log, 0) == []
    assert logfile.tail(log, 1) == ["two"]
    assert logfile.tail(log, 9) == ["one", "two"]
    assert logfile.end(log) == len(b"one\ntwo\n")
    log.write_bytes(b"x" * 300_000 + b"\nlast\n")
    assert logfile.tail(log, 1) == ["last"]
    assert logfile.tail(log, 9) == ["x" * 300_000, "last"]
    assert logfile.end(log) == log.stat().st_size


def test_as_many_lines_of_a_log_are_read_as_are_asked_for(tmp_path: Path) -> None:
    """However long they are, and all of them where there are fewer."""
    log = tmp_path / "gateway.log"
    lines = [f"{number} " + "x" * 600 for number in range(1252)]
    log.write_text("\n".join(lines) + "\n")
    for count in (1, 600, 1251, 1252, 2000):
        assert logfile.tail(log, count) == lines[-count:]


def test_following_a_log_outlives_its_being_moved_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Between a mesh that has stopped and the next one there is no log for a moment; then following goes on with the new one."""
    log = tmp_path / "gateway.log"
    log.write_text("one\ntwo\n")
    place = watch._print_new("gateway", log, 4, 0)
    (tmp_path / "embed_worker-2.log").write_text("of a process that the next mesh does not have")
    logfile.begin(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["embed_worker-2.log.1", "gateway.log.1"]
    place = watch._print_new("gateway", log, place, 0)
    log.write_text("three\nfo")
    assert watch._print_new("gateway", log, place, 0) == len("three\n")
    assert capsys.readouterr().out == "two\nthree\n"


def test_last_words_are_the_last_fatal_line(tmp_path: Path) -> None:
    """Why a process gave up is found among its other lines; what is no JSON says nothing."""
    log = tmp_path / "gateway.log"
    log.write_text(
        '{"level":"FATAL","message":"first"}\n{"level":"FATAL","metadata":{"reason":"no moon"}}\n{"level":"INFO"}\nTraceback\n7\n'
    )
    assert logfile.last_words(log) == "no moon"
    log.write_text("Traceback\n")
    assert logfile.last_words(log) == ""
    assert logfile.last_words(tmp_path / "none.log") == ""


@pytest.mark.parametrize("there", [{"model": "minilm"}, {"api_key_env": "KEY_THERE"}])
def test_another_mesh_on_this_machine_is_none_of_our_workers(there: dict[str, str]) -> None:
    """A model that has another name there, or a key, needs no card here and keeps its address."""
    upstream = Upstream(type="grpc", url="grpc://127.0.0.1:18000", **there)
    routing = RoutingFile(embeddings=(EmbeddingRoute(model="far", upstream=upstream),))
    assert local_routes.served_here(routing.embeddings, ModelsFile(models={}), "embed") == ()
    assert local_routes.localised(routing, embed=["127.0.0.1:7997"], rerank=["127.0.0.1:9002"]) == routing
