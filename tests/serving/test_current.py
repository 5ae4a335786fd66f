"""The gallery that a server looks at: how many items it says that there are."""

import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from proxygml import Gallery
from proxygml.gallery.backend import Addition
from proxygml.serving.changes import Changes
from proxygml.serving.current import CurrentGallery
from proxygml.serving.image_store import ImageStore


def test_items_are_counted_once_when_a_look_falls_amid_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = np.eye(4, dtype=np.float32)
    place = tmp_path / "gallery"
    Gallery.create(vectors[:3], pd.DataFrame({"label": ["a", "b", "c"]})).save(place)
    current = CurrentGallery(Gallery.load(place))
    changes = Changes(current, ImageStore(tmp_path / "images"))
    looks: list[threading.Thread] = []
    take = current.take

    def take_while_another_looks(newer: Gallery) -> None:
        take(newer)
        if not looks:
            looks.append(threading.Thread(target=current.look))
            looks[0].start()
            looks[0].join(0.2)  # it counts now, or waits for the change

    monkeypatch.setattr(current, "take", take_while_another_looks)
    added, refused = changes._change([Addition(vectors[3], {"label": "d"}), 17])
    looks[0].join()
    assert added == 3 and isinstance(refused, Exception) and current.items == 4
    changes._change([0, 1])
    assert current.items == 2 == len(Gallery.load(place))
