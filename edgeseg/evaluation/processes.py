"""An evaluation over several processes of this machine. Each opens its own engine; only counts come back."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from multiprocessing.process import BaseProcess

from edgeseg.errors import CannotTell
from edgeseg.evaluation.work import Part, Work, Worker, opened

_stack = ExitStack()  # of a worker: keeps its engine open until the process ends
_work: Work | None = None
_worker: Worker | None = None


def over_processes(work: Work, parts: Sequence[Sequence[int]], workers: int) -> Generator[Part, None, None]:
    """The parts as they are done. Raises what a worker raised, and CannotTell when one died.

    However it ends, no process is left. Workers do not listen to Ctrl-C: this process ends them.
    """
    pool = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start, initargs=(work,)
    )
    known = set(multiprocessing.active_children())
    children: list[BaseProcess] = []
    well = False
    try:
        held = _hold_interrupts()
        try:  # the children inherit that the signal is held
            pending = {pool.submit(_run, part) for part in parts}
        finally:
            children = [child for child in multiprocessing.active_children() if child not in known]
            _let_go(held)
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
        well = True
    except BrokenProcessPool as error:
        raise CannotTell(_died(children)) from error
    finally:
        if not well:
            for child in children:
                child.kill()
        pool.shutdown(wait=True, cancel_futures=True)


def _start(work: Work) -> None:
    global _work
    _work = work
    # A parent that is killed leaves nobody behind who waits for it.
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _run(indices: Sequence[int]) -> Part:
    global _worker
    assert _work is not None
    if _worker is None:
        _worker = _stack.enter_context(opened(_work))
    return _worker.count(indices)


def _hold_interrupts() -> set[signal.Signals] | None:
    if not hasattr(signal, "pthread_sigmask"):
        return None
    return {signal.Signals(s) for s in signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})}


def _let_go(held: set[signal.Signals] | None) -> None:
    if held is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _died(children: Sequence[BaseProcess]) -> str:
    for child in children:
        child.join(5)
    # The pool ends the others with SIGTERM once one is gone.
    codes = sorted({code for child in children if (code := child.exitcode) not in (None, 0, -signal.SIGTERM)})
    how = ", ".join(f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}" for code in codes)
    return (
        f"a worker process died ({how or 'nothing is known of why'}), so nothing was evaluated. Killed often means too "
        "little memory: take fewer --workers. From a Python script, call evaluate under `if __name__ == '__main__':`, "
        "because workers import the script."
    )
