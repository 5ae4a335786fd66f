"""Lists of images that are worked on in parts: the list in a file, a row group a part, and which parts are whole.

The work of a part follows from its images and the states of their files. What it leaves notes a digest of these states,
so that a run that was stopped, or is repeated after a file has changed, makes again what is not whole or out of date.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence

import pandas as pd
import pyarrow.parquet as pq

from proxygml.data.arrow import to_arrow
from proxygml.data.images.image_list import file_stamps
from proxygml.data.parquet import open_parquet
from proxygml.remote import exists, written
from proxygml.urls import Place

FACTS = b"proxygml"
"""Where in a Parquet file's metadata our notes are, as JSON."""


def write_list(images: pd.DataFrame, file: Place, part_rows: int) -> int:
    """Write a list of images, unless it is there; how many parts it has.

    Args:
        images: with their columns.
        file: whose name follows from the content of the list.
        part_rows: images of a part.
    """
    if not exists(file):
        with written(file) as temporary:
            pq.write_table(to_arrow(images), temporary, row_group_size=part_rows)
    return int(open_parquet(file).metadata.num_row_groups)


def stamps_of_files(paths: Sequence[str]) -> str:
    """A digest of the states that files are in now; see file_stamps."""
    return hashlib.sha256(file_stamps(paths).tobytes()).hexdigest()


def stamps_of_part(part: Place) -> str | None:
    """The stamps that a part has noted; None where there is no part."""
    if not exists(part):
        return None
    facts: dict[str, str] = json.loads((open_parquet(part).schema_arrow.metadata or {}).get(FACTS, b"{}"))
    return facts.get("stamps")


def facts_with(stamps: str, facts: Mapping[str, str | int]) -> dict[bytes, bytes]:
    """What a part notes in its metadata."""
    return {FACTS: json.dumps({**facts, "stamps": stamps}).encode()}
