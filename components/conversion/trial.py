"""The trial of a TFLite model: it runs in a process of its own, whose crash or hang is the model's error.

No TensorFlow here, so that the process starts quickly.
"""

from __future__ import annotations

import dataclasses
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from edgeline import files, layout
from edgeline.conversion.failures import BatchError, ExportError
from edgeline.isolation import interpreter, limits
from edgeline.tflite import device_cost
from edgeline.tflite.litert import TFLiteModel

#: What the reference kernels take for a model of a phone's size is seconds per sample.
REFERENCE_SAMPLES = 16
#: The rest of a trial's time is XNNPACK's: this fraction of it, after which no further sample is begun.
_REFERENCE_SHARE = 0.25
#: Samples that XNNPACK also runs one by one, as an app does.
ALONE_SAMPLES = 8
#: What the child process runs.
_CHILD = (
    f"from {__name__} import main; from {limits.__name__} import limit_this_process, memory_bytes; "
    "limit_this_process(memory_bytes()); main(*sys.argv[1:])"
)
#: What a process says that it is at, for its messages.
_TOGETHER = "XNNPACK, batch {}"


@dataclasses.dataclass(frozen=True)
class Trial:
    """What a model made of the samples; outputs by name, real values, shape [samples, ...].

    Attributes:
      together: XNNPACK, all samples, in the batch size that was asked for.
      alone: XNNPACK, the first ALONE_SAMPLES one by one (a model of fixed batch size: in that).
      reference: the reference kernels, one by one, at most REFERENCE_SAMPLES and as many as the time allows.
      peak_rss_bytes: how far loading and the first run raised the peak of the process' resident memory; None where the
        system does not tell.
    """

    together: dict[str, np.ndarray]
    alone: dict[str, np.ndarray]
    reference: dict[str, np.ndarray]
    peak_rss_bytes: int | None


def run(content: bytes, inputs: dict[str, np.ndarray], *, batch: int, timeout_seconds: int) -> Trial:
    """Loads and runs a TFLite model in a process of its own.

    Args:
      content: of the `.tflite` file.
      inputs: by input name, real values, shape [samples, ...].
      batch: batch size of the run of all samples; fewer are padded to it.
      timeout_seconds: after which the process is killed.

    Raises:
      ExportError: it crashed, hung or refused the model; says with which kernels and batch size.
      BatchError: it crashed or refused it only in the batch size that was asked for.
    """
    with tempfile.TemporaryDirectory(prefix="edgeline-") as folder:
        paths = [str(Path(folder, name)) for name in (layout.TFLITE_FILE, "inputs.npz", "outputs.npz")]
        Path(paths[0]).write_bytes(content)
        files.write_arrays(paths[1], inputs)
        arguments = [*paths, str(batch), str(timeout_seconds)]
        try:
            child = interpreter.run(_CHILD, arguments, timeout=timeout_seconds)
        except subprocess.TimeoutExpired as error:
            count = len(next(iter(inputs.values())))
            raise ExportError(
                f"LiteRT did not finish {count} samples in {timeout_seconds} s{_stage(error.stdout)}"
            ) from None
        if child.returncode:
            if child.returncode < 0:
                what = f"crashed on the model with {signal.Signals(-child.returncode).name}"
            else:
                what = f"cannot run the model: {_error(child.stderr)}"
            stage = _stage(child.stdout)
            kind = BatchError if batch > 1 and _TOGETHER.format(batch) in stage else ExportError
            raise kind(f"LiteRT {what}{stage}")
        outputs = files.read_arrays(paths[2])
    peak = int(outputs.pop("peak_rss_bytes"))
    parts: dict[str, dict[str, np.ndarray]] = {"together": {}, "alone": {}, "reference": {}}
    for key, values in outputs.items():
        part, name = key.split("/", 1)
        parts[part][name] = values
    return Trial(**parts, peak_rss_bytes=None if peak < 0 else peak)


def _stage(output: bytes | None) -> str:
    """Returns what the process was at when it ended, for the end of a message."""
    lines = (output or b"").decode(errors="replace").split("\n")
    return f" ({lines[-2]})" if len(lines) > 1 else ""


def _error(output: bytes) -> str:
    """Returns the error at the end of a traceback; LiteRT's messages have several lines."""
    message = re.split(r"^(?=\w+(?:Error|Exception): )", output.decode(errors="replace"), flags=re.MULTILINE)[-1]
    return " ".join(message.split()) or "no message"


def main(model: str, inputs: str, outputs: str, batch: str, timeout_seconds: str) -> None:
    """Runs a model in this process: the child process of `run`.

    Args:
      model: path of the `.tflite` file.
      inputs: `.npz` file, by input name, shape [samples, ...].
      outputs: `.npz` file to write: `together/`, `alone/` and `reference/` and the output's name, and peak_rss_bytes,
        -1 where the system does not tell.
      batch: of `run`.
      timeout_seconds: of `run`.
    """
    samples = files.read_arrays(inputs)

    def first(count: int, start: int = 0) -> dict[str, np.ndarray]:
        return {name: values[start:count] for name, values in samples.items()}

    _say("XNNPACK, one by one")
    before = device_cost.peak_rss()
    runner = TFLiteModel(model)
    runner.run(first(1))
    after = device_cost.peak_rss()
    alone = runner.run(first(ALONE_SAMPLES), 1)
    _say(_TOGETHER.format(batch))
    together = runner.run(samples, int(batch))

    _say("reference kernels, one by one")
    stop = time.monotonic() + _REFERENCE_SHARE * float(timeout_seconds)
    simple = TFLiteModel(model, reference=True)
    pieces: list[dict[str, np.ndarray]] = []
    for row in range(min(REFERENCE_SAMPLES, len(next(iter(samples.values()))))):
        if not pieces or time.monotonic() < stop:
            pieces.append(simple.run(first(row + 1, row), 1))
    reference = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    outputs_by_run = {
        f"{part}/{name}": values
        for part, outcome in (("together", together), ("alone", alone), ("reference", reference))
        for name, values in outcome.items()
    }
    peak = -1 if before is None or after is None else after - before
    files.write_arrays(outputs, {**outputs_by_run, "peak_rss_bytes": np.asarray(peak)})


def _say(stage: str) -> None:
    sys.stdout.write(f"{stage}\n")
    sys.stdout.flush()
