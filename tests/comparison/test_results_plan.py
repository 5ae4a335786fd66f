"""The comparison at real size: which methods stay in it, with which settings, and what its tables and picture show."""

from dataclasses import replace
from multiprocessing import Event
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from proxygml import evaluate
from proxygml.comparison.row import Row
from proxygml.data.images.settings import ImageSettings
from proxygml.errors import UserError
from proxygml.models.embedder import Embedder
from proxygml.models.embedder_settings import EmbedderSettings
from proxygml.models.image_embedder import ImageEmbedder

equal_cost = pytest.importorskip("benchmarks.equal_cost")
results = pytest.importorskip("benchmarks.results")
views = pytest.importorskip("benchmarks.views")


def trials(**values: list[float]) -> list[Row]:
    """Trials of methods with these figures on validation classes; the best is chosen."""
    return [
        Row(name, 0, trial, value == max(found), tried={"proxy_lr": 0.01 * (trial + 1)}, val_map_at_r=value)
        for name, found in values.items()
        for trial, value in enumerate(found)
    ]


def test_methods_out_of_the_race_get_no_further_seeds() -> None:
    rows = trials(**{"Our recipe": [0.1], "ProxyGML": [0.2, 0.3], "SoftTriple": [0.31, 0.1], "Proxy-NCA": [0.26, 0.2]})
    assert results.staying(rows) == ["Our recipe", "ProxyGML", "SoftTriple"]
    ahead = trials(**{"Our recipe": [0.9], "SoftTriple": [0.3], "Proxy-NCA": [0.28]})
    assert results.staying(ahead) == ["Our recipe", "SoftTriple", "Proxy-NCA"]  # ours does not raise the bar


@pytest.mark.parametrize(
    ("setup", "gpu"), [(results.SETUPS[1], False), (results.SETUPS[2], True)], ids=["birds", "groceries"]
)
def test_the_seeds_that_follow_have_the_settings_that_the_trials_chose(
    setup: object, gpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    plan = results.comparison_of(setup, tmp_path, workers=0, quick=False)
    assert plan.shared.precision == ("bf16" if gpu else "fp32")
    chosen = trials(**{method.name: [0.2, 0.3, 0.1] for method in plan.methods})
    rest = results.finish(plan, chosen)
    assert (rest.seeds, rest.trials, len(rest.methods)) == ((1, 2, 3, 4), 0, len(plan.methods))
    for method, before in zip(rest.methods, plan.methods, strict=True):
        recipe = rest.recipe_of(method, {}, seed=1)
        assert recipe == plan.recipe_of(before, {"proxy_lr": 0.02}, seed=1)
        assert recipe.embedder.backbone == setup.backbone  # type: ignore[attr-defined]


@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(0, 1)), min_size=1))
def test_the_front_holds_all_that_nothing_cheaper_or_as_cheap_beats(places: list[tuple[float, float]]) -> None:
    front = views.pareto_front(places)
    assert front == sorted(set(front))
    beaten = {p for p in places if any(q[0] <= p[0] and q[1] >= p[1] and q != p for q in places)}
    assert set(front) == set(places) - beaten


def test_rows_are_read_as_they_were_written_and_shown(tmp_path: Path) -> None:
    one = views.Row("birds", "net", "Ours", 0, views.USUAL, 96, 512, 2.5, "CPU", 0.5, 0.25)
    shot = replace(one, data="groceries", packshot_recall_at_1=0.375, packshot_recall_at_4=0.75)
    rows = [one, replace(one, seed=1, recall_at_1=0.6), shot, replace(shot, way="larger images", milliseconds=9.0)]
    views.write(tmp_path / "views.csv", rows)
    assert views.read(tmp_path / "views.csv") == rows
    assert views.read(tmp_path / "none.csv") == []
    text = views.tables(rows)
    assert "| one view of the usual map | Ours | 2 | 55.0 (-8.5 - 118.5) | 25.0 (25.0 - 25.0) | 2.50 |" in text
    assert "| larger images | Ours | 1 | 50.0 | 25.0 | 37.5 | 75.0 | 9.00 |" in text
    views.picture(rows, tmp_path / "pareto.png")
    assert (tmp_path / "pareto.png").stat().st_size > 1000


def test_the_picture_is_of_the_rows_that_have_a_time(tmp_path: Path) -> None:
    one = views.Row("birds", "net", "Ours", 0, views.USUAL, 96, 512, 2.5, "CPU", 0.5, 0.25)
    later = replace(one, data="groceries", method="Theirs", milliseconds=None)
    views.picture([one], tmp_path / "one.png")
    views.picture([one, later], tmp_path / "two.png")
    assert (tmp_path / "two.png").read_bytes() == (tmp_path / "one.png").read_bytes()
    views.picture([later], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_a_panel_of_the_picture_mixes_neither_sizes_of_vectors_nor_devices() -> None:
    one = views.Row("birds", "net", "Ours", 0, views.USUAL, 96, 512, 2.5, "CPU", 0.5, 0.25)
    rows = [one, replace(one, dimensions=64), replace(one, device="GPU"), replace(one, seed=1)]
    assert views.panels(rows) == {
        "birds, net, 64 numbers, CPU": [rows[1]],
        "birds, net, 512 numbers, CPU": [one, rows[3]],
        "birds, net, 512 numbers, GPU": [rows[2]],
    }


def test_rows_of_other_networks_get_no_time_of_this_one(tmp_path: Path) -> None:
    folder, out = tmp_path / "run" / "Ours" / "seed-0", tmp_path / "views.csv"
    with pytest.raises(UserError, match="run has no finished cell"):
        views.add_times(tmp_path / "run", out)
    folder.mkdir(parents=True)
    settings = EmbedderSettings("mobilenetv2_035", "none", embedding_size=8)
    ImageEmbedder(settings, ImageSettings(size=16, resize=18), ["a", "b"]).save(folder)
    (folder / "evaluation.json").write_text("{}")
    device = views._name_of(views.default_device())
    own = views.Row("birds", "mobilenetv2_035", "Ours", 0, views.USUAL, 16, 8, None, device, 0.5, 0.25)
    others = [replace(own, size=32), replace(own, dimensions=16), replace(own, backbone="net")]
    timed = replace(own, seed=1, milliseconds=1e6)
    views.write(out, [own, timed, *others])
    views.add_times(tmp_path / "run", out)
    first, *rest = views.read(out)
    assert first.milliseconds is not None and replace(first, milliseconds=None) == own
    assert rest == [timed, *others]


def test_methods_are_compared_at_equal_cost_seed_by_seed() -> None:
    """Ours beside another in the same way, of the seeds that both have, and of as many numbers."""
    one = views.Row("birds", "net", views.OURS, 0, "finer map and mirror image", 96, 512, 2.5, "CPU", 0.5, 0.25)
    other = replace(one, method="Other", recall_at_1=0.4)
    rows = [one, replace(one, seed=1, recall_at_1=0.6), replace(one, seed=2, recall_at_1=0.9), other]
    rows += [replace(other, seed=1, recall_at_1=0.5, map_at_r=0.2), replace(other, seed=2, dimensions=64)]
    text = views.ahead(rows)
    line = "| finer map and mirror image | Other | 2 | 10.0 (10.0 - 10.0) | 2.5 (-29.3 - 34.3) |"
    assert line in text
    assert "one view of the usual map | Other" not in text
    some = [replace(row, packshot_recall_at_1=0.5) if row.seed == 0 else row for row in rows]
    assert views.ahead(some) == text  # what only some of the rows have is no figure of all


def test_the_notebook_has_the_table_at_equal_cost_that_the_kept_rows_give() -> None:
    notebook = Path(__file__).parents[2] / "docs" / "notebook.md"
    assert equal_cost.table() in notebook.read_text(encoding="utf-8")


def test_every_cell_is_judged_once_by_every_way_to_embed(small_catalog: Path, tmp_path: Path) -> None:
    """The cells that are there are measured, from photo to photo and to packshot; a second call adds nothing."""
    table = pd.read_parquet(small_catalog)
    table["path"] = [str(small_catalog.parent / path) for path in table["path"]]
    asked = table[table["split"] == "test"]
    shots = asked.groupby("label").head(1)
    table.to_csv(tmp_path / "photos.csv", index=False)
    packshots = pd.concat(
        [asked.assign(is_query=True, is_gallery=False), shots.assign(is_query=False, is_gallery=True)]
    )
    packshots.to_csv(tmp_path / "packshots.csv", index=False)
    settings = EmbedderSettings("mobilenetv2_035", "none", "max", 8, mirror=True, output_stride=8)
    folder = tmp_path / "run" / "Ours" / "seed-0"
    folder.mkdir(parents=True)
    ImageEmbedder(settings, ImageSettings(size=32, resize=36), ["a", "b"]).save(folder)
    (folder / "evaluation.json").write_text("{}")
    (tmp_path / "run" / "Ours" / "seed-1").mkdir()  # not finished
    places = (tmp_path / "photos.csv", tmp_path / "packshots.csv", tmp_path / "views.csv", 0)
    stopped = Event()
    stopped.set()
    judge = views.Judge(*places)
    judge.judge(tmp_path / "run", stopped)
    assert not (tmp_path / "views.csv").exists()
    judge.judge(tmp_path / "run")
    rows = views.read(tmp_path / "views.csv")
    assert [(row.seed, row.way) for row in rows] == [(0, way) for way in views.WAYS]
    plain = ImageEmbedder(replace(settings, mirror=False, output_stride=0), ImageSettings(size=32, resize=36))
    plain.load_state_dict(Embedder.load(folder).state_dict())
    expected = evaluate(plain.embed(list(asked["path"])), list(asked["label"]), (1,), nmi=False)
    assert rows[0].recall_at_1 == pytest.approx(expected.recall[1].value)
    assert all(row.packshot_recall_at_1 <= row.packshot_recall_at_4 for row in rows)
    written = (tmp_path / "views.csv").read_bytes()
    judge.judge(tmp_path / "run")
    views.Judge(*places).judge(tmp_path / "run")
    assert (tmp_path / "views.csv").read_bytes() == written
