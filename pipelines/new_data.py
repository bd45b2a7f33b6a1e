"""The data of a run: which of them are read, whether they are new, and what they must look like.

Whether they are new is known within a second: nothing here imports TensorFlow or TFX, but for `edgeline data schema`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from edgeline.config import StepConfig
from edgeline.errors import UserError
from edgeline.model_module import Source
from edgeline.passport import toolchain
from edgeline.pipelines import console, datasets, spans
from edgeline.pipelines.recipe import Recipe

#: Longer values on average are no names of anything: images, texts.
_LONGEST_CATEGORY = 64


def window(arguments: argparse.Namespace, data: Path | None) -> spans.Window | None:
    """Returns the spans that --data and --window say, None for a data folder.

    Raises:
      UserError: the pattern is wrong, no span is complete, or --window is given for a data folder.
    """
    if data is not None and spans.is_pattern(data):
        return spans.resolve(data, 1 if arguments.window is None else arguments.window)
    if arguments.window is not None:
        raise UserError("--window needs spans: --data 'DIR/day-{SPAN}', or 'DIR/{YYYY}-{MM}-{DD}'")
    return None


def request(source: Source, chosen: Sequence[Recipe], asked: Iterable[StepConfig | None], schema: Path | None) -> str:
    """Returns a digest of everything that decides what a run makes of its data.

    Raises:
      UserError: there is no such schema, or it is none.
    """
    content = {
        "module": [source.reference, source.digest],
        "recipes": [[recipe.name, *(step.describe() for step in recipe.steps)] for recipe in chosen],
        "asked": [config and [type(config).__name__, config.parameters()] for config in asked],
        "schema": schema and _read_schema(schema),
        "toolchain": toolchain(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_schema(path: Path) -> str:
    from google.protobuf import text_format
    from tensorflow_metadata.proto.v0 import schema_pb2

    try:
        text = path.read_text(encoding="utf-8")
        schema = text_format.Parse(text, schema_pb2.Schema())
    except OSError as error:
        raise UserError(
            f"--schema {path} cannot be read: {error.strerror}; make one with `edgeline data schema DATA -o {path}`"
        ) from None
    except (UnicodeDecodeError, text_format.ParseError) as error:
        raise UserError(f"--schema {path} is no schema of TensorFlow Metadata in text form: {error}") from None
    if not schema.feature:
        raise UserError(f"--schema {path} describes no feature")
    return text


def facts(data: Path, found: spans.Window | None, requested: str) -> dict[str, Any]:
    """Returns what the event `data` says: digests by which the next run knows these data again, and the spans."""
    folders = [span.folder for span in found.spans] if found else [data]
    return {
        "fingerprint": spans.fingerprint(folders),
        "request": requested,
        "spans": [span.name for span in found.spans] if found else None,
    }


def nothing_new(
    arguments: argparse.Namespace, root: Path, data: Path | None, found: spans.Window | None, requested: str
) -> str | None:
    """Says why a run has nothing to do, None where it has, and where it was not asked to find out.

    Raises:
      UserError: a folder of the data is missing or holds something else.
    """
    if arguments.no_cache or data is None or (found is None and not arguments.only_new_data):
        return None
    last = spans.last_finished(root)
    now = facts(data, found, requested)
    if last is None or any(last.get(key) != now[key] for key in ("fingerprint", "request")):
        return None
    where = f"{found.base}, {_range(now['spans'])}" if found else str(data)
    when = last["time"][:16].replace("T", " ")
    verdict = "; of that run no candidate met the budget" if last["exit_code"] == 1 else ""
    return f"no new data since the run of {when} UTC ({where}): nothing trained, nothing pushed{verdict}"


def _range(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"


def check_readable(data: Path, found: spans.Window | None, root: Path) -> None:
    """Reads every shard that was not read by an earlier run, see `datasets.check_readable`."""
    if found is None:
        datasets.check_readable(data, root / ".data-checked.json")
        return
    for span in found.spans:
        name = span.name.replace("/", "_")
        datasets.check_readable(span.folder, root / ".data-checked" / f"{name}.json")


# the schema -----------------------------------------------------------------------------------------------------------


def add_schema_command(kinds: Any, common: argparse.ArgumentParser) -> None:
    """Adds `schema` to the commands of `edgeline data`."""
    parser = kinds.add_parser(
        "schema",
        parents=[common],
        help="write down what the data of a folder look like, for --schema",
        description=(
            "Infer a schema from the data: features, types, shapes, categories, and the range of whole numbers.\n"
            "It is a first draft, yours to edit: what is in it is what later data are held to."
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", type=Path, metavar="DATA", help="data folder with train, validation and eval")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.pbtxt", help="must not exist yet")
    parser.set_defaults(command=_schema)


def _schema(arguments: argparse.Namespace) -> int:
    if arguments.output.exists():
        raise UserError(f"-o {arguments.output} exists already; a schema may have been edited: choose another name")
    if not arguments.output.parent.is_dir():
        raise UserError(f"-o {arguments.output}: the folder {arguments.output.parent} does not exist")
    with console.capture_output(os.devnull):  # TensorFlow says things at its import
        datasets.check_readable(arguments.data)
        text, names = infer_schema(arguments.data)
    arguments.output.write_text(text, encoding="utf-8")
    print(f"{arguments.output}: {', '.join(names)}")  # noqa: T201
    return 0


def infer_schema(data: Path) -> tuple[str, list[str]]:
    """Returns a schema for the examples of a data folder, as text, and the names of its features.

    It is what TensorFlow Data Validation infers from all splits, but for two things: long values, and
    those that are no text, are no categories, even if there are few of them; and whole numbers get a range: `label`
    that of the classes where the folder has a labels.txt, else the one that was found.
    """
    import tensorflow_data_validation as tfdv
    from apache_beam.options.pipeline_options import PipelineOptions
    from google.protobuf import text_format
    from tensorflow_metadata.proto.v0 import schema_pb2

    statistics = tfdv.generate_statistics_from_tfrecord(
        str(data / "*" / f"*{datasets.SHARD_SUFFIX}"), pipeline_options=PipelineOptions(["--runner=FnApiRunner"])
    )
    schema = tfdv.infer_schema(statistics)
    by_name = {feature.path.step[0]: feature for feature in statistics.datasets[0].features}
    names = {domain.name: domain.value for domain in schema.string_domain}
    classes = data / "labels.txt"
    for feature in schema.feature:
        found = by_name[feature.name]
        values = names.get(feature.domain, [])
        if found.string_stats.avg_length > _LONGEST_CATEGORY or not all(map(str.isprintable, values)):
            feature.ClearField("domain")
        elif feature.type == schema_pb2.INT and feature.name == "label" and classes.is_file():
            feature.int_domain.min, feature.int_domain.max = 0, len(classes.read_text().splitlines()) - 1
        elif feature.type == schema_pb2.INT:
            feature.int_domain.min, feature.int_domain.max = int(found.num_stats.min), int(found.num_stats.max)
    used = {feature.domain for feature in schema.feature}
    domains = [domain for domain in schema.string_domain if domain.name in used]
    del schema.string_domain[:]
    schema.string_domain.extend(domains)
    return text_format.MessageToString(schema), [feature.name for feature in schema.feature]
