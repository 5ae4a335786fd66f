"""The candidates for `photos`: loss, crops and gradients are those of the package; rows are kept and continued."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from proxygml import ProxyGMLLoss
from proxygml.data.catalog import Catalog
from proxygml.data.images.settings import ImageSettings
from proxygml.data.images.tensors import ImageDataset
from proxygml.models.embedder_settings import EmbedderSettings
from proxygml.models.image_embedder import ImageEmbedder
from tests.helpers.catalogs import catalog_of
from tests.helpers.pictures import write_picture

candidates = pytest.importorskip("benchmarks.candidates")
memory_images = pytest.importorskip("benchmarks.memory_images")
switches = pytest.importorskip("benchmarks.switches")

RECIPE = """
embedder: {backbone: conv4_small, pooling: max, embedding_size: 8, mirror: true}
loss: {proxies_per_class: 3, neighbor_ratio: 1.0, proxy_weight: 0.0, direction: proxies, scale: 32.0}
embedding_start: features
"""


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six classes of four pictures of several sizes, half of them for training."""
    folder = tmp_path_factory.mktemp("pictures")
    rows = [(f"class {number % 6}", "train" if number % 6 < 3 else "test") for number in range(24)]
    for number in range(len(rows)):
        write_picture(folder / f"{number}.jpg", number, size=(40 + number % 5, 50 - number % 3))
    catalog_of(*rows, folder=folder).write(folder / "catalog.csv")
    return folder / "catalog.csv"


def losses(kind: type[ProxyGMLLoss]) -> ProxyGMLLoss:
    torch.manual_seed(0)
    return kind(5, 16, 4, neighbor_ratio=1.0, proxy_weight=0.0, scale=32.0, direction="proxies")


def gradients(module: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in module.parameters() if parameter.grad is not None]


def test_the_loss_written_out_is_that_of_the_package() -> None:
    ours, written = losses(ProxyGMLLoss), losses(candidates.WrittenOut)
    labels = torch.tensor([0, 0, 1, 2, 2, 2, 4])
    embeddings = torch.nn.functional.normalize(torch.randn(7, 16), dim=1)
    found = []
    for loss in (ours, written):
        samples = embeddings.clone().requires_grad_()
        value = loss(samples, labels)
        value.backward()
        found.append([value.detach(), samples.grad, loss.proxies.grad])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_two_passes_in_parts_give_the_gradients_of_one_large_batch() -> None:
    torch.manual_seed(0)
    settings = EmbedderSettings(backbone="conv4_small", weights="none", pooling="max", embedding_size=16)
    embedder = ImageEmbedder(settings, ImageSettings(size=32, resize=32)).double()
    embedder.backbone.eval()  # frozen batch norm
    images, labels = torch.randint(256, (10, 3, 32, 32)).byte(), torch.arange(10) % 4
    found = []
    for part in (10, 3):
        embedder.zero_grad()
        loss = losses(candidates._MixedSamples).double()
        torch.manual_seed(1)  # for the shares of the mixed samples
        value = candidates.backward_in_parts(embedder, lambda given, loss=loss: loss(given, labels), images, part)
        found.append([value, loss.proxies.grad, *gradients(embedder)])
    embedder.zero_grad()
    loss = losses(candidates._MixedSamples).double()
    torch.manual_seed(1)
    value = loss(embedder(images), labels)
    value.backward()
    whole = [value.detach(), loss.proxies.grad, *gradients(embedder)]
    assert len(whole) > 6
    for parts in found:
        for one, other in zip(parts, whole, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("size", [24, 64])
def test_crops_in_memory_are_those_of_the_data_set(catalog: Path, size: int) -> None:
    train = Catalog.read(catalog).split("train")
    settings = ImageSettings(size=size, resize=size, crop_scale=(0.3, 1.0))
    dataset = ImageDataset(train.paths, None, settings, training=True, seed=3)
    crops = memory_images.Crops(memory_images.Split.read(train, 1).images, settings, 3, torch.device("cpu"))
    for epoch in (1, 2):
        dataset.set_epoch(epoch)
        crops.set_epoch(epoch)
        expected = torch.stack([dataset[row][0] for row in range(len(train))])
        off = crops.batch(np.arange(len(train))).int() - expected.int()
        assert off.abs().max() <= 2  # PyTorch rounds the weights of 8-bit images
        assert off.abs().double().mean() < 0.1


def test_mixed_similarities_lie_between_those_of_their_pair() -> None:
    labels = torch.tensor([0, 1, 0, 0])
    similarity, mixed = losses(candidates._MixedSamples).samples(torch.rand(4, 5, 4), labels)
    assert mixed.tolist() == [0, 1, 0, 0, 0, 0, 0]
    for row, (i, j) in zip(similarity[4:], [(0, 2), (0, 3), (2, 3)], strict=True):
        share = (row - similarity[i]) / (similarity[j] - similarity[i])
        torch.testing.assert_close(share, share[0, 0].expand_as(share), rtol=1e-2, atol=1e-2)


def test_a_pulled_proxy_comes_nearer_to_its_mean_and_no_other_moves() -> None:
    switch = candidates.PulledProxies(0.5)
    switch.criterion, switch.means = losses(ProxyGMLLoss), torch.zeros(5, 16)
    before = switch.criterion.proxies.detach().clone()
    switch.batch = torch.nn.functional.normalize(torch.randn(4, 16), dim=1), torch.tensor([1, 1, 3, 1])
    switch.after_step(nn.Identity())
    moved = (switch.criterion.proxies != before).any(dim=1).nonzero().flatten().tolist()
    assert [row // 4 for row in moved] == [1, 3]
    means = [switch.batch[0][[0, 1, 3]].mean(dim=0), switch.batch[0][2]]
    for row, mean in zip(moved, means, strict=True):
        now, then = (
            torch.cosine_similarity(proxies[row], mean, dim=0) for proxies in (switch.criterion.proxies, before)
        )
        assert now > then


def run(catalog: Path, folder: Path, *more: str) -> Path:
    """Train and return the file of rows."""
    (folder / "small.yaml").write_text(RECIPE)
    rows = folder / "rows.csv"
    sizes = ("--size", "32", "--epochs", "2", "--device", "cpu")
    files = ("--data", f"some={catalog}", "--weights", "none", "--recipe", str(folder / "small.yaml"))
    switches.main(["run", *files, *sizes, "--out", str(rows), *more])
    return rows


def test_each_switch_trains_and_its_rows_are_kept(
    catalog: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = switches.read_rows([run(catalog, tmp_path, "--seeds", "0")])
    assert {row.switch for row in rows} == set(switches.SWITCHES)
    assert all(0 < row.map_at_r <= 1 and row.seconds > 0 for row in rows)
    before = (tmp_path / "rows.csv").read_bytes()
    run(catalog, tmp_path, "--seeds", "0")
    assert (tmp_path / "rows.csv").read_bytes() == before
    run(catalog, tmp_path, "--seeds", "1", "--switches", "none", "threshold=0.1")
    assert len(switches.read_rows([tmp_path / "rows.csv"])) == len(rows) + 2
    capsys.readouterr()
    switches.main(["table", str(tmp_path / "rows.csv")])
    shown = capsys.readouterr().out
    assert all(f"\n| {name}" in shown for name in switches.SWITCHES)


def test_parts_are_all_cells_once_and_an_unknown_switch_is_named() -> None:
    parser = switches.parser_of_options()
    command = ["run", "--data", "a=1", "--data", "b=2", "--weights", "none", "--out", "rows.csv"]
    whole = switches.cells_of(parser.parse_args(command))
    parts = [switches.cells_of(parser.parse_args([*command, "--part", f"{part}/4"])) for part in range(4)]
    assert sorted(map(str, whole)) == sorted(str(cell) for part in parts for cell in part)
    with pytest.raises(switches.UserError, match="distillation"):
        switches.chosen(["distilation"])


def test_differences_are_paired_by_seed() -> None:
    row = switches.Row("some", "none", 0.0, 0, 5, 96, 0.5, 0.2, 1.0, "CPU")
    rows = [replace(row, seed=seed, recall_at_1=0.5 + 0.1 * seed) for seed in range(3)]
    better = [replace(one, switch="threshold", value=0.1, recall_at_1=one.recall_at_1 + 0.02) for one in rows[:2]]
    better.append(replace(rows[2], switch="threshold", value=0.1, recall_at_1=0.75))
    (table,) = switches.tables([*better, *rows])
    (line,) = (line for line in table.splitlines() if line.startswith("| threshold 0.1"))
    assert "+3.0 (-1.3" in line  # 2, 2 and 5 points
