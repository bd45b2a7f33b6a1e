"""The live view of a run: the state of its steps."""

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING

# Imported before anything asks for the logger "absl": absl breaks when that logger exists and is not of its own class.
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from edgeline.pipelines import console

if TYPE_CHECKING:  # the runner imports TFX, which takes nine seconds
    from edgeline.pipelines.run.node_events import Event, State


@dataclass(frozen=True)
class NodeView:
    """What is known of a node.

    Attributes:
        node_id: Its id in the pipeline.
        state: As in the runner's events.
        seconds: How long it took, once finished.
        started: When it began to run, on the view's clock.
        text: Why it failed or was skipped, or its latest progress.
        progress: (done, total) of its latest progress.
    """

    node_id: str
    state: "State"
    seconds: float = 0.0
    started: float = 0.0
    text: str = ""
    progress: tuple[int, int] | None = None


_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_ICONS = {"waiting": "·", "cached": "✓", "done": "✓", "failed": "✗", "skipped": "-"}
_STYLES = {
    "done": "green",
    "cached": "green",
    "failed": "red",
    "skipped": "yellow",
    "running": "bold",
    "waiting": "dim",
}


def render(nodes: Sequence[NodeView], now: float, elapsed: float, rows: int | None = None) -> RenderableType:
    """Draws the state of a run: a line of counts and one line per node.

    Args:
        nodes: In the order they run in.
        now: The view's clock, in seconds.
        elapsed: Seconds since the run began.
        rows: The height to fit in, at least 4. When too low, the running and failed nodes and those next to the
            running one are drawn and the others counted. None: all nodes are drawn, and why
            they failed in full.

    Returns:
        A renderable, at most `rows` lines high.
    """
    shown, hidden = nodes, Counter[str]()
    if rows is not None and len(nodes) + 1 > rows:
        chosen = set(sorted(range(len(nodes)), key=_importance(nodes))[: rows - 2])
        shown = [node for index, node in enumerate(nodes) if index in chosen]
        hidden = Counter(node.state for index, node in enumerate(nodes) if index not in chosen)

    # Fixed widths: rich would take a long note's width from the other columns, and the table would jump.
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(width=1)
    table.add_column(width=min(max((len(node.node_id) for node in nodes), default=0), 48), no_wrap=True)
    table.add_column(width=7, justify="right", no_wrap=True)
    table.add_column(ratio=1, no_wrap=rows is not None)
    for node in shown:
        table.add_row(*_cells(node, now))
    lines: list[RenderableType] = [_headline(nodes, elapsed), table]
    if hidden:
        lines.append(Text(f"… and {_counts(hidden)}", style="dim"))
    return Group(*lines)


def _importance(nodes: Sequence[NodeView]) -> Callable[[int], tuple[int, int]]:
    """Returns a sort key of node indices: what runs and what failed first, then what is near in time."""
    running = [index for index, node in enumerate(nodes) if node.state == "running"]
    begun = [index for index, node in enumerate(nodes) if node.state != "waiting"]
    here = (running or begun or [0])[-1]
    rank = {"running": 0, "failed": 1}
    return lambda index: (rank.get(nodes[index].state, 2), abs(index - here))


def _cells(node: NodeView, now: float) -> tuple[RenderableType, RenderableType, RenderableType, RenderableType]:
    style = _STYLES[node.state]
    note: RenderableType = Text("cached" if node.state == "cached" else node.text, style="red" * (style == "red"))
    if node.state == "running":
        icon = _SPINNER[int(now * 10) % len(_SPINNER)]
        duration = console.format_seconds(now - node.started)
        if node.progress:
            done, total = node.progress
            bar = Table.grid(padding=(0, 1))
            bar.add_row(ProgressBar(total=max(total, 1), completed=done, width=16), note)
            note = bar
    else:
        icon = _ICONS[node.state]
        duration = console.format_seconds(node.seconds) if node.state in ("done", "failed") else ""
    return Text(icon, style=style), Text(node.node_id, style=style), Text(duration), note


def _headline(nodes: Sequence[NodeView], elapsed: float) -> Text:
    counts = Counter(node.state for node in nodes)
    finished = len(nodes) - counts["waiting"] - counts["running"]
    headline = Text(f"{finished}/{len(nodes)} steps", style="bold")
    headline.append(f"  {console.format_seconds(elapsed)}", style="not bold")
    for state in ("cached", "failed", "skipped"):
        if counts[state]:
            headline.append(f"  {counts[state]} {state}", style=f"not bold {_STYLES[state]}")
    return headline


def _counts(states: Counter[str]) -> str:
    return ", ".join(f"{states[state]} {state}" for state in _STYLES if states[state])


class LiveView:
    """Shows a run on a console; give it to the runner as its listener, within its own `with` block.

    On a terminal: a table that is redrawn, with the progress that the running step reports on the logger
    `edgeline.progress` (records that carry `progress`, a pair (done, total)). Elsewhere: one line per finished node.

    Args:
        console: Where to draw.
        live: Whether to redraw; None: if the console's file is a terminal. Give False when other text goes there too.
        clock: Seconds, monotonic.
    """

    def __init__(self, console: Console, live: bool | None = None, clock: Callable[[], float] = time.monotonic):
        self._console = console
        self._clock = clock
        self._start = clock()
        self._nodes: dict[str, NodeView] = {}
        self._ended = False
        if live is None:  # rich's own is_terminal says yes to any file when FORCE_COLOR is set, as it is in many a CI
            live = console.file.isatty() and not console.is_dumb_terminal
        # Nothing prints but the view: capture_output has taken stdout and stderr away already.
        self._live = (
            Live(
                get_renderable=self._draw,
                console=console,
                refresh_per_second=8,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            if live
            else None
        )
        self._logger = logging.getLogger("edgeline.progress")
        self._handler = _ProgressHandler(self._progress)

    @property
    def console(self) -> Console:
        """Where it draws."""
        return self._console

    def status(self, text: str) -> contextlib.AbstractContextManager[object]:
        """Shows a spinner while something lasts, where it may redraw; to be used before the first event."""
        return self._console.status(text) if self._live else contextlib.nullcontext()

    def __enter__(self) -> "LiveView":
        """Starts drawing."""
        self._start = self._clock()
        self._level = self._logger.level
        self._logger.setLevel(logging.INFO)
        self._logger.addHandler(self._handler)
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leaves the last state of every node on the screen."""
        self._logger.removeHandler(self._handler)
        self._logger.setLevel(self._level)
        self._ended = True
        if self._live:
            self._live.stop()

    def __call__(self, event: "Event") -> None:
        """Takes an event of the runner."""
        started = self._clock() if event.state == "running" else 0.0
        text = event.detail
        if event.state == "done":  # its last progress, perhaps an accuracy, is worth keeping in view
            text = self._nodes[event.node_id].text
        self._nodes[event.node_id] = NodeView(event.node_id, event.state, event.seconds, started, text)
        if not self._live and event.state not in ("waiting", "running"):
            self._console.print(plain_line(tuple(self._nodes.values()), event.node_id), soft_wrap=True)

    def _progress(self, text: str, progress: tuple[int, int]) -> None:
        for node in tuple(self._nodes.values()):
            if node.state == "running":
                self._nodes[node.node_id] = replace(node, text=text, progress=progress)

    def _draw(self) -> RenderableType:
        now = self._clock()
        # At the end the whole list may scroll. Before, one row is left free for the cursor.
        rows = None if self._ended else max(self._console.size.height - 1, 4)
        # Called from the thread that redraws: tuple() takes a copy in one step.
        return render(tuple(self._nodes.values()), now, now - self._start, rows)


def plain_line(nodes: Sequence[NodeView], node_id: str) -> Text:
    """Returns the line printed when a node has finished, for outputs that are no terminal.

    Args:
        nodes: All nodes.
        node_id: The one that has finished.
    """
    [node] = [node for node in nodes if node.node_id == node_id]
    finished = sum(node.state not in ("waiting", "running") for node in nodes)
    line = f"[{finished:>{len(str(len(nodes)))}}/{len(nodes)}] {node.state:<7} {node.node_id}"
    if node.state in ("done", "failed"):
        line += f" {console.format_seconds(node.seconds)}"
    return Text(f"{line}: {node.text}" if node.text else line, style=_STYLES[node.state])


class _ProgressHandler(logging.Handler):
    def __init__(self, receive: Callable[[str, tuple[int, int]], None]):
        super().__init__(logging.INFO)
        self._receive = receive

    def emit(self, record: logging.LogRecord) -> None:
        progress = getattr(record, "progress", None)
        if progress is not None:
            self._receive(record.getMessage().partition("\n")[0], progress)
