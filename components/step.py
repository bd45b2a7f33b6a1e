"""Makes a TFX component of a function and a config, so that a parameter is written once: as a field of the config."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.dsl.placeholder.placeholder import Placeholder
from tfx.orchestration.data_types import RuntimeParameter
from tfx.types.channel import BaseChannel

from edgeline.config import StepConfig

#: What every component is given besides, as it decides the result: the model module, its digest, and the toolchain.
SHARED = ("module", "module_digest", "toolchain")

#: Values that are known only when the pipeline runs; it then has to give them as TFX is given the config's.
_LATE = (RuntimeParameter, Placeholder, BaseChannel)

_BY_NAME = inspect.Parameter.KEYWORD_ONLY


def step(config: type[StepConfig], *, use_beam: bool = False) -> Callable[[Callable[..., None]], Any]:
    """Makes a TFX component of a function that takes a config, the ports, and what it needs of SHARED.

    The component takes the config's fields by name, as they are in Python and with the config's defaults, or a whole
    config as `config`. TFX is given all of them, encoded, since it keeps no defaults in its cache key. When the step
    runs, the function is given the config.

        @step(Prune)
        def Pruner(config: Prune, model: InputArtifact[Model], compressed: OutputArtifact[Model], module: str) -> None:
            ...

        Pruner(model=trained, module="m.py", module_digest=digest, toolchain=versions, sparsity=0.8)

    Args:
      config: the class of configs; each field has a default.
      use_beam: whether the function takes a pipeline of Beam's.

    Returns:
      A decorator. As for TFX's own, the function must be one of a module that does not postpone its annotations.
    """

    def decorate(function: Callable[..., None]) -> Any:
        taken = inspect.signature(function).parameters
        ports = {name: port for name, port in taken.items() if name not in ("config", *SHARED)}
        made = component(_executed(function, config, taken, ports), use_beam=use_beam)
        _take_values(made, config, ports)
        made.__doc__ = f"{inspect.getdoc(function)}\n\n{_documented(config, ports)}"
        made.test_call = staticmethod(function)
        return made

    return decorate


def _executed(
    function: Callable[..., None],
    config: type[StepConfig],
    taken: Mapping[str, inspect.Parameter],
    ports: Mapping[str, inspect.Parameter],
) -> Any:
    """Returns the function that TFX runs: it takes every encoded field, where the given one takes the config."""

    def run(**given: Any) -> None:
        shared = {name: given.pop(name) for name in SHARED}
        encoded = {name: given.pop(name) for name in config.encoded_types()}
        wanted = {name: value for name, value in shared.items() if name in taken}
        function(config=config.decoded(encoded), **wanted, **given)

    types = {**dict.fromkeys(SHARED, str), **config.encoded_types()}
    parameters = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Parameter[kind])
        for name, kind in types.items()
    ]
    optional = [port for port in ports.values() if port.default is not port.empty]
    required = [port for port in ports.values() if port.default is port.empty]
    signature = inspect.Signature([*required, *parameters, *optional])
    vars(run).update(__signature__=signature)
    run.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()} | {"return": None}
    for name in ("__module__", "__name__", "__qualname__", "__doc__"):
        setattr(run, name, getattr(function, name))
    return run


def _take_values(made: Any, config: type[StepConfig], ports: Mapping[str, inspect.Parameter]) -> None:
    """Lets a component take a config's fields as they are in Python, or the config."""
    original = made.__init__

    def initialise(self: Any, **given: Any) -> None:
        whole = given.pop("config", None)
        fields = {name: given.pop(name) for name in config.field_types() if name in given}
        if whole is not None and (fields or not isinstance(whole, config)):
            raise TypeError(
                f"{made.__name__} takes a {config.__name__} as `config` or its fields by name, received "
                f"{type(whole).__name__} and {', '.join(fields) or 'no field'}"
            )
        late = {name: value for name, value in fields.items() if isinstance(value, _LATE)}
        now = whole or config(**{name: value for name, value in fields.items() if name not in late})
        original(self, **given, **{**now.encoded(), **late})

    defaults = config()
    inputs = [port.replace(kind=_BY_NAME) for port in ports.values() if isinstance(port.annotation, InputArtifact)]
    initialise.__name__ = "__init__"
    made.__init__ = initialise
    made.__signature__ = inspect.Signature(
        [
            *(port for port in inputs if port.default is port.empty),
            *(port for port in inputs if port.default is not port.empty),
            *(inspect.Parameter(name, _BY_NAME, annotation=str) for name in SHARED),
            *(
                inspect.Parameter(name, _BY_NAME, annotation=hint, default=getattr(defaults, name))
                for name, hint in config.field_types().items()
            ),
            inspect.Parameter("config", _BY_NAME, annotation=config | None, default=None),
        ]
    )


def _documented(config: type[StepConfig], ports: Mapping[str, inspect.Parameter]) -> str:
    """Returns what is said of a component's ports and parameters."""

    def listed(kind: Any) -> str:
        return ", ".join(
            f"`{name}` ({port.annotation.type.__name__}{'' if port.default is port.empty else ', may be left out'})"
            for name, port in ports.items()
            if isinstance(port.annotation, kind)
        )

    sections = [inspect.cleandoc(each.__doc__ or "").partition("Attributes:\n")[2] for each in config.__mro__]
    fields = "\n".join(section.partition("\n\n")[0] for section in sections if section)
    return (
        f"Inputs: {listed(InputArtifact)}. Outputs: {listed(OutputArtifact)}.\n\n"
        f"Args:\n{fields}\n"
        f"  config: a {config.__name__}, in place of all of these.\n"
        f"  {', '.join(SHARED)}: what decides the result besides, see `edgeline.step_parameters`."
    )
