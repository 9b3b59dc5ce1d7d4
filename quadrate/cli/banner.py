"""What `up` prints when the mesh answers: what runs where, and four ways to call it."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from quadrate.cli.assemble import edge_settings

if TYPE_CHECKING:
    from quadrate.cli.assemble import Mesh
    from quadrate.cli.plan import Folder, Plan
    from quadrate.config.edge import EdgeSettings

_TEXT = "Stars are born in cold clouds of gas."
_QUESTION = "Where are stars born?"
_OTHER_TEXT = "Bread rises because yeast makes gas."
WITH_TERMINAL = "Ctrl-C, or "
"""The way to stop that a mesh in the background does not have."""


def text(mesh: Mesh, plan: Plan, folder: Folder) -> str:
    """Return the whole banner, coloured if stdout is a terminal."""
    console = Console(file=io.StringIO(), force_terminal=sys.stdout.isatty(), width=None if sys.stdout.isatty() else 120, highlight=False)
    settings = edge_settings(mesh.options, folder)
    scheme = "https" if settings.tls else "http"
    authorities = _authorities(mesh, settings, folder)
    console.print(f"\n[bold]Quadrate answers on {scheme}://{plan.address}[/]\n")
    console.print(_table(plan))
    for title, call in _calls(mesh, f"{scheme}://{plan.address}", authorities):
        console.print(f"\n[bold]{title}[/]")
        console.print(call, markup=False, soft_wrap=True)
    if settings.tls is not None and authorities is None:
        flags = "--cacert FILE (curl), -cacert FILE (grpcurl), --ca FILE (quadrate)"
        told = f"\nWhere {settings.tls.pair.certificate} is of an authority that is not trusted here: {flags}."
        console.print(told, markup=False, soft_wrap=True)
    flag = _port_flag(mesh)
    console.print(f"\nLogs: {folder.logs} ({_program()} logs -f{flag}). To stop: {WITH_TERMINAL}{_program()} down{flag}.", soft_wrap=True)
    if mesh.options.host not in {"127.0.0.1", "localhost", "::1"} and not mesh.needs_key:
        console.print("[yellow]Whoever reaches this port is served, and others can. Make a key (quadrate keys new NAME), and set[/]")
        console.print("[yellow]allow_anonymous_without_api_keys: false in auth.yaml.[/]")
    output = console.file
    assert isinstance(output, io.StringIO)  # noqa: S101 - made above
    return output.getvalue()


def command_name() -> str:
    """Return how this command is called from here: by its name if the PATH has it, otherwise by the way it was called now."""
    program = Path(sys.argv[0]).absolute()
    if program.name != "quadrate":
        return "python -m quadrate.cli"
    if shutil.which("quadrate") is not None:
        return "quadrate"
    return str(program.relative_to(Path.cwd())) if program.is_relative_to(Path.cwd()) else str(program)


def _authorities(mesh: Mesh, settings: EdgeSettings, folder: Folder) -> Path | None:
    """Return the file by which callers trust the edge: what `quadrate certs` lays beside a certificate. None: there is none, or no TLS."""
    if mesh.options.tls:
        return folder.certificates / "ca.pem"
    beside = settings.tls.pair.certificate.absolute().with_name("ca.pem") if settings.tls is not None else None
    return beside if beside is not None and beside.is_file() else None


def _table(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("process", "address", "metrics and health", "models"):
        table.add_column(column)
    for process in reversed(plan.processes):
        http = process.ready.removesuffix("/ready").removesuffix("/health")
        table.add_row(process.name, process.address, http, ", ".join(process.models))
    return table


def _program() -> str:
    """Return what calls this command from where `up` was called: its path, where the environment is not activated."""
    called = sys.argv[0]
    return called if called.endswith("/quadrate") and shutil.which("quadrate") is None else "quadrate"


def _port_flag(mesh: Mesh) -> str:
    return "" if mesh.options.port == 8085 else f" --port {mesh.options.port}"  # noqa: PLR2004 - the default of up


def _calls(mesh: Mesh, url: str, authorities: Path | None) -> list[tuple[str, str]]:
    """Return title and text of each call, with models that are served, a key where one is needed, and whom to trust over TLS."""
    url = url.replace("0.0.0.0", "127.0.0.1")  # noqa: S104 - shown, not listened on
    calls = []
    if mesh.embed:
        calls += _embedding_calls(mesh, url, authorities)
    if mesh.rerank:
        model = mesh.rerank[0]
        body = f'{{"model":"{model}","query":"{_QUESTION}","documents":[{{"text":"{_TEXT}"}},{{"text":"{_OTHER_TEXT}"}}]}}'
        scheme, _, address = url.partition("://")
        trust = f"-cacert {authorities} " if authorities else ("" if scheme == "https" else "-plaintext ")
        ca = f" --ca {authorities}" if authorities else ""
        where = url if scheme == "https" else address
        calls += [
            ("grpcurl", f"grpcurl {trust}{_header(mesh.needs_key)}-d '{body}' {address} quadrate.v1.RerankService/Rerank"),
            ("quadrate", f'{_program()} rerank --url {where}{ca} --model {model} "{_QUESTION}" "{_TEXT}" "{_OTHER_TEXT}"'),
        ]
    return calls


def _embedding_calls(mesh: Mesh, url: str, authorities: Path | None) -> list[tuple[str, str]]:
    model, needs_key = mesh.embed[0], mesh.needs_key
    trust = f"--cacert {authorities} " if authorities else ""
    curl = f'curl {trust}{url}/v1/embeddings {_header(needs_key)}-d \'{{"model":"{model}","input":"{_TEXT}"}}\''
    # The SDK insists on a key. Where a wrong one is refused and none will do, an empty header says that there is none.
    none = '"none"' if mesh.auth.accept_any_key_as_anonymous else '"none", default_headers={"Authorization": ""}'
    key = 'os.environ["QUADRATE_API_KEY"]' if needs_key else none
    sdk = (
        f"{'import os; ' if needs_key else ''}from openai import OpenAI\n"
        f'client = OpenAI(base_url="{url}/v1", api_key={key})\n'
        f'vector = client.embeddings.create(model="{model}", input="{_TEXT}").data[0].embedding'
    )
    return [("curl", curl), (f"OpenAI SDK (Python){f', after export SSL_CERT_FILE={authorities}' if authorities else ''}", sdk)]


def _header(needs_key: bool) -> str:  # noqa: FBT001 - two callers, above
    return '-H "authorization: Bearer $QUADRATE_API_KEY" ' if needs_key else ""
