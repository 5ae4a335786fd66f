"""The largest similarities of each sample are those of torch.topk, whichever way finds them."""

import pytest
import torch

from proxygml import largest as module
from proxygml.largest import largest


@pytest.mark.parametrize("threads", [1, module.MOST_THREADS + 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("rows", "width", "count"), [(3, 70, 20), (200, 400, 1), (9, 50_000, 900), (4, 6, 6), (2, 9, 0)]
)
def test_it_is_a_top_k(
    rows: int, width: int, count: int, dtype: torch.dtype, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    similarity = torch.randn(rows, width, dtype=dtype, generator=torch.Generator().manual_seed(0))
    similarity[0, ::3] = -torch.inf
    similarity[1, 2] = torch.nan
    similarity[-1, 1::2] = 0.5  # equal ones
    before = similarity.clone()
    values, columns = largest(similarity, count)
    expected = similarity.topk(count, dim=1).values
    assert torch.equal(values.sort(descending=True, stable=True).values.nan_to_num(9.0), expected.nan_to_num(9.0))
    assert torch.equal(values.nan_to_num(9.0), similarity.gather(1, columns).nan_to_num(9.0))
    assert all(len(row.unique()) == count for row in columns)
    assert torch.equal(similarity.nan_to_num(9.0), before.nan_to_num(9.0))
