"""`quadrate config check`: is a configuration folder good? The same loaders as the processes', and Envoy's own opinion."""

from __future__ import annotations

import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from quadrate.cli import assemble, catalogue, preflight
from quadrate.cli.plan import Folder
from quadrate.config import jwks
from quadrate.config.auth import load_auth
from quadrate.config.gateway import load_gateway_settings
from quadrate.config.loose_ends import loose_ends
from quadrate.config.models import FolderSource
from quadrate.config.rate_limits import load_rate_limits
from quadrate.config.routing import load_routing
from quadrate.edge import command, render
from quadrate.errors import ConfigError, StoreError
from quadrate.runtime import store

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from quadrate.cli.assemble import Mesh, Options
    from quadrate.config.jwt import JwtIssuer
    from quadrate.config.models import ModelCard


@dataclass(frozen=True, slots=True)
class Found:
    """What is said of a part. A `note` is no fault, and yet somebody should read it."""

    said: str
    state: Literal["good", "note", "BAD"] = "good"

    @property
    def ok(self) -> bool:
        """Whether processes would take it."""
        return self.state != "BAD"


def run(options: Options, *, as_json: bool) -> int:
    """Check every file and the environment, print what each is or what is wrong with it, and return 0 only if all are good."""
    files: dict[str, Callable[[], Found]] = {
        "auth.yaml": lambda: _auth(options.config),
        "rate_limits.yaml": lambda: _limits(options.config),
    }
    outcomes = {name: _outcome(check) for name, check in files.items()}
    together = all(found.ok for found in outcomes.values())
    outcomes["routing.yaml and models.yaml"] = _outcome(lambda: _mesh(options) if together else _routes(options))
    outcomes["environment"] = _outcome(lambda: _environment(options))
    if all(found.ok for found in outcomes.values()):  # or what is wrong would be told again
        outcomes["all of them together"] = _outcome(lambda: _together(options))
    outcomes["envoy"] = _outcome(lambda: _envoy(options))
    _show(options.config, outcomes, as_json=as_json)
    return 0 if all(found.ok for found in outcomes.values()) else 1


def _show(config: Path, outcomes: Mapping[str, Found], *, as_json: bool) -> None:
    if as_json:
        rows = [{"part": name, "ok": found.ok, "state": found.state, "said": found.said} for name, found in outcomes.items()]
        print(json.dumps({"folder": str(config), "ok": all(found.ok for found in outcomes.values()), "parts": rows}, indent=2))
        return
    print(f"{config}")
    for name, found in outcomes.items():
        print(f"{found.state:4}  {name}: {found.said}")


def _outcome(check: Callable[[], Found]) -> Found:
    try:
        return check()
    except (ConfigError, StoreError) as exc:
        return Found(str(exc), "BAD")


def _routes(options: Options) -> Found:
    """Look at the files of models by themselves, where those beside them are not good."""
    load_routing(options.config / "routing.yaml")
    catalogue.load(options.config, options.models)
    return Found("each can be read")


def _mesh(options: Options) -> Found:
    mesh = assemble.read(options)
    _stored_models(mesh)
    routes = (*mesh.routing.embeddings, *mesh.routing.rerank)
    enabled = [route.model for route in mesh.routing.enabled]
    return Found(f"{len(enabled)} of {len(routes)} models enabled ({', '.join(enabled)}); served here: {', '.join(mesh.cards) or 'none'}")


def _stored_models(mesh: Mesh) -> None:
    """Hold the cards of the models that are served here against their files, as far as those are here. Raises ConfigError."""
    if preflight.missing_packages():
        return
    problems = []
    for alias, card in mesh.cards.items():
        try:
            _stored_model(card)
        except ConfigError as exc:
            problems.append(f"models.yaml: {alias}: {exc}")
    if problems:
        raise ConfigError("\n".join(problems))


def _stored_model(card: ModelCard) -> None:
    from quadrate.runtime import folder, golden  # noqa: PLC0415 - needs the workers' packages

    stored = store.find(card)
    path = card.source.path if isinstance(card.source, FolderSource) else stored.path if stored is not None else None
    if path is not None:
        folder.read(path, card)
    if card.golden:
        golden.read(Path(card.golden))


def _auth(config: Path) -> Found:
    auth = load_auth(config / "auth.yaml")
    anonymous = "served" if auth.allow_anonymous_without_api_keys else "refused"
    tokens = "" if auth.jwt is None else f"; tokens of {auth.jwt.issuer} are accepted, by {_signing_keys(auth.jwt)}"
    return Found(f"{_counted(len(auth.api_keys), 'key')}{tokens}; requests without a key are {anonymous}")


def _signing_keys(issuer: JwtIssuer) -> str:
    """Tell of an issuer's keys: how many a file has; a URL is not asked, since it may be for the gateway's machine alone."""
    if issuer.jwks_path is None:
        return f"the keys at {issuer.source_told}"
    return f"{_counted(len(jwks.read(issuer.jwks_path)), 'key')} of {issuer.jwks_path}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _limits(config: Path) -> Found:
    limits = load_rate_limits(config / "rate_limits.yaml")
    limited = [name for name in ("default", "anonymous") if getattr(limits, name) is not None]
    return Found(f"limits for {', '.join([*limited, _counted(len(limits.per_api_key), 'named caller')])}")


def _together(options: Options) -> Found:
    """Tell what is right in each file and leads nowhere."""
    auth, limits = load_auth(options.config / "auth.yaml"), load_rate_limits(options.config / "rate_limits.yaml")
    routing, more_names = assemble.read(options).routing, load_gateway_settings().more_names
    more_names.check(routing)
    found = (*loose_ends(routing, auth, limits), *more_names.loose_ends(routing))
    return Found("\n      ".join(found), "note") if found else Found("no loose ends")


def _environment(options: Options) -> Found:
    preflight.check_environment(options.precision)
    unknown = load_gateway_settings().unknown_feature_flags
    return Found(f"ROUTER_FEATURE_FLAGS names what is not known: {', '.join(unknown)}", "note") if unknown else Found("nothing wrong")


def _envoy(options: Options) -> Found:
    """Let Envoy read what would be rendered for it."""
    with tempfile.TemporaryDirectory(prefix="quadrate-check-") as scratch:
        config, settings = Path(scratch) / "envoy.yaml", assemble.edge_settings(options, Folder.of(options.port))
        render(config, settings)
        done = subprocess.run([*command(config, settings), "--mode", "validate"], capture_output=True, text=True, check=False, timeout=60)
    if done.returncode != 0:
        raise ConfigError(f"Envoy refuses its configuration: {(done.stderr or done.stdout).strip()}")
    return Found("accepts its configuration")
