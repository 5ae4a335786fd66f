"""A served gallery whose model takes vectors: over HTTP, and on the page."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from proxygml import Embedder, Gallery, index
from proxygml.serving.limits import Limits
from proxygml.training.run_folder import RunFolder
from tests.helpers.server import AUTHORISED, TIMES, Running, picture
from tests.helpers.vector_files import SIZE, labelled_vectors, write_file

httpx = pytest.importorskip("httpx")


@pytest.fixture(scope="module")
def place(run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    vectors, labels = labelled_vectors()
    write_file(folder / "f.parquet", vectors, labels, label=labels)
    index(run.path, folder / "gallery", vectors=folder / "f.parquet")
    return folder / "gallery"


@pytest.fixture(scope="module")
def server(run: RunFolder, place: Path) -> Iterator[Running]:
    with Running(place, run.path, Limits()) as running:
        yield running


def as_text(vector: np.ndarray) -> str:
    return ", ".join(map(str, vector))


def form(**fields: str) -> dict[str, tuple[None, str]]:
    """As multipart/form-data, without a file."""
    return {name: (None, value) for name, value in fields.items()}


def test_a_vector_finds_what_the_gallery_finds(server: Running, run: RunFolder, place: Path) -> None:
    vector = labelled_vectors(seed=3)[0][5]
    expected = Gallery.load(place).search(Embedder.load(run.path).embed(vector[None]), 7)
    for text in (as_text(vector), str(vector.tolist()), " ".join(map(str, vector))):
        answer = httpx.post(f"{server.address}/search", files=form(vector=text, k="7"), **TIMES)
        assert answer.status_code == 200, answer.text
        assert [item["id"] for item in answer.json()["items"]] == expected.ids[0].tolist()
    embedded = httpx.post(f"{server.address}/embed", files=form(vector=as_text(vector)), **TIMES).json()
    assert np.allclose(embedded["embedding"], Embedder.load(run.path).embed(vector[None])[0], atol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1, 2", f"has 2 numbers, but the model takes {SIZE}"),
        ("a, b", "no list of numbers"),
        ("[[1]]", "no list of numbers"),
        ("[1, 2", "no list of numbers"),
        ("[" * 50_000, "no list of numbers"),
        ("{}", "no list of numbers"),
        (", ".join(["0"] * SIZE), "nothing but zeros"),
        (", ".join(["nan"] * SIZE), "a NaN"),
        (", ".join(["1e300"] * SIZE), "infinite"),
        ("", "vector"),
    ],
)
def test_what_is_no_vector_is_refused(text: str, message: str, server: Running) -> None:
    answer = httpx.post(f"{server.address}/search", files=form(vector=text), **TIMES)
    assert answer.status_code == 422
    assert message in answer.json()["error"]


def test_a_vector_that_is_sent_another_way_is_refused_with_the_right_one(server: Running) -> None:
    send = "send it as text in a form (multipart/form-data), as `curl -F vector=0.1,0.2,...` does"
    text = as_text(np.ones(SIZE))
    for sent in ({"json": {"vector": text}}, {"data": {"vector": text}}, {}):  # the second is another type of form
        answer = httpx.post(f"{server.address}/search", **sent, **TIMES)  # type: ignore[arg-type]
        assert answer.json()["error"] == f"vector: is missing; {send}"
    answer = httpx.post(f"{server.address}/search", files={"vector": ("v.txt", text.encode())}, **TIMES)
    assert answer.json()["error"] == f"vector: is a file, not text; {send}"


def test_an_image_is_refused_and_the_description_says_what_is_taken(server: Running) -> None:
    answer = httpx.post(f"{server.address}/search", files={"image": picture()}, **TIMES)
    assert answer.status_code == 422
    assert "image" in answer.json()["error"]
    said = httpx.get(f"{server.address}/gallery", **TIMES).json()
    assert (said["takes"], said["vector_size"], said["kinds"]) == ("vector", SIZE, [])


def test_a_vector_is_added_found_and_removed(server: Running, place: Path) -> None:
    vector = np.random.default_rng(5).normal(size=SIZE)
    fields = form(vector=as_text(vector), column="label=new")
    assert httpx.post(f"{server.address}/items", files=fields, **TIMES).status_code == 401
    added = httpx.post(f"{server.address}/items", files=fields, headers=AUTHORISED, **TIMES)
    assert added.status_code == 201, added.text
    item = added.json()["id"]
    found = httpx.post(f"{server.address}/search", files=form(vector=as_text(vector), k="1"), **TIMES).json()
    assert [(entry["id"], entry["label"]) for entry in found["items"]] == [(item, "new")]
    assert len(Gallery.load(place)) == 481
    assert httpx.get(f"{server.address}/items/{item}/image", **TIMES).headers["content-type"] == "image/jpeg"
    assert httpx.delete(f"{server.address}/items/{item}", headers=AUTHORISED, **TIMES).status_code == 204
    assert len(Gallery.load(place)) == 480
