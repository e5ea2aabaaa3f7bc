"""What happens to each frame: its label goes to the scorer, its mask to all who show, write or judge it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgeseg.runtime.document import Running
from edgeseg.runtime.labels import Labels
from edgeseg.runtime.overlay import Painter
from edgeseg.runtime.score import Scorer
from edgeseg.runtime.sinks.base import Sink, View
from edgeseg.runtime.values import Shot

OnFrame = Callable[[Shot, View], object]


def labelling(scorer: Scorer | None, labels: Labels | None, *, truth: bool) -> Callable[[Shot], object]:
    """Tells the scorer of labels: those that a source brings, if they are the `truth`, else those of the folder."""

    def captured(shot: Shot) -> None:
        if scorer is None:
            return
        label = shot.label if truth else None
        found = label if label is not None or labels is None else labels.loader(shot.name, shot.position)
        if found is not None:
            scorer.captured(shot.stream, shot.index, shot.captured_ns, found)

    return captured


def delivering(
    running: Running,
    painters: Sequence[Painter],
    sinks: Sequence[Sink],
    on_frame: OnFrame | None,
    clock: Callable[[], int],
) -> Callable[[Shot], bool]:
    """What is done with every mask, in the caller's thread: False from it asks the stream to end."""

    def deliver(shot: Shot) -> bool:
        start = clock()
        go_on = True
        shot.shares = running.shares.update(shot.mask, start)
        if running.scorer is not None:
            running.scorer.delivered(shot.stream, shot.index, shot.ready_ns, shot.mask)
        painter = painters[shot.stream]
        painter.show(shot)
        for sink in sinks:
            if not sink.put(shot, painter):
                go_on = False
                running.ended = running.ended or f"{sink.name} was closed"
        if on_frame is not None and on_frame(shot, painter) is False:
            go_on = False
            running.ended = running.ended or "on_frame said so"
        running.flickers[shot.stream].update(shot.mask, shot.captured_ns)
        if running.watch is not None:
            running.watch.offer(shot)
        running.tally.processed(shot, max(0, clock() - start))
        return go_on

    return deliver
