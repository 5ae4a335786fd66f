"""Which places take URLs: those that are named here. Every other one refuses them by one message.

Galleries take the addresses of Milvus servers. What is read from URLs is in the tests of the folder `urls`.
"""

import inspect
import re
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
from proxygml.data.images.image_list import ImageList
from proxygml.data.images.tensors import decode_image
from proxygml.data.vectors.file import VectorFile
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
UNKNOWN = "oci://bucket/x.parquet"

OPTIONS = """
    audit run, audit catalog, cluster run, cluster catalog, cluster images, cluster vectors, compare catalog,
    compare embedder.weights, embed run, embed catalog, embed images, embed vectors, embed out, evaluate run,
    evaluate catalog, index run, index catalog, index images, index vectors, prepare cub200 root, prepare cars196 root,
    prepare sop root, prepare inshop root, prepare market1501 root, prepare omniglot root, prepare folder root,
    prepare table root, prepare table images, prepare vectors root, prepare vectors vectors, search queries,
    search vectors, search run, serve run, serve added_images, train catalog, train embedder.weights, train run,
    train resume
"""
TAKEN = {option.strip() for option in OPTIONS.split(",")}
"""The options that take URLs."""

ARGUMENTS = {
    "audit": {"run", "catalog"},
    "cluster": {"run", "catalog", "images", "vectors"},
    "compare": {"catalog"},
    "embed": {"run", "out", "catalog", "images", "vectors"},
    "evaluate_run": {"run", "catalog"},
    "index": {"run", "catalog", "images", "vectors"},
    "prepare": {"root"},
    "search": {"images", "vectors", "run"},
    "train": {"run", "catalog"},
}
"""The arguments of public functions that take URLs."""


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
def test_every_option_refuses_a_url(
    words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    taken = request.node.callspec.id in TAKEN
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        message = refused(capsys, *[UNKNOWN if taken and word == URL else word for word in words])
    expected = f"is {UNKNOWN}, but URLs that start with oci: are not read" if taken else f"is {URL}, {REFUSED}"
    assert expected in message
    assert not list(tmp_path.iterdir())


def test_the_options_that_take_urls_are_there() -> None:
    assert {str(parameter.id) for parameter in text_options()} >= TAKEN


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
def test_every_public_function_refuses_a_url_that_it_does_not_take(
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
    taken = parameter in ARGUMENTS.get(name, ())
    url = UNKNOWN if taken else URL
    expected = f"is {url}, but URLs that start with oci: are not read" if taken else f"is {url}, {REFUSED}"
    for value in (kind(url), [kind("there"), kind(url)]):
        if isinstance(value, list) and parameter not in ("images", "rows"):
            continue
        with pytest.raises(UserError, match=expected):
            function(**needed | {parameter: value})
    assert not list(tmp_path.iterdir())


def test_public_functions_take_the_paths_that_were_reported() -> None:
    taken = {(name, parameter) for name, parameters in ARGUMENTS.items() for parameter in parameters}
    refused = {("index", "out"), ("search", "gallery"), ("compare", "rows"), ("prepare", "out")}
    assert taken | refused <= set(public_paths())


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
        lambda: catalog.write(url),
        lambda: model.save(Path(url)),
        lambda: proxygml.Gallery.load(url),
        lambda: gallery.save(url),
        lambda: proxygml.Gallery.build(url, []),
        lambda: Recipe().write(Path(url)),
        lambda: Recipe.read(Path(url)),
        lambda: Comparison.read(Path(url)),
        lambda: tabulate([url], "there"),
        lambda: tabulate([], url),
        lambda: proxygml.prepare("folder", "there", "out.csv", options={"test_classes": url}),
    ):
        with pytest.raises(UserError, match=REFUSED):
            call()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("file:///home/me/x.csv", "a file on this machine: leave out file://"),
        ("local:///home/me/x.csv", "a file on this machine: leave out local://"),
        ("s4://bucket/x.csv", "URLs that start with s4: are not read: choose one of s3,"),
        ("zip://x.csv", "URLs that start with zip: are not read"),
    ],
)
def test_classes_and_functions_below_name_urls_that_are_not_read(
    url: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = proxygml.Embedder.load(untrained(tmp_path / "run"))
    for place in (url, Path(url)):
        for call in (
            lambda place=place: Catalog.read(place),
            lambda place=place: Catalog.of_rows([(str(place), "a", "train")], ["path", "label", "split"], tmp_path),
            lambda place=place: proxygml.Embedder.load(place),
            lambda place=place: model.embed([place]),
            lambda place=place: Recipe(catalog=str(place)),
            lambda place=place: EmbedderSettings(weights=str(place)),
            lambda place=place: decode_image(place),
            lambda place=place: ImageList.from_files([place]),
            lambda place=place: VectorFile(place),
            lambda place=place: proxygml.prepare("table", place, "out.csv"),
            lambda place=place: proxygml.prepare("table", "there", "out.csv", options={"images": place}),
        ):
            with pytest.raises(UserError, match=re.escape(reason)):
                call()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
