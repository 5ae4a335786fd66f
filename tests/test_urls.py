"""Every place that takes a path refuses a URL by one message; only galleries take the address of a Milvus server."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import proxygml
from proxygml.cli.main import COMMANDS, main
from proxygml.cli.parser import Parser, _kinds
from proxygml.comparison.compare import tabulate
from proxygml.comparison.plan import Comparison
from proxygml.data.catalog import Catalog
from proxygml.data.datasets import DATASETS
from proxygml.data.image_list import ImageList
from proxygml.data.images import decode_image
from proxygml.data.vector_file import VectorFile
from proxygml.errors import UserError
from proxygml.files import PathLike, check_local
from proxygml.gallery.clusters.settings import ClusterSettings
from proxygml.models.embedder_settings import EmbedderSettings
from proxygml.training.recipe import Recipe
from tests.helpers.commands import refused
from tests.helpers.models import untrained

URL = "s3://bucket/x.parquet"
URLS = [
    URL,
    "gs://bucket/photos",
    "hf://datasets/a/b",
    "http://host/a.jpg",
    "https://host:8080/a.csv",
    "file:///home/me/photos",
    "memory://x.db",
    "S3://Bucket/x",
    "s3://bucket/x.db#photos",
    "abfss://container@account.dfs.core.windows.net/x",
]
REFUSED = "but only paths on this machine"


class ParserMadeError(Exception):
    """A command's parser is complete."""


def parser_of(*command: str) -> Parser:
    """The parser of a command, as the command itself makes it."""
    made: list[Parser] = []

    def stop(parser: Parser, *_: object, **__: object) -> None:
        made.append(parser)
        raise ParserMadeError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Parser, "parse", stop)
        with pytest.raises(ParserMadeError):
            main(list(command))
    return made[0]


def parsers() -> dict[str, Parser]:
    """The parser of each command, and of each data set that `prepare` knows."""
    names = [name for name in COMMANDS if name != "prepare"] + [f"prepare {data.name}" for data in DATASETS]
    return {name: parser_of(*name.split()) for name in names}


def text_options() -> list[Any]:
    """Each option and argument of each command that takes text or a path: the command, its dest, words that give it."""
    found = []
    for command, parser in parsers().items():
        actions = sorted(parser._actions, key=lambda action: len(action.option_strings) > 0)  # in order, before options
        for action in actions:
            if action.dest == "help" or action.nargs == 0 or not {Path, str} & set(_kinds(action)):
                continue
            words = command.split()
            for other in actions:
                count = other.nargs if isinstance(other.nargs, int) else 1
                if other is action or other.required or not other.option_strings:
                    value = URL if other is action else "there"
                    words += [*other.option_strings[:1], *["there"] * (count - 1), value]
            found.append(pytest.param(words, id=f"{command} {action.dest}"))
    return found


@pytest.mark.parametrize("words", text_options())
def test_every_option_refuses_a_url(words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        message = refused(capsys, *words)
    assert f"is {URL}, {REFUSED}" in message
    assert not list(tmp_path.iterdir())


def test_the_options_that_were_reported_are_among_them() -> None:
    names = {str(parameter.id) for parameter in text_options()}
    expected = "embed out,train run,train catalog,train recipe,train embedder.weights,train resume,compare from"
    expected += ",compare out,index vectors,index images,index out,search gallery,search queries,search out,search run"
    expected += ",search show,serve gallery,export onnx,evaluate catalog,cluster out,prepare folder root,demo out"
    expected += ",prepare folder test_classes,prepare table images,prepare glyphs out,index rebase"
    assert set(expected.split(",")) <= names


def public_paths() -> list[tuple[str, str]]:
    """The public functions of proxygml, and their parameters that take paths."""
    return [
        (name, parameter.name)
        for name in proxygml.__all__
        if inspect.isfunction(function := getattr(proxygml, name))
        for parameter in inspect.signature(function).parameters.values()
        if "PathLike" in str(parameter.annotation) or str(PathLike) in str(parameter.annotation)
    ]


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize(("name", "parameter"), public_paths())
def test_every_public_function_refuses_a_url(
    name: str, parameter: str, kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    function = getattr(proxygml, name)
    needed: dict[str, object] = {
        other.name: "there" for other in inspect.signature(function).parameters.values() if other.default is other.empty
    }
    if "settings" in needed:
        needed["settings"] = ClusterSettings("hdbscan")
    if {"catalog", "images"} <= set(inspect.signature(function).parameters):
        needed["images" if parameter == "images" else "catalog"] = "there"
    for value in (kind(URL), [kind("there"), kind(URL)]):
        if isinstance(value, list) and parameter not in ("images", "rows"):
            continue
        with pytest.raises(UserError, match=f"is {URL}, {REFUSED}"):
            function(**needed | {parameter: value})
    assert not list(tmp_path.iterdir())


def test_public_functions_take_the_paths_that_were_reported() -> None:
    reported = {("embed", "out"), ("train", "run"), ("index", "vectors"), ("search", "gallery"), ("compare", "rows")}
    assert reported <= set(public_paths())


@pytest.mark.parametrize("url", URLS)
def test_every_kind_of_url_is_refused_and_named_as_it_was_given(url: str) -> None:
    for place in (url, Path(url)):
        with pytest.raises(UserError) as caught:
            check_local(place, "--out")
        assert f"--out is {url.replace(':///', '://')}, {REFUSED}" in str(caught.value)
    assert ("leave out file://" in str(caught.value)) == url.startswith("file:")


@pytest.mark.parametrize("path", ["a", "/a/b", "C:/photos", "c:\\photos", "a:b/c", "photos/12:30", "-", "1://x", ""])
def test_paths_are_not_urls(path: str) -> None:
    check_local(path, "--out")
    check_local(Path(path), "--out")


@pytest.mark.parametrize("place", ["http://127.0.0.1:1", "https://user:word@host:1/db#photos", "tcp://host:19530"])
def test_galleries_take_the_address_of_a_milvus_server(place: str) -> None:
    check_local(place, "--out", gallery=True)
    with pytest.raises(UserError, match="addresses of Milvus servers"):
        check_local(URL, "--out", gallery=True)


@pytest.mark.parametrize("url", [url for url in URLS if not url.startswith("http")])
def test_classes_and_functions_below_refuse_urls_too(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    catalog = Catalog.of_rows([("a.png", "a", "train")], ["path", "label", "split"], tmp_path)
    gallery = proxygml.Gallery.create(np.eye(2), pd.DataFrame({"label": ["a", "b"]}))
    model = proxygml.Embedder.load(untrained(tmp_path / "run"))
    for call in (
        lambda: Catalog.read(url),
        lambda: catalog.write(url),
        lambda: Catalog.of_rows([(url, "a", "train")], ["path", "label", "split"], tmp_path),
        lambda: proxygml.Embedder.load(url),
        lambda: model.embed([url]),
        lambda: model.save(Path(url)),
        lambda: proxygml.Gallery.load(url),
        lambda: gallery.save(url),
        lambda: proxygml.Gallery.build(url, []),
        lambda: Recipe(catalog=url),
        lambda: EmbedderSettings(weights=url),
        lambda: Recipe().write(Path(url)),
        lambda: Recipe.read(Path(url)),
        lambda: Comparison.read(Path(url)),
        lambda: tabulate([url], "there"),
        lambda: tabulate([], url),
        lambda: decode_image(url),
        lambda: ImageList.from_files([Path(url)]),
        lambda: VectorFile(Path(url)),
        lambda: proxygml.prepare("table", "there", "out.csv", options={"images": Path(url)}),
    ):
        with pytest.raises(UserError, match=REFUSED):
            call()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_catalog_that_names_urls_is_refused_with_its_row(tmp_path: Path) -> None:
    rows = [("a.png", "a", "train"), ("s3://bucket/b.png", "a", "train")]
    pd.DataFrame(rows, columns=["path", "label", "split"]).to_csv(tmp_path / "c.csv", index=False)
    with pytest.raises(UserError, match=r"c\.csv: the path in row 1 is s3://bucket/b\.png, but only paths"):
        Catalog.read(tmp_path / "c.csv")
