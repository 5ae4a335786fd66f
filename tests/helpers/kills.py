"""Processes that are killed at every step that changes names on the disk."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, NoReturn

import torch

STEPS = ("link", "remove", "rename", "replace", "rmdir", "unlink")
"""The functions of `os` that change which names there are."""


RENAMES = ("link", "rename", "replace")
"""Those that make a name mean something else. Where many files are deleted one by one, these are enough."""


def survives_kills(
    action: Callable[[int], object], check: Callable[[int], object], steps: Sequence[str] = STEPS
) -> int:
    """Kill a process before its first step, another before its second, and so on, until one ends by itself.

    Args:
        action: run in a process of its own each time; gets the number of the step.
        check: called after each.
        steps: the functions whose calls are counted.

    Returns:
        How many were killed.
    """
    for step in count():
        child = os.fork()
        if not child:
            _run(action, step, steps)
        _, status = os.waitpid(child, 0)
        check(step)
        if not os.WIFSIGNALED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            return step
        assert os.WTERMSIG(status) == signal.SIGKILL
    raise AssertionError


def _run(action: Callable[[int], object], step: int, steps: Sequence[str]) -> NoReturn:
    status = 1
    try:
        torch.set_num_threads(1)  # threads of the parent's pool are not there after a fork
        left = [step]
        for name in steps:
            setattr(os, name, _dying(getattr(os, name), left))
        action(step)
        status = 0
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
    finally:
        os._exit(status)


def _dying(function: Callable[..., Any], left: list[int]) -> Callable[..., Any]:
    """The function, which kills the process when `left`, shared by all, has come down to 0."""

    def counted(*arguments: Any, **options: Any) -> Any:
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return function(*arguments, **options)

    return counted
