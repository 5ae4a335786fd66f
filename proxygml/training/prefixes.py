"""The loss on the first numbers of the embeddings too, so that they are good embeddings by themselves.

Matryoshka representations (Kusupati et al., NeurIPS 2022), with a mean in place of their weighted sum.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from proxygml.console import console
from proxygml.training.criterion import make_criterion
from proxygml.training.recipe import Recipe

Loss = Callable[[Tensor, Tensor], Tensor]


class _Part(NamedTuple):
    """A loss of the shorter embeddings, whose parameters are parts of the whole loss's, and how they are cut."""

    size: int
    loss: nn.Module
    cuts: Mapping[str, int | None]
    """For each parameter the dimension that is cut to `size`; None for none."""

    def cut(self, name: str, parameter: Tensor) -> Tensor:
        """The part of a parameter of the whole loss that stands for that of this one."""
        dimension = self.cuts[name]
        return parameter if dimension is None else parameter.narrow(dimension, 0, self.size)


class PrefixLosses:
    """The mean of a loss over the whole embeddings and over their prefixes, each scaled to length 1.

    The parameters are those of the whole loss: on a prefix, proxies are cut to their own first numbers.

    Args:
        recipe: names the loss and the sizes of the prefixes, which may be none.
        criterion: the whole loss.
        num_classes: C.
        embedding_size: D.
        process_group: see make_criterion.
    """

    def __init__(
        self,
        recipe: Recipe,
        criterion: nn.Module,
        num_classes: int,
        embedding_size: int,
        process_group: dist.ProcessGroup | None,
    ) -> None:
        self._criterion = criterion
        self._parts: list[_Part] = []
        quiet, console.quiet = console.quiet, True  # what there is to say was said of the whole loss
        try:
            for size in recipe.embedder.prefixes:
                loss = make_criterion(recipe.loss, num_classes, size, process_group)
                self._parts.append(_Part(size, loss, _cuts(criterion, loss)))
                for parameter in loss.parameters():  # each call puts parts of the whole loss's in their place
                    parameter.data = parameter.data.new_empty(0)
        finally:
            console.quiet = quiet

    def __call__(self, criterion: Loss, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of (M, D) embeddings.

        Args:
            criterion: the whole loss, as data parallelism has wrapped it.
            embeddings, labels: see ProxyGMLLoss.forward.
        """
        total = criterion(embeddings, labels)
        for part in self._parts:
            cut = {name: part.cut(name, parameter) for name, parameter in self._criterion.named_parameters()}
            total = total + functional_call(part.loss, cut, (F.normalize(embeddings[:, : part.size], dim=1), labels))
        return total / (1 + len(self._parts))


def _cuts(whole: nn.Module, part: nn.Module) -> dict[str, int | None]:
    """Where the parameters of the two differ in shape: that dimension is the embedding's."""
    cuts: dict[str, int | None] = {}
    for name, parameter in whole.named_parameters():
        shorter = part.get_parameter(name).shape
        cuts[name] = next((d for d, size in enumerate(parameter.shape) if size != shorter[d]), None)
    return cuts
