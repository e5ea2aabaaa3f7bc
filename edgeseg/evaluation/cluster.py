"""An evaluation over the machines of a Ray cluster (Apache-2.0, https://docs.ray.io): the extra `ray`.

The bundle travels; the frames do not: every machine must see the data set under the same path. Each runs its own
edgeseg, which must be of the same version.
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from edgeseg import __version__
from edgeseg.console import Console
from edgeseg.errors import BadInput, CannotTell, EdgesegError, MissingOnMachine, need
from edgeseg.evaluation.work import Part, Work, opened

READY_S = 120.0  # that long a worker may take to find a place and open its engine


class _Actor:
    """One worker of the cluster. It gives back exceptions of edgeseg as values: Ray would wrap them."""

    def __init__(self, work: Work, version: str) -> None:
        self._stack = ExitStack()
        self._problem: EdgesegError | None = None
        if version != __version__:
            self._problem = MissingOnMachine(
                f"{platform.node()} has edgeseg {__version__}, here it is {version}; install the same there"
            )
            return
        try:
            self._worker = self._stack.enter_context(opened(work))
        except EdgesegError as error:
            self._problem = error

    def ready(self) -> EdgesegError | None:
        return self._problem

    def count(self, indices: Sequence[int]) -> Part | EdgesegError:
        try:
            return self._worker.count(indices)
        except EdgesegError as error:
            return error


def over_cluster(
    work: Work, parts: Sequence[Sequence[int]], address: str, workers: int, console: Console
) -> Iterator[Part]:
    """The parts as they are done, on `workers` workers of the cluster (0: one a machine, with all its processors).

    `address` is Ray's: "auto", "host:6379", "ray://host:10001", or "local" for a cluster of this machine alone. Raises
    MissingOnMachine without Ray or where there is no cluster, BadInput for more workers than processors, CannotTell
    when a worker or its machine dies, and what a worker raised.
    """
    ray: Any = need("ray", extra="ray", why="evaluating on several machines")
    mine = not ray.is_initialized()
    if mine:
        try:
            alone = {"include_dashboard": False} if address == "local" else {}
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **alone)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise MissingOnMachine(
                f"there is no Ray cluster to join at '{address}' ({str(error).splitlines()[0] if str(error) else error}"
                "). Start one with `ray start --head`, and `ray start --address HOST:6379` on the other machines."
            ) from error
    try:
        yield from _spread(ray, work, parts, workers, console)
    except ray.exceptions.RayError as error:
        raise CannotTell(
            f"a worker of the Ray cluster was lost, so nothing was evaluated ({str(error).strip().splitlines()[0]}). "
            "Too little memory is a common cause: take fewer --workers."
        ) from error
    finally:
        if mine:
            ray.shutdown()


def _spread(ray: Any, work: Work, parts: Sequence[Sequence[int]], workers: int, console: Console) -> Iterator[Part]:
    machines = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    count, threads = division([cores for cores in machines if cores], workers)
    console.say(f"{count} worker{'s' * (count > 1)} with {threads} thread{'s' * (threads > 1)} each, on Ray")
    shared = ray.put(replace(work, threads=work.threads or threads))
    make = ray.remote(_Actor).options(num_cpus=threads, max_restarts=0, scheduling_strategy="SPREAD")
    actors = [make.remote(shared, __version__) for _ in range(count)]
    try:
        for problem in _patiently(ray, [actor.ready.remote() for actor in actors]):
            if problem is not None:
                raise problem
        todo = list(reversed(parts))
        under_way = {actor.count.remote(todo.pop()): actor for actor in actors if todo}
        while under_way:
            done, _ = ray.wait(list(under_way), num_returns=1, timeout=1.0)
            for reference in done:
                actor = under_way.pop(reference)
                found = ray.get(reference)
                if isinstance(found, EdgesegError):
                    raise found
                if todo:
                    under_way[actor.count.remote(todo.pop())] = actor
                yield found
    finally:
        for actor in actors:
            ray.kill(actor)


def division(machines: Sequence[int], workers: int) -> tuple[int, int]:
    """How many workers, and threads for each, on machines of these many processors; no worker spans two machines.

    `workers` 0: one a machine. Raises BadInput if there are more workers than processors.

    >>> division([8, 8], 0), division([8, 4], 3), division([6, 2], 2)
    ((2, 8), (3, 4), (2, 3))
    """
    count = workers or len(machines)
    threads = max(machines, default=0)
    while threads and sum(cores // threads for cores in machines) < count:
        threads -= 1
    if not threads:
        raise BadInput(f"{count} workers were asked for; the cluster has {sum(machines)} processors. Take fewer.")
    return count, threads


def _patiently(ray: Any, references: Sequence[Any]) -> list[Any]:
    until = time.monotonic() + READY_S
    pending = list(references)
    while pending:
        # Short waits, so that Ctrl-C is heard.
        _, pending = ray.wait(pending, num_returns=len(pending), timeout=1.0)
        if pending and time.monotonic() > until:
            raise CannotTell(
                f"{len(pending)} of {len(references)} workers got no place in the cluster within {READY_S:.0f} s; "
                "look at `ray status`, or take fewer --workers"
            )
    found: list[Any] = ray.get(list(references))
    return found
