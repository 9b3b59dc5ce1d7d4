"""`quadrate models verify` and `show` over a folder of one's own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from quadrate.cli import models
from quadrate.errors import ConfigError
from quadrate.testing.model_folder import tiny_config, tiny_weights, write_tiny_model

if TYPE_CHECKING:
    from pathlib import Path


def describe(config: Path, folder: Path, **values: str) -> None:
    """Write a catalogue with the model `tiny`."""
    card = {"served_name": "tests/tiny", "task": "embed", "source": {"type": "folder", "path": str(folder)}, **values}
    (config / "models.yaml").write_text(json.dumps({"models": {"tiny": card}}))


def test_golden_vectors_are_made_and_then_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--make-golden writes the file and says what to put into the card; later runs compare, and tell what no longer matches."""
    folder = write_tiny_model(tmp_path / "model")
    describe(tmp_path, folder)
    assert models.verify(tmp_path, ["tiny"], make_golden=True, precision="exact") == 0
    path = tmp_path / "golden" / "tiny.json"
    assert capsys.readouterr().out == (f"tiny: good\n  wrote {path}; name it in the model's card: `golden: golden/tiny.json`\n")
    describe(tmp_path, folder, golden="golden/tiny.json")
    assert models.verify(tmp_path, [], make_golden=False, precision="exact") == 0
    assert capsys.readouterr().out == "tiny: good\n  golden vectors match in precision exact\n"
    write_tiny_model(folder, weights=tiny_weights(tiny_config(), seed=1))
    assert models.verify(tmp_path, [], make_golden=False, precision="exact") == 1
    said = capsys.readouterr().out
    assert said.startswith("tiny: wrong\n")
    assert "is of revision sha256:" in said
    file = json.loads(path.read_text())
    file["revision"] = said.split("the model's files are ")[1].split(". If")[0]
    path.write_text(json.dumps(file))
    assert models.verify(tmp_path, ["tiny"], make_golden=False, precision="exact") == 1
    assert "text 1, dense: the cosine to the golden vector is" in capsys.readouterr().out
    assert models.verify(tmp_path, ["tiny"], make_golden=True, precision="exact") == 0
    assert models.verify(tmp_path, ["tiny"], make_golden=False, precision="exact") == 0


def test_a_model_that_is_not_here_or_cannot_be_read_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder without a model, one that cannot be served, and a name that nobody described are named with the reason."""
    describe(tmp_path, tmp_path / "nowhere")
    assert models.verify(tmp_path, ["tiny"], make_golden=False, precision="exact") == 1
    said = capsys.readouterr().out
    assert "is no folder" in said
    assert "models pull" not in said, "a folder of one's own is nowhere to be fetched from"
    folder = write_tiny_model(tmp_path / "model")
    describe(tmp_path, folder, golden="golden.json")
    assert models.verify(tmp_path, ["tiny"], make_golden=False, precision="exact") == 1
    assert "golden.json: cannot be read" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="describes no 'other'; it has: tiny"):
        models.verify(tmp_path, ["other"], make_golden=False, precision="exact")


def test_a_folder_without_golden_vectors_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing says what a folder's files should be, so they are opened: weights that are cut off are told. Its answers are not verified."""
    folder = write_tiny_model(tmp_path / "model")
    describe(tmp_path, folder)
    assert models.verify(tmp_path, [], make_golden=False, precision="exact") == models.UNVERIFIED
    said = capsys.readouterr().out
    assert said.startswith("tiny: not verified\n  its files can be loaded. Its card names no golden vectors")
    assert "`quadrate models verify tiny --make-golden`" in said
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert models.verify(tmp_path, [], make_golden=False, precision="exact") == 1
    said = capsys.readouterr().out
    assert said.startswith("tiny: wrong\n")
    assert "does not lie whole in the file" in said


def test_a_card_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`show` prints the card with what is known of its files."""
    describe(tmp_path, tmp_path / "model", golden="golden/tiny.json")
    assert models.card(tmp_path, "tiny") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["alias"], shown["source"]) == ("tiny", f"folder {tmp_path / 'model'}")
    assert shown["card"]["golden"] == str(tmp_path / "golden" / "tiny.json")


def test_a_folder_of_ones_own_is_listed_where_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is used where it lies, so the list names it, and says so where it is not there."""
    for there in (False, True):
        folder = write_tiny_model(tmp_path / "model") if there else tmp_path / "model"
        describe(tmp_path, folder)
        assert models.show(tmp_path, as_json=False) == 0
        assert ("not here yet" in capsys.readouterr().out) is not there
        assert models.show(tmp_path, as_json=True) == 0
        assert json.loads(capsys.readouterr().out)["models"][0]["path"] == (str(folder) if there else None)
