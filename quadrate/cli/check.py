"""`quadrate config check`: is a configuration folder good? The same loaders as the processes', and Envoy's own opinion."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from quadrate.cli import assemble, preflight
from quadrate.cli.plan import Folder
from quadrate.config import jwks
from quadrate.config.auth import load_auth
from quadrate.config.gateway import load_gateway_settings
from quadrate.config.loose_ends import loose_ends
from quadrate.config.rate_limits import load_rate_limits
from quadrate.edge import command, render
from quadrate.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from quadrate.cli.assemble import Options
    from quadrate.config.jwt import JwtIssuer


def run(options: Options, *, as_json: bool) -> int:
    """Check every file and the environment, print what each is or what is wrong with it, and return 0 only if all are good."""
    parts: dict[str, Callable[[], str]] = {
        "routing.yaml and models.yaml": lambda: _mesh(options),
        "auth.yaml": lambda: _auth(options.config),
        "rate_limits.yaml": lambda: _limits(options.config),
        "all of them together": lambda: _together(options),
        "environment": lambda: _environment(options),
        "envoy": lambda: _envoy(options),
    }
    outcomes = {name: _outcome(check) for name, check in parts.items()}
    good = all(ok for ok, _ in outcomes.values())
    if as_json:
        rows = [{"part": name, "ok": ok, "said": said} for name, (ok, said) in outcomes.items()]
        print(json.dumps({"folder": str(options.config), "ok": good, "parts": rows}, indent=2))
    else:
        print(f"{options.config}")
        for name, (ok, said) in outcomes.items():
            print(f"{'good' if ok else 'BAD ':4}  {name}: {said}")
    return 0 if good else 1


def _outcome(check: Callable[[], str]) -> tuple[bool, str]:
    try:
        return True, check()
    except (ConfigError, StoreError) as exc:
        return False, str(exc)


def _mesh(options: Options) -> str:
    mesh = assemble.read(options)
    routes = (*mesh.routing.embeddings, *mesh.routing.rerank)
    enabled = [route.model for route in routes if route.enabled]
    return f"{len(enabled)} of {len(routes)} models enabled ({', '.join(enabled)}); served here: {', '.join(mesh.cards) or 'none'}"


def _auth(config: Path) -> str:
    auth = load_auth(config / "auth.yaml")
    anonymous = "served" if auth.allow_anonymous_without_api_keys else "refused"
    tokens = "" if auth.jwt is None else f"; tokens of {auth.jwt.issuer} are accepted, by {_signing_keys(auth.jwt)}"
    return f"{len(auth.api_keys)} keys{tokens}; requests without a key are {anonymous}"


def _signing_keys(issuer: JwtIssuer) -> str:
    """Tell of an issuer's keys: how many a file has; a URL is not asked, since it may be for the gateway's machine alone."""
    if issuer.jwks_path is None:
        return f"the keys at {issuer.source_told}"
    return f"{len(jwks.read(issuer.jwks_path))} keys of {issuer.jwks_path}"


def _limits(config: Path) -> str:
    limits = load_rate_limits(config / "rate_limits.yaml")
    limited = [name for name in ("default", "anonymous") if getattr(limits, name) is not None]
    return f"limits for {', '.join([*limited, f'{len(limits.per_api_key)} named callers'])}"


def _together(options: Options) -> str:
    """Tell what is right in each file and leads nowhere."""
    auth, limits = load_auth(options.config / "auth.yaml"), load_rate_limits(options.config / "rate_limits.yaml")
    return "\n      ".join(loose_ends(assemble.read(options).routing, auth, limits)) or "no loose ends"


def _environment(options: Options) -> str:
    preflight.check_environment(options.precision)
    unknown = load_gateway_settings().unknown_feature_flags
    return f"good, but ROUTER_FEATURE_FLAGS names what is not known: {', '.join(unknown)}" if unknown else "nothing wrong"


def _envoy(options: Options) -> str:
    """Let Envoy read what would be rendered for it."""
    with tempfile.TemporaryDirectory(prefix="quadrate-check-") as scratch:
        config, settings = Path(scratch) / "envoy.yaml", assemble.edge_settings(options, Folder.of(options.port))
        render(config, settings)
        done = subprocess.run([*command(config, settings), "--mode", "validate"], capture_output=True, text=True, check=False, timeout=60)
    if done.returncode != 0:
        raise ConfigError(f"Envoy refuses its configuration: {(done.stderr or done.stdout).strip()}")
    return "accepts its configuration"
