"""The file layout of a RepresentativeDataset (samples, manifest, raw examples), and the checks on reading it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import json_format
from tensorflow.core.example import example_pb2

from edgeline import files
from edgeline.errors import UserError, is_environment

SAMPLES_FILE = "samples.npz"
MANIFEST_FILE = "manifest.json"
RAW_FILE = "raw.jsonl"

#: Samples whose examples are kept as they were before `preprocess`.
RAW_EXAMPLES = 8

#: Of the manifest; another one is refused.
SCHEMA_VERSION = 2

_SHA256 = re.compile("[0-9a-f]{64}")
_AGAIN = "run RepresentativeDatasetGen again"


def write(
    folder: str, samples: dict[str, np.ndarray], about: dict[str, Any], examples: Sequence[bytes] = ()
) -> dict[str, Any]:
    """Writes the files into a folder, which is made.

    Args:
      folder: of the artifact.
      samples: by model input name, shape [samples, ...].
      about: what else is to be known about them.
      examples: the serialized `tf.train.Example`s that the samples were made of, in their order; the first RAW_EXAMPLES
        are kept, one per line, in the JSON form that protobuf defines for every message (bytes in base64).

    Returns:
      The manifest: `about` and, computed from the samples, schema_version, samples (how many), digest, inputs (shape
      and dtype of a sample by name) and ranges ([min, max] by name, of numeric inputs).
    """
    manifest = {
        **about,
        "schema_version": SCHEMA_VERSION,
        "samples": len(next(iter(samples.values()))),
        "digest": digest(samples),
        "inputs": _specs(samples),
        "ranges": {n: [float(v.min()), float(v.max())] for n, v in samples.items() if v.dtype.kind in "fiu"},
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    files.write_arrays(Path(folder, SAMPLES_FILE), samples, compress=True)
    Path(folder, MANIFEST_FILE).write_text(json.dumps(manifest, indent=1) + "\n")
    if examples:
        raw = (example_pb2.Example.FromString(content) for content in examples[:RAW_EXAMPLES])
        options = {"preserving_proto_field_name": True, "indent": None, "sort_keys": True}
        lines = [json_format.MessageToJson(example, **options) + "\n" for example in raw]
        Path(folder, RAW_FILE).write_text("".join(lines))
    return manifest


def digest(samples: Mapping[str, np.ndarray]) -> str:
    """Returns a hexadecimal SHA-256 over names, dtypes, shapes and values, whatever the order of the names."""
    total = hashlib.sha256()
    for name, values in sorted(samples.items()):
        total.update(f"{name}\0{values.dtype.str}\0{values.shape}\0".encode())
        total.update(values.tobytes())
    return total.hexdigest()


def _specs(samples: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return {name: {"shape": list(values.shape[1:]), "dtype": values.dtype.name} for name, values in samples.items()}


def read(folder: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the samples by input name, shape [samples, ...], and the manifest.

    Raises:
      UserError: as for `read_manifest`; or the samples are not those that the manifest describes.
    """
    manifest = read_manifest(folder)
    path = Path(folder, SAMPLES_FILE)
    try:
        samples = files.read_arrays(path)
    except FileNotFoundError:
        raise UserError(f"the calibration set has no {SAMPLES_FILE} ({path}); {_AGAIN}") from None
    except Exception as error:  # whatever a damaged file makes of zipfile, zlib and NumPy
        if is_environment(error):
            raise
        raise UserError(
            f"the calibration set's {path} is damaged: {type(error).__name__}: {error}; {_AGAIN}"
        ) from error
    counts = {len(values) if values.ndim else 0 for values in samples.values()}
    if counts != {manifest["samples"]} or _specs(samples) != manifest["inputs"]:
        specs = {name: [values.dtype.name, *values.shape] for name, values in samples.items()}
        raise UserError(
            f"the calibration set's {path} holds {specs}, but its manifest says {manifest['samples']} samples of "
            f"{manifest['inputs']}; {_AGAIN}"
        )
    if digest(samples) != manifest["digest"]:
        raise UserError(
            f"the calibration set's {path} was changed after it was made: its digest is {digest(samples)[:12]}, the "
            f"manifest says {manifest['digest'][:12]}; {_AGAIN}"
        )
    return samples, manifest


def read_manifest(folder: str) -> dict[str, Any]:
    """Returns the manifest alone, whose required fields are there and sound.

    Raises:
      UserError: missing, no manifest, of another schema version, empty, or a field is wrong; says which.
    """
    path = Path(folder, MANIFEST_FILE)
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"the calibration set has no {MANIFEST_FILE} ({path}); {_AGAIN}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"the calibration set's {path} is not valid JSON: {error}; {_AGAIN}") from None
    wrong = _fault(content)
    if wrong:
        raise UserError(f"the calibration set's {path} {wrong}; {_AGAIN}")
    manifest: dict[str, Any] = content
    return manifest


def _fault(content: Any) -> str | None:
    """Returns what is wrong with a manifest, or None."""
    if not isinstance(content, dict):
        return f"must be a JSON object, found {type(content).__name__}"
    version = content.get("schema_version")
    if type(version) is not int or version != SCHEMA_VERSION:
        return f"has schema version {_short(version)}, this Edgeline reads {SCHEMA_VERSION}"
    missing = [name for name in ("samples", "digest", "inputs", "ranges") if name not in content]
    if missing:
        return f"has no {', '.join(missing)}"
    samples, inputs, ranges = content["samples"], content["inputs"], content["ranges"]
    if samples == 0:
        return "is empty: 0 samples"
    digests = content.get("digests", [])
    rules = (
        ("samples", _is_size(samples) and samples > 0, "a number of samples"),
        ("digest", _is_digest(content["digest"]), "a SHA-256 in hexadecimal"),
        ("inputs", isinstance(inputs, dict) and bool(inputs), "an object with at least one input"),
        ("ranges", isinstance(ranges, dict), "an object"),
        (
            "digests",
            isinstance(digests, list) and all(map(_is_digest, digests)) and len(digests) in (0, samples),
            "one SHA-256 in hexadecimal per sample",
        ),
    )
    for name, holds, expected in rules:
        if not holds:
            return f"says {name} {_short(content[name])}, which must be {expected}"
    for name, spec in inputs.items():
        if not isinstance(spec, dict) or not _is_shape(spec.get("shape")) or not isinstance(spec.get("dtype"), str):
            return f"says of input {name!r} {_short(spec)}, which must be its shape and dtype"
    for name, pair in ranges.items():
        if name not in inputs:
            return f"says a range of {name!r}, which is none of its inputs {', '.join(map(repr, inputs))}"
        if not _is_range(pair):
            return f"says of input {name!r} the range {_short(pair)}, which must be [min, max]"
    return None


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_size, value))


def _is_range(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        # an int of JSON may be too large for a float
        and all(type(end) is float or (type(end) is int and abs(end) < 2**64) for end in value)
        and all(map(math.isfinite, value))
        and value[0] <= value[1]
    )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_fits(manifest: dict[str, Any], inputs: Iterable[Mapping[str, Any]], planned: str | None = None) -> None:
    """Checks that samples are those of a model's inputs, by name; their order cannot matter.

    Args:
      manifest: of the samples.
      inputs: the model's: name, shape with the batch dimension (None where it is free) and dtype.
      planned: digest of the samples that the model's quantization was planned with; None: it was not.

    Raises:
      UserError: they are another model's; or others than were planned with.
    """
    wanted = {port["name"]: {"shape": list(port["shape"][1:]), "dtype": port["dtype"]} for port in inputs}
    given = manifest["inputs"]
    fits = wanted.keys() == given.keys() and all(
        given[name]["dtype"] == spec["dtype"]
        and len(given[name]["shape"]) == len(spec["shape"])
        and all(want in (None, have) for want, have in zip(spec["shape"], given[name]["shape"], strict=True))
        for name, spec in wanted.items()
    )
    if not fits:
        raise UserError(
            f"the calibration samples do not fit the model: its inputs are {wanted}, the samples' are {given}; "
            f"calibrate on samples of this model's module"
        )
    if planned is not None and planned != manifest["digest"]:
        raise UserError(
            f"the model was quantized with other calibration samples (digest {planned[:12]}) than are given now "
            f"({manifest['digest'][:12]}); run both steps on the same"
        )


def batches(samples: dict[str, np.ndarray], size: int) -> Iterator[dict[str, np.ndarray]]:
    """Yields the samples in batches of exactly this size; the last one begins again with the first samples."""
    count = len(next(iter(samples.values())))
    for start in range(0, count, size):
        rows = np.arange(start, start + size) % count
        yield {name: values[rows] for name, values in samples.items()}
