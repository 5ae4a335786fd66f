"""A model that is read from the Hugging Face Hub: only the files of a run are, and nothing in them runs."""

import json
import pickle
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load, save

from proxygml import Embedder, Gallery, push
from proxygml.errors import RunError, UserError
from proxygml.models import run_files
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
    # A recipe and a history are read from stores of one's own, and not from where anybody publishes.
    files |= {"recipe.yaml": b"!!python/object/apply:os.system ['touch planted']", "metrics.csv": b"x" * 10**6}
    hub.repos["owner/small"] |= files
    hub.asked.clear()
    Embedder.load("hf://owner/small")
    fetched = {re.split("[?]", asked)[0].rpartition("/")[2] for asked in hub.asked if "/resolve/" in asked}
    assert fetched == {"model.json", "model.safetensors"}
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


def described(files: dict[str, bytes], section: str, **values: object) -> None:
    content = json.loads(files["model.json"])
    content[section] |= values
    files["model.json"] = json.dumps(content).encode()


def of_no_tag(files: dict[str, bytes]) -> None:
    described(files, "embedder", backbone="resnet18.a1_in1k@evil")


def far_too_large(files: dict[str, bytes]) -> None:
    described(files, "embedder", backbone="vit_gigantic_patch14_224")


def with_a_far_too_large_head(files: dict[str, bytes]) -> None:
    described(files, "embedder", embedding_size=20_000, head="mlp", hidden_size=50_000)


def with_a_head_beyond_memory(files: dict[str, bytes]) -> None:
    described(files, "embedder", embedding_size=65_536, head="mlp", hidden_size=65_536)


def of_whole_numbers(files: dict[str, bytes]) -> None:
    files["model.safetensors"] = save({name: value.to(torch.int8) for name, value in tensors_of(files).items()})


def of_complex_numbers(files: dict[str, bytes]) -> None:
    files["model.safetensors"] = save({name: value.to(torch.complex64) for name, value in tensors_of(files).items()})


def tensors_of(files: dict[str, bytes]) -> dict[str, torch.Tensor]:
    return load(files["model.safetensors"])


def of_parts(files: dict[str, bytes]) -> None:
    files["model-00001-of-00002.safetensors"] = files.pop("model.safetensors")
    files["model.safetensors.index.json"] = b'{"weight_map": {"head.linear.weight": "../../etc/passwd"}}'


def of_another_format(files: dict[str, bytes]) -> None:
    content = json.loads(files["model.json"])
    files["model.json"] = json.dumps(content | {"format": "\x1b[2J" * 1000}).encode()


def of_the_format_true(files: dict[str, bytes]) -> None:
    files["model.json"] = files["model.json"].replace(b'"format": 1', b'"format": true')


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
        (of_no_tag, "resnet18"),
        (far_too_large, "more numbers than that"),
        (with_a_far_too_large_head, "more numbers than that"),
        (with_a_head_beyond_memory, "are possible"),
        (of_whole_numbers, "is torch.int8, but"),
        (of_complex_numbers, "is torch.complex64, but"),
        (of_parts, "holds no model.safetensors"),
        (of_another_format, "has format"),
        (of_the_format_true, "has format True"),
    ],
)
def test_a_damaged_or_hostile_model_is_refused_with_the_reason(
    hub: Hub, pushed: Path, tmp_path: Path, change: object, message: str
) -> None:
    assert callable(change)
    change(hub.repos["owner/small"])
    with pytest.raises(UserError, match=message) as raised:
        Embedder.load("hf://owner/small")
    assert len(str(raised.value)) < 2000 and "\x1b" not in str(raised.value)
    assert str(tmp_path) not in str(raised.value)  # where its copy lies


def test_files_that_are_far_too_large_are_not_fetched_or_not_read(
    hub: Hub, pushed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(run_files.LARGEST, "model.safetensors", 1000)
    hub.asked.clear()
    with pytest.raises(UserError, match="but such a file has at most 1,000"):
        Embedder.load("hf://owner/small")
    assert not any("/resolve/" in asked for asked in hub.asked)
    monkeypatch.undo()
    # What JSON takes in memory is many times its size.
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=2**20))
    many = json.dumps(json.loads((pushed / "model.json").read_text()) | {"classes": ["x"] * 20_000})
    (pushed / "model.json").write_text(many)
    with pytest.raises(RunError, match="but such a file has at most 43,690"):
        Embedder.load(pushed)


def test_a_repository_that_is_not_there_is_named(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in ("hf://owner/nothing", "hf://owner", "hf://"):
        with pytest.raises(UserError):
            Embedder.load(place)
    message = refused(capsys, "index", "hf://owner/nothing", "--images", str(tmp_path), "--out", str(tmp_path / "g"))
    assert "hf://owner/nothing" in message
