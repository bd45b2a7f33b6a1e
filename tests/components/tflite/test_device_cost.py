from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from edgeline.errors import UserError
from edgeline.tflite import device_cost
from edgeline.tflite.litert import Port

#: Writes a function as a model: the file's name, the function, its inputs' specifications.
Write = Callable[..., Path]


def spec(shape: list[int | None], dtype: tf.DType = tf.float32, name: str = "x") -> tf.TensorSpec:
    return tf.TensorSpec(shape, dtype, name=name)


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Write:
    folder = tmp_path_factory.mktemp("models")

    def write_model(name: str, function: Any, *specs: tf.TensorSpec) -> Path:
        concrete = tf.function(function).get_concrete_function(*specs)
        path = folder / f"{name}.tflite"
        path.write_bytes(tf.lite.TFLiteConverter.from_concrete_functions([concrete], tf.Module()).convert())
        return path

    return write_model


@pytest.fixture(scope="module")
def small(write: Write) -> Path:
    kernel = np.ones([4, 8], np.float32)
    return write("small", lambda x: {"y": tf.matmul(x, kernel)}, spec([None, 4]))


@pytest.fixture(scope="module")
def endless(write: Write) -> Path:
    """A model that is never done where its input is not negative."""

    def loop(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.while_loop(lambda i: tf.reduce_all(i > -1.0), lambda i: [tf.abs(i)], [x])[0]}

    return write("endless", loop, spec([1, 4]))


# measuring ------------------------------------------------------------------------------------------------------------


def test_all_is_measured(small: Path) -> None:
    cost = device_cost.measure(small, {"x": np.ones([1, 4], np.float32)}, seconds=0.2)
    assert cost.keys() == {"one_thread", "all_threads", "without_xnnpack", "cold_start_ms", "peak_rss_bytes"}
    for name in ("one_thread", "all_threads", "without_xnnpack"):
        times = dict(cost[name])
        assert times.pop("threads", None) == (device_cost.usable_cores() if name == "all_threads" else None)
        assert times.keys() == {"p50", "p90", "p99", "runs", "noise"}
        assert 0 < times["p50"] <= times["p90"] <= times["p99"]
        assert times["runs"] >= 100
        assert times["noise"] >= 0
    # the first run also loads and allocates
    assert cost["cold_start_ms"] > cost["one_thread"]["p50"]
    assert cost["peak_rss_bytes"] > 0


def test_memory_grows_with_the_activations(small: Path, write: Write) -> None:
    # [1, 4,000,000] float32 between two small tensors: 16 MB that no file has
    wide = write("wide", lambda x: {"y": tf.reduce_max(tf.sin(tf.tile(x, [1, 1_000_000])), axis=1)}, spec([1, 4]))
    assert wide.stat().st_size < 10_000
    small_one, wide_one = (device_cost.measure(path, seconds=0.05)["peak_rss_bytes"] for path in (small, wide))
    assert 15_000_000 < wide_one - small_one < 60_000_000


def test_memory_of_this_process_and_of_the_reference_kernels_does_not_count(small: Path) -> None:
    ballast = np.ones(30_000_000, np.int8)  # a child of ours inherits our peak in ru_maxrss
    assert device_cost.measure(small, seconds=0.05)["peak_rss_bytes"] < 10_000_000
    assert ballast.all()


def test_a_model_that_is_slow_for_the_time_given_runs_some_times_all_the_same(small: Path) -> None:
    cost = device_cost.measure(small, seconds=1e-6)
    assert cost["one_thread"]["runs"] == 5


@pytest.mark.parametrize("dtype", [tf.float32, tf.int32, tf.int64, tf.bool])
def test_a_sample_is_made_where_none_is_given(dtype: tf.DType, write: Write) -> None:
    # a lookup in a table of two rows: only 0 and 1 are valid
    table = np.ones([2, 3], np.float32)

    def look_up(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.gather(table, tf.cast(x, tf.int32))}

    path = write(f"lookup_{dtype.name}", look_up, spec([None, 5], dtype))
    assert device_cost.measure(path, seconds=0.01)["one_thread"]["runs"] >= 5


def test_random_values_fit_the_input() -> None:
    random = np.random.default_rng(0)

    def port(dtype: type, scale: float = 0.0, zero_point: int = 0) -> Port:
        return Port("x", 0, (-1, 40, 50), np.dtype(dtype), scale, zero_point)

    floats = device_cost._random(port(np.float32), random)
    assert floats.shape == (1, 40, 50)
    assert floats.dtype == np.float32
    assert 0 <= floats.min() < 0.01
    assert 0.99 < floats.max() < 1
    for dtype in (np.int32, np.uint8, np.bool_):
        assert set(device_cost._random(port(dtype), random).ravel()) == {0, 1}
    # -1 to 0.992 in steps of 1/128: all that an int8 input can hold
    quantized = device_cost._random(port(np.int8, 1 / 128), random)
    assert (quantized.min(), quantized.max()) == (-1.0, 127 / 128)
    with pytest.raises(ValueError, match=r"input 'x' takes object, for which there are no random values; give a sampl"):
        device_cost._random(port(np.object_), random)


def test_a_model_of_fixed_batch_size_gets_the_example_as_often_as_it_wants(write: Write) -> None:
    path = write("fixed", lambda x: {"y": x + 1.0}, spec([3, 4]))
    cost = device_cost.measure(path, {"x": np.ones([1, 4], np.float32)}, seconds=0.01)
    assert cost["one_thread"]["runs"] >= 5
    ports = (Port("x", 0, (3, 2), np.dtype(np.float32), 0.0, 0), Port("i", 1, (-1, 1), np.dtype(np.int32), 0.0, 0))
    sample = {"i": np.int32([[7], [8]]), "x": np.float32([[1, 2], [3, 4]])}
    given = device_cost._inputs(ports, sample, np.random.default_rng(0))
    assert given["x"].tolist() == [[1, 2]] * 3
    assert given["i"].tolist() == [[7]]


def test_noise_is_the_interquartile_range_of_the_medians() -> None:
    blocks = [[1.0, 2.0, 30.0], [4.0], [2.0, 4.0], [5.0], [9.0]]  # medians 2, 4, 3, 5, 9: quartiles 3 and 5
    assert device_cost._noise(blocks, 4.0) == 0.5
    assert device_cost._noise([[4.0]] * 5, 4.0) == 0.0


def test_stable_is_when_the_last_medians_agree() -> None:
    steady = [[1.0] * 25, [1.01] * 25, [1.0] * 25, [1.015] * 25, [1.0] * 25]
    assert device_cost._is_stable(steady)
    assert device_cost._is_stable([[5.0] * 25, *steady])
    assert not device_cost._is_stable([*steady, [1.03] * 25])
    assert not device_cost._is_stable([[1.0] * 10] * 5)  # too few runs for a p99


# errors ---------------------------------------------------------------------------------------------------------------


def test_what_is_no_model_is_refused(small: Path, tmp_path: Path) -> None:
    content = small.read_bytes()
    path = tmp_path / "bad.tflite"
    for bad in (np.random.default_rng(0).bytes(2000), content[: len(content) // 2], content[:8] + b"\xff" * 500, b""):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"LiteRT cannot run the model: .*(not a valid Flatbuffer|mmap of size 0)"):
            device_cost.measure(path, seconds=0.01)
    with pytest.raises(ValueError, match=r"LiteRT cannot run the model: .*Could not open"):
        device_cost.measure(tmp_path / "nowhere.tflite", seconds=0.01)


def test_a_sample_that_does_not_fit_is_refused(small: Path) -> None:
    with pytest.raises(ValueError, match="the sample lacks the inputs x; it has image"):
        device_cost.measure(small, {"image": np.ones([1, 4], np.float32)}, seconds=0.01)
    with pytest.raises(ValueError, match=r"LiteRT cannot run the model: .*Got 5 but expected 4"):
        device_cost.measure(small, {"x": np.ones([1, 5], np.float32)}, seconds=0.01)


def test_a_crash_of_the_runtime_is_an_error_of_the_model(crashing: Callable[..., bytes], tmp_path: Path) -> None:
    (tmp_path / "crashing.tflite").write_bytes(crashing(tf.TensorSpec([1, 4], tf.float32, name="x"), "y"))
    with pytest.raises(RuntimeError, match=r"^LiteRT crashed on the model with SIG(SEGV|BUS)$"):
        device_cost.measure(tmp_path / "crashing.tflite", seconds=0.01)


def test_a_model_that_hangs_is_given_up(endless: Path) -> None:
    with pytest.raises(RuntimeError, match=r"^LiteRT did not finish in 2 s$"):
        device_cost.measure(endless, seconds=0.01, timeout=2)
    negative = {"x": np.full([1, 4], -2, np.float32)}
    assert device_cost.measure(endless, negative, seconds=0.01)["one_thread"]["runs"] >= 5


def test_the_child_starts_without_tensorflow() -> None:
    slow = {"tensorflow", "tf_keras", "tfx", "apache_beam"}
    code = f"import sys, edgeline.tflite.device_cost; print({slow} & {{*sys.modules}})"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == "set()"


# per operation --------------------------------------------------------------------------------------------------------

#: As benchmark_model prints it: tabs between right-aligned columns, the log's level before the first line of a message.
HEADER = "\t             [Node type]\t  [count]\t  [avg ms]\t    [avg %]\t    [cdf %]\t  [mem KB]\t[times called]\n"
RUN_ORDER = (
    "============================== Run Order ==============================\n"
    "\t             [node type]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]\n"
)
SUMMARY = "============================== Summary by node type ==============================\n"
REGULAR = f"""INFO: Operator-wise Profiling Info for Regular Benchmark Runs:
{RUN_ORDER}\t                RESHAPE\t    0.002\t    0.001\t  0.060%\t  0.060%\t     0.000\t        1\t[flatten]:3

Number of nodes executed: 6
{SUMMARY}{HEADER}\tConvolution (NHWC, F32) IGEMM\t        2\t     1.204\t    72.269%\t    72.269%\t     0.000\t        2
\tFully Connected (NC, F32) GEMM\t        2\t     0.431\t    25.870%\t    98.139%\t     0.000\t        2
\t         DEPTHWISE_CONV_2D/float\t        1\t     0.030\t     1.801%\t    99.940%\t     0.000\t        1
\t                 RESHAPE\t        1\t     0.001\t     0.060%\t   100.000%\t     0.000\t        1

Timings (microseconds): count=600 first=1713 curr=1650 min=1622 max=2544 avg=1666.37 std=61
Memory (bytes): count=0
6 nodes observed

"""
OUTPUT = f"""INFO: STARTING!
INFO: Graph: [model.tflite]
INFO: Enable op profiling: [1]
INFO: count=600 first=1713 curr=1650 min=1622 max=2544 avg=1666.37 std=61 p5=1630 median=1655 p95=1702

INFO: Inference timings in us: Init: 2120, First inference: 1713, Warmup (avg): 1690.2, Inference (avg): 1666.37
INFO: Profiling Info for Benchmark Initialization:
{SUMMARY}{HEADER}\t         AllocateTensors\t        1\t     0.095\t   100.000%\t   100.000%\t   320.000\t        1

Timings (microseconds): count=1 curr=95
1 nodes observed


{REGULAR}"""
ROWS = [
    {"op": "Convolution (NHWC, F32) IGEMM", "ms": 1.204, "percent": 72.269, "count": 2},
    {"op": "Fully Connected (NC, F32) GEMM", "ms": 0.431, "percent": 25.87, "count": 2},
    {"op": "DEPTHWISE_CONV_2D/float", "ms": 0.03, "percent": 1.801, "count": 1},
    {"op": "RESHAPE", "ms": 0.001, "percent": 0.06, "count": 1},
]


def test_the_profile_is_that_of_the_regular_runs() -> None:
    assert device_cost.parse_profile(OUTPUT) == ROWS


def test_old_versions_print_no_headline_and_fewer_columns() -> None:
    old = OUTPUT[OUTPUT.index("Number of nodes executed: 6") :].replace("\t[times called]", "")
    old = re.sub(r"\t +[12]$", "", old, flags=re.MULTILINE)
    assert "100.000%\t     0.000\n" in old
    assert device_cost.parse_profile(old) == ROWS


def test_subgraphs_and_insides_of_delegates_are_not_counted_again() -> None:
    primary = OUTPUT.replace("Runs:\n", "Runs:\nPrimary graph (name: main) profile:\n")
    table = f"{SUMMARY}{HEADER}\t       ADD\t        3\t     0.300\t   100.000%\t   100.000%\t     0.000\t        3\n\n"
    more = f"Subgraph (index: 1, name: body) profile:\n{table}Delegate internal: \n{table}"
    assert device_cost.parse_profile(primary + more) == ROWS


def test_a_model_too_fast_for_the_clock() -> None:
    row = "\t                     ADD\t        3\t     0.000\t      -nan%\t      -nan%\t     0.000\t        3\n\n"
    assert device_cost.parse_profile(f"{SUMMARY}{HEADER}{row}") == [{"op": "ADD", "ms": 0, "percent": 0, "count": 3}]


def test_no_table() -> None:
    assert device_cost.parse_profile("") == []
    assert device_cost.parse_profile(OUTPUT[: OUTPUT.index("INFO: Operator-wise")]) == []
    assert device_cost.parse_profile(OUTPUT[: OUTPUT.rindex(HEADER)]) == []


def script(path: Path, lines: str) -> str:
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("stream", ["1", "2"])
def test_the_binary_is_asked_for_the_profile(stream: str, small: Path, tmp_path: Path) -> None:
    (tmp_path / "output.txt").write_text(OUTPUT)
    told = tmp_path / "told.txt"
    binary = script(tmp_path / "benchmark_model", f'echo "$@" > {told}\ncat {tmp_path}/output.txt >&{stream}')
    assert device_cost.profile(binary, small, 7) == ROWS
    assert told.read_text().split() == [
        f"--graph={small}", "--num_runs=7", "--num_threads=1", "--enable_op_profiling=true",
    ]  # fmt: skip


def test_the_binary_is_found_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert device_cost.find_binary("sh").endswith("/sh")
    script(tmp_path / "my_benchmark", "true")
    assert device_cost.find_binary("my_benchmark") == str(tmp_path / "my_benchmark")
    monkeypatch.chdir(tmp_path)
    assert device_cost.find_binary("./my_benchmark") == str(tmp_path / "my_benchmark")


def test_mistakes_with_the_binary(small: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"benchmark binary no/such does not exist; it must be TFLite's bench"):
        device_cost.profile("no/such", small)
    with pytest.raises(UserError, match=r"small.tflite cannot be executed"):
        device_cost.profile(str(small), small)
    foreign = tmp_path / "foreign"
    foreign.write_bytes(b"\x7fELF\0\0")
    foreign.chmod(0o755)
    with pytest.raises(UserError, match="foreign does not start: Exec format error; it must be built for this machine"):
        device_cost.profile(str(foreign), small)
    failing = script(tmp_path / "failing", "echo STARTING! >&2; echo 'ERROR: Failed to load model' >&2; exit 1")
    with pytest.raises(UserError, match=r"failing failed on .*small.tflite with exit code 1: ERROR: Failed to load"):
        device_cost.profile(failing, small)
    crashing = script(tmp_path / "crashing", "echo STARTING!; kill -ABRT $$")
    with pytest.raises(UserError, match=r"crashing failed on .*small.tflite with SIGABRT: STARTING!"):
        device_cost.profile(crashing, small)
    silent = script(tmp_path / "silent", "echo 'Unconsumed cmdline flags: --enable_op_profiling=true'")
    with pytest.raises(UserError, match=r"silent printed no table 'Summary by node type' for .*small.tflite"):
        device_cost.profile(silent, small)
    hanging = script(tmp_path / "hanging", "exec sleep 60")
    with pytest.raises(UserError, match=r"hanging did not finish .*small.tflite in 0.2 s"):
        device_cost.profile(hanging, small, timeout=0.2)
