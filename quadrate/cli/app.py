"""The command line: every command, its flags and its help. What a command does is in the module it calls."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from quadrate import __version__
from quadrate.config.shipped import shipped
from quadrate.errors import ConfigError, QuadrateError, StoreError

if TYPE_CHECKING:
    from quadrate.cli.calls import Door
    from quadrate.client.requests import Form
    from quadrate.config.tls import ClientTls

app = typer.Typer(
    name="quadrate",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
models_app = typer.Typer(
    help="See which models there are, get, check or remove their files, and load them at running workers.", no_args_is_help=True
)
keys_app = typer.Typer(help="Make, list, hash and revoke API keys, in auth.yaml.", no_args_is_help=True)
config_app = typer.Typer(help="Look at configuration files.", no_args_is_help=True)
certs_app = typer.Typer(help="Make certificates to try TLS with, and look at certificates.", no_args_is_help=True)
app.add_typer(models_app, name="models")
app.add_typer(keys_app, name="keys")
app.add_typer(config_app, name="config")
app.add_typer(certs_app, name="certs")


Task = Literal["embed", "rerank"]
Precision = Literal["exact", "fast", "small"]
Role = Literal["query", "document"]
Truncation = Literal["none", "left", "right"]
ValueType = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="DIR", help="Folder with routing, models, auth and rate_limits .yaml. Default: the one Quadrate comes with."
    ),
]
Model = Annotated[
    list[str] | None,
    typer.Option(
        "--model", metavar="ALIAS=SOURCE", help="Serve one more model: a folder, or a hub's ORG/NAME[@REVISION]. May be repeated."
    ),
]
Port = Annotated[int, typer.Option("--port", help="The mesh's port: REST, gRPC and gRPC-Web.", min=1, max=65535)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Url = Annotated[str, typer.Option("--url", help="Address of the mesh, a gateway or a worker.")]
Ca = Annotated[
    Path | None,
    typer.Option("--ca", envvar="QUADRATE_CA", metavar="FILE", help="Authorities in PEM to trust for TLS.", show_default=False),
]
ClientCert = Annotated[
    tuple[Path, Path] | None,
    typer.Option(
        "--client-cert", metavar="FILE KEY_FILE", help="Certificate and its key in PEM, where callers must show one.", show_default=False
    ),
]
Aliases = Annotated[list[str], typer.Argument(metavar="ALIAS...", help="Models of models.yaml.")]
OneAlias = Annotated[str, typer.Argument(metavar="ALIAS", help="A model of models.yaml.")]
Workers = Annotated[
    list[str] | None,
    typer.Option(
        "--worker",
        metavar="HOST:PORT",
        help="A worker's own gRPC port; grpcs://HOST:PORT for TLS. May be repeated. Default: where models of its task are here.",
    ),
]
LookedAt = Annotated[
    list[str] | None,
    typer.Option("--worker", metavar="HOST:PORT", help="Ask this worker, by its own gRPC port. May be repeated. Default: ask none."),
]
AllAliases = Annotated[list[str] | None, typer.Argument(metavar="[ALIAS...]", help="Models of models.yaml. Default: all.")]


def _read_key(file: str | None) -> str | None:
    """Return the API key of a file or, without one, of the environment. None on the command line: process lists show that."""
    if file is None:
        return os.environ.get("QUADRATE_API_KEY")
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except OSError as exc:
        raise typer.BadParameter(f"{file}: cannot be read: {exc.strerror}") from exc


Key = Annotated[
    str | None,
    typer.Option(
        "--key-file",
        metavar="FILE",
        callback=_read_key,
        help="File with the API key, where the mesh asks for one. Default: the variable QUADRATE_API_KEY is the key.",
        show_default=False,
    ),
]


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - typer calls it so
    if wanted:
        print(__version__)
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and end.")]


@app.callback()
def start(*, version: Version = False) -> None:
    """Serve text embeddings and reranking from this machine.

    `quadrate up` runs Envoy, a gateway and workers: REST and gRPC on one port.
    """


@app.command()
def up(  # noqa: PLR0913 - the flags
    *,
    config: Config = None,
    model: Model = None,
    precision: Annotated[Precision | None, typer.Option(help="Class of arithmetic of the workers. Default: exact.")] = None,
    gateways: Annotated[int, typer.Option(help="Gateway processes.", min=1, max=64)] = 1,
    embed_workers: Annotated[
        int | None,
        typer.Option(help="Embedding workers, each with all embedding models. Default: those at the ports in routing.yaml.", min=1, max=64),
    ] = None,
    rerank_workers: Annotated[
        int | None, typer.Option(help="Reranking workers, each with all rerankers. Default: likewise.", min=1, max=64)
    ] = None,
    host: Annotated[str, typer.Option(help="Address the mesh listens on. 0.0.0.0 lets other machines call: set keys first.")] = "127.0.0.1",
    port: Port = 8085,
    gateway_port: Annotated[int, typer.Option(help="First gateway's gRPC port; HTTP is the next one, a second gateway 10 above.")] = 8000,
    embed_port: Annotated[
        int | None, typer.Option(help="First embedding worker's gRPC port, likewise. Default: the first of routing.yaml, or 7997.")
    ] = None,
    rerank_port: Annotated[
        int | None, typer.Option(help="First reranking worker's gRPC port, likewise. Default: the first of routing.yaml, or 9002.")
    ] = None,
    admin_port: Annotated[int, typer.Option(help="Envoy's admin interface, on loopback only.")] = 9901,
    tls: Annotated[
        bool, typer.Option("--tls", help="Speak TLS to callers and between the processes, by certificates that are made now.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Return when the mesh answers; it goes on in the background.")] = False,
) -> None:
    """Start the whole mesh on this machine.

    It runs until Ctrl-C. Models that are not here are fetched first, and everything is checked before anything is started. A
    process that dies is started again; nothing is left behind at the end.
    """
    from quadrate.cli import up as command  # noqa: PLC0415
    from quadrate.cli.assemble import Options  # noqa: PLC0415

    options = Options(
        config=_config(config),
        models=tuple(model or ()),
        precision=precision,
        gateways=gateways,
        embed_workers=embed_workers,
        rerank_workers=rerank_workers,
        host=host,
        port=port,
        gateway_port=gateway_port,
        embed_port=embed_port,
        rerank_port=rerank_port,
        admin_port=admin_port,
        tls=tls,
    )
    folder = command.prepare(options)
    if detach:
        raise typer.Exit(command.detach(folder))
    command.run(folder)


@app.command()
def down(*, port: Port = 8085) -> None:
    """Stop the mesh and wait until it has gone."""
    from quadrate.cli import watch  # noqa: PLC0415

    raise typer.Exit(watch.down(port))


@app.command()
def status(*, port: Port = 8085, as_json: AsJson = False) -> None:
    """Show each process of the mesh and its state.

    The exit code is 0 if all serve, 1 if something does not, 3 if no mesh runs on the port.
    """
    from quadrate.cli import watch  # noqa: PLC0415

    raise typer.Exit(watch.status(port, as_json=as_json))


@app.command()
def logs(
    process: Annotated[str | None, typer.Argument(help="One process, such as gateway. Default: all.")] = None,
    *,
    port: Port = 8085,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on with what comes, until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("-n", "--lines", help="How many of the last lines of each process.", min=0)] = 20,
) -> None:
    """Print the logs of the mesh's processes.

    They are JSON, one line a request, and stay after the mesh has stopped.
    """
    from quadrate.cli import watch  # noqa: PLC0415

    raise typer.Exit(watch.logs(port, process, lines=lines, follow=follow))


@app.command()
def embed(  # noqa: PLR0913 - the flags
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT...]", help="What to embed; `-` reads stdin, a text a line.")] = None,
    *,
    model: Annotated[str, typer.Option(help="Alias or served name.")] = "minilm",
    role: Annotated[Role | None, typer.Option(help="What the texts are for, where the model tells queries from documents.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Put before each text, as it stands.")] = None,
    prompt_name: Annotated[str | None, typer.Option(help="One of the model's prompts by name.")] = None,
    instruction: Annotated[str | None, typer.Option(help="What is looked for, for models whose queries carry an instruction.")] = None,
    output: Annotated[list[str] | None, typer.Option(help="dense, sparse or multi_vector; may be repeated. Default: dense.")] = None,
    value_type: Annotated[ValueType | None, typer.Option(help="Number format of vectors. Default: float32.")] = None,
    dimensions: Annotated[int | None, typer.Option(help="Cut vectors to this width, where the model is trained for it.", min=1)] = None,
    normalize: Annotated[
        bool | None, typer.Option("--normalize/--raw", help="Vectors of length one, or as they come. Default: as the model's card says.")
    ] = None,
    truncation: Annotated[
        Truncation | None, typer.Option(help="What happens to a text that is too long. Default: as the model's card says.")
    ] = None,
    url: Url = "localhost:8085",
    key: Key = None,
    ca: Ca = None,
    client_cert: ClientCert = None,
    as_json: AsJson = False,
) -> None:
    """Embed texts and print the vectors."""
    from quadrate.cli import calls  # noqa: PLC0415
    from quadrate.client.requests import Choices  # noqa: PLC0415

    choices = Choices(
        role=role,
        prompt=prompt,
        prompt_name=prompt_name,
        instruction=instruction,
        truncation=truncation,
        outputs=cast("list[Form]", output or []),
        value_type=value_type,
        dimensions=dimensions,
        normalize=normalize,
    )
    raise typer.Exit(calls.embed(_door(url, key, ca, client_cert), texts or [], model=model, choices=choices, as_json=as_json))


@app.command()
def rerank(  # noqa: PLR0913 - one flag each
    query: Annotated[str, typer.Argument(help="The question.")],
    documents: Annotated[
        list[str] | None, typer.Argument(metavar="[DOCUMENT...]", help="The texts to order; `-` reads stdin, a text a line.")
    ] = None,
    *,
    model: Annotated[str, typer.Option(help="Alias or served name.")] = "minilm-rerank",
    top_n: Annotated[int | None, typer.Option(help="Only the best so many.", min=1)] = None,
    truncation: Annotated[
        Truncation | None, typer.Option(help="What happens to a document that is too long. Default: as the model's card says.")
    ] = None,
    max_tokens_per_doc: Annotated[int | None, typer.Option(help="Cut each document to so many tokens.", min=1)] = None,
    raw_scores: Annotated[bool, typer.Option("--raw-scores", help="Print the model's raw scores, without its activation.")] = False,
    instruction: Annotated[str | None, typer.Option(help="What relevance means, for models that take an instruction.")] = None,
    url: Url = "localhost:8085",
    key: Key = None,
    ca: Ca = None,
    client_cert: ClientCert = None,
    as_json: AsJson = False,
) -> None:
    """Order documents by how well they answer."""
    from quadrate.cli import calls  # noqa: PLC0415

    raise typer.Exit(
        calls.rerank(
            _door(url, key, ca, client_cert),
            query,
            documents or [],
            model=model,
            top_n=top_n,
            truncation=truncation,
            max_tokens_per_doc=max_tokens_per_doc,
            raw_scores=raw_scores,
            instruction=instruction,
            as_json=as_json,
        )
    )


@app.command()
def smoke(
    url: Annotated[str, typer.Argument(help="Address of a mesh, such as http://localhost:8085.")],
    *,
    key: Key = None,
    ca: Ca = None,
    client_cert: ClientCert = None,
    as_json: AsJson = False,
) -> None:
    """Try a mesh: health, models, embedding, rerank.

    It says what is good and what is not; the exit code is 0 only if all is good.
    """
    from quadrate.cli import smoke as command  # noqa: PLC0415

    raise typer.Exit(command.run(url, key, tls=_tls(ca, client_cert), as_json=as_json))


@app.command()
def usage(
    *,
    gateway: Annotated[
        list[str] | None,
        typer.Option(
            "--gateway",
            metavar="URL",
            help="HTTP address of a gateway elsewhere. Repeat it where gateways share no Redis. Default: those of the mesh on --port.",
        ),
    ] = None,
    port: Annotated[int | None, typer.Option("--port", help="The mesh's port on this machine. Default: 8085.", min=1, max=65535)] = None,
    day: Annotated[
        str | None, typer.Option("--day", metavar="YYYY-MM-DD", help="Which day, UTC. Default: today, with what is used of every limit.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show who used what: requests and tokens of each caller and model, and what is used of their limits."""
    from quadrate.cli import usage as command  # noqa: PLC0415

    raise typer.Exit(command.run(gateway or [], day, port=port, as_json=as_json))


@app.command()
def check(*, as_json: AsJson = False) -> None:
    """Show what this machine has for a worker: processor, memory, engines, GPUs with their slices and links."""
    from quadrate.cli import hardware  # noqa: PLC0415

    raise typer.Exit(hardware.run(as_json=as_json))


@models_app.command("list")
def models_list(
    *,
    config: Config = None,
    worker: LookedAt = None,
    ca: Ca = None,
    client_cert: ClientCert = None,
    as_json: AsJson = False,
) -> None:
    """Show the models that models.yaml describes, and which are here; or with --worker those that workers have loaded."""
    from quadrate.cli import admin, models  # noqa: PLC0415

    raise typer.Exit(
        admin.listed(worker, _tls(ca, client_cert), as_json=as_json) if worker else models.show(_config(config), as_json=as_json)
    )


@models_app.command("show")
def models_show(alias: OneAlias, *, config: Config = None, worker: LookedAt = None, ca: Ca = None, client_cert: ClientCert = None) -> None:
    """Print all that is known of a model, as JSON; or with --worker what a worker serves under this name."""
    from quadrate.cli import admin, models  # noqa: PLC0415

    raise typer.Exit(admin.show(alias, worker, _tls(ca, client_cert)) if worker else models.card(_config(config), alias))


@models_app.command("pull")
def models_pull(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Aliases of models.yaml, or ORG/NAME of the hub; @REVISION chooses.")
    ],
    *,
    config: Config = None,
    update: Annotated[bool, typer.Option("--update", help="Take the newest revision of a model that is locked already.")] = False,
) -> None:
    """Get models into the store, so that workers start without a network, and lock revision and hashes of those of the hub."""
    from quadrate.cli import pull  # noqa: PLC0415

    raise typer.Exit(pull.pull(_config(config), models, update=update))


@models_app.command("verify")
def models_verify(
    aliases: AllAliases = None,
    *,
    config: Config = None,
    precision: Annotated[Precision, typer.Option(help="Class of arithmetic to compare in.")] = "exact",
    make_golden: Annotated[bool, typer.Option("--make-golden", help="Write the golden vectors instead of comparing them.")] = False,
) -> None:
    """Compare models in the store with their hashes and their golden vectors.

    The exit status is 1 if something is wrong, and 3 if nothing is but a model has no golden vectors to compare its answers with.
    """
    from quadrate.cli import models  # noqa: PLC0415

    raise typer.Exit(models.verify(_config(config), aliases or [], make_golden=make_golden, precision=precision))


@models_app.command("load")
def models_load(alias: OneAlias, *, config: Config = None, worker: Workers = None, ca: Ca = None, client_cert: ClientCert = None) -> None:
    """Load a model at a running worker, or load it again after its card, its files or its lock changed.

    The one that answers goes on until the new one has proven itself, and for good if that fails.
    """
    from quadrate.cli import admin  # noqa: PLC0415

    raise typer.Exit(admin.load(_config(config), alias, worker or (), _tls(ca, client_cert)))


@models_app.command("unload")
def models_unload(alias: OneAlias, *, config: Config = None, worker: Workers = None, ca: Ca = None, client_cert: ClientCert = None) -> None:
    """Drop a model at a running worker and give its memory back."""
    from quadrate.cli import admin  # noqa: PLC0415

    raise typer.Exit(admin.unload(_config(config), alias, worker or (), _tls(ca, client_cert)))


@models_app.command("remove")
def models_remove(aliases: Aliases, *, config: Config = None) -> None:
    """Delete models from the store."""
    from quadrate.cli import models  # noqa: PLC0415

    raise typer.Exit(models.remove(_config(config), aliases))


@keys_app.command("new")
def keys_new(
    name: Annotated[str, typer.Argument(help="What its owner is called in logs, metrics and limits.")],
    *,
    model: Annotated[list[str] | None, typer.Option(help="An alias it may call. May be repeated. Default: all.")] = None,
    task: Annotated[Task | None, typer.Option(help="What it may ask for. Default: both.")] = None,
    not_before: Annotated[str | None, typer.Option(help="When it begins to be accepted, as --expires. Default: at once.")] = None,
    expires: Annotated[
        str | None, typer.Option(help="When it ends: 90d, 12h, 2027-01-31 or 2027-01-31T12:00:00Z. Default: never.", show_default=False)
    ] = None,
    rotate: Annotated[bool, typer.Option("--rotate", help="Give the key of this name a new secret, beside the one it has.")] = False,
    overlap: Annotated[str, typer.Option(help="With --rotate: how long the secret before it is still accepted.")] = "7d",
    config: Config = None,
) -> None:
    """Add a key to auth.yaml and print it.

    The file keeps its hash, so it is printed this once. Running gateways read the file again by themselves.
    """
    from quadrate.cli import keys  # noqa: PLC0415

    if rotate:
        if model or task or not_before:
            raise typer.BadParameter("--rotate changes the secret alone: --model, --task and --not-before do not go with it.")
        raise typer.Exit(keys.rotate(_config(config), name, overlap=overlap, expires=expires))
    wish = keys.Wish(name=name, models=tuple(model or ()), tasks=(task,) if task else (), not_before=not_before, expires=expires)
    raise typer.Exit(keys.new(_config(config), wish))


@keys_app.command("list")
def keys_list(*, config: Config = None, as_json: AsJson = False) -> None:
    """Show the keys of auth.yaml: who, in which state, until when, for what. Never the keys themselves."""
    from quadrate.cli import keys  # noqa: PLC0415

    raise typer.Exit(keys.show(_config(config), as_json=as_json))


@keys_app.command("hash")
def keys_hash() -> None:
    """Print the hash of a key that you type in or pipe, for auth.yaml."""
    from quadrate.cli import keys  # noqa: PLC0415

    raise typer.Exit(keys.hashed())


@keys_app.command("revoke")
def keys_revoke(
    which: Annotated[str, typer.Argument(metavar="NAME|DIGITS", help="A key's name, or the first 8 digits of one secret's hash.")],
    *,
    config: Config = None,
) -> None:
    """Take a key, or one of its two secrets, out of auth.yaml."""
    from quadrate.cli import keys  # noqa: PLC0415

    raise typer.Exit(keys.revoke(_config(config), which))


@config_app.command("check")
def config_check(*, config: Config = None, as_json: AsJson = False) -> None:
    """Check a configuration folder as the processes would read it, and let Envoy check its own part."""
    from quadrate.cli import check  # noqa: PLC0415
    from quadrate.cli.assemble import Options  # noqa: PLC0415

    raise typer.Exit(check.run(Options(config=_config(config)), as_json=as_json))


@certs_app.command("make")
def certs_make(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where they go. An authority that is there already signs them.")],
    *,
    host: Annotated[
        list[str] | None, typer.Option("--host", help="One more name or address of the mesh's machines. May be repeated.")
    ] = None,
    days: Annotated[int, typer.Option(help="How long they are valid.", min=1, max=825)] = 90,
) -> None:
    """Make an authority and certificates for edge, gateway, workers and a client; again, to renew them."""
    from quadrate.cli import certs  # noqa: PLC0415

    raise typer.Exit(certs.run_make(folder, host or [], days=days))


@certs_app.command("show")
def certs_show(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Certificates in PEM.")], *, as_json: AsJson = False
) -> None:
    """Show whom certificates are for and how long they are valid.

    The exit code is 1 if one has expired or will within two weeks.
    """
    from quadrate.cli import certs  # noqa: PLC0415

    raise typer.Exit(certs.run_show(files, as_json=as_json))


def run() -> None:
    """Run the command line; an error that was foreseen is one sentence on stderr and exit code 1."""
    try:
        app()
    except (ConfigError, StoreError, QuadrateError) as exc:
        red = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
        text = f"quadrate: {exc}"
        print(f"\033[31m{text}\033[0m" if red else text, file=sys.stderr)
        sys.exit(1)


def _config(given: Path | None) -> Path:
    return (given or shipped("configs")).expanduser().absolute()


def _tls(ca: Path | None, identity: tuple[Path, Path] | None) -> ClientTls:
    from quadrate.config.tls import ClientTls, KeyPair  # noqa: PLC0415

    return ClientTls(ca, None if identity is None else KeyPair(*identity))


def _door(url: str, key: str | None, ca: Path | None, identity: tuple[Path, Path] | None) -> Door:
    from quadrate.cli.calls import Door  # noqa: PLC0415

    return Door(url, key, ca, identity)
