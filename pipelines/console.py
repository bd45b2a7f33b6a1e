"""What the user sees of a run: a quiet terminal with the live state of the steps, everything else in a log file."""

import contextlib
import ctypes
import logging
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

# Imported before anything asks for the logger "absl": absl breaks when that logger exists and is not of its own class.
from absl import logging as absl_logging
from rich.console import Console, ConsoleDimensions, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # the runner imports TFX, which takes nine seconds
    from edgeline.pipelines.local_runner import Event, State


#: Columns where the output is not a terminal: wide enough for whole paths, names and digests.
FILE_WIDTH = 220


def for_tables() -> Console:
    """Returns a console on stdout, as wide as the terminal."""
    return Console(width=None if sys.stdout.isatty() else FILE_WIDTH)


def say(shown: Console, text: str, style: str = "") -> None:
    """Prints a text as it is: its lines unbroken, nothing in it taken for markup."""
    shown.print(text, style=style, soft_wrap=True, markup=False, highlight=False)


class Terminal(NamedTuple):
    """Consoles on the user's own stdout and stderr."""

    out: Console
    err: Console


class _SavedConsole(Console):
    """A console that asks its own file for the terminal's size; rich asks file descriptors 0 to 2."""

    @property  # type: ignore[misc]  # rich's can be set, which nobody does here
    def size(self) -> ConsoleDimensions:
        """Columns and rows."""
        try:
            return ConsoleDimensions(*os.get_terminal_size(self.file.fileno()))
        except OSError:
            return super().size


@contextlib.contextmanager
def capture_output(log_path: str | os.PathLike[str], verbose: bool = False) -> Iterator[Terminal]:
    """Sends everything this process and its children print to a log file, and yields the user's terminal.

    File descriptors 1 and 2 are redirected, so C++ code is caught too. Python's root and absl loggers write to the log
    from level INFO with timestamps. All is as before when the context ends; the consoles are closed then.

    Args:
        log_path: Appended to; its folder is made. Appended, because another run may be writing it.
        verbose: Also sends everything to the user's stderr as it comes.

    Yields:
        Consoles that still reach the user's stdout and stderr.

    Raises:
        OSError: If the log cannot be written.
    """
    path = Path(log_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    _flush()
    saved = (os.dup(1), os.dup(2))
    tee = None
    if verbose:
        source, target = os.pipe()
        # A child process may outlive the run and keep the pipe open, so nobody may wait for this thread forever.
        tee = threading.Thread(target=_copy, args=(source, (log, os.dup(saved[1]))), daemon=True)
        tee.start()
    else:
        target = log
    os.dup2(target, 1)
    os.dup2(target, 2)
    handler = logging.StreamHandler(os.fdopen(target, "w", buffering=1, encoding="utf-8", errors="replace"))
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    levels = root.level, absl_logging.get_verbosity()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    absl_logging.set_verbosity(absl_logging.INFO)
    files = [os.fdopen(fd, "w", encoding="utf-8", errors="replace", closefd=False) for fd in saved]
    try:
        yield Terminal(*(_SavedConsole(file=file, highlight=False) for file in files))
    finally:
        root.removeHandler(handler)
        root.setLevel(levels[0])
        absl_logging.set_verbosity(levels[1])
        # A full disk or a closed pager must not keep the rest from being put back.
        with contextlib.suppress(OSError):
            _flush()
        for descriptor, original, file in zip((1, 2), saved, files, strict=True):
            os.dup2(original, descriptor)
            with contextlib.suppress(OSError):
                file.close()
            os.close(original)
        with contextlib.suppress(OSError):
            handler.stream.close()
        if tee:
            tee.join(timeout=1.0)


def _flush() -> None:
    """Empties the buffers of Python and of C, so that no text ends up on the wrong side of a redirection."""
    sys.stdout.flush()
    sys.stderr.flush()
    ctypes.CDLL(None).fflush(None)


def _copy(source: int, targets: Sequence[int]) -> None:
    """Copies file descriptor `source` to the others until its end, and closes them all."""
    while chunk := os.read(source, 65536):
        for target in targets:
            # The user's end may be gone (a closed pager): the run and its log go on.
            with contextlib.suppress(OSError):
                os.write(target, chunk)
    for descriptor in (source, *targets):
        os.close(descriptor)


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
        duration = format_seconds(now - node.started)
        if node.progress:
            done, total = node.progress
            bar = Table.grid(padding=(0, 1))
            bar.add_row(ProgressBar(total=max(total, 1), completed=done, width=16), note)
            note = bar
    else:
        icon = _ICONS[node.state]
        duration = format_seconds(node.seconds) if node.state in ("done", "failed") else ""
    return Text(icon, style=style), Text(node.node_id, style=style), Text(duration), note


def _headline(nodes: Sequence[NodeView], elapsed: float) -> Text:
    counts = Counter(node.state for node in nodes)
    finished = len(nodes) - counts["waiting"] - counts["running"]
    headline = Text(f"{finished}/{len(nodes)} steps", style="bold")
    headline.append(f"  {format_seconds(elapsed)}", style="not bold")
    for state in ("cached", "failed", "skipped"):
        if counts[state]:
            headline.append(f"  {counts[state]} {state}", style=f"not bold {_STYLES[state]}")
    return headline


def _counts(states: Counter[str]) -> str:
    return ", ".join(f"{states[state]} {state}" for state in _STYLES if states[state])


def format_seconds(seconds: float) -> str:
    """Returns a duration in seconds as "4.2 s", "2m 05s" or "1h 02m"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m {rest:02d}s" if minutes < 60 else f"{minutes // 60}h {minutes % 60:02d}m"


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
        line += f" {format_seconds(node.seconds)}"
    return Text(f"{line}: {node.text}" if node.text else line, style=_STYLES[node.state])


class _ProgressHandler(logging.Handler):
    def __init__(self, receive: Callable[[str, tuple[int, int]], None]):
        super().__init__(logging.INFO)
        self._receive = receive

    def emit(self, record: logging.LogRecord) -> None:
        progress = getattr(record, "progress", None)
        if progress is not None:
            self._receive(record.getMessage().partition("\n")[0], progress)
