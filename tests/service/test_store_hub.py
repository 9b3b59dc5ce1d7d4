"""The model store against a hub on this machine, spoken to by the real huggingface_hub client in a process of its own."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from quadrate.cli.models import UNVERIFIED
from tests.service.hub_server import COMMIT, LATER, Hub

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REPOSITORY = "stars/tiny"
FILES = {
    "config.json": b'{"architectures": ["BertModel"], "model_type": "bert"}',
    "tokenizer.json": b'{"version": "1.0"}',
    "model.safetensors": bytes(range(256)) * 4096 * 12,  # 12 MiB: more than the client reads at once
    "1_Pooling/config.json": b'{"pooling_mode_mean_tokens": true}',
    "README.md": b"# Tiny",
    "pytorch_model.bin": b"a pickle",
}
NEEDED = {"config.json", "tokenizer.json", "model.safetensors", "1_Pooling/config.json"}


@pytest.fixture
def hub() -> Iterator[Hub]:
    """Run a hub with one small model."""
    with Hub(REPOSITORY, dict(FILES)) as running:
        yield running


def _card(*, hashes: bool = False, **changes: Any) -> dict[str, Any]:
    card: dict[str, Any] = {
        "served_name": REPOSITORY,
        "task": "embed",
        "source": {"type": "hub", "repository": REPOSITORY, "revision": COMMIT},
    }
    if hashes:
        card["files"] = {name: hashlib.sha256(FILES[name]).hexdigest() for name in NEEDED}
    return card | changes


def _unlocked() -> dict[str, Any]:
    return _card(source={"type": "hub", "repository": REPOSITORY})


class Puller:
    """`quadrate models pull tiny` as a user runs it, with folders of its own."""

    def __init__(self, folder: Path, hub: Hub) -> None:
        self.folder = folder
        self.config = folder / "configs"
        self.store = folder / "store"
        self.cache = folder / "hf" / "hub"
        self.config.mkdir()
        hidden = {"HF_TOKEN", "HF_HUB_CACHE", "TRANSFORMERS_CACHE", "HF_HUB_OFFLINE", "QUADRATE_OFFLINE"}
        self.environment = {name: value for name, value in os.environ.items() if name not in hidden}
        self.environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "QUADRATE_MODEL_STORE": str(self.store)}

    def describe(self, card: dict[str, Any]) -> None:
        """Write models.yaml."""
        (self.config / "models.yaml").write_text(yaml.safe_dump({"models": {"tiny": card}}))

    def command(self, verb: str = "pull", *flags: str, model: str = "tiny") -> list[str]:
        """Return the command line."""
        return [sys.executable, "-m", "quadrate.cli", "models", verb, model, "--config", str(self.config), *flags]

    def run(self, verb: str = "pull", *flags: str, model: str = "tiny", **environment: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        return subprocess.run(
            self.command(verb, *flags, model=model),
            env=self.environment | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def take(self, folder: Path, name: str) -> None:
        """Have the `store`, or the client's `hf`, of somebody who has pulled the model."""
        shutil.copytree(folder / name, self.folder / name, symlinks=True)

    @property
    def model(self) -> Path:
        """Where the model stands in the store."""
        return self.store / "stars--tiny" / COMMIT


@pytest.fixture
def puller(tmp_path: Path, hub: Hub) -> Puller:
    """Give a user whose catalogue names the model with its hashes."""
    made = Puller(tmp_path, hub)
    made.describe(_card(hashes=True))
    return made


@pytest.fixture(scope="module")
def pulled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of somebody who has pulled the model at what the main branch is."""
    folder = tmp_path_factory.mktemp("pulled")
    with Hub(REPOSITORY, dict(FILES)) as hub:
        puller = Puller(folder, hub)
        puller.describe(_unlocked())
        done = puller.run()
    assert done.returncode == 0, done.stderr
    return folder


def _assert_whole(model: Path) -> None:
    found = {path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()}
    assert found == NEEDED | {".quadrate.json"}
    for name in NEEDED:
        assert (model / name).read_bytes() == FILES[name]
        assert not (model / name).is_symlink()


def test_pull_brings_the_files_that_serving_needs_and_no_pickle(puller: Puller) -> None:
    """Files arrive flat, as real files, and are what the card says; what serving does not need is not fetched."""
    done = puller.run()
    assert done.returncode == 0, done.stderr
    assert COMMIT in done.stdout
    _assert_whole(puller.model)


def test_pull_without_hashes_in_the_card_takes_the_hubs(puller: Puller) -> None:
    """A card without hashes gets what serving needs, checked against what the hub itself states."""
    puller.describe(_card())
    done = puller.run()
    assert done.returncode == 0, done.stderr
    _assert_whole(puller.model)


def test_a_broken_connection_is_resumed_where_it_broke(puller: Puller, hub: Hub) -> None:
    """The rest of a file is asked for by Range, and the file is whole."""
    hub.cut_after["model.safetensors"] = 11 * 1024 * 1024
    done = puller.run()
    assert done.returncode == 0, done.stderr
    _assert_whole(puller.model)
    first, second = hub.downloads("model.safetensors")
    assert first is None
    assert second is not None
    assert int(second.removeprefix("bytes=").removesuffix("-")) >= 10 * 1024 * 1024


def test_finished_files_are_not_fetched_again_after_a_failure(puller: Puller, hub: Hub) -> None:
    """A pull that failed half way goes on with what is missing."""
    safetensors = hub.files.pop("tokenizer.json")
    failed = puller.run()
    assert failed.returncode == 1
    assert "lacks a file that its card names" in failed.stderr
    assert not puller.model.exists()
    hub.files["tokenizer.json"] = safetensors
    assert puller.run().returncode == 0
    assert len(hub.downloads("model.safetensors")) == 1
    _assert_whole(puller.model)


@pytest.mark.parametrize("hashes", [True, False], ids=["card's hashes", "hub's hashes"])
def test_corrupt_bytes_are_refused(puller: Puller, hub: Hub, *, hashes: bool) -> None:
    """Bytes that are not what was announced are fetched once more and then refused; nothing is put in the store."""
    puller.describe(_card(hashes=hashes))
    hub.corrupt.add("model.safetensors")
    done = puller.run()
    assert done.returncode == 1
    assert "model.safetensors of stars/tiny is corrupt: its SHA-256 is" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(hub.downloads("model.safetensors")) == 2
    assert not puller.model.exists()
    hub.corrupt.clear()
    assert puller.run().returncode == 0
    _assert_whole(puller.model)


def test_a_gated_model_says_what_to_do_and_a_token_opens_it(puller: Puller, hub: Hub) -> None:
    """401 names HF_TOKEN; with the token the same command succeeds. The token is not repeated."""
    hub.token = "hf-good"  # noqa: S105 - of the test alone
    done = puller.run(HF_TOKEN="hf-bad")  # noqa: S106
    assert done.returncode == 1
    assert f"stars/tiny is gated: accept its terms at {hub.url}/stars/tiny and set HF_TOKEN" in done.stderr
    assert "hf-bad" not in done.stderr
    assert puller.run(HF_TOKEN="hf-good").returncode == 0  # noqa: S106
    _assert_whole(puller.model)


def test_an_unknown_model_is_named(puller: Puller, hub: Hub) -> None:
    """A repository that is not there is named, with the hub that was asked."""
    hub.repository = "stars/other"
    done = puller.run()
    assert done.returncode == 1
    assert f"tiny: stars/tiny is not at {hub.url}, or is private: check the name" in done.stderr


def test_a_hub_that_is_down_is_named(puller: Puller, hub: Hub) -> None:
    """A hub that answers 503 is named with its status and the way out."""
    hub.gone = True
    done = puller.run()
    assert done.returncode == 1
    assert f"{hub.url} answered 503" in done.stderr
    assert "--model ALIAS=/path/to/folder" in done.stderr


def test_a_hub_that_cannot_be_reached_is_named(puller: Puller) -> None:
    """No connection is one sentence, not a stack trace."""
    done = puller.run(HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 1
    assert "http://127.0.0.1:9 cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("switch", ["HF_HUB_OFFLINE", "QUADRATE_OFFLINE"])
def test_offline_asks_nobody(puller: Puller, pulled: Path, hub: Hub, switch: str) -> None:
    """With the switch nothing is asked of the hub: an absent model is refused, a cached one is served from the cache."""
    refused = puller.run(**{switch: "1"})
    assert refused.returncode == 1
    assert "not on this machine and fetching is switched off: unset HF_HUB_OFFLINE and QUADRATE_OFFLINE" in refused.stderr
    puller.take(pulled, "hf")
    served = puller.run(**{switch: "1"})
    assert served.returncode == 0, served.stderr
    assert hub.requests == []
    _assert_whole(puller.model)


def test_files_come_from_the_cache_that_the_environment_names(puller: Puller, hub: Hub, tmp_path: Path) -> None:
    """HF_HOME holds the cache; TRANSFORMERS_CACHE, where it is set, is used instead."""
    assert puller.run().returncode == 0
    assert (puller.cache / "models--stars--tiny").is_dir()
    shutil.rmtree(puller.model)
    assert puller.run(TRANSFORMERS_CACHE=str(tmp_path / "elsewhere")).returncode == 0
    assert (tmp_path / "elsewhere" / "models--stars--tiny").is_dir()
    assert len(hub.downloads("model.safetensors")) == 2


async def test_two_processes_at_once_fetch_once(puller: Puller, hub: Hub) -> None:
    """Two pulls at the same time both succeed, and each file travels once."""
    processes = [
        await asyncio.create_subprocess_exec(*puller.command(), env=puller.environment, stderr=asyncio.subprocess.PIPE) for _ in range(2)
    ]
    outcomes = [await process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outcomes
    assert len(hub.downloads("model.safetensors")) == 1
    _assert_whole(puller.model)


def test_a_damaged_file_is_found_and_fetched_again(puller: Puller, pulled: Path) -> None:
    """`verify` names the file; the next pull mends it."""
    puller.take(pulled, "store")
    damaged = puller.model / "tokenizer.json"
    damaged.unlink()
    damaged.write_bytes(FILES["tokenizer.json"][::-1])
    found = puller.run("verify")
    assert found.returncode == 1
    assert f"tiny: damaged\n  {damaged} is damaged: its SHA-256 is " in found.stdout
    assert puller.run().returncode == 0
    _assert_whole(puller.model)
    found = puller.run("verify")
    assert found.returncode == UNVERIFIED, "its files are whole, and no golden vectors say what it should answer"
    assert "tiny: not verified\n  its files are what was fetched; it was not run. " in found.stdout


def test_a_damaged_model_can_be_removed(puller: Puller, pulled: Path) -> None:
    """A model whose files are damaged is in the store all the same, and can be removed from it."""
    puller.take(pulled, "store")
    (puller.model / "tokenizer.json").unlink()
    assert "tiny: removed" in puller.run("remove").stdout
    assert not puller.model.exists()


def test_a_stale_partial_download_is_swept_away(puller: Puller) -> None:
    """What a killed process left half done does not get into the model."""
    partial = puller.store / f".stars--tiny-{COMMIT}.partial"
    partial.mkdir(parents=True)
    (partial / "rubbish").write_text("half")
    assert puller.run().returncode == 0
    _assert_whole(puller.model)
    assert not partial.exists()


def test_the_manifest_says_what_was_verified(puller: Puller, pulled: Path) -> None:
    """The revision of a hub model is its commit, and every file stands there with its hash."""
    puller.take(pulled, "store")
    manifest = json.loads((puller.model / ".quadrate.json").read_text())
    assert manifest["revision"] == COMMIT
    assert {name: row["sha256"] for name, row in manifest["files"].items()} == _card(hashes=True)["files"]


def _lock(puller: Puller) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((puller.config / "models.lock.json").read_text())["models"]["tiny"]
    return found


def test_pull_locks_the_newest_revision_and_every_hash(puller: Puller) -> None:
    """A card that names neither revision nor hashes is pulled at what the main branch is now, and both are locked beside models.yaml."""
    puller.describe(_unlocked())
    done = puller.run()
    assert done.returncode == 0, done.stderr
    assert _lock(puller) == {"repository": REPOSITORY, "revision": COMMIT, "files": _card(hashes=True)["files"]}
    _assert_whole(puller.model)
    assert puller.run("verify").returncode == UNVERIFIED


def test_a_lock_stays_until_an_update_is_asked_for(puller: Puller, hub: Hub) -> None:
    """What is locked is pulled again as it was, whatever the branch is now; --update and @REVISION look again."""
    puller.describe(_unlocked())
    assert puller.run().returncode == 0
    hub.commit = LATER
    assert puller.run("remove").returncode == 0
    assert puller.run().returncode == 0
    assert _lock(puller)["revision"] == COMMIT
    hub.files["config.json"] += b"\n"
    assert puller.run("pull", "--update").returncode == 0
    assert _lock(puller)["revision"] == LATER
    assert _lock(puller)["files"]["config.json"] == hashlib.sha256(hub.files["config.json"]).hexdigest()
    named = puller.run("pull", model=f"tiny@{LATER}")
    assert named.returncode == 0, named.stderr


def test_an_unlocked_model_is_never_served_in_silence(puller: Puller) -> None:
    """A worker whose model was never pulled says so and does not start; nothing is resolved behind anybody's back."""
    puller.describe(_unlocked())
    environment = {"EMBED_MODEL_NAME": "tiny", "EMBED_PORT": "0", "EMBED_HTTP_PORT": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "embed_worker"],
        env=puller.environment | environment | {"QUADRATE_MODELS_PATH": str(puller.config / "models.yaml")},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 70
    assert "names no revision and none is locked" in done.stdout
    assert "Run `quadrate models pull tiny` once" in done.stdout


def test_a_lock_can_lie_elsewhere(puller: Puller, tmp_path: Path) -> None:
    """QUADRATE_MODELS_LOCK_PATH names another file; where it cannot be written nothing is fetched."""
    puller.describe(_unlocked())
    elsewhere = tmp_path / "lock.json"
    assert puller.run(QUADRATE_MODELS_LOCK_PATH=str(elsewhere)).returncode == 0
    assert json.loads(elsewhere.read_text())["models"]["tiny"]["revision"] == COMMIT
    assert not (puller.config / "models.lock.json").exists()
    refused = puller.run(QUADRATE_MODELS_LOCK_PATH=str(tmp_path / "nowhere" / "lock.json"))
    assert refused.returncode == 1
    assert "nowhere/lock.json: cannot be written: No such file or directory" in refused.stderr
    assert "name another file by QUADRATE_MODELS_LOCK_PATH" in refused.stderr


def test_a_damaged_lock_is_named(puller: Puller) -> None:
    """A lock that is no JSON is named with the way out."""
    puller.describe(_unlocked())
    (puller.config / "models.lock.json").write_text("{")
    done = puller.run()
    assert done.returncode == 1
    assert "models.lock.json: cannot be used: Invalid JSON" in done.stderr
    assert "run `quadrate models pull` again" in done.stderr


def test_a_card_goes_before_its_lock(puller: Puller) -> None:
    """A revision that the card names is the one that is pulled; another one by @ is refused."""
    done = puller.run("pull", model=f"tiny@{LATER}")
    assert done.returncode == 1
    assert f"its card in models.yaml names the revision {COMMIT}; change it there" in done.stderr


def test_a_model_that_the_catalogue_does_not_have_is_pulled_by_name(puller: Puller) -> None:
    """ORG/NAME finds the card of that repository; without one it is fetched, and how to serve it is said."""
    assert puller.run("pull", model=REPOSITORY).stdout.startswith("tiny: ")
    puller.describe(_card(source={"type": "folder", "path": "/nowhere"}))
    done = puller.run("pull", model=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert f"quadrate up --model tiny={REPOSITORY}@{COMMIT}" in done.stdout
    _assert_whole(puller.model)
    unknown = puller.run("pull", model="nothing")
    assert unknown.returncode == 1
    assert "describes no 'nothing'; it has: tiny. A model of the hub is named ORG/NAME" in unknown.stderr


@pytest.mark.parametrize("switch", ["HF_HUB_OFFLINE", "QUADRATE_OFFLINE"])
def test_offline_a_pull_takes_what_was_cached(puller: Puller, pulled: Path, hub: Hub, switch: str) -> None:
    """With the switch an unlocked model is resolved from the cache of the hub's client, if it is there, and nobody is asked."""
    puller.describe(_unlocked())
    assert "fetching is switched off" in puller.run(**{switch: "1"}).stderr
    puller.take(pulled, "hf")
    hub.requests.clear()
    done = puller.run(**{switch: "1"})
    assert done.returncode == 0, done.stderr
    assert hub.requests == []
    assert _lock(puller)["revision"] == COMMIT
