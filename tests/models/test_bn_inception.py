"""BN-Inception is the published network, under the port's names, and takes the port's files and no others."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from proxygml.errors import RecipeError, WeightsError
from proxygml.models.bn_inception import BNInception

# Every convolution of the port: its name, input channels, output channels, kernel size.
CONVOLUTIONS = """
conv1_7x7_s2 3 64 7
conv2_3x3_reduce 64 64 1
conv2_3x3 64 192 3
inception_3a_1x1 192 64 1
inception_3a_3x3_reduce 192 64 1
inception_3a_3x3 64 64 3
inception_3a_double_3x3_reduce 192 64 1
inception_3a_double_3x3_1 64 96 3
inception_3a_double_3x3_2 96 96 3
inception_3a_pool_proj 192 32 1
inception_3b_1x1 256 64 1
inception_3b_3x3_reduce 256 64 1
inception_3b_3x3 64 96 3
inception_3b_double_3x3_reduce 256 64 1
inception_3b_double_3x3_1 64 96 3
inception_3b_double_3x3_2 96 96 3
inception_3b_pool_proj 256 64 1
inception_3c_3x3_reduce 320 128 1
inception_3c_3x3 128 160 3
inception_3c_double_3x3_reduce 320 64 1
inception_3c_double_3x3_1 64 96 3
inception_3c_double_3x3_2 96 96 3
inception_4a_1x1 576 224 1
inception_4a_3x3_reduce 576 64 1
inception_4a_3x3 64 96 3
inception_4a_double_3x3_reduce 576 96 1
inception_4a_double_3x3_1 96 128 3
inception_4a_double_3x3_2 128 128 3
inception_4a_pool_proj 576 128 1
inception_4b_1x1 576 192 1
inception_4b_3x3_reduce 576 96 1
inception_4b_3x3 96 128 3
inception_4b_double_3x3_reduce 576 96 1
inception_4b_double_3x3_1 96 128 3
inception_4b_double_3x3_2 128 128 3
inception_4b_pool_proj 576 128 1
inception_4c_1x1 576 160 1
inception_4c_3x3_reduce 576 128 1
inception_4c_3x3 128 160 3
inception_4c_double_3x3_reduce 576 128 1
inception_4c_double_3x3_1 128 160 3
inception_4c_double_3x3_2 160 160 3
inception_4c_pool_proj 576 128 1
inception_4d_1x1 608 96 1
inception_4d_3x3_reduce 608 128 1
inception_4d_3x3 128 192 3
inception_4d_double_3x3_reduce 608 160 1
inception_4d_double_3x3_1 160 192 3
inception_4d_double_3x3_2 192 192 3
inception_4d_pool_proj 608 128 1
inception_4e_3x3_reduce 608 128 1
inception_4e_3x3 128 192 3
inception_4e_double_3x3_reduce 608 192 1
inception_4e_double_3x3_1 192 256 3
inception_4e_double_3x3_2 256 256 3
inception_5a_1x1 1056 352 1
inception_5a_3x3_reduce 1056 192 1
inception_5a_3x3 192 320 3
inception_5a_double_3x3_reduce 1056 160 1
inception_5a_double_3x3_1 160 224 3
inception_5a_double_3x3_2 224 224 3
inception_5a_pool_proj 1056 128 1
inception_5b_1x1 1024 352 1
inception_5b_3x3_reduce 1024 192 1
inception_5b_3x3 192 320 3
inception_5b_double_3x3_reduce 1024 192 1
inception_5b_double_3x3_1 192 224 3
inception_5b_double_3x3_2 224 224 3
inception_5b_pool_proj 1024 128 1
"""


def port_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    for line in CONVOLUTIONS.split("\n")[1:-1]:
        name, inputs, outputs, kernel = line.split()
        channels = int(outputs)
        yield f"{name}.weight", (channels, int(inputs), int(kernel), int(kernel))
        yield f"{name}.bias", (channels,)
        for part in ("weight", "bias", "running_mean", "running_var"):
            yield f"{name}_bn.{part}", (channels,)
        yield f"{name}_bn.num_batches_tracked", ()


def port_file(seed: int = 0) -> dict[str, Tensor]:
    """Random tensors under the port's names, none of them at its initial value."""
    generator = torch.Generator().manual_seed(seed)

    def tensor(name: str, shape: tuple[int, ...]) -> Tensor:
        if not shape:
            return torch.tensor(7)
        if name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
            return 0.5 + torch.rand(shape, generator=generator)
        fan_in = shape[1] * shape[2] * shape[3] if len(shape) == 4 else 1
        return torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5

    return {name: tensor(name, shape) for name, shape in port_shapes()}


class Yardstick:
    """The published network written out: no layers, no table, pooling by explicit padding."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = {name: tensor.double() for name, tensor in weights.items()}

    def convolve(self, x: Tensor, name: str, stride: int = 1, padding: int = 0) -> Tensor:
        w = self.weights
        x = F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride=stride, padding=padding)
        mean, var, weight, bias = (
            w[f"{name}_bn.{part}"][None, :, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) / (var + 1e-5).sqrt() * weight + bias).clamp_min(0)

    @staticmethod
    def windows(x: Tensor, stride: int) -> Tensor:
        return x.unfold(2, 3, stride).unfold(3, 3, stride)

    def halve(self, x: Tensor) -> Tensor:
        """Maximum over 3 x 3 windows, stride 2; the last window may hang over the edge, but must start inside."""
        bottom, right = ((side - 3) % 2 for side in x.shape[-2:])
        return self.windows(F.pad(x, (0, right, 0, bottom), value=-torch.inf), 2).amax(dim=(-2, -1))

    def around(self, x: Tensor, name: str) -> Tensor:
        """The pooled 3 x 3 neighbourhood: its maximum in the last block, else its mean, the border counted as zeros."""
        if name == "inception_5b":
            return self.windows(F.pad(x, (1, 1, 1, 1), value=-torch.inf), 1).amax(dim=(-2, -1))
        return self.windows(F.pad(x, (1, 1, 1, 1)), 1).mean(dim=(-2, -1))

    def inception(self, x: Tensor, name: str) -> Tensor:
        one = self.convolve(x, f"{name}_1x1")
        three = self.convolve(self.convolve(x, f"{name}_3x3_reduce"), f"{name}_3x3", padding=1)
        double = self.convolve(self.convolve(x, f"{name}_double_3x3_reduce"), f"{name}_double_3x3_1", padding=1)
        double = self.convolve(double, f"{name}_double_3x3_2", padding=1)
        return torch.cat([one, three, double, self.convolve(self.around(x, name), f"{name}_pool_proj")], dim=1)

    def reduction(self, x: Tensor, name: str) -> Tensor:
        three = self.convolve(self.convolve(x, f"{name}_3x3_reduce"), f"{name}_3x3", stride=2, padding=1)
        double = self.convolve(self.convolve(x, f"{name}_double_3x3_reduce"), f"{name}_double_3x3_1", padding=1)
        double = self.convolve(double, f"{name}_double_3x3_2", stride=2, padding=1)
        return torch.cat([three, double, self.halve(x)], dim=1)

    def __call__(self, x: Tensor) -> Tensor:
        x = self.halve(self.convolve(x, "conv1_7x7_s2", stride=2, padding=3))
        x = self.halve(self.convolve(self.convolve(x, "conv2_3x3_reduce"), "conv2_3x3", padding=1))
        x = self.inception(self.inception(x, "inception_3a"), "inception_3b")
        x = self.reduction(x, "inception_3c")
        for letter in "abcd":
            x = self.inception(x, f"inception_4{letter}")
        x = self.reduction(x, "inception_4e")
        return self.inception(self.inception(x, "inception_5a"), "inception_5b")


@pytest.fixture(scope="module")
def network() -> BNInception:
    network = BNInception()
    network.load_port_weights(port_file())
    return network.eval()


def test_names_shapes_and_order_are_the_ports() -> None:
    network = BNInception()
    assert [(name, tuple(tensor.shape)) for name, tensor in network.state_dict().items()] == list(port_shapes())
    assert sum(parameter.numel() for parameter in network.parameters()) == 10_270_240


@pytest.mark.parametrize("size", [(96, 64), (33, 131)])
def test_features_are_the_published_networks(network: BNInception, size: tuple[int, int]) -> None:
    images = 60 * torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        features = BNInception().double().eval()
        features.load_port_weights(port_file())
        torch.testing.assert_close(features.forward_features(images), Yardstick(port_file())(images))
        torch.testing.assert_close(
            network(images.float()).double(), Yardstick(port_file())(images), rtol=1e-3, atol=1e-3
        )


def test_the_feature_map_of_a_published_crop_is_7_by_7(network: BNInception) -> None:
    with torch.no_grad():
        assert network.forward_features(torch.zeros(1, 3, 224, 224)).shape == (1, 1024, 7, 7)


def test_sizes_that_the_published_network_cannot_take_are_named(network: BNInception) -> None:
    with pytest.raises(RecipeError, match=r"images of 64 x 75 pixels .*inception_3c.* multiple of 32"):
        network.forward_features(torch.zeros(1, 3, 64, 75))


def test_batch_statistics_are_used_and_learned_in_training_mode_alone() -> None:
    network = BNInception()
    images = 60 * torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    network.train().forward_features(images).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    mean = network.get_buffer("inception_5b_1x1_bn.running_mean")
    learned = mean.clone()
    assert learned.abs().sum() > 0
    network.eval().forward_features(images)
    assert torch.equal(mean, learned)


def test_the_input_space_is_bgr_0_to_255_less_the_mean() -> None:
    network = BNInception()
    rgb = torch.tensor([255.0, 117.0, 0.0])
    seen = (rgb / 255 - torch.tensor(network.mean)) / torch.tensor(network.std)
    assert network.bgr
    torch.testing.assert_close(seen.flip(0), rgb.flip(0) - torch.tensor([104.0, 117.0, 128.0]), rtol=0, atol=1e-4)


def test_a_file_loads_whole_without_its_classifier() -> None:
    classifier = {"last_linear.weight": torch.zeros(1000, 1024), "last_linear.bias": torch.zeros(1000)}
    loaded, file = BNInception(), port_file()
    loaded.load_port_weights({**file, **classifier})
    assert all(torch.equal(tensor, file[name]) for name, tensor in loaded.state_dict().items())


def test_a_file_from_before_torch_0_4_loads() -> None:
    old = {
        name: tensor[None] if "_bn." in name else tensor
        for name, tensor in port_file().items()
        if not name.endswith("num_batches_tracked")
    }
    loaded = BNInception()
    loaded.load_port_weights(old)
    state = loaded.state_dict()
    assert all(torch.equal(state[name], tensor.reshape(state[name].shape)) for name, tensor in old.items())


def test_other_files_are_refused_by_name_and_change_nothing() -> None:
    network = BNInception()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    wrong = port_file()
    del wrong["conv1_7x7_s2.bias"]
    wrong["layer1.0.conv1.weight"] = torch.zeros(1)
    wrong["inception_3a_1x1.weight"] = torch.zeros(64, 192)
    with pytest.raises(WeightsError) as caught:
        network.load_port_weights(wrong)
    message = str(caught.value)
    assert "1 missing (conv1_7x7_s2.bias)" in message
    assert "1 unexpected (layer1.0.conv1.weight)" in message
    assert "inception_3a_1x1.weight is (64, 192), expected (64, 192, 1, 1)" in message
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    with pytest.raises(WeightsError, match=r"414 missing \(conv1_7x7_s2\.weight, .*, and 410 more\)"):
        network.load_port_weights({})
