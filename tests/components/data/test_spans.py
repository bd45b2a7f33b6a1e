"""Windows of spans, by hand: which folders a pattern finds, which of them count, and what is said of the others."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import pytest

from edgeline.data import spans
from edgeline.errors import UserError
from edgeline.pipelines.root import Root
from edgeline.pipelines.run import new_data
from edgeline.pipelines.run.journal import Journal


def make(base: Path, *names: str, lacks: str = "", shard: str = "data.tfrecord.gz") -> None:
    """Makes complete data folders, or some that lack the shards of a split."""
    for name in names:
        for split in ("train", "validation", "eval"):
            (base / name / split).mkdir(parents=True)
            if split != lacks:
                (base / name / split / shard).write_bytes(b"records")


def found(pattern: Path | str, size: int = 1) -> list[str]:
    return [span.name for span in spans.resolve(Path(pattern), size).spans]


def test_the_newest_span_is_that_of_the_largest_number(tmp_path: Path) -> None:
    make(tmp_path, "day-2", "day-9", "day-10", "other-99")
    assert found(tmp_path / "day-{SPAN}") == ["day-10"]
    [span] = spans.resolve(tmp_path / "day-{SPAN}").spans
    assert (span.number, span.folder) == (10, tmp_path / "day-10")


def test_a_window_goes_back_by_numbers_and_names_its_gaps(tmp_path: Path) -> None:
    make(tmp_path, "day-1", "day-2", "day-3", "day-5")
    window = spans.resolve(tmp_path / "day-{SPAN}", 3)
    assert [span.number for span in window.spans] == [3, 5]  # oldest first; of 3, 4, 5
    assert window.notes == ("the window of 3 has 2 spans: there is no complete span 4",)
    # before the first there is nothing to miss
    assert spans.resolve(tmp_path / "day-{SPAN}", 9).notes == (
        "the window of 9 has 4 spans: there is no complete span 4",
    )
    assert found(tmp_path / "day-{SPAN}", 9) == ["day-1", "day-2", "day-3", "day-5"]


def test_dates(tmp_path: Path) -> None:
    make(tmp_path, "2025-12-30", "2025-12-31", "2026-01-01", "2026-02-30", "2026-1-2")
    window = spans.resolve(tmp_path / "{YYYY}-{MM}-{DD}", 2)
    assert [span.name for span in window.spans] == ["2025-12-31", "2026-01-01"]
    # days since 1970: 56 years, of which 14 had a leap day, and none since
    assert window.spans[-1].number == 56 * 365 + 14 == (datetime.date(2026, 1, 1) - datetime.date(1970, 1, 1)).days
    assert window.notes == (f"{tmp_path / '2026-02-30'} is left out: there is no such date",)
    (tmp_path / "2025-12-31").rename(tmp_path / "elsewhere")
    assert "there is no complete 2025-12-31" in spans.resolve(tmp_path / "{YYYY}-{MM}-{DD}", 2).notes[-1]


def test_placeholders_may_stand_in_several_folders(tmp_path: Path) -> None:
    make(tmp_path, "2026/01/31", "2026/02/01", "2026/notes/01")
    assert found(tmp_path / "{YYYY}" / "{MM}" / "{DD}", 2) == ["2026/01/31", "2026/02/01"]
    make(tmp_path, "shop/day-1/data", "shop/day-2/data", "shop/day-2/raw")
    window = spans.resolve(tmp_path / "shop" / "day-{SPAN}" / "data", 2)
    assert (window.base, window.spans[0].name) == (tmp_path / "shop", "day-1/data")


def test_a_width_tells_numbers_from_other_names(tmp_path: Path) -> None:
    make(tmp_path, "day-007", "day-8")
    assert found(tmp_path / "day-{SPAN:3}") == ["day-007"]
    assert found(tmp_path / "day-{SPAN}") == ["day-8"]


def test_characters_of_patterns_mean_themselves(tmp_path: Path) -> None:
    make(tmp_path, "a.b+1", "axb+2")
    assert found(tmp_path / "a.b+{SPAN}") == ["a.b+1"]


def test_of_versions_the_largest_complete_one_counts(tmp_path: Path) -> None:
    make(tmp_path, "day-1/v2", "day-1/v10", "day-2/v1")
    make(tmp_path, "day-2/v2", lacks="eval")
    window = spans.resolve(tmp_path / "day-{SPAN}" / "v{VERSION}", 2)
    assert [span.name for span in window.spans] == ["day-1/v10", "day-2/v1"]
    assert window.notes == (
        f"{tmp_path / 'day-2' / 'v2'} is left out: it is incomplete, eval has no *.tfrecord.gz files; "
        "is it still being written?",
    )


def test_an_incomplete_newest_span_is_named_and_those_before_it_count(tmp_path: Path) -> None:
    make(tmp_path, "day-1", "day-2", "day-3")
    make(tmp_path, "day-4", shard="data-00000-of-00003.tfrecord.gz")
    window = spans.resolve(tmp_path / "day-{SPAN}", 2)
    assert [span.name for span in window.spans] == ["day-2", "day-3"]
    assert window.notes == (
        f"{tmp_path / 'day-4'} is left out: it is incomplete, train has 1 of 3 shards; is it still being written?",
    )
    for split in ("train", "validation", "eval"):
        for number in (1, 2):
            (tmp_path / "day-4" / split / f"data-0000{number}-of-00003.tfrecord.gz").write_bytes(b"records")
    assert found(tmp_path / "day-{SPAN}", 2) == ["day-3", "day-4"]


def test_an_incomplete_span_inside_the_window_is_named(tmp_path: Path) -> None:
    make(tmp_path, "day-1", "day-3")
    make(tmp_path, "day-2", lacks="validation")
    window = spans.resolve(tmp_path / "day-{SPAN}", 3)
    assert [span.number for span in window.spans] == [1, 3]
    assert window.notes[0].endswith("it is incomplete, validation has no *.tfrecord.gz files")
    assert "there is no complete span 2" in window.notes[1]
    assert spans.resolve(tmp_path / "day-{SPAN}", 1).notes == ()  # it is of no concern there


def test_nothing_complete(tmp_path: Path) -> None:
    make(tmp_path, "day-1", lacks="train")
    with pytest.raises(UserError, match=r"(?s)no span is complete yet.*day-1 is left out.*train has no"):
        spans.resolve(tmp_path / "day-{SPAN}")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("day-{SPN}", r"unknown placeholder \{SPN\}; did you mean \{SPAN\}\?"),
        ("day-{span}", r"unknown placeholder \{span\}; did you mean \{SPAN\}\?"),
        ("day-{HOUR}x", r"unknown placeholder \{HOUR\}; known are \{SPAN\}, \{VERSION\}, \{YYYY\}, \{MM\}, \{DD\}"),
        ("{SPAN}-{SPAN}", r"\{SPAN\} stands there 2 times"),
        ("{YYYY}-{MM}", r"a date needs \{YYYY\}, \{MM\} and \{DD\}; \{DD\} is missing"),
        ("{YYYY}-{MM}-{DD}-{SPAN}", r"give \{SPAN\} or a date, not both"),
        ("v{VERSION}", r"\{VERSION\} is the version of a span: give \{SPAN\} or a date too"),
        ("day-{SPAN:0}", r"\{SPAN:0\} must be \{SPAN\}"),
        ("{YYYY:4}-{MM}-{DD}", r"\{YYYY:4\} must be \{YYYY\}"),
        ("week-{SPAN}", r"no folder in .* is named like that; it holds day-1"),
        ("none/day-{SPAN}", r"the folder .*none does not exist"),
    ],
)
def test_bad_patterns(pattern: str, message: str, tmp_path: Path) -> None:
    make(tmp_path, "day-1")
    with pytest.raises(UserError, match=message):
        spans.resolve(tmp_path / pattern)


def test_one_number_is_one_folder(tmp_path: Path) -> None:
    make(tmp_path, "day-7", "day-07")
    with pytest.raises(UserError, match=r"day-07 and .*day-7 are both number 7 of .*such as \{SPAN:3\}"):
        spans.resolve(tmp_path / "day-{SPAN}")


def test_a_window_has_one_span_at_least(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--window must be at least 1, received 0"):
        spans.resolve(tmp_path / "day-{SPAN}", 0)


def test_what_is_a_pattern() -> None:
    assert spans.is_pattern(Path("data/day-{SPAN:3}"))
    assert spans.is_pattern(Path("data/{SPN}"))
    assert not spans.is_pattern(Path("data/{1}"))
    assert not spans.is_pattern(Path("data"))


def test_the_fingerprint_goes_by_folders_names_sizes_and_times(tmp_path: Path) -> None:
    make(tmp_path, "a", "b")
    both = spans.fingerprint([tmp_path / "a", tmp_path / "b"])
    assert both == spans.fingerprint([tmp_path / "a", tmp_path / "b"]) != spans.fingerprint([tmp_path / "a"])
    os.utime(tmp_path / "b" / "eval" / "data.tfrecord.gz", (1, 1))
    assert spans.fingerprint([tmp_path / "a", tmp_path / "b"]) != both


def test_the_last_finished_run_is_that_with_a_verdict(tmp_path: Path) -> None:
    assert new_data.last_finished(Root(tmp_path)) is None

    def run(code: int, digest: str | None) -> None:
        with Journal(Root(tmp_path), "run") as journal:
            if digest:
                journal.write("data", fingerprint=digest, request="r", spans=None)
            journal.exit_code = code

    run(0, "pushed")
    assert new_data.last_finished(Root(tmp_path))["fingerprint"] == "pushed"  # type: ignore[index]
    run(1, "nothing fits")
    run(2, "refused")
    run(3, "failed")
    run(0, None)  # no new data
    assert new_data.last_finished(Root(tmp_path))["fingerprint"] == "nothing fits"  # type: ignore[index]
