"""Short embeddings: the first numbers of those of a model that was trained for it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from proxygml import Catalog, Embedder, embed, evaluate, index, search
from proxygml.errors import UserError
from proxygml.gallery.build import add_items
from proxygml.gallery.source import Model, Source
from proxygml.serving.limits import Limits
from proxygml.serving.service import Service
from proxygml.training.recipe import Recipe
from proxygml.training.train import train
from proxygml.training.vectors import embed_vectors
from tests.helpers.commands import run as command
from tests.helpers.vector_files import labelled_vectors, write_file

Capture = pytest.CaptureFixture[str]


def test_a_model_trained_with_prefixes_retrieves_with_them(recipe: Recipe, tmp_path: Path) -> None:
    embedder = replace(recipe.embedder, prefixes=(2, 4))
    bold = replace(recipe, embedding_lr=0.03, proxy_lr=0.1, epochs=15, milestones=(12,), validation_classes=0.0)
    bold = replace(bold, embedding_start="random", proxy_start="random", whitening=0.0)
    run = train(replace(bold, embedder=embedder), tmp_path / "with")
    plain = train(bold, tmp_path / "without")
    train_split = Catalog.read(recipe.catalog).split("train")
    scores = []
    for folder in (run, plain):
        found = F.normalize(embed_vectors(Embedder.load(folder.path), train_split)[:, :2], dim=1)
        scores.append(evaluate(found, train_split.labels, nmi=False).map_at_r.value)
    assert scores[0] > scores[1] + 0.05
    assert Embedder.load(run.path).settings.prefixes == (2, 4)
    file = write_file(tmp_path / "f.parquet", *labelled_vectors())
    short = embed(run.path, tmp_path / "short.parquet", vectors=file, dimensions=2)
    whole = Embedder.load(run.path).embed(labelled_vectors()[0])
    expected = F.normalize(whole[:, :2], dim=1)
    assert np.allclose(next(short.blocks())[0], expected, atol=1e-6)
    assert torch.allclose(Embedder.load(run.path).embed(labelled_vectors()[0], dimensions=2), expected)
    gallery = index(run.path, tmp_path / "gallery", vectors=file, dimensions=2)
    again = index(run.path, tmp_path / "again", vectors=tmp_path / "short.parquet")
    ids = np.arange(480)
    assert np.allclose(gallery.vectors(ids), expected, atol=1e-6)
    assert np.allclose(again.vectors(ids), expected, atol=1e-6)
    answers = search(gallery, vectors=file, k=2)
    assert np.allclose(answers.result.scores[:, 0], 1, atol=1e-5)
    assert add_items(gallery, Model.of(run.path), Source.of(vectors=file)) == (0, 480, 0)
    service = Service(gallery, Embedder.load(run.path), Limits())
    found, _ = service._search(whole[0], 3, [], None)
    assert found is not None
    assert found.ids[0].tolist() == gallery.search(expected[:1], 3).ids[0].tolist()
    for dimensions in (0, 9, -1):
        with pytest.raises(UserError, match="must be 1 to 8"):
            embed(run.path, tmp_path / "no.parquet", vectors=file, dimensions=dimensions)


def test_an_evaluation_gives_the_figures_of_each_prefix(recipe: Recipe, tmp_path: Path, capsys: Capture) -> None:
    short = replace(recipe, epochs=1, milestones=(), embedder=replace(recipe.embedder, prefixes=(2, 4)))
    run = train(short, tmp_path / "run")
    command("evaluate", run.path)
    printed, content = capsys.readouterr().out, json.loads(run.evaluation.read_text())
    test = Catalog.read(recipe.catalog).split("test")
    found = embed_vectors(Embedder.load(run.path), test)
    for size in (2, 4):
        expected = evaluate(found[:, :size], test.labels, (1, 2, 4, 8), nmi=False)
        figures = content["prefixes"][str(size)]
        assert figures["recall"]["1"]["value"] == expected.recall[1].value
        assert figures["map_at_r"]["low"] == expected.map_at_r.low
        assert f"by the first {size} numbers: Recall@1 {100 * expected.recall[1].value:.1f}" in printed
    table = run.report.read_text().split("Shorter embeddings", 1)[1].split("</table>")[0]
    assert [f"<td>{size}<" in table for size in (2, 4, 8)] == [True] * 3
