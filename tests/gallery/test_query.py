"""From a run folder to answers: index, add, remove, search, predict, as commands and from Python."""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from proxygml import Embedder, Gallery, evaluate
from proxygml.data.catalog import Catalog
from proxygml.data.images.image_list import ImageList
from proxygml.errors import UserError
from proxygml.gallery.build import add_items, build_gallery
from proxygml.gallery.query import answers_table, search_images
from proxygml.gallery.source import Model, Source
from tests.helpers.commands import refused
from tests.helpers.commands import run as command
from tests.helpers.models import untrained
from tests.helpers.shared import shared_file

Capture = pytest.CaptureFixture[str]

RATE = 0.5
"""Of wrong queries that are accepted: the untrained model accepts few right ones at smaller rates."""


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def copies_catalog(small_catalog: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small catalog's images, and a third of them again under other names: every other copy under another label."""
    folder = tmp_path_factory.mktemp("copies")
    table = Catalog.read(small_catalog).table
    copied = table.iloc[::3].copy()
    for path in table["path"]:
        shutil.copy(small_catalog.parent / path, folder / path)
        shutil.copy(small_catalog.parent / path, folder / f"again_{path}")
    copied["path"] = "again_" + copied["path"]
    tests = table.loc[table["split"] == "test", "label"].unique()
    wrong = (copied["split"] == "test") & (np.arange(len(copied)) % 2 == 0)
    copied.loc[wrong, "label"] = tests[0]
    whole = pd.concat([table, copied]).sample(frac=1, random_state=0)
    Catalog(whole, folder).write(folder / "copies.parquet")
    return folder / "copies.parquet"


def gallery_of(run: Path, catalog: Path, out: Path, **options: object) -> Gallery:
    return build_gallery(Model.of(run), Source(catalog, split="test"), out, workers=0, **options)  # type: ignore[arg-type]


def test_search_finds_the_class_as_often_as_evaluate_says(
    run_folder: Path, copies_catalog: Path, tmp_path: Path
) -> None:
    """Equal images under different labels make ties, which both break in the order of the gallery."""
    test = Catalog.read(copies_catalog).split("test")
    gallery = gallery_of(run_folder, copies_catalog, tmp_path / "g")
    embedder = Embedder.load(run_folder)
    evaluation = evaluate(embedder.embed(test.paths), test.labels, nmi=False)
    answers = search_images(gallery, embedder, ImageList.from_catalog(test), 8, leave_out_itself=True)
    labels = np.array(test.labels)
    right = gallery.items["label"].to_numpy()[answers.result.ids] == labels[:, None]
    for k, estimate in evaluation.recall.items():
        assert right[:, :k].any(axis=1).mean() == pytest.approx(estimate.value, abs=1e-12)
    assert evaluation.scores is not None
    nearest_is_right = evaluation.scores.first_positive == 0
    assert np.array_equal(right[evaluation.scores.index, 0], nearest_is_right)
    assert 0 < nearest_is_right.mean() < 1


def test_search_on_real_birds_finds_their_species_at_the_recall_that_evaluate_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the commands alone, on the test species of the CUB crops: pretrained features, at 64 pixels to be quick."""
    archive, weights = shared_file("cub200-2010-crops.tar"), shared_file("mobilenetv2_100.imagenet.safetensors")
    monkeypatch.chdir(tmp_path)
    with tarfile.open(archive) as tar:
        names = sorted({name for name in tar.getnames() if name.count("/") == 1})
        assert len(names) == 200
        chosen = tuple(f"{name}/" for name in (*names[:8], *names[100:112]))
        tar.extractall(tmp_path, [member for member in tar if member.name.startswith(chosen)], filter="data")
    species = [tmp_path / name for name in chosen]
    parts = {"train": species[:8], "test": species[8:]}
    rows = [(str(p), s.name, part) for part, some in parts.items() for s in some for p in sorted(s.iterdir())]
    Catalog(pd.DataFrame(rows, columns=["path", "label", "split"]), tmp_path).write(tmp_path / "birds.parquet")
    train = ["train", "--recipe", "cub200_2010_crops", "--catalog", "birds.parquet", "--run", "birds", "--epochs", 0]
    train += ["--backbone_lr", 0, "--cache_features", "true", "--embedder.weights", weights]
    command(
        *train,
        "--embedder.embedding_size",
        0,
        "--loss.neighbor_ratio",
        0.2,
        "--images.size",
        64,
        "--images.resize",
        73,
        "--workers",
        0,
    )
    command("index", "birds", "--catalog", "birds.parquet", "--split", "test", "--out", "gallery", "--workers", 0)
    search = ["search", "gallery", *parts["test"], "--k", 8, "--leave-out-itself", "--out", "answers.parquet"]
    command(*search, "--workers", 0)
    answers = pd.read_parquet("answers.parquet")
    right = answers["label"] == answers["query"].map(lambda path: Path(path).parent.name)
    stated = json.loads(Path("birds/evaluation.json").read_text())["recall"]
    assert answers["query"].nunique() == 342
    for k in (1, 2, 4, 8):
        found = right[answers["rank"] <= k].groupby(answers["query"]).any().mean()
        assert found == pytest.approx(stated[str(k)]["value"], abs=1e-12)
    assert stated["1"]["value"] > 0.2  # far above chance


def test_the_commands_as_a_user_types_them(
    run_folder: Path, small_catalog: Path, tmp_path: Path, capsys: Capture
) -> None:
    gallery, photos = tmp_path / "gallery", small_catalog.parent
    command("index", run_folder, "--catalog", small_catalog, "--out", gallery, "--workers", 0, "--split", "test")
    printed = capsys.readouterr()
    assert "48 items, exact" in printed.out
    assert "no threshold" in printed.err
    query, out, picture = photos / "12_0.png", tmp_path / "a.csv", tmp_path / "grid.png"
    command("search", gallery, query, "--k", 3, "--show", picture, "--out", out, "--where", "label=class 12")
    answers = pd.read_csv(out)
    assert answers["rank"].tolist() == [1, 2, 3]
    assert answers["label"].unique().tolist() == ["class 12"]
    assert (answers.loc[0, "path"], answers.loc[0, "prediction"]) == (str(query.resolve()), "class 12")
    assert answers.loc[0, "score"] == pytest.approx(1, abs=1e-5)
    assert Image.open(picture).width > 300
    command("index", "--add", "--out", gallery, "--images", photos, "--workers", 0)
    assert "96 items added (48 were in it already), 144 now" in capsys.readouterr().out
    command("search", gallery, photos / "00_0.png", "--k", 1)
    assert "nan" not in capsys.readouterr().out  # what was added from a folder has no label
    command("index", "--remove", "id=0", "id=3", "--out", gallery)
    command("index", "--remove", "label=class 13", "--out", gallery)
    assert "8 items removed, 134 now" in capsys.readouterr().out
    again = ["search", gallery, photos, "--k", 1, "--leave-out-itself", "--rerank"]
    for option, file in (("--out", out), ("--show", picture)):
        kept = file.read_bytes()
        assert f"{file} is already there" in refused(capsys, *again, option, file)
        assert file.read_bytes() == kept
    command(*again, "--out", out, "--force")
    answers = pd.read_csv(out)
    assert len(answers) == 144
    assert not (answers["path"] == answers["query"]).any()
    assert not (answers["label"] == "class 13").any()


def test_bad_queries_are_named_and_left_out_if_asked(
    run_folder: Path, small_catalog: Path, tmp_path: Path, capsys: Capture
) -> None:
    gallery_of(run_folder, small_catalog, tmp_path / "g")
    (tmp_path / "queries").mkdir()
    shutil.copy(small_catalog.parent / "12_0.png", tmp_path / "queries" / "a.png")
    (tmp_path / "queries" / "b.png").write_bytes(b"none")
    search = ["search", tmp_path / "g", tmp_path / "queries", "--workers", 1]
    assert "1 of 2 images cannot be embedded" in refused(capsys, *search)
    command(*search, "--on-bad", "drop", "--out", tmp_path / "a.csv")
    assert "b.png is no image" in capsys.readouterr().err
    assert set(pd.read_csv(tmp_path / "a.csv")["query"]) == {str(tmp_path / "queries" / "a.png")}


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_vectors_of_embed_make_the_same_gallery(
    kind: str, run_folder: Path, small_catalog: Path, tmp_path: Path, capsys: Capture
) -> None:
    vectors = tmp_path / "v.parquet"
    command("embed", run_folder, "--catalog", small_catalog, "--out", vectors, "--workers", 0)
    assert "144 vectors of size 16" in capsys.readouterr().out
    command("index", run_folder, "--vectors", vectors, "--out", tmp_path / "a", "--kind", kind)
    printed = capsys.readouterr().out
    assert ("recall@10" in printed) == (kind == "hnsw")
    command("index", run_folder, "--catalog", small_catalog, "--out", tmp_path / "b", "--workers", 0)
    one, other = Gallery.load(tmp_path / "a"), Gallery.load(tmp_path / "b")
    pd.testing.assert_frame_equal(one.items, other.items)
    assert np.array_equal(one.vectors(one.items.index.to_numpy()), other.vectors(other.items.index.to_numpy()))
    assert one.manifest.model == other.manifest.model
    assert not list(tmp_path.glob(".*partial*")) + list((tmp_path / "b").glob(".partial"))


def test_a_query_from_another_model_is_refused(
    run_folder: Path, small_catalog: Path, tmp_path: Path, capsys: Capture
) -> None:
    other, moved = untrained(tmp_path / "other", 1), tmp_path / "moved"
    shutil.copytree(run_folder, moved)
    gallery_of(moved, small_catalog, tmp_path / "g")
    query = small_catalog.parent / "12_0.png"
    message = refused(capsys, "search", tmp_path / "g", query, "--run", other)
    assert "another model" in message
    shutil.rmtree(moved)
    assert "say where it is with --run" in refused(capsys, "search", tmp_path / "g", query)
    command("search", tmp_path / "g", query, "--run", run_folder)
    with pytest.raises(UserError, match="another model"):
        Model.of_gallery(Gallery.load(tmp_path / "g"), other)
    command("embed", other, "--images", query, "--out", tmp_path / "v.parquet", "--workers", 0)
    message = refused(capsys, "index", run_folder, "--vectors", tmp_path / "v.parquet", "--out", tmp_path / "h")
    assert "another model" in message


def test_a_val_split_sets_the_threshold_for_none_of_these(
    run_folder: Path, small_catalog: Path, tmp_path: Path, capsys: Capture
) -> None:
    catalog = Catalog.read(small_catalog)
    table = catalog.table.copy()
    held = table["label"].isin([f"class {n:02d}" for n in range(6, 12)])
    table.loc[held, "split"] = "val"
    Catalog(table.assign(path=list(map(str, catalog.paths))), tmp_path).write(tmp_path / "c.parquet")
    gallery = gallery_of(run_folder, tmp_path / "c.parquet", tmp_path / "g", false_accept_rate=RATE)
    threshold = Gallery.load(tmp_path / "g").manifest.threshold
    assert threshold is not None
    assert threshold == gallery.manifest.threshold
    assert (threshold.queries, threshold.classes) == (48, 6)
    queries = ImageList.from_catalog(Catalog.read(tmp_path / "c.parquet").split("val"))
    answers = search_images(gallery, Embedder.load(run_folder), queries, 5)
    assert answers.predictions is not None
    accepted = np.mean([prediction.label is not None for prediction in answers.predictions])
    assert accepted <= RATE
    assert accepted == pytest.approx(threshold.false_accept_rate)
    assert answers_table(answers)["prediction"].isna().mean() == pytest.approx(1 - accepted)
    everything = search_images(gallery, Embedder.load(run_folder), queries, 5, threshold=-1.0)
    assert everything.predictions is not None
    assert all(prediction.label for prediction in everything.predictions)
    for table in ("c.parquet", "small.parquet"):  # by their vectors; a catalog without a val split too
        place = small_catalog if table == "small.parquet" else tmp_path / table
        command("embed", run_folder, "--catalog", place, "--out", tmp_path / f"v-{table}", "--workers", 0)
        source = Source(vectors=tmp_path / f"v-{table}")
        build_gallery(Model.of(run_folder), source, tmp_path / f"g-{table}", false_accept_rate=RATE)
    assert "there is no val split" in capsys.readouterr().err
    source = Source(tmp_path / "c.parquet")
    whole = build_gallery(Model.of(run_folder), source, tmp_path / "all", false_accept_rate=RATE, workers=0)
    assert Gallery.load(tmp_path / "g-c.parquet").manifest.threshold == whole.manifest.threshold


@pytest.mark.parametrize(("rate", "message"), [("0.1", "accepts only 17% of the queries"), ("0.01", "at least 100")])
def test_a_threshold_that_is_chosen_by_chance_or_rejects_most_right_queries_is_not_applied(
    rate: str, message: str, run_folder: Path, small_catalog: Path, tmp_path: Path, capsys: Capture
) -> None:
    catalog = Catalog.read(small_catalog)
    held = catalog.table["label"].isin([f"class {n:02d}" for n in range(6, 12)])
    table = catalog.table.assign(path=list(map(str, catalog.paths)))
    table.loc[held, "split"] = "val"
    Catalog(table, tmp_path).write(tmp_path / "c.parquet")
    place = tmp_path / "g"
    command(
        "index", run_folder, "--catalog", tmp_path / "c.parquet", "--split", "test", "--out", place, "--workers", 0,
        "--false-accept-rate", rate,
    )  # fmt: skip
    assert message in " ".join(capsys.readouterr().err.split())
    assert Gallery.load(place).manifest.threshold is None


def test_an_ivfpq_index_of_too_few_images_is_refused_before_they_are_embedded(
    run_folder: Path, small_catalog: Path, tmp_path: Path, capsys: Capture
) -> None:
    index = ["index", run_folder, "--catalog", small_catalog, "--kind", "ivfpq", "--out", tmp_path / "g"]
    assert "at least 1,000 items, but there are 144" in refused(capsys, *index)
    assert not (tmp_path / "g").exists()


def test_an_image_that_changed_under_its_path_is_updated_and_counted(
    place: str, run_folder: Path, small_catalog: Path, tmp_path: Path, capsys: Capture
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for image in sorted(small_catalog.parent.glob("0*.png"))[:6]:
        shutil.copy(image, photos / image.name)
    paths = sorted(map(str, photos.iterdir()))
    table = pd.DataFrame({"path": paths, "label": "a", "split": "test", "note": list("uvwxyz")})
    Catalog(table, tmp_path).write(tmp_path / "c.parquet")
    command("index", run_folder, "--catalog", tmp_path / "c.parquet", "--out", place, "--workers", 0)
    shutil.copy(small_catalog.parent / "12_0.png", paths[2])
    shutil.copy(small_catalog.parent / "13_0.png", photos / "new.png")
    command("index", "--add", "--images", photos, "--out", place, "--workers", 0)
    assert "1 item added (5 were in it already), 1 updated, which had changed, 7 now" in capsys.readouterr().out
    gallery = Gallery.load(place)
    expected = Embedder.load(run_folder).embed([*paths, str(photos / "new.png")]).numpy()
    ids = gallery.ids_of(pd.DataFrame({"path": [*paths, str(photos / "new.png")]}), ["path"])
    np.testing.assert_allclose(gallery.vectors(ids), expected, atol=1e-5)
    assert gallery.rows([ids[2]])[["label", "note"]].to_numpy().tolist() == [["a", "w"]]
    assert gallery.columns == ["path", "label", "split", "note"]
    command("index", "--add", "--images", photos, "--out", place, "--workers", 0)
    assert "0 items added (7 were in it already), 7 now" in capsys.readouterr().out


def test_a_vector_that_changed_under_its_path_is_updated(
    run_folder: Path, small_catalog: Path, tmp_path: Path, capsys: Capture
) -> None:
    photo, file = tmp_path / "a.png", tmp_path / "v.parquet"
    for number, image in enumerate(("00_0.png", "12_0.png")):
        shutil.copy(small_catalog.parent / image, photo)
        command("embed", run_folder, "--images", photo, "--out", file, "--workers", 0, "--force")
        more = ["--add"] if number else [run_folder]
        command("index", *more, "--vectors", file, "--out", tmp_path / "g")
    assert "0 items added, 1 updated, which had changed, 1 now" in capsys.readouterr().out


def test_adding_by_catalog_tells_boxes_of_one_file_apart(run_folder: Path, small_catalog: Path, tmp_path: Path) -> None:
    paths = [str(small_catalog.parent / "00_0.png")] * 3
    table = pd.DataFrame({"path": paths, "label": "a", "split": "test"})
    boxes = pd.DataFrame([(0, 0, 10, 10), (5, 5, 20, 20), (2, 2, 9, 9)], columns=["x_1", "y_1", "x_2", "y_2"])
    for count in (2, 3):
        Catalog(pd.concat([table, boxes], axis=1)[:count], tmp_path).write(tmp_path / f"{count}.parquet")
    gallery = gallery_of(run_folder, tmp_path / "2.parquet", tmp_path / "g")
    added = add_items(gallery, Model.of(run_folder), Source(tmp_path / "3.parquet"), workers=0)
    assert added == (1, 2, 0)
    assert Gallery.load(tmp_path / "g").items["x_1"].tolist() == [0, 5, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embed", "RUN", "--images", "nowhere", "--out", "v.parquet"], "there is no nowhere"),
        (["embed", "RUN", "--images", "PHOTOS", "--out", "v.csv"], "the name of a .parquet file"),
        (["embed", "RUN", "--out", "v.parquet"], "one of --catalog TABLE, --images FOLDER or --vectors FILE"),
        (["embed", "nowhere", "--images", "PHOTOS", "--out", "v.parquet"], "nowhere is no run folder"),
        (["index", "RUN", "--out", "g"], "one of --catalog TABLE, --images FOLDER or --vectors FILE"),
        (["index", "--images", "PHOTOS", "--out", "g"], "no run folder is given"),
        (["index", "RUN", "--images", "PHOTOS", "--out", "g", "--kind", "flat"], "--kind"),
        (
            ["index", "RUN", "--catalog", "CATALOG", "--split", "tests", "--out", "g"],
            "must be one of all, train, val, test",
        ),
        (["index", "RUN", "--catalog", "CATALOG", "--split", "val", "--out", "g"], "no split 'val'"),
        (["embed", "RUN", "--images", "PHOTOS", "--split", "test", "--out", "v.parquet"], "a part of a catalog"),
        (["index", "RUN", "--images", "PHOTOS", "--out", "g", "--false-accept-rate", "2"], "0 up to below 1"),
        (["index", "--add", "--images", "PHOTOS", "--out", "g"], "g is no gallery"),
        (["index", "--remove", "label", "--out", "GALLERY"], "expected column=value"),
        (["index", "--remove", "label=x", "--out", "GALLERY"], "no item of"),
        (["index", "--remove", "lable=x", "--out", "GALLERY"], "did you mean 'label'?"),
        (["index", "--remove", "id=x", "--out", "GALLERY"], "'id' holds whole numbers of 64 bits, but 'x' is none"),
        (["index", "RUN", "--images", "PHOTOS", "--out", "GALLERY"], "is a gallery already"),
        (["search", "nowhere", "PHOTOS"], "nowhere is no gallery"),
        (["search", "GALLERY", "nowhere.jpg"], "there is no nowhere.jpg"),
        (["search", "GALLERY", "QUERY", "--k", "0"], "k is 0"),
        (["search", "GALLERY", "QUERY", "--where", "colour=red"], "no column 'colour'"),
        (["search", "GALLERY", "CATALOG"], "this is no image, but a table, which --catalog or --vectors may take"),
        (["search", "GALLERY", "QUERY", "--out", "answers.txt"], "the name of a .csv or .parquet file"),
        (["search", "GALLERY", "QUERY", "--show", "answers.txt"], "the name of a .png file"),
        (["search", "GALLERY", "QUERY", "--where", "label=x", "label=y"], "none has label=x or y"),
        (["cluster", "RUN", "--images", "PHOTOS", "--out", "PHOTOS", "--num-clusters", "3"], "no result of"),
        (["cluster", "RUN", "--images", "PHOTOS", "--out", "c"], "kmeans needs --num_clusters"),
        (["cluster", "RUN", "--images", "QUERY", "--out", "c", "--num-clusters", "3"], "more than the 1 image"),
    ],
)
def test_mistakes_get_one_message(
    arguments: list[str],
    message: str,
    run_folder: Path,
    small_catalog: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    gallery = tmp_path_factory.mktemp("made") / "gallery"
    if "GALLERY" in arguments:
        items = pd.DataFrame({"path": ["a"], "label": ["b"]})
        made = Gallery.create(
            np.ones((1, 16), np.float32), items, model=Model.of(run_folder).fingerprint, run=str(run_folder)
        )
        made.save(gallery)
    names = {"RUN": run_folder, "PHOTOS": small_catalog.parent, "CATALOG": small_catalog, "GALLERY": gallery}
    names["QUERY"] = small_catalog.parent / "00_0.png"
    monkeypatch.chdir(tmp_path)
    told = refused(capsys, *(names.get(argument, argument) for argument in arguments))
    assert message in " ".join(told.split())
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]


def test_clusters_from_the_command_line(run_folder: Path, small_catalog: Path, tmp_path: Path, capsys: Capture) -> None:
    command(
        "cluster",
        run_folder,
        "--images",
        small_catalog.parent,
        "--out",
        tmp_path / "c",
        "--num-clusters",
        4,
        "--workers",
        0,
    )
    assert "144 images in 4 clusters" in capsys.readouterr().out
    assert len(list((tmp_path / "c" / "sheets").iterdir())) == 4
    assert sum(1 for _ in (tmp_path / "c").glob("cluster-*/*.png")) == 144


def test_a_gallery_manifest_is_plain_json(run_folder: Path, small_catalog: Path, tmp_path: Path) -> None:
    gallery_of(run_folder, small_catalog, tmp_path / "g")
    content = json.loads((tmp_path / "g" / "gallery.json").read_text())
    assert content["model"] == Model.of(run_folder).fingerprint
    assert content["run"] == str(run_folder.resolve())


def test_the_runs_own_images_given_for_their_vectors_are_said_to_need_their_catalog(
    run_folder: Path, small_catalog: Path, tmp_path: Path, capsys: Capture
) -> None:
    run = shutil.copytree(run_folder, tmp_path / "run")
    table = Catalog.read(small_catalog).table
    table = table[table["split"] != "val"].assign(
        embedding=list(np.random.default_rng(0).normal(size=(len(table), 16)))
    )
    table.to_parquet(tmp_path / "both.parquet")
    (run / "recipe.yaml").write_text(f"catalog: {tmp_path / 'both.parquet'}\nvalidation_classes: 0.5\n")
    command("index", run, "--vectors", tmp_path / "both.parquet", "--out", tmp_path / "g")
    assert f"images of {tmp_path / 'both.parquet'}: give it as --catalog" in "".join(
        capsys.readouterr().err.split("\n")
    )
