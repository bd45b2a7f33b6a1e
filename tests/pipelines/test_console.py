import fcntl
import io
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import textwrap
from types import SimpleNamespace

import pytest
from rich.console import Console

from edgeline.pipelines.console import format_seconds
from edgeline.pipelines.run.live_view import LiveView, NodeView, plain_line, render

CONV = "ValueError: conv2d_3 kept 3 zeros of 10"


def _text(renderable, width=60):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(renderable)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def _event(node_id, state, seconds=0.0, detail=""):
    return SimpleNamespace(node_id=node_id, state=state, seconds=seconds, detail=detail)


def _run(program, log, **options):
    """Runs a program that captures its output in `log`, as a process of its own."""
    code = f"log = {str(log)!r}\n" + textwrap.dedent(program)
    return subprocess.run([sys.executable, "-c", code], text=True, timeout=60, check=False, **options)


NOISE = """
    import ctypes, logging, os, subprocess, sys, warnings
    from absl import logging as absl_logging
    from edgeline.pipelines.console import capture_output

    def noise():
        print("printed")
        print("printed to stderr", file=sys.stderr)
        os.write(2, b"from the descriptor\\n")
        ctypes.CDLL(None).printf(b"from C\\n")
        subprocess.run(["sh", "-c", "echo from a child; echo stderr of a child >&2"])
        warnings.warn("a warning")
        logging.getLogger("some.module").info("an info record")
        logging.getLogger("some.module").debug("a debug record")
        absl_logging.info("an absl record")
"""
EVERYTHING = (
    "printed\n",
    "printed to stderr\n",
    "from the descriptor\n",
    "from C\n",
    "from a child\n",
    "stderr of a child\n",
    "UserWarning: a warning\n",
    " INFO some.module: an info record\n",
    " INFO absl: an absl record\n",
)


def test_capture_sends_everything_to_the_log_and_only_the_consoles_to_the_user(tmp_path):
    program = (
        NOISE
        + """
    with capture_output(log) as terminal:
        noise()
        terminal.out.print("for the user")
        terminal.err.print("an error for the user")
    print("after")
    print("after to stderr", file=sys.stderr)
    logging.getLogger("some.module").info("not shown")
    """
    )
    log = tmp_path / "logs" / "run.log"
    result = _run(program, log, capture_output=True)
    assert result.stdout == "for the user\nafter\n"
    assert result.stderr == "an error for the user\nafter to stderr\n"
    written = log.read_text()
    for part in EVERYTHING:
        assert written.count(part) == 1, part
    assert re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO some.module: an info record$", written, re.MULTILINE)
    assert "debug record" not in written
    assert "after" not in written

    _run(program, log, capture_output=True)
    assert log.read_text().count("from C\n") == 2


def test_verbose_shows_everything_on_stderr_too(tmp_path):
    program = (
        NOISE
        + """
    with capture_output(log, verbose=True) as terminal:
        noise()
        terminal.out.print("for the user")
    """
    )
    result = _run(program, tmp_path / "run.log", capture_output=True)
    assert result.stdout == "for the user\n"
    for part in EVERYTHING:
        assert result.stderr.count(part) == 1, part
    assert result.stderr == (tmp_path / "run.log").read_text()


@pytest.mark.parametrize("verbose", [False, True])
def test_capture_restores_after_an_exception(tmp_path, verbose):
    program = f"""
    import absl.logging, logging, os
    from edgeline.pipelines.console import capture_output

    logging.getLogger().setLevel(logging.ERROR)
    descriptors = os.listdir("/proc/self/fd")
    try:
        with capture_output(log, verbose={verbose}):
            raise ValueError("no good")
    except ValueError as error:
        print("caught", error, flush=True)
    print(logging.getLogger().level, absl.logging.get_verbosity(), logging.getLogger().handlers)
    print(os.listdir("/proc/self/fd") == descriptors)
    """
    result = _run(program, tmp_path / "run.log", capture_output=True)
    assert result.stdout == "caught no good\n40 -1 []\nTrue\n"
    assert result.stderr == ""


def test_capture_restores_when_the_log_is_on_a_full_disk():
    program = """
    from edgeline.pipelines.console import capture_output

    try:
        with capture_output(log):
            print("lost")
    except OSError:  # at once or, when buffered, not at all
        pass
    print("after")
    """
    result = _run(program, "/dev/full", capture_output=True)
    assert result.stdout.endswith("after\n")
    assert result.returncode == 0


def test_log_that_cannot_be_written(tmp_path, capfd):
    from edgeline.pipelines.console import capture_output

    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"), capture_output(tmp_path / "file" / "run.log"):
        pass
    os.write(1, b"still here\n")
    assert capfd.readouterr().out == "still here\n"


def test_captured_console_knows_the_terminal(tmp_path):
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
    program = """
    from edgeline.pipelines.console import capture_output

    with capture_output(log) as terminal:
        terminal.out.print(*terminal.out.size, terminal.out.is_terminal, terminal.err.is_terminal)
    """
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "FORCE_COLOR")}
    _run(
        program,
        tmp_path / "run.log",
        stdin=subprocess.DEVNULL,
        stdout=writer,
        stderr=subprocess.PIPE,
        env=environment | {"TERM": "xterm", "NO_COLOR": "1"},
    )
    os.close(writer)
    assert os.read(reader, 1000) == b"101 33 True False\r\n"
    os.close(reader)


def test_console_imports_neither_tfx_nor_tensorflow():
    program = "import sys, edgeline.pipelines.console; print({'tfx', 'tensorflow', 'apache_beam'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "set()\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1m 00s"),
        (125.4, "2m 05s"),
        (3599.4, "59m 59s"),
        (3599.6, "1h 00m"),
        (7380.0, "2h 03m"),
    ],
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text


def test_render_every_state():
    nodes = [
        NodeView("Gen", "cached", seconds=0.01),
        NodeView("Trainer", "done", seconds=134.0, text="epoch 4/4 accuracy 0.871"),
        NodeView("Pruner.a", "failed", seconds=3.1, text=CONV),
        NodeView("Quantizer.a", "skipped", text="needs Pruner.a"),
        NodeView("Pruner.b", "running", started=100.0, text="epoch 1/2", progress=(1, 2)),
        NodeView("Quantizer.b", "waiting"),
    ]
    assert _text(render(nodes, now=112.0, elapsed=160.0), width=80) == [
        "4/6 steps  2m 40s  1 cached  1 failed  1 skipped",
        "✓ Gen                 cached",
        "✓ Trainer      2m 14s epoch 4/4 accuracy 0.871",
        "✗ Pruner.a      3.1 s ValueError: conv2d_3 kept 3 zeros of 10",
        "- Quantizer.a         needs Pruner.a",
        "⠋ Pruner.b     12.0 s ━━━━━━━━         epoch 1/2",
        "· Quantizer.b",
    ]


def test_render_folds_a_long_reason_only_when_the_height_is_free():
    nodes = [NodeView("Pruner.a", "failed", seconds=3.1, text=CONV)]
    assert _text(render(nodes, 0.0, 4.0, rows=10), width=40) == [
        "1/1 steps  4.0 s  1 failed",
        "✗ Pruner.a   3.1 s ValueError: conv2d_3…",
    ]
    assert _text(render(nodes, 0.0, 4.0), width=40) == [
        "1/1 steps  4.0 s  1 failed",
        "✗ Pruner.a   3.1 s ValueError: conv2d_3",
        "                   kept 3 zeros of 10",
    ]


def test_render_brackets_are_text_and_no_markup():
    assert _text(render([NodeView("a", "failed", text="OSError: [Errno 5]")], 0.0, 0.0))[1].endswith("[Errno 5]")


def test_render_many_nodes_in_few_rows():
    nodes = [NodeView(f"Step.{i:02d}", "done", seconds=1.0) for i in range(40)]
    nodes[3] = NodeView("Step.03", "failed", seconds=1.0, text="no good")
    nodes[20] = NodeView("Step.20", "running", started=5.0)
    nodes[21:] = [NodeView(f"Step.{i:02d}", "waiting") for i in range(21, 40)]
    lines = _text(render(nodes, now=5.0, elapsed=9.0, rows=8))
    assert lines == [
        "20/40 steps  9.0 s  1 failed",
        "✗ Step.03   1.0 s no good",
        "✓ Step.18   1.0 s",
        "✓ Step.19   1.0 s",
        "⠋ Step.20   0.0 s",
        "· Step.21",
        "· Step.22",
        "… and 17 done, 17 waiting",
    ]
    assert len(_text(render(nodes, 5.0, 9.0, rows=40))) == 40
    assert len(_text(render(nodes, 5.0, 9.0, rows=41))) == 41
    assert "…" not in "".join(_text(render(nodes, 5.0, 9.0, rows=41)))
    assert len(_text(render(nodes, 5.0, 9.0))) == 41


def test_render_nothing():
    assert _text(render([], 0.0, 0.0, rows=4)) == ["0/0 steps  0.0 s"]


def test_plain_line():
    nodes = [NodeView(f"Step.{i}", "waiting") for i in range(10)]
    nodes[0] = NodeView("Step.0", "done", seconds=61.0, text="accuracy 0.9")
    assert _text(plain_line(nodes, "Step.0")) == ["[ 1/10] done    Step.0 1m 01s: accuracy 0.9"]
    nodes[1] = NodeView("Step.1", "skipped", text="needs Pruner")
    assert _text(plain_line(nodes, "Step.1")) == ["[ 2/10] skipped Step.1: needs Pruner"]


def _report(done, total, text):
    logging.getLogger("edgeline.progress").info(text, extra={"progress": (done, total)})


def test_view_without_a_terminal_prints_a_line_per_finished_node():
    console = Console(file=io.StringIO(), width=30)
    with LiveView(console) as view:
        for node_id in ("one", "two", "three"):
            view(_event(node_id, "waiting"))
        view(_event("one", "running"))
        view(_event("one", "cached", 0.01))
        view(_event("two", "running"))
        _report(1, 1, "epoch 1/1 accuracy 0.9")
        view(_event("two", "failed", 2.0, CONV))
        view(_event("three", "skipped", 0.0, "needs two"))
    assert console.file.getvalue().splitlines() == [
        "[1/3] cached  one",
        f"[2/3] failed  two 2.0 s: {CONV}",
        "[3/3] skipped three: needs two",
    ]


def test_forced_colors_do_not_make_a_file_a_terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    console = Console(file=io.StringIO(), width=80)
    assert console.is_terminal
    with LiveView(console) as view:
        view(_event("one", "waiting"))
        view(_event("one", "done", 1.0))
    assert "[1/1] done" in console.file.getvalue()
    assert "\x1b[?25l" not in console.file.getvalue()  # hides the cursor


def test_live_view_shows_the_progress_of_the_running_node_and_all_nodes_at_the_end():
    logger = logging.getLogger("edgeline.progress")
    before = logger.level, list(logger.handlers)
    now = [0.0]
    console = Console(file=io.StringIO(), width=60, height=6, force_terminal=True, color_system=None)
    with LiveView(console, live=True, clock=lambda: now[0]) as view:
        for i in range(9):
            view(_event(f"Step.{i}", "waiting"))
        view(_event("Step.0", "running"))
        now[0] = 30.0
        _report(2, 4, "epoch 2/4 accuracy 0.871\nmore")
        logger.info("a record without progress")
        frame = _text(view._draw())
        view(_event("Step.0", "done", 31.0))
    assert frame == [
        "0/9 steps  30.0 s",
        "⠋ Step.0  30.0 s ━━━━━━━━         epoch 2/4 accuracy 0.871",
        "· Step.1",
        "· Step.2",
        "… and 6 waiting",
    ]
    last_frame = console.file.getvalue()[-600:]
    assert all(f"Step.{i}" in last_frame for i in range(9))
    assert "31.0 s epoch 2/4 accuracy 0.871" in last_frame
    assert (logger.level, logger.handlers) == before


def test_live_view_ends_with_the_error():
    console = Console(file=io.StringIO(), width=60, height=10, force_terminal=True)

    def run():
        with LiveView(console, live=True) as view:
            view(_event("one", "running"))
            view(_event("one", "failed", 1.0, "interrupted"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert "interrupted" in console.file.getvalue()
    assert "\x1b[?25h" in console.file.getvalue()  # the cursor is back


QUIET = """
    import contextlib, ctypes, faulthandler, io, logging, os, subprocess, sys, warnings
    from absl import logging as absl_logging
    from edgeline.pipelines.console import capture_output, quiet

    def noise():
        os.write(2, b"from the descriptor\\n")
        subprocess.run(["sh", "-c", "echo stderr of a child >&2"])
        warnings.warn("a warning")
        logging.getLogger("some.module").warning("a record")
        absl_logging.warning("an absl record")
"""


def test_quiet_shows_only_what_the_process_says_itself():
    program = (
        QUIET
        + """
    with quiet():
        noise()
        print("for the user", file=sys.stderr)
        absl_logging.error("an absl error")
    os.write(2, b"after\\n")
    logging.getLogger("some.module").warning("after too")
    """
    )
    result = _run(program, None, capture_output=True)
    assert result.returncode == 0, result.stderr
    lines = result.stderr.splitlines()
    assert [lines[0], *lines[2:]] == ["for the user", "after", "after too"]
    assert lines[1].endswith("an absl error")


def test_capture_within_quiet_reaches_the_user_and_the_log(tmp_path):
    program = (
        QUIET
        + """
    with quiet():
        with capture_output(log) as terminal:
            noise()
            print("for the log", file=sys.stderr)
            logging.getLogger("some.module").error("an error")
            terminal.err.print("in between")
        print("for the user", file=sys.stderr)
        noise()
    """
    )
    result = _run(program, tmp_path / "run.log", capture_output=True)
    assert result.stderr == "in between\nfor the user\n"
    text = (tmp_path / "run.log").read_text()
    for line in (
        "from the descriptor\n",
        "stderr of a child\n",
        "for the log\n",
        "a record\n",
        "an absl record\n",
        "an error\n",
    ):
        assert text.count(line) == 1


def test_a_crash_within_quiet_is_not_silent():
    result = _run(QUIET + "\n    with quiet():\n        os.abort()\n", None, capture_output=True)
    assert result.returncode < 0
    assert "Fatal Python error: Aborted" in result.stderr
