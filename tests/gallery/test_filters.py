"""Filters: values are read by the column's type, in memory, in folders and in Milvus alike, whatever the other rows."""

from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from proxygml import Gallery
from proxygml.errors import GalleryError
from tests.helpers.places import BACKENDS, place_for
from tests.helpers.vectors import blocks, clustered

TIMES = ["2021-01-05", "2021-01-05T12:30:00", "2021-01-05T12:30:15.5", "2021-01-31T23:59:59.999999", "2021-02-01"]
ZONE = timezone(timedelta(hours=9))


def table() -> pd.DataFrame:
    times = pd.to_datetime(TIMES, format="ISO8601").astype("datetime64[us]")
    return pd.DataFrame(
        {
            "label": ["a", "b", "B", "007", None],
            "size": [1450000000000000001, 1450000000000000002, 7, -5, 0],
            "code": np.array([2**64 - 1, 2**64 - 2, 0, 5, 2**63], np.uint64),
            "price": [0.1, 10.0, 9.99, 10.5, np.nan],
            "half": np.array([0.1, 10, 9.99, 10.5, -3], np.float32),
            "cost": [Decimal("0.10"), Decimal("10"), Decimal("-9.99"), Decimal("12345678901234567890.5"), None],
            "sold": [True, False, True, False, True],
            "day": [date(2021, 1, 5), date(2021, 1, 5), date(2021, 1, 31), date(1969, 12, 31), None],
            "taken": times,
            "zoned": times.tz_localize("Asia/Tokyo"),
            "tags": [["x", "y"], ["y"], [], None, ["z"]],
            "numbers": [[1450000000000000001], [1450000000000000002, 3], [3], [], None],
            "a=b": ["1", "2", "3", "4", "5"],
            "in": ["1", "2", "3", "4", None],
            "nothing": [None] * 5,
        }
    )


@pytest.fixture(scope="module", params=["memory", *BACKENDS])
def gallery(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    if request.param == "memory":
        return Gallery.create(clustered(5), table())
    return Gallery.build(
        place_for(request.param, tmp_path_factory.mktemp("filters"), request), blocks(clustered(5), table())
    )


FOUND: list[tuple[str, list[int]]] = [
    ("label=a", [0]),
    ("label=007", [3]),
    ("label=7", []),
    ("label!=a", [1, 2, 3, 4]),
    ("label=", [4]),
    ("label!=", [0, 1, 2, 3]),
    ("label>a", [1]),
    ("label<=B", [2, 3]),
    ("label = a", [0]),
    ("size=1450000000000000002", [1]),
    ("size!=1450000000000000002", [0, 2, 3, 4]),
    ("size>1450000000000000001", [1]),
    ("size>=1450000000000000001", [0, 1]),
    ("size<0.5", [3, 4]),
    ("size=0.5", []),
    ("size < 1e30", [0, 1, 2, 3, 4]),
    ("size>99999999999999999999", []),
    ("code=18446744073709551614", [1]),
    ("code>18446744073709551613", [0, 1]),
    ("code<6", [2, 3]),
    ("code>=-1", [0, 1, 2, 3, 4]),
    ("price=0.1", [0]),
    ("price>=10", [1, 3]),
    ("price<10", [0, 2]),
    ("price<=0.1", [0]),
    ("price!=10", [0, 2, 3, 4]),
    ("price=", [4]),
    ("half=0.1", [0]),
    ("half=9.99", [2]),
    ("half<0", [4]),
    ("cost=0.1", [0]),
    ("cost>=10", [1, 3]),
    ("cost=12345678901234567890.5", [3]),
    ("cost>12345678901234567890.4", [3]),
    ("cost<0", [2]),
    ("cost=", [4]),
    ("sold=true", [0, 2, 4]),
    ("sold=False", [1, 3]),
    ("sold!=1", [1, 3]),
    ("day=2021-01-05", [0, 1]),
    ("day=2021-01", [0, 1, 2]),
    ("day<2021", [3]),
    ("day>2021-01-05", [2]),
    ("day!=2021", [3, 4]),
    ("day=", [4]),
    ("taken=2021-01-05", [0, 1, 2]),
    ("taken=2021-01-05T12:30:00", [1]),
    ("taken=2021-01-05 12:30:00", [1]),
    ("taken=2021-01-05T12:30", [1, 2]),
    ("taken=2021-01-05T12:30:15.5", [2]),
    ("taken=2021-01-05T00:00:00", [0]),
    ("taken<2021-02", [0, 1, 2, 3]),
    ("taken<=2021-01", [0, 1, 2, 3]),
    ("taken>2021-01", [4]),
    ("taken>=2021-01-31", [3, 4]),
    ("taken<9999", [0, 1, 2, 3, 4]),
    ("zoned=2021-01-05", [0, 1, 2]),
    ("zoned=2021-01-05T12:30:00+09:00", [1]),
    ("zoned=2021-01-05T03:30:00Z", [1]),
    ("zoned<2021-02", [0, 1, 2, 3]),
    ("tags=y", [0, 1]),
    ("tags!=y", [2, 3, 4]),
    ("tags=", [2, 3]),
    ("tags!=", [0, 1, 4]),
    ("numbers=1450000000000000002", [1]),
    ("numbers=3", [1, 2]),
    ("a=b=3", [2]),
    ("a=b!=4", [0, 1, 2, 4]),
    ("in=2", [1]),
    ("in!=2", [0, 2, 3, 4]),
    ("nothing=", [0, 1, 2, 3, 4]),
    ("nothing=x", []),
    ("id=3", [3]),
    ("id>=3", [3, 4]),
    ("id!=3", [0, 1, 2, 4]),
]


def test_conditions_find_what_they_say(gallery: Gallery) -> None:
    wrong = {text: found for text, expected in FOUND if (found := gallery.matching([text]).tolist()) != expected}
    assert not wrong


def test_all_conditions_hold_and_values_of_a_column_are_alternatives(gallery: Gallery) -> None:
    assert gallery.matching(["taken>=2021-01-05T12:30", "price<10.2", "taken<2021-02"]).tolist() == [1, 2]
    assert gallery.matching(["label=a", "label=b", "sold=true"]).tolist() == [0]
    assert gallery.matching(["label!=a", "label!=b", "label!="]).tolist() == [2, 3]
    assert gallery.search(clustered(1), 9, ["size>=0", "label="]).ids.tolist() == [[4]]


@pytest.mark.parametrize(
    ("column", "value", "found"),
    [
        ("taken", pd.Timestamp("2021-01-05"), [0]),
        ("taken", pd.Timestamp("2021-01-05 12:30"), [1]),
        ("taken", datetime(2021, 1, 5, 12, 30, 15, 500_000), [2]),
        ("taken", date(2021, 1, 5), [0, 1, 2]),
        ("taken", np.datetime64("2021-01-05"), [0, 1, 2]),
        ("taken", np.datetime64("2021-01"), [0, 1, 2, 3]),
        ("taken", np.datetime64("2021-01-05T12:30:00"), [1]),
        ("taken", np.array(["2021-02-01T00:00:00", "2021-01-05T12:30"], "datetime64[ns]"), [1, 4]),
        ("taken", pd.Series(pd.to_datetime(["2021-02-01"])), [4]),
        ("zoned", datetime(2021, 1, 5, 12, 30, tzinfo=ZONE), [1]),
        ("zoned", pd.Timestamp("2021-01-05 03:30", tz="UTC"), [1]),
        ("day", datetime(2021, 1, 31), [2]),
        ("day", np.array(["2021-01-31", "1969-12-31"], "datetime64[D]"), [2, 3]),
        ("sold", np.bool_(True), [0, 2, 4]),
        ("sold", [np.False_], [1, 3]),
        ("size", np.array([7, -5]), [2, 3]),
        ("size", {7, "0"}, [2, 4]),
        ("size", pd.Series([1450000000000000001, None], dtype="Int64"), [0]),
        ("size", np.int64(1450000000000000002), [1]),
        ("size", torch.tensor([7, 0]), [2, 4]),
        ("size", np.array(7), [2]),
        ("size", range(8), [2, 4]),
        ("price", np.float32(0.1), [0]),
        ("price", [10, Decimal("10.5")], [1, 3]),
        ("price", np.nan, [4]),
        ("label", ("a", None), [0, 4]),
        ("label", frozenset({"b"}), [1]),
        ("label", pd.Index(["a", "b"]), [0, 1]),
        ("label", np.str_("a"), [0]),
        ("label", [], []),
        ("tags", ["x", "z"], [0, 4]),
        ("cost", 10, [1]),
    ],
)
def test_objects_are_values_too(column: str, value: Any, found: list[int], gallery: Gallery) -> None:
    assert gallery.matching({column: value}).tolist() == found


def test_conditions_as_tuples_take_objects(gallery: Gallery) -> None:
    assert gallery.matching([("taken", "<", pd.Timestamp("2021-01-05 12:30"))]).tolist() == [0]
    assert gallery.matching([("taken", "<=", np.datetime64("2021-01-05")), ("size", ">", 0)]).tolist() == [0, 1, 2]
    assert gallery.matching([("size", "!=", {7, -5})]).tolist() == [0, 1, 4]


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("size=many", r"'size' holds whole numbers of 64 bits, but 'many' is none: give one such as 17"),
        ("size=true", r"'size' holds whole numbers .* 'true' is none"),
        ("price>cheap", r"'price' holds numbers, but 'cheap' is none: give one such as 0.5"),
        ("price=nan", r"'price' holds numbers, but 'nan' is none"),
        ("cost=1,5", r"'cost' holds decimal numbers, but '1,5' is none: give one such as 9.99"),
        ("sold=maybe", r"'sold' holds true and false, but 'maybe' is none: give one such as true"),
        ("day=soon", r"'day' holds dates, but 'soon' is none: give one such as 2021-01-31"),
        ("day=2021-01-05T12:30", r"'day' holds dates, but .* is none"),
        ("taken=05.01.2021", r"'taken' holds times, but .* is none: give one such as 2021-01-31T12:00:00"),
        ("taken=2021-02-30", r"'taken' holds times"),
        ("taken=2021-01-05T12:30Z", r"'taken' holds times, but .* is none"),
        ("zoned=x", r"'zoned' holds times of the time zone Asia/Tokyo, .* such as 2021-01-31T12:00:00\+09:00"),
        ("numbers=x", r"'numbers' holds whole numbers"),
        ("tags>x", r"'tags' holds lists of text, which have no order: use = or != instead of >"),
        ("sold<true", r"no order"),
        ("label>=10", r"'label' holds text, among which 10 has no place as a number"),
        ("size>", r"size> needs one value"),
        ("sizes>3", r"no column 'sizes': did you mean 'size'"),
        ("size", r"'size' has no =: expected column=value"),
        ("id=x", r"'id' holds whole numbers"),
        (("size", "~", 3), r"operator '~'"),
        (("size", 3), r"\(column, operator, value\)"),
    ],
)
def test_a_wrong_value_is_named_with_its_column_type_and_an_example(
    condition: Any, message: str, gallery: Gallery
) -> None:
    with pytest.raises(GalleryError, match=message):
        gallery.matching([condition])


def test_a_date_filter_does_not_depend_on_the_other_rows(gallery: Gallery, tmp_path: Path) -> None:
    days = pd.DataFrame({"taken": pd.to_datetime(["2021-01-05", "2021-01-06"])})
    for late in (False, True):
        made = Gallery.create(clustered(2), days)
        if late:
            made.add(clustered(1), pd.DataFrame({"taken": [pd.Timestamp("2021-01-06 12:30")]}))
        for value in ("2021-01-05", pd.Timestamp("2021-01-05"), np.datetime64("2021-01-05"), "2021-01-05T00:00:00"):
            assert made.matching({"taken": value}).tolist() == [0]


def test_types_stay_after_save_and_load(gallery: Gallery, tmp_path: Path) -> None:
    if not gallery.place:
        gallery = Gallery.create(clustered(5), table())
        gallery.save(tmp_path / "g")
    loaded = Gallery.load(gallery.place)
    pd.testing.assert_frame_equal(loaded.items, gallery.items)
    assert loaded.schema == gallery.schema
    given = table()
    for name in given.columns:
        cells, expected = loaded.items[name], given[name]
        assert cells.isna().tolist() == expected.isna().tolist(), name
        assert cells.dropna().tolist() == expected.dropna().tolist(), name


@pytest.mark.parametrize("backend", ["memory", *BACKENDS])
def test_added_rows_never_change_other_rows(backend: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Whatever columns they lack, leave empty or bring along, before and after save."""
    given = table()
    made = Gallery.create(clustered(5), given)
    if backend != "memory":
        made = Gallery.build(place_for(backend, tmp_path, request), blocks(clustered(5), given))
    before = made.items
    rows: list[dict[str, Any]] = [
        {"label": "c"},
        dict.fromkeys(given.columns),
        {"size": "17", "sold": "no", "price": 1, "taken": "2022-05-06 10:00", "tags": ["q"], "cost": "0.001"},
        {"fresh": [1450000000000000001], "other": 2**53 + 1, "nothing": "text"},
        {"other": None, "day": "2022-01-01", "zoned": "2022-05-06T10:00:00+02:00", "code": str(2**64 - 1)},
    ]
    for row in rows:
        made.add(clustered(1), pd.DataFrame([row]))
    made.save(None if made.place else tmp_path / "h")
    for seen in (made.items, Gallery.load(made.place).items):
        old = seen.loc[before.index, [name for name in before.columns if name != "nothing"]]
        pd.testing.assert_frame_equal(old, before.drop(columns="nothing"))
        assert (seen["nothing"].isna().sum(), seen["nothing"].iloc[8]) == (9, "text")
        assert (seen["other"].iloc[8], seen["fresh"].iloc[8]) == (2**53 + 1, [1450000000000000001])
        assert (seen["zoned"].iloc[9].isoformat(), seen["code"].iloc[9]) == ("2022-05-06T17:00:00+09:00", 2**64 - 1)
        assert (seen["size"].iloc[7], seen["cost"].iloc[7], seen["tags"].iloc[7]) == (17, Decimal("0.001"), ["q"])
    for row in ({"size": 2.5}, {"size": 2**63}, {"price": 2**53 + 1}, {"tags": "q"}, {"taken": "2022"}, {"day": "x"}):
        with pytest.raises(GalleryError, match="holds"):
            made.add(clustered(1), pd.DataFrame([row]))


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([1, "a"], "several kinds, such as 1 .int. and 'a' .str."),
        ([2**64, 1], "a whole number beyond 64 bits: give it as text"),
        ([True, 2], "several kinds"),
        ([pd.Timestamp("2021"), pd.Timestamp("2021", tz="UTC")], "with and without a time zone"),
        ([["a", 1], []], "several kinds"),
    ],
)
def test_a_new_column_of_several_kinds_is_refused(column: list[Any], message: str) -> None:
    with pytest.raises(GalleryError, match=message):
        Gallery.create(clustered(2), pd.DataFrame({"x": pd.Series(column, dtype=object)}))


def test_items_must_be_a_table() -> None:
    with pytest.raises(GalleryError, match="items is a list: give a pandas DataFrame"):
        Gallery.create(clustered(2), ["a", "b"])  # type: ignore[arg-type]
    with pytest.raises(GalleryError, match="two columns 'a'"):
        Gallery.create(clustered(2), pd.DataFrame([[1, 2], [3, 4]], columns=["a", "a"]))
