"""A head on vectors: what it starts from, what it learns, what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from proxygml import Catalog, Embedder, evaluate, evaluate_run
from proxygml.comparison.store import Inputs
from proxygml.data.preparing.prepare import prepare
from proxygml.errors import CatalogError, RecipeError, RunError, UserError
from proxygml.models.embedder_settings import EmbedderSettings, HeadKind
from proxygml.models.vector_embedder import VectorEmbedder
from proxygml.reports.map_section import item_names
from proxygml.training.history import read_history
from proxygml.training.initialization import check_num_features
from proxygml.training.loss_settings import LossSettings
from proxygml.training.recipe import Recipe
from proxygml.training.run_folder import RunFolder
from proxygml.training.train import train
from proxygml.training.trainer import Training, fit, resume
from proxygml.training.vectors import embed_vectors
from tests.helpers.runs import assert_same_run
from tests.helpers.vector_files import SIZE, labelled_vectors, write_file


def given(catalog: Catalog) -> np.ndarray:
    assert catalog.vectors is not None
    return catalog.vectors.mapped()[catalog.vector_rows]


def test_a_trained_head_retrieves_unseen_classes_better_than_the_vectors_as_they_came(run: RunFolder) -> None:
    after = evaluate_run(run, before=True, all_splits=True)
    assert after is not None
    content = json.loads(run.evaluation.read_text())
    test = Catalog.read(run.read_recipe().catalog).split("test")
    raw = evaluate(torch.from_numpy(given(test)), test.labels, (1, 2, 4, 8))
    assert content["before_training"]["map_at_r"]["value"] == pytest.approx(raw.map_at_r.value, abs=1e-9)
    assert after.map_at_r.value > raw.map_at_r.value + 0.1
    page = run.report.read_text()
    assert "Each of the 240 test vectors searched all the others" in page
    assert "<h2>A map of the vectors</h2>" in page
    assert "<p>480 vectors, laid out" in page  # 240 of the test, as many of the other splits
    assert "row " not in page.split("Where it fails")[1].split("</table>")[0]  # named by their own ids
    assert not (run.path / "figures" / "retrieval_random.png").exists()


def test_a_saved_head_embeds_as_it_did(run: RunFolder) -> None:
    embedder = Embedder.load(run.path)
    assert isinstance(embedder, VectorEmbedder)
    vectors, _ = labelled_vectors()
    found = embedder.embed(vectors)
    assert found.shape == (480, 8)
    assert torch.allclose(found.norm(dim=1), torch.ones(480), atol=1e-5)
    assert torch.allclose(found, embedder.embed(torch.from_numpy(7 * vectors)), atol=1e-5)  # of any length
    assert torch.allclose(found, embedder.embed(vectors.astype(np.float64), batch_size=7), atol=1e-5)
    test = Catalog.read(run.read_recipe().catalog).split("test")
    assert torch.allclose(embed_vectors(embedder, test), embedder.embed(given(test)), atol=1e-6)
    assert embedder.embed(vectors[:0]).shape == (0, 8)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.ones((3, SIZE + 1), np.float32), "have 13 numbers, but this model takes 12"),
        (np.ones(SIZE, np.float32), "takes vectors"),
        (np.ones((3, SIZE), np.int64), "takes vectors"),
        (["a.jpg"], "takes vectors"),
        (np.full((3, SIZE), np.nan), r"vectors\[0\] holds a NaN"),
        (np.vstack([np.ones((2, SIZE)), np.zeros((1, SIZE))]), r"vectors\[2\] holds nothing but zeros"),
    ],
)
def test_what_is_no_vector_of_the_right_size_is_named(vectors: object, message: str, run: RunFolder) -> None:
    with pytest.raises(UserError, match=message):
        Embedder.load(run.path).embed(vectors)  # type: ignore[arg-type]


@pytest.mark.parametrize("head", ["residual", "mlp"])
def test_before_training_a_head_of_full_size_ranks_as_the_vectors_do(
    head: HeadKind, recipe: Recipe, tmp_path: Path
) -> None:
    embedder = replace(recipe.embedder, embedding_size=SIZE, head=head)
    start = train(
        replace(recipe, embedder=embedder, embedding_start="features", whitening=0.0, epochs=0), tmp_path / "run"
    )
    vectors, _ = labelled_vectors()
    unit = F.normalize(torch.from_numpy(vectors), dim=1)
    found = Embedder.load(start.path).embed(vectors)
    assert torch.allclose(found @ found.T, unit @ unit.T, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"embedder": {"head": "linear"}, "embedding_start": "random", "whitening": 0.0, "proxy_start": "random"},
        {"embedder": {"head": "mlp", "hidden_size": 16, "feature_norm": "standard"}},
        {"embedder": {"head": "residual"}, "embedding_start": "lda", "whitening": 1.0},
        {"embedder": {"head": "linear"}, "whitening": 0.5},
        {
            "embedder": {"head": "linear", "feature_norm": "batch"},
            "embedding_start": "random",
            "whitening": 0.0,
            "proxy_start": "random",
        },
    ],
)
def test_every_kind_of_head_trains_and_loads(changes: dict[str, object], recipe: Recipe, tmp_path: Path) -> None:
    content = recipe.content()
    content["embedder"] = content["embedder"] | changes.pop("embedder")
    run = train(Recipe.of(content | changes | {"epochs": 2}, "test"), tmp_path / "run")
    assert Embedder.load(run.path).embed(labelled_vectors()[0]).isfinite().all()


@pytest.mark.parametrize(
    "loss",
    [
        LossSettings(proxies_per_class=3, neighbor_ratio=0.5, proxy_weight=0.3),
        LossSettings(proxies_per_class=2, neighbor_ratio=0.5, proxy_weight=0.3, proxy_sample=0.5),
        LossSettings(proxies_per_class=1, neighbor_ratio=0.5, proxy_weight=0.0, sparse=True, scale=20.0),
        LossSettings(proxies_per_class=1, neighbor_ratio=0.5, proxy_weight=0.0, sparse=True, proxy_dtype="bfloat16"),
        LossSettings(proxies_per_class=2, neighbor_ratio=0.5, positive_mask=False, mask_softmax=False),
        LossSettings(name="ProxyAnchorLoss", arguments={"margin": 0.1}),
        LossSettings(name="MultiSimilarityLoss", miner="MultiSimilarityMiner"),
    ],
)
def test_every_option_of_the_loss_works_on_vectors(loss: LossSettings, recipe: Recipe, tmp_path: Path) -> None:
    values = replace(recipe, loss=loss, epochs=1, proxy_start="features" if loss.is_ours else "random")
    train(replace(values, images_per_class=2), tmp_path / "run")
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_a_run_goes_on_where_it_was_stopped(recipe: Recipe, run: RunFolder, tmp_path: Path) -> None:
    stopped = RunFolder(tmp_path / "run")
    values = run.read_recipe()  # as it was adapted
    with pytest.raises(KeyboardInterrupt):
        _fit_and_stop(values, stopped)
    resume(stopped)
    assert_same_run(stopped, run)


def test_vectors_too_long_for_their_start_are_named_with_what_to_do(recipe: Recipe) -> None:
    message = "vector has 120,000 features, but embedding_start lda takes at most 32,768.*take embedding_start random"
    with pytest.raises(RecipeError, match=message):
        check_num_features(120_000, recipe)
    normed = replace(recipe, embedding_start="random", whitening=0.0)
    with pytest.raises(RecipeError, match=r"feature_norm standard takes at most .* take embedder\.feature_norm none"):
        check_num_features(120_000, normed)
    check_num_features(32_768, recipe)


def test_a_report_calls_items_without_an_id_by_their_row(tmp_path: Path) -> None:
    vectors, labels = labelled_vectors(4, classes=2)
    names = {"some": ["a", None, "", "b"], "none": [None] * 4}
    found = {}
    for case, ids in names.items():
        table = {"label": labels, "split": ["test"] * 4, "id": ids, "embedding": list(vectors)}
        pd.DataFrame(table).to_parquet(tmp_path / "c.parquet")
        found[case] = item_names(Catalog.read(tmp_path / "c.parquet"))
    assert found["some"] == ["a", "row 1", "row 2", "b"]
    assert found["none"] == ["row 0", "row 1", "row 2", "row 3"]


@pytest.mark.parametrize("images", [False, True])
def test_a_run_does_not_go_on_with_other_vectors_of_the_same_items(
    images: bool, recipe: Recipe, tmp_path: Path
) -> None:
    vectors, labels = labelled_vectors()
    place, paths = tmp_path / "c.parquet", {"path": [f"{row}.jpg" for row in range(len(labels))]}

    def write(given: np.ndarray) -> None:
        write_file(tmp_path / "f.parquet", given, labels, **(paths if images else {}))
        options = {"label": "product", "test_classes": "half"}
        prepare("vectors", tmp_path / "f.parquet", place, options=options, force=True)

    write(vectors)
    short = replace(recipe, catalog=str(place), epochs=1, milestones=())
    run = train(short, tmp_path / "run")
    resume(run)
    write(-vectors)
    with pytest.raises(RunError, match="200 training vectors of 10 classes .*: put the old catalog back"):
        resume(run)


def test_a_comparison_names_a_bad_vector_before_it_trains(recipe: Recipe, catalog: Path, tmp_path: Path) -> None:
    table = Catalog.read(catalog)
    vectors = list(given(table))
    vectors[7] = None
    table.table.drop(columns="embedding_row").assign(embedding=vectors).to_parquet(tmp_path / "c.parquet")
    with pytest.raises(CatalogError, match="no vector in row 7"):
        Inputs.of(tmp_path / "c.parquet", [recipe])


def _fit_and_stop(values: Recipe, run: RunFolder) -> None:
    class Stopped(Training):
        def _finish_epoch(self, epoch: int, metrics: dict[str, float]) -> None:
            super()._finish_epoch(epoch, metrics)
            if epoch == 2:
                raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("proxygml.training.trainer.Training", Stopped)
        fit(values, run)


def test_a_catalog_without_vectors_or_of_another_size_is_named(
    recipe: Recipe, run: RunFolder, small_catalog: Path, tmp_path: Path
) -> None:
    with pytest.raises(CatalogError, match="has no vectors"):
        train(recipe, tmp_path / "run", catalog=small_catalog)
    assert not (tmp_path / "run").exists()
    vectors, labels = labelled_vectors()
    write_file(tmp_path / "f.parquet", vectors[:, :5].copy(), labels, label=labels, split=["test"] * 480)
    with pytest.raises(CatalogError, match="vectors of 5 numbers, but the model takes 12"):
        evaluate_run(run, tmp_path / "f.parquet")


def test_a_model_of_images_refuses_a_catalog_without_images(
    catalog: Path, small_recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(CatalogError, match="vectors but no images"):
        train(small_recipe, tmp_path / "run", catalog=catalog)


def test_settings_of_images_are_refused_for_vectors(recipe: Recipe) -> None:
    with pytest.raises(RecipeError, match="mirror is True, but embedder.backbone is vectors"):
        EmbedderSettings("vectors", mirror=True)
    with pytest.raises(RecipeError, match="no backbone to train"):
        replace(recipe, backbone_lr=0.1)
    with pytest.raises(RecipeError, match="no layer"):
        EmbedderSettings("vectors", head="mlp", embedding_size=0)


@pytest.mark.parametrize("size", [0, -1, "x", None, 2**40, True])
def test_a_model_that_states_an_impossible_size_is_refused(size: object, run: RunFolder, tmp_path: Path) -> None:
    content = json.loads((run.path / "model.json").read_text())
    content["vectors"] = {"size": size}
    (tmp_path / "model.json").write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"vectors\.size"):
        Embedder.load(tmp_path)


def test_training_that_makes_nothing_better_keeps_its_start(catalog: Path, recipe: Recipe, tmp_path: Path) -> None:
    """The start is epoch 0 of metrics.csv and a candidate like any epoch; a resumed run knows it."""
    spoilt = replace(recipe, embedding_lr=0.3, epochs=2, milestones=())  # rates at which a head forgets its start
    run = train(spoilt, tmp_path / "run")
    history = read_history(run.metrics)
    assert history["epoch"].tolist() == [0, 1, 2]
    assert history["val_map_at_r"].idxmax() == 0
    assert history["loss"].isna().tolist() == [True, False, False]
    started = train(replace(recipe, epochs=0), tmp_path / "start")
    assert read_history(started.metrics)["val_map_at_r"].tolist() == [history["val_map_at_r"][0]]
    vectors, _ = labelled_vectors()
    kept, start = (Embedder.load(place.path).embed(vectors) for place in (run, started))
    assert torch.equal(kept, start)
    evaluate_run(run)
    protocol = json.loads(run.evaluation.read_text())["protocol"]
    assert protocol["epoch"] == 0
    assert "validation classes" in protocol["selection"]
    cut = replace(spoilt, epochs=1)
    fit(cut, RunFolder(tmp_path / "cut"))
    spoilt.write(RunFolder(tmp_path / "cut").recipe)
    resume(RunFolder(tmp_path / "cut"))
    assert torch.equal(Embedder.load(tmp_path / "cut").embed(vectors), start)
    assert (tmp_path / "cut" / "metrics.csv").read_text().splitlines()[1].startswith("0,,")


def test_a_random_start_is_no_candidate(recipe: Recipe, tmp_path: Path) -> None:
    plain = replace(recipe, embedding_start="random", whitening=0.0, epochs=1, proxy_start="random")
    run = train(plain, tmp_path / "run")
    assert read_history(run.metrics)["epoch"].tolist() == [1]


def test_what_is_printed_speaks_of_vectors(recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And no progress bar counts to nothing, as that of pictures which vectors do not have."""
    evaluate_run(train(replace(recipe, epochs=2), tmp_path / "run"))
    printed = " ".join(capsys.readouterr().err.split())
    assert "vectors/s" in printed and "images/s" not in printed
    assert " 0/0 " not in printed
    assert "epoch 0, before the first step: Recall@1" in printed
    assert "before training: " not in printed
