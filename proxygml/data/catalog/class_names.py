"""Classes whose names differ so little that they are probably one class."""

import unicodedata
from collections import defaultdict
from collections.abc import Sequence

from proxygml.data.catalog import Catalog
from proxygml.errors import first_few

GROUPS_NAMED = 5


def similar_classes(names: Sequence[str]) -> list[list[str]]:
    """Groups of names that differ in capital letters, blanks or the form of their Unicode characters alone."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[_key(name)].append(name)
    return [group for group in groups.values() if len(group) > 1]


def check_class_names(catalog: Catalog) -> list[str]:
    """Warnings about classes that are probably one: images of it may be both trained on and tested."""
    labels = catalog.table["label"]
    groups = similar_classes(catalog.classes)
    if not groups:
        return []
    counts = catalog.table.groupby([labels, "split"]).size()
    described = []
    for group in groups[:GROUPS_NAMED]:
        parts = [", ".join(f"{count:,} {split}" for split, count in counts[name].items()) for name in group]
        described.append(" and ".join(f"{_shown(name)} ({part})" for name, part in zip(group, parts, strict=True)))
    number = sum(map(len, groups))
    return [
        f"{number:,} classes have names that differ in capital letters, blanks or the form of their characters alone: "
        f"{first_few(described + [''] * (len(groups) - len(described)), GROUPS_NAMED)}. They count as different "
        "classes. If they are the same, rename their folders, or their labels in the table, so that they are equal"
    ]


def class_named(name: str, classes: Sequence[str]) -> str | None:
    """The class of that name, or the only one whose name is the same in another form of Unicode; None for none."""
    if name in classes:
        return name
    same = [known for known in classes if _nfc(known) == _nfc(name)]
    return same[0] if len(same) == 1 else None


def _key(name: str) -> str:
    return unicodedata.normalize("NFKC", " ".join(unicodedata.normalize("NFKC", name).split()).casefold())


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _shown(name: str) -> str:
    """The name in quotes, with characters written out that look like others."""
    return repr(name) if name.isascii() or _nfc(name) == name else ascii(name)
