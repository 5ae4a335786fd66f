"""The evaluation on a GPU: the figures of the CPU, ties included."""

import numpy as np
import pytest
import torch

from proxygml import evaluate

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]


@pytest.mark.parametrize("classes", [5, 200])
def test_the_figures_are_those_of_the_cpu(classes: int) -> None:
    """Of vectors of few different values, so that products are exact in any order and many are equal."""
    random = np.random.default_rng(0)
    embeddings = torch.from_numpy(random.choice([-0.5, 0.5], size=(1_000, 4)).astype(np.float32))
    labels = random.integers(classes, size=1_000)
    expected = evaluate(embeddings, labels, nmi=False)
    found = evaluate(embeddings.cuda(), labels, nmi=False)
    assert found.recall[1].value == expected.recall[1].value
    assert found.recall[8].value == expected.recall[8].value
    assert found.map_at_r.value == pytest.approx(expected.map_at_r.value, abs=1e-6)
