"""LazyAdam: the optimiser for proxies of millions of classes. It touches only the rows that have a gradient.

It is made for the sparse gradients of ProxyGMLLoss(sparse=True). For dense gradients, use torch.optim.
"""

import math
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

LARGEST_DEBT = -8.0
"""Logarithm of the smallest outstanding factor. Dividing by a smaller one would lose digits, so all rows settle."""


class LazyAdam(Optimizer):
    """Adam over sparse gradients, with decoupled weight decay that untouched rows catch up on.

    Moments: a row's moments change only when the row has a gradient, as in torch.optim.SparseAdam. So updates differ
    from those of dense Adam, which keeps moving rows by their old moments. The bias correction counts all steps.

    Weight decay: as in AdamW, every row shrinks by 1 - lr * weight_decay at every step. A row without a
    gradient is not written to; its outstanding decay is applied when it next has a gradient, or by `settle`. The result
    is the same as shrinking every row at every step. For this, the loss must depend only on the directions of the rows,
    as ProxyGML does: the gradient by a row with an outstanding factor f is then f times the gradient by the shrunk row.

    Parameters in bfloat16 keep their moments in float32 and are rounded stochastically, so that updates below half a
    unit in the last place are not lost.

    Args:
        params: 2-dimensional parameters, or groups of them, whose gradients are sparse.
        lr: learning rate, 0 or more.
        betas: decay rates of the moments, each in [0, 1).
        eps: added to the denominator, above 0.
        weight_decay: 0 or more; lr * weight_decay must stay below 1.

    Raises:
        ValueError: a setting that is out of its range.
        RuntimeError: at `step`, a gradient that is dense.

    Source: Adam, Kingma and Ba 2015; decoupled decay, Loshchilov and Hutter 2019; the settling of it, ours.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take one more group, with settings of its own or the defaults; raise ValueError where one is impossible."""
        lr, betas, eps, decay = (
            param_group.get(key, self.defaults[key]) for key in ("lr", "betas", "eps", "weight_decay")
        )
        _check(0 <= lr < math.inf, "lr", lr, "0 or more")
        _check(_are_fractions(betas), "betas", betas, "two numbers in [0, 1)")
        _check(0 < eps < math.inf, "eps", eps, "above 0")
        _check(0 <= decay < math.inf, "weight_decay", decay, "0 or more")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the rows that have a gradient; skip parameters without one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    @torch.no_grad()
    def settle(self) -> None:
        """Apply the outstanding weight decay of all rows. Their directions, and so the loss, do not change."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if state := self.state[parameter]:
                    _settle(parameter, state)

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of `state_dict`, in the precision that it has."""
        super().load_state_dict(state_dict)
        # The base class casts all that it loads to the parameter's own precision.
        numbers = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        parameters = chain.from_iterable(group["params"] for group in self.param_groups)
        for number, parameter in zip(numbers, parameters, strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, Tensor):
                    self.state[parameter][name] = value.to(parameter.device, copy=True)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        rows, values = _rows_of(parameter)
        decay = _log_decay(group)
        state = self._state(parameter)
        if state["decay"] < LARGEST_DEBT:
            _settle(parameter, state)
        precision = state["exp_avg"].dtype
        owed = (state["decay"] - state["decayed"][rows]).exp().to(precision)[:, None]
        current, values = parameter[rows].to(precision) * owed, values.to(precision) / owed

        first_rate, second_rate = group["betas"]
        first = state["exp_avg"][rows].lerp_(values, 1 - first_rate)
        second = state["exp_avg_sq"][rows].mul_(second_rate).addcmul_(values, values, value=1 - second_rate)
        state["exp_avg"][rows], state["exp_avg_sq"][rows] = first, second
        state["step"] += 1
        first_bias, second_bias = 1 - first_rate ** state["step"], 1 - second_rate ** state["step"]
        denominator = second.div_(second_bias).sqrt_().add_(group["eps"])

        current.mul_(math.exp(decay)).addcdiv_(first, denominator, value=-group["lr"] / first_bias)
        state["decay"] += decay
        state["decayed"][rows] = state["decay"]
        parameter[rows] = _rounded(current, parameter.dtype)

    def _state(self, parameter: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[parameter]
        if not state:
            precision = torch.promote_types(parameter.dtype, torch.float32)
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter, dtype=precision)
            state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=precision)
            # Logarithms of the factor by which weight decay shrinks rows: over all steps, and the part that each row
            # has had.
            state["decay"] = 0.0
            state["decayed"] = torch.zeros(len(parameter), dtype=torch.float64, device=parameter.device)
        return state


def _rows_of(parameter: Tensor) -> tuple[Tensor, Tensor]:
    """The rows (U,) that have a gradient, and those gradients (U, D)."""
    gradient = parameter.grad
    assert gradient is not None
    if not gradient.is_sparse or gradient.sparse_dim() != 1:
        raise RuntimeError(
            f"the gradient of a parameter of shape {tuple(parameter.shape)} is dense or not sparse by rows, but "
            "LazyAdam takes gradients of some rows: build the loss with sparse=True, or take torch.optim.Adam"
        )
    rows = gradient._indices()[0]
    if (rows[1:] > rows[:-1]).all():  # autograd does not keep this flag; coalescing would sort and copy in vain
        return rows, gradient._values()
    gradient = gradient.coalesce()
    return gradient.indices()[0], gradient.values()


def _log_decay(group: dict[str, Any]) -> float:
    shrinkage: float = group["lr"] * group["weight_decay"]
    if shrinkage >= 1:
        raise ValueError(
            f"lr {group['lr']} times weight_decay {group['weight_decay']} is {shrinkage}, but must stay below 1"
        )
    return math.log1p(-shrinkage)


def _settle(parameter: Tensor, state: dict[str, Any]) -> None:
    precision = state["exp_avg"].dtype
    owed = (state["decay"] - state["decayed"]).exp().to(precision)[:, None]
    parameter.copy_(_rounded(parameter.to(precision) * owed, parameter.dtype))
    state["decay"] = 0.0
    state["decayed"].zero_()


def _rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """In that precision; to bfloat16 up or down at random, so that the expectation is the value."""
    if dtype != torch.bfloat16:
        return values.to(dtype)
    bits = values.contiguous().view(torch.int32)
    noise = torch.randint_like(bits, 1 << 16)
    rounded = (bits + noise).bitwise_and_(-(1 << 16)).view(torch.float32)
    # Noise must not turn infinity or NaN into a number.
    return torch.where(values.isfinite(), rounded, values).to(torch.bfloat16)


def _are_fractions(values: object) -> bool:
    """Whether these are two numbers from 0 to below 1."""
    return (
        isinstance(values, (tuple, list))
        and len(values) == 2
        and all(isinstance(value, (int, float)) and 0 <= value < 1 for value in values)
    )


def _check(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value!r}, but must be {expected}")
