"""The built-in data: the same seed gives the same files, and no two classes look alike."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageOps

from proxygml.data.catalog import Catalog
from proxygml.data.datasets import glyphs
from proxygml.data.datasets.glyphs import Script
from proxygml.errors import DatasetError, OverwriteError

FACES = [glyphs.Face.load(name) for name in glyphs.FACES]


@pytest.fixture(scope="module")
def letters() -> list[tuple[Script, str]]:
    return glyphs.distinct_characters(FACES)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two small scripts instead of five, for the tests that write files."""
    scripts = (Script("latin", "train", ((0x41, 0x44),)), Script("armenian", "test", ((0x561, 0x564),)))
    monkeypatch.setattr(glyphs, "SCRIPTS", scripts)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}


def test_the_whole_data_set_has_enough_classes_of_both_splits(letters: list[tuple[Script, str]]) -> None:
    assert 100 <= sum(script.split == "train" for script, _ in letters) <= 200
    assert 60 <= sum(script.split == "test" for script, _ in letters) <= 100
    assert {script.name for script, _ in letters} == {"latin", "greek", "cyrillic", "armenian", "georgian"}


def test_every_character_is_of_its_script_and_in_enough_faces(letters: list[tuple[Script, str]]) -> None:
    for script, character in letters:
        assert unicodedata.name(character).startswith(script.name.upper())
        assert sum(face.has(character) for face in FACES) >= 12


def test_no_face_draws_its_missing_glyph_or_nothing(letters: list[tuple[Script, str]]) -> None:
    for face in FACES:
        missing = face.draw("\U0010fffd")
        for _, character in letters:
            if face.has(character):
                ink = face.draw(character)
                assert ink.getbbox() == (0, 0, *ink.size)
                assert ink.size != missing.size or ImageChops.difference(ink, missing).getbbox()


def overlap(one: str, other: str, face: glyphs.Face) -> float:
    """Intersection over union of two shapes in one face, scaled to the same longer side: the rule, written out."""
    square = (24, 24)
    a, b = (
        np.asarray(ImageOps.pad(face.draw(character), square, Image.Resampling.BOX, color=0), dtype=float)
        for character in (one, other)
    )
    return float(np.minimum(a, b).sum() / np.maximum(a, b).sum())


def test_look_alikes_are_one_class(letters: list[tuple[Script, str]]) -> None:
    kept = {character for _, character in letters}
    groups = (
        "A\u0391\u0410",  # Latin, Greek, Cyrillic A
        "oO\u03bf\u041e\u0555",  # Latin o and O, omicron, Cyrillic O, Armenian OH
        "cC\u0441\u0421",  # Latin and Cyrillic
        "xX\u03a7\u0425",  # Latin, chi, Cyrillic HA
        "p\u03c1\u0440",  # Latin, rho, Cyrillic ER
        "\u054d\u057d",  # Armenian SEH, both cases
    )
    for group in groups:
        assert len(kept & set(group)) <= 1, group
    assert {"O", "Q", "k", "K", "Ж", "Ω"} <= kept


def test_no_two_classes_look_alike_in_most_faces(letters: list[tuple[Script, str]]) -> None:
    characters = [character for _, character in letters][::4]
    for index, one in enumerate(characters):
        for other in characters[:index]:
            shared = [face for face in FACES if face.has(one) and face.has(other)]
            assert np.median([overlap(one, other, face) for face in shared[::3]]) < 0.75, one + other


@pytest.mark.usefixtures("few")
def test_the_catalog_lists_what_was_written(tmp_path: Path) -> None:
    folder = tmp_path / "glyphs"
    catalog = glyphs.make(folder, images_per_class=3, size=32)
    assert isinstance(catalog, Catalog)
    assert catalog.folder == folder
    assert catalog.split("train").classes == [f"U+{ord(c):04X} LATIN CAPITAL LETTER {c}" for c in "ABCD"]
    assert catalog.split("test").classes[0] == "U+0561 ARMENIAN SMALL LETTER AYB"
    assert catalog.table["path"][0] == "latin/U+0041_LATIN_CAPITAL_LETTER_A/00.png"
    assert sorted(catalog.paths) == sorted(folder.rglob("*.png"))
    assert set(catalog.table.groupby("label").size()) == {3}
    for path in catalog.paths:
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("L", (32, 32))
            assert np.asarray(image)[:3].mean() > np.asarray(image)[8:24, 8:24].min()


@pytest.mark.usefixtures("few")
def test_the_seed_decides_every_byte(tmp_path: Path) -> None:
    first, again, other = (tmp_path / name for name in ("first", "again", "other"))
    for folder, seed in ((first, 0), (again, 0), (other, 1)):
        glyphs.make(folder, images_per_class=4, size=32, seed=seed)
    assert contents(first) == contents(again)
    assert contents(first).keys() == contents(other).keys()
    assert not set(contents(first).values()) & set(contents(other).values())


@pytest.mark.usefixtures("few")
def test_every_face_of_a_character_is_used(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    drawn = [ink.tobytes() for ink in glyphs._drawings("A", FACES, 2 * len(FACES), generator)]
    assert len(set(drawn[: len(FACES)])) == len(FACES)
    assert set(drawn[: len(FACES)]) == set(drawn[len(FACES) :])


def test_the_character_stays_inside_its_image() -> None:
    generator = np.random.default_rng(0)
    for _ in range(100):
        pixels = glyphs._distorted(FACES[0].draw("W"), 64, generator)
        border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        middle = pixels[16:48, 16:48]
        assert np.median(border) > np.quantile(middle, 0.1) + 60
        assert (border < np.median(border) - 150).mean() < 0.05


@pytest.mark.usefixtures("few")
def test_nothing_is_overwritten_and_nothing_is_left_half_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "glyphs"
    folder.mkdir()
    glyphs.make(folder, images_per_class=2, size=16)  # an empty folder may be filled
    before = contents(folder)
    with pytest.raises(OverwriteError, match="glyphs is already there"):
        glyphs.make(folder, images_per_class=2, size=16)
    assert contents(folder) == before

    def fail(ink: Image.Image, size: int, generator: np.random.Generator) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(glyphs, "_distorted", fail)
    with pytest.raises(OSError, match="no space left"):
        glyphs.make(tmp_path / "second", images_per_class=2, size=16)
    assert [path.name for path in tmp_path.iterdir()] == ["glyphs"]


@pytest.mark.parametrize("wrong", [{"images_per_class": 1}, {"size": 8}, {"seed": -1}])
def test_impossible_arguments_are_named(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(DatasetError, match="expected at least 2, 16 and 0"):
        glyphs.make(tmp_path / "glyphs", **wrong)


def test_missing_fonts_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matplotlib.get_data_path", lambda: str(tmp_path))
    with pytest.raises(DatasetError, match=r"DejaVuSans\.ttf is not there: install Matplotlib"):
        glyphs.make(tmp_path / "glyphs")
