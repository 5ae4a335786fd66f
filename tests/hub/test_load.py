"""A model that is read from the Hugging Face Hub: only the files of a run are, and nothing in them runs."""

import json
import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from proxygml import Embedder, Gallery, push
from proxygml.errors import UserError
from proxygml.training.recipe import Recipe
from tests.helpers.commands import refused, run
from tests.helpers.hub_server import Hub
from tests.helpers.models import untrained

pytest.importorskip("huggingface_hub", reason="the extra hub is not installed")


class Planted:
    """What makes a file as soon as it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.path,))


@pytest.fixture
def pushed(hub: Hub, tmp_path: Path, small_recipe: Recipe) -> Path:
    folder = untrained(tmp_path / "run")
    small_recipe.write(folder / "recipe.yaml")
    push(folder, "owner/small")
    return folder


def test_a_model_on_the_hub_embeds_as_the_one_that_was_sent(
    hub: Hub, pushed: Path, small_catalog: Path, tmp_path: Path
) -> None:
    paths = sorted(small_catalog.parent.glob("*.png"))[:5]
    embeddings = Embedder.load("hf://owner/small").embed(paths)
    assert torch.equal(embeddings, Embedder.load(pushed).embed(paths))
    run("index", "hf://owner/small", "--catalog", str(small_catalog), "--out", str(tmp_path / "gallery"))
    assert len(Gallery.load(tmp_path / "gallery")) == 144
    # It is fetched once.
    assert sum("GET" in asked and "resolve" in asked and "model.safetensors" in asked for asked in hub.asked) == 1


def test_of_a_hostile_repository_nothing_but_the_two_files_is_read(hub: Hub, pushed: Path, tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    code = f"open({str(planted)!r}, 'w')".encode()
    files = {"pytorch_model.bin": pickle.dumps(Planted(planted)), "model.pkl": pickle.dumps(Planted(planted))}
    files |= {"modeling.py": code, "__init__.py": code, "../../outside": b"x", "config.json": b'{"auto_map": {}}'}
    hub.repos["owner/small"] |= files
    hub.asked.clear()
    Embedder.load("hf://owner/small")
    fetched = {re.split("[?]", asked)[0].rpartition("/")[2] for asked in hub.asked if "/resolve/" in asked}
    assert fetched <= {"model.json", "model.safetensors", "recipe.yaml", "metrics.csv"}
    assert not planted.exists() and not (tmp_path / "outside").exists()


def wrong_shapes(files: dict[str, bytes]) -> None:
    tensors = load(files["model.safetensors"])
    name = next(name for name, tensor in tensors.items() if tensor.dim() == 2)
    files["model.safetensors"] = save(tensors | {name: torch.zeros(3, 5)})


def pickled(files: dict[str, bytes]) -> None:
    files["model.safetensors"] = pickle.dumps({"weight": [1.0]})


def pointer(files: dict[str, bytes]) -> None:
    files["model.safetensors"] = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"


def not_a_number(files: dict[str, bytes]) -> None:
    tensors = load(files["model.safetensors"])
    floats = {name: value * torch.nan for name, value in tensors.items() if value.is_floating_point()}
    files["model.safetensors"] = save(tensors | floats)


def of_no_backbone(files: dict[str, bytes]) -> None:
    described = json.loads(files["model.json"])
    described["embedder"]["backbone"] = "os.system"
    files["model.json"] = json.dumps(described).encode()


def without_a_model(files: dict[str, bytes]) -> None:
    del files["model.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (wrong_shapes, "does not fit its model.json"),
        (pickled, "cannot be read"),
        (pointer, "cannot be read"),
        (not_a_number, "NaN"),
        (of_no_backbone, "os.system"),
        (without_a_model, "holds no model.json"),
    ],
)
def test_a_damaged_or_hostile_model_is_refused_with_the_reason(
    hub: Hub, pushed: Path, change: object, message: str
) -> None:
    assert callable(change)
    change(hub.repos["owner/small"])
    with pytest.raises(UserError, match=message):
        Embedder.load("hf://owner/small")


def test_a_repository_that_is_not_there_is_named(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in ("hf://owner/nothing", "hf://owner", "hf://"):
        with pytest.raises(UserError):
            Embedder.load(place)
    message = refused(capsys, "index", "hf://owner/nothing", "--images", str(tmp_path), "--out", str(tmp_path / "g"))
    assert "hf://owner/nothing" in message
