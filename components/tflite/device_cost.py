"""What a `.tflite` file costs where it runs: time, cold start and memory, measured in a process of its own."""

from __future__ import annotations

import gc
import json
import math
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgeline import files
from edgeline.errors import UserError
from edgeline.isolation import interpreter
from edgeline.tflite.litert import Port, TFLiteModel

#: What the child process of `measure` runs.
_CHILD = f"from {__name__} import main; main(*sys.argv[1:])"
#: A setting counts as stable when the medians of so many blocks in a row differ by no more than this fraction.
_STABLE_BLOCKS, _STABLE_SPREAD = 5, 0.02
#: Below this a 99th percentile is little more than the slowest run, so that stability alone does not end a measurement.
_ENOUGH_RUNS = 100


def usable_cores() -> int:
    """Returns the cores that this process may run on, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0))


def measure(
    model: str | Path, sample: dict[str, np.ndarray] | None = None, *, seconds: float, timeout: float = 120
) -> dict[str, Any]:
    """Measures what a model costs, in a child process: a crash or hang of the runtime is an error of this model only.

    One example is run at a time; a model of fixed batch size runs in that size. Nothing else should run meanwhile.

    Args:
      model: path of the `.tflite` file.
      sample: one example by input name, real values, shape [1, ...]. By default seeded random values: floats in [0, 1),
        the whole range of quantized inputs, 0 or 1 for other integers (a valid index of any table). Dimensions of any
        size are 1 then. Zeros would not do: kernels take shorter ways on them.
      seconds: how long to time in all, split evenly between the settings. It ends earlier where the times are stable.
        A slow model takes longer: at least six runs with each setting. The child's start, half a second, comes on top.
      timeout: seconds after which the child is killed.

    Returns:
      one_thread: one thread, XNNPACK, as a phone runs it: `p50`, `p90`, `p99` in ms and `runs`, after a warm-up of a
        tenth of the time; each has about a microsecond of Python in it. `noise`, a fraction: the runs are split into
        consecutive blocks of equal time, and it is the interquartile range of the blocks' medians, divided by p50. So
        0.05 says that p50 differed by 5% between the better and the worse quarter of the blocks.
      all_threads: likewise, with `threads` threads: the cores this process may use.
      without_xnnpack: likewise, one thread of LiteRT's built-in kernels.
      cold_start_ms: loading, allocating and running for the first time in a fresh process; without imports, and with
        the file in the system's cache.
      peak_rss_bytes: how far that first run raised the peak of the child's resident memory: weights, activations,
        packed weights, and the pages of the runtime's own code (3 to 4 MB even for the smallest model). None where the
        system does not tell.

    Raises:
      ValueError: not a TFLite model, not one this runtime can run, or not with this sample; LiteRT's own message.
      RuntimeError: the runtime crashed on it or did not finish in time.
    """
    with tempfile.TemporaryDirectory(prefix="edgeline-") as folder:
        inputs, outcome = Path(folder, "inputs.npz"), Path(folder, "outcome.json")
        if sample is not None:
            files.write_arrays(inputs, sample)
        paths = [str(model), str(inputs), str(outcome)]
        try:
            child = interpreter.run(_CHILD, [*paths, str(seconds)], timeout=timeout)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"LiteRT did not finish in {timeout:g} s") from None
        if child.returncode < 0:
            raise RuntimeError(f"LiteRT crashed on the model with {signal.Signals(-child.returncode).name}")
        if child.returncode > 0:
            raise RuntimeError(f"measuring failed: {_last_line(child.stderr)}")
        result: dict[str, Any] = json.loads(outcome.read_text())
    if "refusal" in result:
        raise ValueError(f"LiteRT cannot run the model: {result['refusal']}")
    return result


def _last_line(output: bytes) -> str:
    return (output.decode(errors="replace").strip().splitlines() or ["no message"])[-1].strip()


def main(model: str, inputs: str, outcome: str, seconds: str) -> None:
    """Measures a model in this process: the child process of `measure`.

    Args:
      model: path of the `.tflite` file.
      inputs: `.npz` file with the sample by input name; random values where it does not exist.
      outcome: `.json` file to write: what `measure` returns, or `refusal`, LiteRT's message.
      seconds: of `measure`.
    """
    sample = files.read_arrays(inputs) if Path(inputs).exists() else None
    try:
        result = _measure(model, sample, float(seconds))
    except (ValueError, RuntimeError) as error:
        result = {"refusal": " ".join(str(error).split())}
    Path(outcome).write_text(json.dumps(result))


def _measure(model: str, sample: dict[str, np.ndarray] | None, seconds: float) -> dict[str, Any]:
    random = np.random.default_rng(0)  # its import is memory that is not the model's
    gc.disable()
    before = peak_rss()
    begin = time.perf_counter()
    runner = TFLiteModel(model)
    runner.resize(1)
    loaded = time.perf_counter()
    values = _inputs(runner.inputs, sample, random)
    ready = time.perf_counter()
    runner.set_inputs(values)
    runner.invoke()
    cold_start_ms = (time.perf_counter() - ready + loaded - begin) * 1e3
    # before there is another interpreter
    after = peak_rss()

    share, threads = seconds / 3, usable_cores()
    one_thread = _time(runner, share)
    del runner
    # the threads of the last one would still spin while the next is timed
    without_xnnpack = _time(_prepared(model, values, xnnpack=False), share)
    all_threads = _time(_prepared(model, values, threads=threads), share) if threads > 1 else one_thread
    return {
        "one_thread": one_thread,
        "all_threads": {**all_threads, "threads": threads},
        "without_xnnpack": without_xnnpack,
        "cold_start_ms": cold_start_ms,
        "peak_rss_bytes": None if before is None or after is None else after - before,
    }


def _prepared(model: str, values: dict[str, np.ndarray], **settings: Any) -> TFLiteModel:
    runner = TFLiteModel(model, **settings)
    runner.resize(1)
    runner.set_inputs(values)
    return runner


def _inputs(
    ports: tuple[Port, ...], sample: dict[str, np.ndarray] | None, random: np.random.Generator
) -> dict[str, np.ndarray]:
    """Returns a sample, or random values, as real values in the batch size that the model is prepared for."""
    if sample is None:
        return {port.name: _random(port, random) for port in ports}
    missing = [port.name for port in ports if port.name not in sample]
    if missing:
        raise ValueError(f"the sample lacks the inputs {', '.join(missing)}; it has {', '.join(sample) or 'none'}")
    return {p.name: np.repeat(sample[p.name][:1], max((*p.shape, 1)[0], 1), axis=0) for p in ports}


def _random(port: Port, random: np.random.Generator) -> np.ndarray:
    shape = [max(n, 1) for n in port.shape]
    if port.scale:
        limits = np.iinfo(port.dtype)
        return port.dequantize(random.integers(limits.min, limits.max, shape, port.dtype, endpoint=True))
    if port.dtype.kind == "f":
        return random.random(shape, np.float32)
    if port.dtype.kind in "biu":
        return random.integers(0, 2, shape)
    raise ValueError(f"input {port.name!r} takes {port.dtype}, for which there are no random values; give a sample")


def peak_rss() -> int | None:
    """Returns the peak of this process' resident memory in bytes; getrusage has its parent's where that is higher."""
    try:
        match = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) * 1024 if match else None


def _time(runner: TFLiteModel, seconds: float) -> dict[str, Any]:
    """Times a model that has its inputs, until stable or the time is over; `measure` says what comes out."""
    _block(runner, seconds / 10)  # the warm-up
    stop = time.perf_counter() + 0.9 * seconds
    blocks: list[list[float]] = []
    while len(blocks) < _STABLE_BLOCKS or (time.perf_counter() < stop and not _is_stable(blocks)):
        blocks.append(_block(runner, seconds / 20))
    times = np.concatenate(blocks)
    p50, p90, p99 = (float(value) for value in np.percentile(times, [50, 90, 99]))
    return {"p50": p50, "p90": p90, "p99": p99, "runs": len(times), "noise": _noise(blocks, p50)}


def _block(runner: TFLiteModel, seconds: float) -> list[float]:
    """Returns the times of single runs in ms: at least one, and as many as begin in so many seconds."""
    times: list[float] = []
    end = begin = time.perf_counter()
    stop = begin + seconds
    while not times or end < stop:
        begin = time.perf_counter()
        runner.invoke()
        end = time.perf_counter()
        times.append((end - begin) * 1e3)
    return times


def _noise(blocks: list[list[float]], p50: float) -> float:
    low, high = np.percentile([np.median(block) for block in blocks], [25, 75])
    return float(high - low) / p50


def _is_stable(blocks: list[list[float]]) -> bool:
    medians = [float(np.median(block)) for block in blocks[-_STABLE_BLOCKS:]]
    enough = sum(map(len, blocks)) >= _ENOUGH_RUNS
    return enough and max(medians) - min(medians) <= _STABLE_SPREAD * min(medians)


# per operation --------------------------------------------------------------------------------------------------------

_REGULAR_RUNS = "Operator-wise Profiling Info for Regular Benchmark Runs:"
_INITIALIZATION = "Profiling Info for Benchmark Initialization:"
_TABLE = re.compile(r"^.*=== Summary by node type ===.*\n.*\[Node type\].*\n", re.MULTILINE)
#: node type, count, avg ms, avg %, cdf %, mem KB and, in all but the oldest, times called; a type may contain blanks.
_ROW = re.compile(r"\s*(\S.*?)\s+(\d+)\s+(\d+\.\d+)\s+(\S+)%\s+\S+%\s+\S+(?:\s+\d+)?\s*")


def find_binary(binary: str) -> str:
    """Returns the path of TFLite's `benchmark_model`, given its path or its name on the PATH.

    Raises:
      UserError: there is no such program.
    """
    path = str(Path(binary).absolute()) if Path(binary).is_file() else shutil.which(binary)
    if path is None or not os.access(path, os.X_OK):
        what = "cannot be executed" if path else "does not exist"
        raise UserError(
            f"benchmark binary {binary} {what}; it must be TFLite's benchmark_model, built for this machine"
        )
    return path


def profile(binary: str, model: str | Path, runs: int = 50, *, timeout: float = 300) -> list[dict[str, Any]]:
    """Returns which operations a model's time goes to, as TFLite's `benchmark_model` tells with one thread.

    Args:
      binary: path of `benchmark_model`, or its name on the PATH.
      model: path of the `.tflite` file.
      runs: inferences to average over, at least 1; the binary makes more where they take less than a second.
      timeout: seconds after which the binary is killed.

    Returns:
      What `parse_profile` returns.

    Raises:
      UserError: the binary is missing, fails, or prints no profile.
    """
    options = [f"--graph={model}", f"--num_runs={runs}", "--num_threads=1", "--enable_op_profiling=true"]
    try:
        child = subprocess.run([find_binary(binary), *options], capture_output=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(f"benchmark binary {binary} did not finish {model} in {timeout:g} s") from None
    except OSError as error:
        raise UserError(
            f"benchmark binary {binary} does not start: {error.strerror}; it must be built for this machine"
        ) from None
    if child.returncode:
        how = f"exit code {child.returncode}" if child.returncode > 0 else signal.Signals(-child.returncode).name
        raise UserError(
            f"benchmark binary {binary} failed on {model} with {how}: {_last_line(child.stderr or child.stdout)}"
        )
    # which of the two it logs to depends on its version
    for output in (child.stdout, child.stderr):
        profiled = parse_profile(output.decode(errors="replace"))
        if profiled:
            return profiled
    raise UserError(
        f"benchmark binary {binary} printed no table 'Summary by node type' for {model}; it must be TFLite's "
        "benchmark_model and know --enable_op_profiling"
    )


def parse_profile(output: str) -> list[dict[str, Any]]:
    """Reads the table "Summary by node type" of the regular runs of `benchmark_model --enable_op_profiling=true`.

    Only the primary graph's: what a subgraph or a delegate takes is part of the operation that calls it.

    Returns:
      Per type of operation `op`, `ms` (all of them in one inference), `percent` (of the inference's time, 0-100) and
      `count` (operations in the graph), the most expensive one first; empty where there is no such table.
    """
    _, header, regular = output.rpartition(_REGULAR_RUNS)
    # old versions have no headers, and the initialization's table is not what was asked
    if not header and _INITIALIZATION in output:
        return []
    table = _TABLE.search(regular)
    rows = []
    for line in regular[table.end() :].splitlines() if table else []:
        row = _ROW.fullmatch(line)
        if row is None:
            break
        # of a total of 0 microseconds the binary prints "-nan%"
        percent = float(row[4]) if math.isfinite(float(row[4])) else 0.0
        rows.append({"op": row[1], "ms": float(row[3]), "percent": percent, "count": int(row[2])})
    return rows
