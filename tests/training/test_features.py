"""Features kept on disk, and training on them."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from proxygml import Embedder
from proxygml.data.catalog import Catalog
from proxygml.data.images.settings import ImageSettings
from proxygml.evaluation.metrics import score_queries
from proxygml.models.embedder_settings import EmbedderSettings
from proxygml.models.image_embedder import ImageEmbedder
from proxygml.training.evaluate_run import evaluate_run
from proxygml.training.features import cached_features, embed_catalog
from proxygml.training.processes import make_accelerator, own_slice
from proxygml.training.recipe import Recipe
from tests.helpers.processes import in_processes
from tests.helpers.runs import train


def test_cached_features_train_the_head_alone(
    small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe = replace(small_recipe, backbone_lr=0.0, cache_features=True, epochs=2, batch_norm="frozen")
    run = train(recipe, tmp_path / "run")
    evaluate_run(run)
    cached = sorted((tmp_path / "cache").rglob("*.safetensors"))
    assert len(cached) == 2  # training and test images
    changed = [path.stat().st_mtime_ns for path in cached]
    train(replace(recipe, seed=0, embedding_lr=0.01), tmp_path / "other")
    assert [path.stat().st_mtime_ns for path in cached] == changed, "the same features were computed again"
    train(replace(recipe, seed=1), tmp_path / "another")  # other random weights, other features
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 3
    embeddings = Embedder.load(run.path).embed(Catalog.read(recipe.catalog).split("test").paths)
    scores = score_queries(embeddings, Catalog.read(recipe.catalog).split("test").labels)
    stated = json.loads(run.evaluation.read_text())["recall"]["1"]["value"]
    assert (scores.first_positive < 1).mean() == pytest.approx(stated, abs=0.03)


@pytest.mark.parametrize("changes", [{"mirror": True}, {"output_stride": 8}, {"pooling": "max"}])
def test_features_are_kept_apart_by_how_they_are_computed(
    changes: dict[str, Any], small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images = Catalog.read(small_recipe.catalog).split("test")
    embedder = ImageEmbedder(EmbedderSettings("mobilenetv2_035", "none"), ImageSettings(size=64, resize=64))
    other = ImageEmbedder(replace(embedder.settings, **changes), embedder.images)
    other.load_state_dict(embedder.state_dict())
    accelerator = make_accelerator(small_recipe)
    usual, changed = (cached_features(each, images, accelerator, workers=0) for each in (embedder, other))
    assert not torch.allclose(usual, changed, atol=1e-6)
    plain = cached_features(other, images, accelerator, workers=0, as_trained=True)
    assert torch.equal(plain, usual) == ("pooling" not in changes)


def parts(recipe: dict[str, Any], cache: str) -> dict[str, Any]:
    """What each of several processes computes of five test images, or reads from the cache."""
    size = dist.get_world_size()
    os.environ |= {"XDG_CACHE_HOME": cache, "ACCELERATE_USE_CPU": "true", "WORLD_SIZE": str(size)}
    os.environ |= {"RANK": str(dist.get_rank()), "LOCAL_RANK": str(dist.get_rank()), "LOCAL_WORLD_SIZE": str(size)}
    settings = Recipe(**recipe)
    images = Catalog.read(settings.catalog).split("test")
    images = images.with_table(images.table[:5])
    torch.manual_seed(0)
    embedder = ImageEmbedder(EmbedderSettings("mobilenetv2_035", "none"), ImageSettings(size=64, resize=64))
    accelerator = make_accelerator(settings)
    assert accelerator.num_processes == size
    rows = own_slice(5, accelerator)
    return {
        "rows": [rows.start, rows.stop],
        "computed": cached_features(embedder, images, accelerator, workers=0, own_part=True),
        "read": cached_features(embedder, images, accelerator, workers=0, own_part=True),
        "whole": cached_features(embedder, images, accelerator, workers=0),
        "embedded": embed_catalog(embedder, images, accelerator, workers=0, cached=False),
    }


@pytest.mark.parametrize("processes", [2, 6])  # with six, one has no image
def test_embeddings_and_features_stay_where_they_were_computed(
    small_recipe: Recipe, tmp_path: Path, processes: int
) -> None:
    given = {"catalog": small_recipe.catalog}
    found = in_processes(processes, parts, tmp_path / "several", given, str(tmp_path / "cache"))
    (one,) = in_processes(1, parts, tmp_path / "one", given, str(tmp_path / "other"))
    assert one["rows"] == [0, 5]
    for part in found:
        rows = slice(*part["rows"])
        assert torch.equal(part["computed"], part["read"])
        assert torch.equal(part["whole"], found[0]["whole"])
        for name in ("computed", "embedded"):
            assert len(part[name]) == rows.stop - rows.start
            assert torch.allclose(part[name], one[name][rows], atol=1e-5)
    (written,) = (tmp_path / "cache").rglob("*.safetensors")
    (expected,) = (tmp_path / "other").rglob("*.safetensors")
    assert written.name == expected.name
    assert written.stat().st_size == expected.stat().st_size
