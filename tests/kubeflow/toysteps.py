"""Steps that do next to nothing, with everything that TFX's Kubeflow compiler and entrypoint get wrong.

Loaded as the top-level module `toysteps`: containers import an artifact type by its TYPE_NAME.
"""

# ruff: noqa: N802
from pathlib import Path
from typing import Dict, List  # noqa: UP035 - TFX knows no others

from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, OutputDict, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types import artifact
from tfx.types.artifact import Property, PropertyType
from tfx.types.standard_artifacts import Examples, Model, ModelBlessing


class WordStats(artifact.Artifact):
    """One file, `words.txt`."""

    TYPE_NAME = "toysteps.WordStats"
    PROPERTIES = {  # noqa: RUF012 - TFX's own form
        "words": Property(type=PropertyType.INT),
        "mean": Property(type=PropertyType.FLOAT),
        "first": Property(type=PropertyType.STRING),
        "sorted": Property(type=PropertyType.BOOLEAN),
        "lengths": Property(type=PropertyType.JSON_VALUE),
    }


@component
def Count(
    examples: InputArtifact[Examples],
    stats: OutputArtifact[WordStats],
    text: Parameter[str],
    upper: Parameter[bool],
    weights: Parameter[Dict[str, int]],  # noqa: UP006
    stop: Parameter[List[str]],  # noqa: UP006
) -> OutputDict(words=int):
    """Counts words; says in a file what it was given."""
    assert Path(examples.uri, "Split-train", "data").read_text() == "train"
    words = [word for word in text.split() if word not in stop]
    Path(stats.uri, "words.txt").write_text(repr((upper, weights, stop)))
    stats.words = len(words)
    stats.mean = sum(map(len, words)) / len(words)
    stats.first = words[0]
    stats.sorted = words == sorted(words)
    stats.lengths = [len(word) for word in words]
    stats.set_string_custom_property("where", stats.uri)
    stats.set_json_value_custom_property("weights", weights)
    stats.set_json_value_custom_property("nothing", None)
    return {"words": len(words)}


@component
def Score(
    stats: InputArtifact[WordStats],
    model: OutputArtifact[Model],
    blessing: OutputArtifact[ModelBlessing],
    words: Parameter[int],
    upper: Parameter[bool],
    bless: Parameter[int],
) -> None:
    """Writes what has arrived of the statistics, if it is blessed."""
    seen = {
        "words": (stats.words, words),
        "mean": stats.mean,
        "first": stats.first,
        "sorted": (stats.sorted, stats.has_custom_property("sorted")),
        "lengths": stats.lengths,
        "weights": stats.get_json_value_custom_property("weights"),
        "upper": upper,
        "text": Path(stats.uri, "words.txt").read_text(),
    }
    folder = Path(model.uri, "Format-Serving")
    folder.mkdir()
    if bless:
        (folder / "seen.txt").write_text(repr(seen))
    Path(blessing.uri, "BLESSED" if bless else "NOT_BLESSED").touch()
    blessing.set_int_custom_property("blessed", bless)
    blessing.set_string_custom_property("current_model", stats.uri)
    blessing.set_int_custom_property("current_model_id", stats.id)


@component
def Report(text: Parameter[str]) -> None:
    """What an exit handler may be."""
    print(text)  # noqa: T201
