"""Built-in data: characters rendered from the fonts that Matplotlib ships, for a demo that downloads nothing.

A class is a character. Its images show it in every typeface that has it, turned, sheared, scaled and made noisy at
random. Other scripts are tested than are trained on.
"""

import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from proxygml.console import track
from proxygml.data.catalog import Catalog
from proxygml.errors import DatasetError
from proxygml.files import atomic_folder, check_overwrite

FACES = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
)
LEAST_FACES = 12
"""A character that fewer faces have is left out: all twelve of DejaVu, at least."""


@dataclass(frozen=True)
class Script:
    """A script: its folder's name, the split it belongs to, and its blocks of code points, first and last."""

    name: str
    split: str
    blocks: tuple[tuple[int, int], ...]


SCRIPTS = (
    Script("latin", "train", ((0x41, 0x5A), (0x61, 0x7A), (0xDF, 0xDF), (0xE6, 0xE6), (0xF0, 0xF0), (0xFE, 0xFE))),
    Script("greek", "train", ((0x391, 0x3A9), (0x3B1, 0x3C9))),
    Script("cyrillic", "train", ((0x410, 0x44F), (0x400, 0x40F), (0x450, 0x52F))),
    Script("armenian", "test", ((0x531, 0x556), (0x561, 0x586))),
    Script("georgian", "test", ((0x10D0, 0x10FF),)),
)

# Two characters look alike when, in a quarter of the faces that have both, their shapes overlap by this much
# (intersection over union, each shape cut to its ink and scaled to SHAPE_SIDE). By this measure E and F (0.83), c and C
# (0.77), o and O (0.76) are too close to be two classes; sigma and o (0.66), O and Q (0.50), k and K (0.43) are not.
LOOK_ALIKE = 0.7
FACES_ALIKE = 0.25
SHAPE_SIDE = 24

FONT_SIZE = 96
ROTATION = 12.0  # degrees to either side
SHEAR = 0.2
STRETCH = 0.2  # of width against height, to either side
EXTENT = (0.6, 0.8)  # longer side of the upright character, as a fraction of the image's side
NOISE = (4.0, 16.0)  # standard deviation, grey levels
SHIFT = 0.5  # how much of the room beside the character its centre may wander into
PAPER, INK = (225.0, 255.0), (0.0, 40.0)  # grey levels


def make(out_folder: Path, *, images_per_class: int = 20, size: int = 64, seed: int = 0) -> Catalog:
    """Built-in data: characters of five scripts, rendered here from fonts; nothing is downloaded.

    Args:
        out_folder: created, whole or not at all; `<script>/U+XXXX_NAME/NN.png`, 8-bit grey.
        images_per_class: images of each character, at least 2.
        size: side of the square images in pixels, at least 16.
        seed: the same seed gives the same images.

    Raises:
        DatasetError: an argument is out of range, or Matplotlib's fonts are not where it says.
        OverwriteError: out_folder is there already, and not an empty folder.
    """
    if images_per_class < 2 or size < 16 or seed < 0:
        raise DatasetError(
            f"glyphs got images_per_class {images_per_class}, size {size}, seed {seed}: expected at least 2, 16 and 0"
        )
    if not (out_folder.is_dir() and not any(out_folder.iterdir())):
        check_overwrite(out_folder, force=False)
    faces = [Face.load(name) for name in FACES]
    with atomic_folder(out_folder) as temporary:
        rows = list(_write(distinct_characters(faces), faces, temporary, images_per_class, size, seed))
    return Catalog.of_rows(rows, ["path", "label", "split"], out_folder)


@dataclass(frozen=True)
class Face:
    """One font face, with the code points that it has."""

    font: ImageFont.FreeTypeFont
    code_points: frozenset[int]

    @classmethod
    def load(cls, name: str) -> "Face":
        """One of Matplotlib's own TrueType files, by name.

        Raises:
            DatasetError: the file is not there.
        """
        import matplotlib  # noqa: PLC0415  # only here, so that a command's help does without it
        from matplotlib.ft2font import FT2Font  # noqa: PLC0415

        path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
        if not path.is_file():
            raise DatasetError(
                f"Matplotlib's font {path} is not there: install Matplotlib with its own fonts (pip does)"
            )
        return cls(ImageFont.truetype(path, FONT_SIZE), frozenset(FT2Font(str(path)).get_charmap()))

    def has(self, character: str) -> bool:
        return ord(character) in self.code_points

    def draw(self, character: str) -> Image.Image:
        """The character's ink, 255 on 0, cut to its bounding box."""
        left, top, right, bottom = (round(edge) for edge in self.font.getbbox(character))
        image = Image.new("L", (right - left, bottom - top))
        ImageDraw.Draw(image).text((-left, -top), character, font=self.font, fill=255)
        return image.crop(image.getbbox())


def label_of(character: str) -> str:
    """Such as `U+0561 ARMENIAN SMALL LETTER AYB`."""
    return f"U+{ord(character):04X} {unicodedata.name(character)}"


def distinct_characters(faces: Sequence[Face]) -> list[tuple[Script, str]]:
    """The letters of every script that enough faces have, without those that look like one before them.

    The training scripts come first, so a test character that looks like a training one is left out as well.
    """
    letters = [(script, character) for script in SCRIPTS for character in _letters(script, faces)]
    likeness = _likeness([character for _, character in letters], faces)
    kept: list[int] = []
    for index in range(len(letters)):
        if (likeness[index, kept] < LOOK_ALIKE).all():
            kept.append(index)
    return [letters[index] for index in kept]


def _letters(script: Script, faces: Sequence[Face]) -> Iterator[str]:
    for character in map(chr, chain.from_iterable(range(first, last + 1) for first, last in script.blocks)):
        # An accented letter, which Unicode decomposes, is left out: the accent is too small to tell it by.
        is_letter = unicodedata.category(character) in ("Ll", "Lu", "Lo") and not unicodedata.decomposition(character)
        if is_letter and sum(face.has(character) for face in faces) >= LEAST_FACES:
            yield character


def _likeness(characters: Sequence[str], faces: Sequence[Face]) -> npt.NDArray[np.float32]:
    """(n, n): how much of two characters' ink overlaps, in the faces where it overlaps most (see LOOK_ALIKE)."""
    count = len(characters)
    overlaps = np.full((len(faces), count, count), np.nan, dtype=np.float32)
    for face, overlap in zip(faces, overlaps, strict=True):
        present = [index for index, character in enumerate(characters) if face.has(character)]
        shapes = np.stack([_shape(face.draw(characters[index])) for index in present])
        ink = shapes.sum(axis=1)
        shared = np.stack([np.minimum(shape, shapes).sum(axis=1) for shape in shapes])
        overlap[np.ix_(present, present)] = shared / (ink[:, None] + ink - shared)
    shared_faces = (~np.isnan(overlaps)).sum(axis=0)  # never 0, since every character has LEAST_FACES
    rank = ((1 - FACES_ALIKE) * (shared_faces - 1)).round().astype(np.int64)
    in_order = np.sort(overlaps, axis=0)  # which puts NaN last
    likeness: npt.NDArray[np.float32] = np.take_along_axis(in_order, rank[None], axis=0)[0]
    return likeness


def _shape(ink: Image.Image) -> npt.NDArray[np.float32]:
    """The ink scaled to SHAPE_SIDE with its proportions kept, centred, flat, 0..1."""
    scale = SHAPE_SIDE / max(ink.size)
    scaled = ink.resize((max(1, round(ink.width * scale)), max(1, round(ink.height * scale))), Image.Resampling.BOX)
    square = Image.new("L", (SHAPE_SIDE, SHAPE_SIDE))
    square.paste(scaled, ((SHAPE_SIDE - scaled.width) // 2, (SHAPE_SIDE - scaled.height) // 2))
    return np.asarray(square, dtype=np.float32).ravel() / np.float32(255)


def _write(
    letters: Sequence[tuple[Script, str]],
    faces: Sequence[Face],
    folder: Path,
    images_per_class: int,
    size: int,
    seed: int,
) -> Iterator[tuple[str, str, str]]:
    """Write the images of every character, and yield their rows of the catalog."""
    for script, character in track(letters, "Rendering glyphs"):
        label = label_of(character)
        relative = f"{script.name}/{label.replace(' ', '_')}"
        (folder / relative).mkdir(parents=True)
        generator = np.random.default_rng((seed, ord(character)))
        for number, ink in enumerate(_drawings(character, faces, images_per_class, generator)):
            path = f"{relative}/{number:02}.png"
            Image.fromarray(_distorted(ink, size, generator)).save(folder / path)
            yield path, label, script.split


def _drawings(
    character: str, faces: Sequence[Face], count: int, generator: np.random.Generator
) -> Iterator[Image.Image]:
    """The character in `count` faces: every face once, in random order, then every face once more, ..."""
    inks = [face.draw(character) for face in faces if face.has(character)]
    for number in range(count):
        if number % len(inks) == 0:
            order = generator.permutation(len(inks))
        yield inks[order[number % len(inks)]]


def _distorted(ink: Image.Image, size: int, generator: np.random.Generator) -> npt.NDArray[np.uint8]:
    """The ink turned, sheared, stretched and moved at random on noisy paper: (size, size)."""
    oversampling = 2
    side = size * oversampling
    matrix = _random_matrix(generator) * (side * generator.uniform(*EXTENT) / max(ink.size))
    # Pillow needs the inverse: from where each pixel of the result comes. Both are around the centres.
    inverse = np.linalg.inv(matrix)
    reach = np.abs(matrix) @ np.array(ink.size) / 2
    room = np.maximum(side / 2 - reach, 0)
    origin = np.array(ink.size) / 2 - inverse @ (side / 2 + generator.uniform(-SHIFT, SHIFT, 2) * room)
    coefficients = (*inverse[0], origin[0], *inverse[1], origin[1])
    turned = ink.transform((side, side), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
    coverage = np.asarray(turned.reduce(oversampling), dtype=np.float64) / 255
    paper, black = generator.uniform(*PAPER), generator.uniform(*INK)
    noise = generator.uniform(*NOISE) * generator.standard_normal((size, size))
    return (paper + (black - paper) * coverage + noise).round().clip(0, 255).astype(np.uint8)


def _random_matrix(generator: np.random.Generator) -> npt.NDArray[np.float64]:
    """A random (2, 2) matrix that stretches, then shears, then turns."""
    angle = math.radians(generator.uniform(-ROTATION, ROTATION))
    stretch = math.exp(generator.uniform(-STRETCH, STRETCH) / 2)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    shear = np.array([[1.0, generator.uniform(-SHEAR, SHEAR)], [0.0, 1.0]])
    matrix: npt.NDArray[np.float64] = turn @ shear @ np.diag([stretch, 1 / stretch])
    return matrix
