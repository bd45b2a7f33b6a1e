from __future__ import annotations

import importlib
import shutil
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import tensorflow as tf
import tf_keras

from edgeline.errors import UserError
from edgeline.model_module import hooks, module_source
from edgeline.model_module.module_source import OPTIONAL_HOOKS, REQUIRED_HOOKS


def edit(path: Path, old: str, new: str) -> str:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return str(path)


def add(path: Path, code: str) -> str:
    path.write_text(path.read_text() + "\n\n" + textwrap.dedent(code))
    return str(path)


def test_a_minimal_module(tiny_module: Path) -> None:
    source = module_source.locate(str(tiny_module))
    assert source.reference == str(tiny_module.resolve())
    assert source.path == tiny_module.resolve()
    module = hooks.load(str(tiny_module), source.digest)
    assert module.source == source
    assert module.feature_spec().keys() == {"x", "y"}
    assert module.preprocess({"x": 1, "y": 2}) == (1, 2)
    model = module.build_model()
    module.compile_model(model)
    assert model.count_params() == 4 * 8 + 8 + 8 * 3 + 3


def test_optional_hooks_have_neutral_defaults(tiny_module: Path) -> None:
    module = hooks.load(str(tiny_module))
    assert module.class_names() == []
    assert module.output_names() == []
    assert module.custom_objects() == {}
    assert module.augment(1, 2, 3) == (1, 2)
    assert module.example_weight({"x": 1}) is None
    assert not any(module.has(hook) for hook in OPTIONAL_HOOKS)


def test_optional_hooks_are_called(tiny_module: Path) -> None:
    path = add(
        tiny_module,
        """
        def class_names():
            return ("no", "yes")

        def output_names():
            return ["logits"]

        def augment(inputs, label, seed):
            return inputs + seed, label

        def example_weight(features):
            return features["w"]
        """,
    )
    module = hooks.load(path)
    assert module.class_names() == ["no", "yes"]
    assert module.output_names() == ["logits"]
    assert module.augment(1, 2, 3) == (4, 2)
    assert module.example_weight({"w": 5}) == 5
    assert module.has("augment")


@pytest.mark.parametrize("hook", REQUIRED_HOOKS)
def test_a_missing_hook_is_named_with_its_signature(tiny_module: Path, hook: str) -> None:
    path = edit(tiny_module, f"def {hook}(", "def something_else(")
    with pytest.raises(UserError) as caught:
        module_source.locate(path)
    assert str(caught.value) == (f"model module {path} has no function {hook}; expected: def {REQUIRED_HOOKS[hook]}")


def test_a_misspelt_hook_gets_the_nearest_name(tiny_module: Path) -> None:
    path = edit(tiny_module, "def preprocess(", "def preproces(")
    with pytest.raises(UserError, match=r"has no function preprocess \(did you mean that by preproces\?\)"):
        module_source.locate(path)


@pytest.mark.parametrize(
    ("old", "new", "received"),
    [
        ("preprocess(features)", "preprocess()", r"preprocess\(\)"),
        ("preprocess(features)", "preprocess(features, label)", r"preprocess\(features, label\)"),
        ("preprocess(features)", "preprocess(*, features)", r"preprocess\(\*, features\)"),
        ("preprocess(features)", "preprocess(features, *, size)", r"preprocess\(features, \*, size\)"),
        ("build_model()", "build_model(width)", r"build_model\(width\)"),
        ("compile_model(model)", "compile_model(model, rate)", r"compile_model\(model, rate\)"),
    ],
)
def test_a_wrong_signature_is_shown_beside_the_right_one(tiny_module: Path, old: str, new: str, received: str) -> None:
    path = edit(tiny_module, f"def {old}:", f"def {new}:")
    hook = old.split("(")[0]
    with pytest.raises(UserError, match=f"{hook} has a wrong signature; expected {hook}.*received {received}$"):
        module_source.locate(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("preprocess(features)", "preprocess(features, size=3)"),
        ("preprocess(features)", "preprocess(*anything)"),
        ("preprocess(features)", "preprocess(features, /)"),
        ("preprocess(features)", "preprocess(features, *, size=3)"),
        ("build_model()", "build_model(width=8)"),
        ("build_model()", "build_model(**settings)"),
    ],
)
def test_a_signature_that_can_be_called_is_accepted(tiny_module: Path, old: str, new: str) -> None:
    assert hooks.load(edit(tiny_module, f"def {old}:", f"def {new}:"))


def test_a_wrong_signature_of_an_optional_hook_is_found_too(tiny_module: Path) -> None:
    path = add(tiny_module, "def augment(inputs, label):\n    return inputs, label\n")
    with pytest.raises(UserError, match=r"augment has a wrong signature; expected augment\(inputs, label, seed\)"):
        module_source.locate(path)


def test_an_imported_hook_is_accepted_and_checked_when_loaded(tiny_module: Path) -> None:
    shared = tiny_module.with_name("shared_preprocessing.py")
    shared.write_text("def preprocess(features):\n    return features['x'], features['y']\n")
    path = edit(tiny_module, "def preprocess(", "from shared_preprocessing import preprocess\n\n\ndef unused(")
    assert hooks.load(path).preprocess({"x": 1, "y": 2}) == (1, 2)

    shared.write_text("def preprocess(features, label):\n    return features, label\n")
    assert module_source.locate(path)
    with pytest.raises(UserError, match=r"preprocess has a wrong signature.*received preprocess\(features, label\)"):
        hooks.load(path)

    shared.write_text("preprocess = 3\n")
    with pytest.raises(UserError, match=r"preprocess must be a function preprocess\(features\).*received 3"):
        hooks.load(path)


def test_a_star_import_that_lacks_a_hook_is_found_when_loaded(tiny_module: Path) -> None:
    tiny_module.with_name("shared_hooks.py").write_text("def preproces(features):\n    return features, None\n")
    path = edit(tiny_module, "def preprocess(", "from shared_hooks import *\n\n\ndef unused(")
    assert module_source.locate(path)
    with pytest.raises(UserError, match=r"has no function preprocess \(did you mean that by preproces\?\)"):
        hooks.load(path)


def test_a_hook_defined_in_a_branch_or_assigned_is_accepted(tiny_module: Path) -> None:
    path = edit(
        tiny_module,
        "def preprocess(features):\n    return",
        "if tf.executing_eagerly():\n    def preprocess(features):\n        return",
    )
    add(tiny_module, "class_names = lambda: ['a', 'b', 'c']\n")
    module = hooks.load(path)
    assert module.preprocess({"x": 1, "y": 2}) == (1, 2)
    assert module.class_names() == ["a", "b", "c"]


def test_not_python(tiny_module: Path) -> None:
    path = edit(tiny_module, "def build_model():", "def build_model()")
    with pytest.raises(UserError, match=r"is not valid Python: line 14: expected ':'"):
        module_source.locate(path)


def test_a_local_module_that_is_not_python(tiny_module: Path) -> None:
    tiny_module.with_name("broken_helper.py").write_text("x = = 1\n")
    path = add(tiny_module, "import broken_helper\n")
    with pytest.raises(UserError, match=r"broken_helper.py, imported by the model module, is not valid Python"):
        module_source.locate(path)


def test_not_found(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model module .*nowhere.py: no such file \(/.*nowhere.py\)"):
        module_source.locate(str(tmp_path / "nowhere.py"))
    with pytest.raises(UserError, match="no such file"):
        module_source.locate(str(tmp_path))
    with pytest.raises(UserError, match="model module no_such_module_here is not installed; give the dotted name"):
        module_source.locate("no_such_module_here")
    with pytest.raises(UserError, match=r"model module no_such.module cannot be imported: No module named 'no_such'"):
        module_source.locate("no_such.module")
    with pytest.raises(UserError, match="cannot be imported"):
        module_source.locate("")


def test_a_module_that_fails_on_import(tiny_module: Path) -> None:
    path = edit(tiny_module, "import tensorflow as tf", "import tensorflow as tf\nimport not_installed_at_all")
    assert module_source.locate(path)  # reading it shows nothing
    for _ in range(2):  # and a failed import leaves nothing behind
        with pytest.raises(UserError, match="fails on import: ModuleNotFoundError: No module named 'not_installed"):
            hooks.load(path)


def test_a_module_that_exits_on_import(tiny_module: Path) -> None:
    path = add(tiny_module, "import sys\nsys.exit(0)\n")
    for _ in range(2):
        with pytest.raises(UserError, match=r"calls sys.exit\(0\) on import"):
            hooks.load(path)


def test_a_hook_that_exits(tiny_module: Path) -> None:
    path = edit(tiny_module, "def build_model():", "def build_model():\n    raise SystemExit('done')\n")
    with pytest.raises(UserError, match=r"build_model\(\) of .* calls sys.exit\('done'\)"):
        hooks.load(path).build_model()


def test_an_edit_is_another_module_and_another_digest(tiny_module: Path) -> None:
    before = hooks.load(str(tiny_module))
    edit(tiny_module, "Dense(8,", "Dense(9,")
    after = hooks.load(str(tiny_module))
    assert before.source.digest != after.source.digest
    assert before.build_model().count_params() == 4 * 8 + 8 + 8 * 3 + 3
    assert after.build_model().count_params() == 4 * 9 + 9 + 9 * 3 + 3
    with pytest.raises(UserError, match=rf"digest {after.source.digest[:12]}, expected {before.source.digest[:12]}"):
        hooks.load(str(tiny_module), before.source.digest)


def helper_package(tiny_module: Path) -> dict[str, Path]:
    folder = tiny_module.parent / "helpers_of_tiny"
    files = {
        "direct": tiny_module.with_name("scale_of_tiny.py"),
        "package": folder / "__init__.py",
        "nested": folder / "inner.py",
        "relative": folder / "deeper.py",
        "lazy": tiny_module.with_name("lazy_of_tiny.py"),
    }
    folder.mkdir()
    for name, path in files.items():
        path.write_text(f"NAME = {name!r}\n")
    files["nested"].write_text("from . import deeper\nNAME = 'nested'\n")
    add(
        tiny_module,
        """
        import scale_of_tiny
        import helpers_of_tiny.inner

        def later():
            import lazy_of_tiny

        def class_names():
            return [scale_of_tiny.NAME, helpers_of_tiny.NAME, helpers_of_tiny.inner.NAME]
        """,
    )
    return files


@pytest.mark.parametrize("changed", ["direct", "package", "nested", "relative", "lazy"])
def test_the_digest_follows_local_imports(tiny_module: Path, changed: str) -> None:
    files = helper_package(tiny_module)
    before = module_source.locate(str(tiny_module)).digest
    assert before == module_source.locate(str(tiny_module)).digest
    files[changed].write_text(files[changed].read_text() + "# changed\n")
    assert module_source.locate(str(tiny_module)).digest != before


def test_the_digest_ignores_what_is_not_imported_and_where_it_lies(tiny_module: Path, tmp_path: Path) -> None:
    helper_package(tiny_module)
    before = module_source.locate(str(tiny_module)).digest
    tiny_module.with_name("neighbour.py").write_text("x = 1\n")
    assert module_source.locate(str(tiny_module)).digest == before
    elsewhere = tmp_path / "another" / "place"
    shutil.copytree(tmp_path, elsewhere, ignore=shutil.ignore_patterns("another", "__pycache__"))
    assert module_source.locate(str(elsewhere / tiny_module.name)).digest == before


def test_local_modules_are_read_anew_after_an_edit_and_for_another_folder(tiny_module: Path, tmp_path: Path) -> None:
    files = helper_package(tiny_module)
    # names as the helper modules had them when the model module was loaded
    assert hooks.load(str(tiny_module)).class_names() == ["direct", "package", "nested"]
    files["direct"].write_text("NAME = 'edited'\n")
    assert hooks.load(str(tiny_module)).class_names() == ["edited", "package", "nested"]
    elsewhere = tmp_path / "another"
    shutil.copytree(tmp_path, elsewhere, ignore=shutil.ignore_patterns("another", "__pycache__"))
    (elsewhere / "scale_of_tiny.py").write_text("NAME = 'elsewhere'\n")
    assert hooks.load(str(elsewhere / tiny_module.name)).class_names() == ["elsewhere", "package", "nested"]


def test_import_cycles_end(tiny_module: Path) -> None:
    tiny_module.with_name("cycle_a.py").write_text("import cycle_b\n")
    tiny_module.with_name("cycle_b.py").write_text("import cycle_a\n")
    assert hooks.load(add(tiny_module, "import cycle_a\n"))


@pytest.fixture
def dotted(tiny_module: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that is installed beside another one, both used by its module `tiny_package.models.tiny`."""
    root = tiny_module.parent / "site"
    models = root / "tiny_package" / "models"
    models.mkdir(parents=True)
    for folder in (root / "tiny_package", models):
        (folder / "__init__.py").touch()
    (root / "neighbour_package.py").write_text("x = 1\n")
    (models / "local.py").write_text("x = 1\n")
    (models / "sibling.py").write_text("x = 1\n")
    code = tiny_module.read_text()
    imports = "import neighbour_package\nimport tiny_package.models.local\nfrom . import sibling\n"
    (models / "tiny.py").write_text(imports + code)
    monkeypatch.syspath_prepend(root)
    yield models
    for name in [name for name in sys.modules if name.split(".")[0] in ("tiny_package", "neighbour_package")]:
        del sys.modules[name]
    importlib.invalidate_caches()


def test_a_dotted_name(dotted: Path) -> None:
    source = module_source.locate("tiny_package.models.tiny")
    assert source.reference == "tiny_package.models.tiny"
    assert source.path == dotted / "tiny.py"
    module = hooks.load("tiny_package.models.tiny", source.digest)
    assert module.preprocess({"x": 1, "y": 2}) == (1, 2)
    assert "tiny_package.models.tiny" in sys.modules  # itself, not a copy


@pytest.mark.parametrize("name", ["local.py", "sibling.py", "tiny.py", "__init__.py"])
def test_the_digest_of_a_dotted_name_follows_its_own_package(dotted: Path, name: str) -> None:
    before = module_source.locate("tiny_package.models.tiny").digest
    add(dotted / name, "# changed")
    assert module_source.locate("tiny_package.models.tiny").digest != before


def test_the_digest_of_a_dotted_name_leaves_other_installed_packages_out(dotted: Path) -> None:
    # else it would read all of TensorFlow, which lies beside an installed model package
    before = module_source.locate("tiny_package.models.tiny").digest
    add(dotted.parent.parent / "neighbour_package.py", "# changed")
    assert module_source.locate("tiny_package.models.tiny").digest == before


def test_a_dotted_name_of_a_package(dotted: Path) -> None:
    shutil.move(dotted / "tiny.py", dotted / "__init__.py")
    edit(dotted / "__init__.py", "from . import sibling", "from .. import models")
    edit(dotted / "__init__.py", "import tiny_package.models.local", "import tiny_package.models.local as local")
    before = module_source.locate("tiny_package.models")
    assert before.path == dotted / "__init__.py"
    add(dotted / "local.py", "# changed")
    assert module_source.locate("tiny_package.models").digest != before.digest


def test_threads_never_see_a_module_half_imported(tiny_module: Path) -> None:
    path = edit(tiny_module, "import tensorflow as tf", "import time\nimport tensorflow as tf\ntime.sleep(0.2)")
    found: list[object] = []

    def work() -> None:
        try:
            found.append(hooks.load(path)._code)
        except UserError as error:
            found.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len({id(code) for code in found}) == 1, found


def test_a_keras_3_model_is_rebuilt(tiny_module: Path) -> None:
    path = edit(tiny_module, "import tf_keras as keras", "import keras")
    model = hooks.load(path).build_model()
    assert type(model).__module__.startswith("tf_keras.")
    assert model.input_names == ["x"]
    assert model.output_shape == (None, 3)


def returning(path: Path, hook: str, value: str) -> hooks.ModelModule:
    signature = (REQUIRED_HOOKS | OPTIONAL_HOOKS)[hook].split(" ->")[0]
    return hooks.load(add(path, f"def {signature}:\n    return {value}\n"))


def test_a_model_that_is_none(tiny_module: Path) -> None:
    with pytest.raises(UserError, match=r"build_model\(\) of .*tiny_model.py must return a tf_keras.Model, received"):
        returning(tiny_module, "build_model", "None").build_model()


def test_a_model_without_defined_inputs(tiny_module: Path) -> None:
    module = returning(tiny_module, "build_model", "keras.Sequential([keras.layers.Dense(3)])")
    with pytest.raises(UserError, match=r"without defined inputs; begin it with tf_keras.Input\(shape\)"):
        module.build_model()


@pytest.mark.parametrize("code", ["None", "model.compile('adam')"])
def test_a_model_that_was_not_compiled(tiny_module: Path, code: str) -> None:
    module = returning(tiny_module, "compile_model", code)
    with pytest.raises(UserError, match=r"compile_model\(model\) of .* must call model.compile with an opt"):
        module.compile_model(module.build_model())


@pytest.mark.parametrize("value", ["features['x']", "[features['x'], features['y']]", "(1, 2, 3)", "None"])
def test_preprocess_must_return_a_pair(tiny_module: Path, value: str) -> None:
    module = returning(tiny_module, "preprocess", value)
    with pytest.raises(UserError, match=r"preprocess\(features\) of .* must return a pair \(inputs, label\), received"):
        module.preprocess({"x": 1, "y": 2})


@pytest.mark.parametrize("value", ["{}", "[]", "None"])
def test_feature_spec_must_return_a_dict(tiny_module: Path, value: str) -> None:
    with pytest.raises(UserError, match=r"feature_spec\(\) of .* must return a non-empty dict.*received"):
        returning(tiny_module, "feature_spec", value).feature_spec()


@pytest.mark.parametrize("hook", ["class_names", "output_names"])
@pytest.mark.parametrize("value", ["None", "'abc'", "range(3)", "[0, 1]"])
def test_names_must_be_a_list_of_str(tiny_module: Path, hook: str, value: str) -> None:
    with pytest.raises(UserError, match=rf"{hook}\(\) of .* must return a list of str, received"):
        getattr(returning(tiny_module, hook, value), hook)()


def test_a_decorated_hook_works(tiny_module: Path) -> None:
    path = edit(tiny_module, "def preprocess(", "@tf.function\ndef preprocess(")
    x, y = hooks.load(path).preprocess({"x": tf.constant([1.0]), "y": tf.constant([2])})
    assert (float(x[0]), int(y[0])) == (1.0, 2)


def test_the_examples_of_the_project_are_valid(digits_module: hooks.ModelModule) -> None:
    assert isinstance(digits_module.build_model(), tf_keras.Model)
    assert digits_module.class_names() == [str(n) for n in range(10)]
