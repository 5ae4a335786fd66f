"""Work of several processes that fails on all of them where it fails on one.

Without this, the others would wait for the one that stopped, up to the half hour that is a group's usual timeout.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import wraps
from inspect import signature
from traceback import clear_frames
from typing import Any, ParamSpec, TypeVar

import torch.distributed as dist

from proxygml.errors import OtherProcessError, UserError, has_lost_another

P = ParamSpec("P")
Result = TypeVar("Result")


_WORKING: dict[dist.ProcessGroup, Any] = {}
"""The group that is used in place of one that a caller gave, while its processes work together."""


def working_group(group: dist.ProcessGroup) -> Any:
    """The group to exchange with, for the one that a caller gave; keep no reference to it."""
    return _WORKING.get(group, group)


def failing_together(function: Callable[P, Result]) -> Callable[P, Result]:
    """Let a function that takes a `process_group` fail on all its processes where it fails on one.

    While it runs, `working_group` is another group of the same processes. A process that fails leaves this group and so
    closes its connections, which ends whatever exchange another one waits for. No process returns before all have
    finished. The caller's own group stays in order.

    Where one process raises UserError, so do all. For any other error, the others raise OtherProcessError.
    """
    parameters = signature(function)

    @wraps(function)
    def joined(*arguments: P.args, **named: P.kwargs) -> Result:
        group = parameters.bind(*arguments, **named).arguments.get("process_group")
        if not isinstance(group, dist.ProcessGroup) or group in _WORKING:
            return function(*arguments, **named)
        _told(group, None)  # raises where one has ended; a new group would wait for it
        _WORKING[group], messages = _group_like(group), _group_like(group)
        try:
            result = function(*arguments, **named)
            _told(working_group(group), None)
            dist.destroy_process_group(_WORKING.pop(group))
            return result
        except BaseException as error:  # Ctrl-C too: the others must not wait for this process
            _leave(group, error)
            found = _common_error(messages, error)
            if found is error:
                raise
            raise found from None
        finally:
            dist.destroy_process_group(messages)
            del messages

    return joined


def _leave(group: dist.ProcessGroup, error: BaseException) -> None:
    """Close the connections of a working group, which gloo does when nothing refers to it any more."""
    dist.destroy_process_group(_WORKING.pop(group))
    seen: BaseException | None = error
    while seen is not None:
        clear_frames(seen.__traceback__)  # torch's own functions, of an exchange that failed
        seen = seen.__context__
    gc.collect()


def _group_like(group: dist.ProcessGroup) -> Any:
    """Another group of the same processes, which exchanges values of their hosts by gloo."""
    backend = "cpu:gloo,cuda:nccl" if "nccl" in dist.get_backend_config(group) else "gloo"
    ranks = dist.get_process_group_ranks(group)
    # A local group may get the name of one that was left, in older releases of torch; a group of all gets a new one.
    of_all = len(ranks) == dist.get_world_size()
    return dist.new_group(ranks, backend=backend, use_local_synchronization=not of_all)


def _told(group: Any, value: Any) -> list[Any]:
    """The value of each process, in their order."""
    found: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, value, group=group)
    return found


def _common_error(messages: Any, error: BaseException) -> BaseException:
    """What this process raises: its own error, or that of another."""
    lost = isinstance(error, RuntimeError) and has_lost_another(error)
    of_user = isinstance(error, UserError)
    own = None if lost else (of_user, str(error) if of_user else f"{type(error).__name__}: {error}")
    try:
        told = _told(messages, own)
    except RuntimeError:
        return OtherProcessError("another process has ended") if lost else error
    if not (lost or of_user):
        return error
    causes = [(rank, *cause) for rank, cause in enumerate(told) if cause is not None]
    if not causes:
        return OtherProcessError("another process was lost")
    rank, by_user, message = causes[0]
    if not by_user:
        return OtherProcessError(f"process {rank} failed: {message}")
    everywhere = all(cause == told[0] for cause in told)
    return UserError(message if everywhere else f"process {rank}: {message}")
