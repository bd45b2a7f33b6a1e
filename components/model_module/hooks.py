"""The contract with user code: a Python file or dotted module with a few hooks, the one place for what is specific.

Every step that sees data goes through the same `preprocess`, so that training, calibration and evaluation cannot drift
apart. A path is no cache key: `digest` is over the contents of the module and of the local modules it imports.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.machinery
import importlib.util
import inspect
import sys
from collections.abc import Callable, Collection
from types import ModuleType
from typing import Any

from edgeline.config import StepConfig
from edgeline.errors import UserError
from edgeline.keras_models.model_form import ModelForm
from edgeline.model_module import module_source
from edgeline.model_module.module_source import HOOKS, IMPORTING, REQUIRED_HOOKS, Source
from edgeline.toolchain import toolchain


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of the first training.

    Attributes:
      name: what it is called, and what `compile_model` gets as `phase`.
      epochs: how long it lasts, at least 1; None: as long as the run asks for.
      prepare: is given the model before it is compiled: says by `trainable` which layers learn.
    """

    name: str
    epochs: int | None
    prepare: Callable[[Any], None]


class ModelModule:
    """A loaded model module; each hook is a method, optional ones have a neutral default.

    Args:
      source: where its code is.
      code: the imported module.
      form: of an imported model, which `build_model` then returns without asking the module; None: the module's own.
      hyperparameters: `keras_tuner.HyperParameters` for `build_model` and `compile_model`; None: their own defaults.

    Attributes:
      hyperparameters: likewise.

    Raises:
      UserError: there are hyperparameters, and neither hook takes them.
    """

    def __init__(self, source: Source, code: ModuleType, form: ModelForm | None = None, hyperparameters: Any = None):
        self.source = source
        self._code = code
        self._form = form
        self.hyperparameters = hyperparameters
        if hyperparameters is not None and not (self._tuned("build_model") or self._tuned("compile_model")):
            raise UserError(
                f"there are hyperparameters, but neither build_model nor compile_model of {source.reference} has a "
                f"parameter of that name; expected: def build_model(hyperparameters=None)"
            )

    def _hook(self, name: str) -> Callable[..., Any] | None:
        return getattr(self._code, name, None)

    def has(self, hook: str) -> bool:
        """Returns whether the module defines this hook."""
        return self._hook(hook) is not None

    def _call(self, name: str, *arguments: Any, default: Any = None, **named: Any) -> Any:
        hook = self._hook(name)
        if hook is None:
            return default
        try:
            return hook(*arguments, **named)
        except SystemExit as error:
            raise UserError(
                f"{name}() of {self.source.reference} calls sys.exit({error.code!r}), which would end the run without "
                "a verdict; raise an exception there"
            ) from error

    def _tuned(self, name: str) -> dict[str, Any]:
        """Returns the hyperparameters as a hook takes them: by name, or not at all."""
        hook = self._hook(name)
        takes = hook is not None and "hyperparameters" in inspect.signature(hook).parameters
        return {"hyperparameters": self.hyperparameters} if takes and self.hyperparameters is not None else {}

    def feature_spec(self) -> dict[str, Any]:
        """Returns the features of one example by name, as `tf.io.parse_example` wants them.

        Raises:
          UserError: the hook returned something else.
        """
        spec = self._call("feature_spec")
        if not isinstance(spec, dict) or not spec:
            raise UserError(
                f"feature_spec() of {self.source.reference} must return a non-empty dict of tf.io.FixedLenFeature and "
                f"the like by feature name, received {spec!r}"
            )
        return spec

    def preprocess(self, features: dict[str, Any]) -> tuple[Any, Any]:
        """Returns (inputs, label) of a batch of parsed features.

        Raises:
          UserError: the hook returned something else than a pair.
        """
        pair = self._call("preprocess", features)
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise UserError(
                f"preprocess(features) of {self.source.reference} must return a pair (inputs, label), received {pair!r}"
            )
        return pair

    def build_model(self) -> Any:
        """Returns a new, uncompiled tf_keras model; names of its layers do not depend on models built before.

        A Keras 3 model is rebuilt in tf_keras.

        Raises:
          UserError: the hook returned something else, a model without a defined input, or a Keras 3 model with layers
            that tf_keras has no twin for.
        """
        import tf_keras

        from edgeline.keras_models import keras3_bridge

        tf_keras.backend.reset_uids()
        if "keras" in sys.modules:
            sys.modules["keras"].utils.clear_session(free_memory=False)
        if self._form is not None:
            return self._form.build(self.custom_objects())
        if not self.has("build_model"):
            module_source.raise_missing("build_model", self.source.reference, dir(self._code))
        model = self._call("build_model", **self._tuned("build_model"))
        where = f"build_model() of {self.source.reference}"
        if keras3_bridge.is_keras3(model):
            model = keras3_bridge.convert(model, f"the Keras 3 model that {where} returns")
        if not isinstance(model, tf_keras.Model):
            root = type(model).__module__.split(".")[0]
            raise UserError(f"{where} must return a tf_keras.Model, received {root}'s {type(model).__name__}")
        if getattr(model, "inputs", None) is None:
            raise UserError(f"{where} returned a model without defined inputs; begin it with tf_keras.Input(shape)")
        return model

    def compile_model(self, model: Any, phase: str | None = None) -> None:
        """Compiles a model (anew: wrapping and stripping layers loses the optimizer).

        The hook is told the phase if it has a parameter of that name. A metric without a name of its own is called the
        same each time: `recall`, never `recall_1`. Optimizers, losses and metrics of Keras 3 become tf_keras'.

        Raises:
          UserError: the hook did not compile it, or with something of Keras 3 that tf_keras does not have.
        """
        import tf_keras

        from edgeline.keras_models import keras3_bridge

        tf_keras.backend.reset_uids()
        compile_it = model.compile

        def translated(*args: Any, **kwargs: Any) -> None:
            compile_it(*keras3_bridge.compile_arguments(args), **keras3_bridge.compile_arguments(kwargs))

        vars(model)["compile"] = translated
        try:
            hook = self._hook("compile_model")
            told = hook is not None and "phase" in inspect.signature(hook).parameters
            self._call("compile_model", model, **({"phase": phase} if told else {}), **self._tuned("compile_model"))
        finally:
            del vars(model)["compile"]
        if getattr(model, "optimizer", None) is None or not getattr(model, "loss", None):
            raise UserError(
                f"compile_model(model) of {self.source.reference} must call model.compile with an optimizer and a "
                f"loss; after it the model has optimizer={getattr(model, 'optimizer', None)!r}, "
                f"loss={getattr(model, 'loss', None)!r}"
            )

    def class_names(self) -> list[str]:
        """Returns the names of the classes in label order; empty where the module does not say.

        Raises:
          UserError: the hook returned something else.
        """
        return self._names("class_names")

    def output_names(self) -> list[str]:
        """Returns the names of the TFLite model's outputs; empty where the module does not say.

        Raises:
          UserError: the hook returned something else.
        """
        return self._names("output_names")

    def slice_features(self) -> list[str | tuple[str, ...]]:
        """Returns the features, or tuples of features, by whose values the evaluation is sliced; empty without.

        Raises:
          UserError: the hook returned something else.
        """
        names = self._call("slice_features", default=[])
        found: list[str | tuple[str, ...]] = []
        for entry in names if isinstance(names, list | tuple) else [None]:
            parts = (entry,) if isinstance(entry, str) else entry
            if not isinstance(parts, list | tuple) or not parts or not all(isinstance(part, str) for part in parts):
                raise UserError(
                    f"slice_features() of {self.source.reference} must return a list of feature names, or tuples of "
                    f"them for their crosses, received {names!r}"
                )
            found.append(entry if isinstance(entry, str) else tuple(parts))
        return found

    def phases(self) -> list[Phase]:
        """Returns the phases of the first training, in their order; empty where it is all one.

        Raises:
          UserError: the hook returned something else.
        """
        found = self._call("phases", default=[])
        phases = []
        for entry in found if isinstance(found, list | tuple) else [None]:
            name, epochs, prepare = entry if isinstance(entry, tuple) and len(entry) == 3 else (None, None, None)
            whole = epochs is None or (type(epochs) is int and epochs >= 1)
            if not isinstance(name, str) or not name or not whole or not callable(prepare):
                raise UserError(
                    f"phases() of {self.source.reference} must return a list of tuples: name, epochs (at least 1; "
                    f"None: as many as the run asks for), function that is given the model; received {entry!r}"
                )
            phases.append(Phase(name, epochs, prepare))
        if self.has("phases") and len({phase.name for phase in phases}) < max(len(phases), 1):
            raise UserError(
                f"phases() of {self.source.reference} must return phases of different names, received "
                f"{', '.join(phase.name for phase in phases) or 'none'}"
            )
        return phases

    def _names(self, hook: str) -> list[str]:
        names = self._call(hook, default=[])
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{hook}() of {self.source.reference} must return a list of str, received {names!r}")
        return list(names)

    def custom_objects(self) -> dict[str, Any]:
        """Returns the custom layers and functions that loading the model needs, by name.

        A function goes by its own name too: under that one it is saved.
        """
        named = dict(self._call("custom_objects", default={}))
        functions = [value for value in named.values() if inspect.isfunction(value) and value.__name__ != "<lambda>"]
        return {**{function.__name__: function for function in functions}, **named}

    def augment(self, inputs: Any, label: Any, seed: Any) -> tuple[Any, Any]:
        """Returns a randomly changed batch; `seed` is an int32 tensor of shape [2] for stateless random ops."""
        return self._call("augment", inputs, label, seed, default=(inputs, label))

    def example_weight(self, features: dict[str, Any]) -> Any:
        """Returns the weight of each example, shape [batch], or None where all weigh the same."""
        return self._call("example_weight", features)


def step_parameters(module: str, config: StepConfig | None = None) -> dict[str, Any]:
    """Returns the parameters of a step's component, for a pipeline that is put together by hand.

    Args:
      module: reference of the model module, as for `locate`; it needs `build_model` only where a Trainer is.
      config: of the step; None: those alone that all steps have, for an Evaluator.

    Raises:
      UserError: as for `locate`.
    """
    source = module_source.locate(module, needs_model=False)
    # a step's config lies in the folder of its component
    package = "edgeline.evaluator" if config is None else type(config).__module__.rpartition(".")[0]
    component = f"{package}.component" if package else type(config).__module__
    common = {"module": source.reference, "module_digest": source.digest, "toolchain": toolchain(component)}
    return {**common, **(config.parameters() if config is not None else {})}


def load(
    reference: str, digest: str | None = None, form: ModelForm | None = None, hyperparameters: Any = None
) -> ModelModule:
    """Imports a model module and checks its hooks.

    A `.py` file can import modules that lie beside it at its top, but not inside its hooks: only while it is imported
    is its folder on the path.

    Args:
      reference: as for `locate`.
      digest: what the module's digest was when the pipeline was built, to be held against what is found now.
      form: as for `ModelModule`.
      hyperparameters: likewise.

    Raises:
      UserError: as for `locate` and `ModelModule`, or importing it failed, or it has another digest.
    """
    source = module_source.locate(reference, needs_model=False)
    if digest is not None and source.digest != digest:
        raise UserError(
            f"model module {reference} is not the one this run began with (digest {source.digest[:12]}, expected "
            f"{digest[:12]}): it was edited since, or another version is installed here; start the run again"
        )
    # the name holds the digest: an edited file is another module
    name = f"edgeline_model_{source.digest[:16]}" if source.reference.endswith(".py") else source.reference
    with IMPORTING:
        code = sys.modules.get(name)
        if code is None:
            try:
                code = _import(name, source)
            except UserError:
                raise
            except SystemExit as error:
                sys.modules.pop(name, None)
                raise UserError(
                    f"model module {reference} calls sys.exit({error.code!r}) on import, which would end the run "
                    'without a verdict; do so only under `if __name__ == "__main__":`'
                ) from error
            except Exception as error:
                sys.modules.pop(name, None)
                raise UserError(f"model module {reference} fails on import: {type(error).__name__}: {error}") from error
    for hook in HOOKS:
        function = getattr(code, hook, None)
        if function is None:
            # a run that imports its model does without; for all others `build_model` below says so
            if hook in REQUIRED_HOOKS and hook != "build_model":
                module_source.raise_missing(hook, reference, dir(code))
            continue
        if not callable(function):
            raise UserError(f"model module {reference}: {hook} must be a function {HOOKS[hook]}, received {function!r}")
        try:
            inspect.signature(function).bind(*range(module_source.arity(hook)))
        except TypeError:
            module_source.raise_signature(hook, reference, f"{hook}{inspect.signature(function)}")
    loaded = ModelModule(source, code, form, hyperparameters)
    if loaded.has("custom_objects"):
        import tf_keras

        # for every place that makes layers from their configs: loading, cloning, tfmot's wrappers
        tf_keras.utils.get_custom_objects().update(loaded.custom_objects())
    return loaded


def _import(name: str, source: Source) -> ModuleType:
    if not source.reference.endswith(".py"):
        return importlib.import_module(name)
    loader = _FromSource(name, str(source.path))
    spec = importlib.util.spec_from_file_location(name, source.path, loader=loader)
    if spec is None:
        raise UserError(f"model module {source.reference} cannot be imported; give a .py file or a dotted name")
    code = importlib.util.module_from_spec(spec)
    sys.modules[name] = code
    for local in source.local:
        # what is loaded under this name may be older than the file, or another folder's
        sys.modules.pop(local, None)
    folder = str(source.path.parent)
    finder = _LocalFinder(source.local)
    sys.path.insert(0, folder)
    sys.meta_path.insert(0, finder)
    try:
        loader.exec_module(code)
    finally:
        sys.meta_path.remove(finder)
        sys.path.remove(folder)
    return code


class _FromSource(importlib.machinery.SourceFileLoader):
    """Compiles a file as it is now: whether compiled code beside it is of this text, only second and size tell."""

    def get_code(self, fullname: str) -> Any:
        """Returns the code of the source."""
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class _LocalFinder:
    """Finds the modules that lie beside a model module, to be compiled from their sources.

    Args:
      names: of these modules, dotted.
    """

    def __init__(self, names: Collection[str]):
        self._names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Returns where a module is and how it is loaded; None of one that is no local one."""
        spec = importlib.machinery.PathFinder.find_spec(name, path, target) if name in self._names else None
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _FromSource(name, spec.loader.path)
        return spec
