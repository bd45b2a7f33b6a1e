from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeline.budget import matches, slice_limit
from edgeline.errors import UserError
from edgeline.evaluator.measuring import slices
from edgeline.evaluator.measuring.slices import Slicer, check_asked, spell
from edgeline.model_module import hooks
from edgeline.model_module.hooks import ModelModule

SPEC = """

def feature_spec():
    return {
        "x": tf.io.FixedLenFeature([4], tf.float32),
        "y": tf.io.FixedLenFeature([], tf.int64),
        "camera": tf.io.FixedLenFeature([], tf.string),
        "hour": tf.io.FixedLenFeature([1], tf.int64),
        "light": tf.io.FixedLenFeature([], tf.float32),
        "pair": tf.io.FixedLenFeature([2], tf.int64),
        "tags": tf.io.VarLenFeature(tf.string),
    }


def slice_features():
    return %r
"""

CAMERAS = np.array([b"rear", b"front", b"rear", b"rear", b"front"], object)
HOURS = np.array([[3], [3], [12], [3], [12]])
LABELS = np.array([0, 2, 2, 0, 2])


def module(tiny_module: Path, features: list[object]) -> ModelModule:
    tiny_module.write_text(tiny_module.read_text() + SPEC % features)
    return hooks.load(str(tiny_module))


def rows(slicer: Slicer, features: dict[str, np.ndarray], labels: np.ndarray | None) -> dict[slices.Key, list[int]]:
    """Which examples are in which slice."""
    return {
        key: np.flatnonzero(numbers == number).tolist()
        for numbers, keys in slicer.of(features, labels)
        for number, key in enumerate(keys)
    }


# dealing --------------------------------------------------------------------------------------------------------------


def test_features_crosses_and_labels(tiny_module: Path) -> None:
    slicer = Slicer(module(tiny_module, ["camera", ("camera", "hour"), ("hour", "label")]), classes=3)
    assert slicer.crosses == (("camera",), ("camera", "hour"), ("hour", "label"), ("label",))
    assert slicer.features == ["camera", "hour"]
    # slices without an example, such as the front camera at 12 with label 0, are none
    assert rows(slicer, {"camera": CAMERAS, "hour": HOURS}, LABELS) == {
        (("camera", "front"),): [1, 4],
        (("camera", "rear"),): [0, 2, 3],
        (("camera", "front"), ("hour", 3)): [1],
        (("camera", "front"), ("hour", 12)): [4],
        (("camera", "rear"), ("hour", 3)): [0, 3],
        (("camera", "rear"), ("hour", 12)): [2],
        (("hour", 3), ("label", 0)): [0, 3],
        (("hour", 3), ("label", 2)): [1],
        (("hour", 12), ("label", 2)): [2, 4],
        (("label", 0),): [0, 3],
        (("label", 2),): [1, 2, 4],
    }


def test_values_are_texts_and_python_numbers(tiny_module: Path) -> None:
    slicer = Slicer(module(tiny_module, ["camera", "hour"]), classes=None)
    cameras = np.array(["tête".encode(), b"", b"a\xff", b"a\xfe"], object)
    [(_, texts), (_, numbers)] = slicer.of({"camera": cameras, "hour": np.array([-1, 7, 7, 2**62])}, None)
    # bytes that are no UTF-8 are told apart all the same
    assert [key[0][1] for key in texts] == ["", "a\\xfe", "a\\xff", "tête"]
    assert [key[0][1] for key in numbers] == [-1, 7, 2**62]
    assert all(type(key[0][1]) is int for key in numbers)


def test_a_module_without_slices_is_sliced_by_label_alone(tiny_module: Path) -> None:
    plain = module(tiny_module, [])
    assert Slicer(plain, classes=3).crosses == (("label",),)
    assert Slicer(plain, classes=3).features == []
    nothing = Slicer(plain, classes=None)
    assert nothing.crosses == ()
    assert nothing.of({}, None) == []


def test_what_is_named_twice_is_made_once(tiny_module: Path) -> None:
    slicer = Slicer(module(tiny_module, ["camera", ("camera",), "label"]), classes=3)
    assert slicer.crosses == (("camera",), ("label",))


def test_more_classes_than_slices_do_not_slice(tiny_module: Path) -> None:
    plain = module(tiny_module, [])
    assert Slicer(plain, classes=1000).crosses == (("label",),)
    assert Slicer(plain, classes=1001).crosses == ()


def test_too_many_values(tiny_module: Path) -> None:
    slicer = Slicer(module(tiny_module, [("camera", "hour")]), classes=None)
    camera = np.array([b"front"] * 1001, object)
    assert len(rows(slicer, {"camera": camera[:1000], "hour": np.arange(1000)}, None)) == 1000
    with pytest.raises(
        UserError, match=r"^slice feature camera,hour has more than 1,000 values; slice by one with few"
    ):
        slicer.of({"camera": camera, "hour": np.arange(1001)}, None)


# what cannot be sliced by ---------------------------------------------------------------------------------------------


def test_a_feature_that_is_not_there(tiny_module: Path) -> None:
    known = module(tiny_module, ["camra"])
    with pytest.raises(UserError) as error:
        Slicer(known, classes=3)
    assert str(error.value) == (
        f"slice_features() of {tiny_module} names 'camra' (did you mean 'camera'?); feature_spec() has camera, hour, "
        f"light, pair, tags, x, y"
    )


def test_a_feature_like_none_that_is_there(tiny_module: Path) -> None:
    with pytest.raises(UserError, match=r"names 'zzz'; feature_spec\(\) has camera, hour"):
        Slicer(module(tiny_module, [("camera", "zzz")]), classes=3)


def test_the_label_is_called_label(tiny_module: Path) -> None:
    with pytest.raises(UserError, match=r"names 'lable' \(did you mean 'label'\?\)"):
        Slicer(module(tiny_module, ["lable"]), classes=3)


@pytest.mark.parametrize(("name", "received"), [("light", "tf.float32"), ("pair", r"shape=\[2\]"), ("tags", "VarLen")])
def test_a_feature_whose_values_cannot_be_told_apart(tiny_module: Path, name: str, received: str) -> None:
    expected = (
        rf"names '{name}', which must be a FixedLenFeature\(\[\], tf.string or tf.int64\) to slice by; .*{received}"
    )
    with pytest.raises(UserError, match=expected):
        Slicer(module(tiny_module, [name]), classes=3)


def test_a_label_where_there_are_no_classes(tiny_module: Path) -> None:
    with pytest.raises(UserError, match="names 'label', but the model is no classifier with one output"):
        Slicer(module(tiny_module, [("camera", "label")]), classes=None)


# what a budget asks for -----------------------------------------------------------------------------------------------

FRONT_SEVEN: slices.Key = (("camera", "front"), ("label", 7))


def test_spell() -> None:
    assert spell(FRONT_SEVEN) == "camera=front,label=7"
    assert spell((("label", 0),)) == "label=0"


@pytest.mark.parametrize(
    "asked", ["camera,label", "label,camera", " label , camera", "camera=front,label=7", "label=7, camera=front"]
)
def test_a_slice_is_meant_by_its_features_and_by_its_values(asked: str) -> None:
    assert matches(FRONT_SEVEN, asked)


@pytest.mark.parametrize(
    "asked",
    [
        "camera",
        "label",
        "label=7",
        "camera=front",
        "camera=rear,label=7",
        "camera,label=7",
        "camera=front,label=70",
        "",
    ],
)
def test_other_slices_are_not_meant(asked: str) -> None:
    assert not matches(FRONT_SEVEN, asked)
    assert not matches((("label", 17),), "label=7")


def test_the_strictest_limit_of_a_slice() -> None:
    drops = {"label": 0.01, "camera,label": 0.3, "label=7,camera=front": 0.2}
    assert slice_limit(FRONT_SEVEN, drops) == 0.2
    assert slice_limit((("camera", "front"), ("label", 8)), drops) == 0.3
    assert slice_limit((("camera", "front"),), drops) is None


def test_slices_that_are_made(tiny_module: Path) -> None:
    known = module(tiny_module, ["camera", ("camera", "hour")])
    check_asked(["camera", "hour,camera", "camera=front", "hour=3, camera=rear", "label", "label=7"], known)
    check_asked([], known, labelled=False)


def test_slices_that_are_not_made(tiny_module: Path) -> None:
    known = module(tiny_module, ["camera", ("camera", "hour")])
    with pytest.raises(UserError) as error:
        check_asked(["camera", "hour=3"], known)
    assert str(error.value) == (
        f"the budget limits the drop in slices by 'hour=3', but the slices are by: camera; camera,hour; label; name "
        f"one of them, or add it to slice_features() of {tiny_module}"
    )
    for asked in ("camera,label", "camra", "camera,hour,label", ""):
        with pytest.raises(UserError, match=f"slices by '{asked}', but the slices are by: camera; camera,hour; label;"):
            check_asked([asked], known)
    with pytest.raises(UserError, match="slices by 'label', but the slices are by: camera; camera,hour; name"):
        check_asked(["label"], known, labelled=False)


def test_no_slices_are_made(tiny_module: Path) -> None:
    with pytest.raises(UserError, match="slices by 'camera', but the slices are by: none; name"):
        check_asked(["camera"], module(tiny_module, []), labelled=False)
