"""The repairs that test_cluster cannot show, on specs small enough to read."""

from typing import Any

import pytest

from edgeline.errors import UserError
from edgeline.kubeflow import convert


def spec(*nodes: str, **executors: Any) -> dict[str, Any]:
    return {
        "root": {
            "dag": {
                "tasks": {
                    node: {"taskInfo": {"name": node}, "componentRef": {"name": node}, "dependentTasks": []}
                    for node in nodes
                }
            }
        },
        "components": {node: {"executorLabel": f"{node}_executor"} for node in nodes},
        "deploymentSpec": {"executors": {f"{n}_executor": executors.get(n, {"container": {}}) for n in nodes}},
    }


def test_names_are_as_kfps_own_compiler_writes_them() -> None:
    content = spec("Pruner.prune80", "Evaluator")
    content["root"]["dag"]["tasks"]["Evaluator"]["dependentTasks"] = ["Pruner.prune80"]
    assert convert.rename_nodes(content) == {"Pruner.prune80": "Pruner-prune80", "Evaluator": "Evaluator"}
    task = content["root"]["dag"]["tasks"]["Pruner-prune80"]
    assert (task["taskInfo"]["name"], task["componentRef"]["name"]) == ("Pruner-prune80", "comp-Pruner-prune80")
    assert content["components"]["comp-Pruner-prune80"]["executorLabel"] == "exec-Pruner-prune80"
    assert set(content["deploymentSpec"]["executors"]) == {"exec-Pruner-prune80", "exec-Evaluator"}
    assert content["root"]["dag"]["tasks"]["Evaluator"]["dependentTasks"] == ["Pruner-prune80"]


def test_names_that_meet_are_refused() -> None:
    with pytest.raises(UserError, match=r"the nodes a\.b and a_b are both called a-b on Kubeflow"):
        convert.rename_nodes(spec("a.b", "a_b"))


@pytest.mark.parametrize("name", ["root", "entrypoint", "x-driver", "x.driver"])
def test_names_that_are_taken_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"a node cannot be called {name} on Kubeflow"):
        convert.rename_nodes(spec(name))


def test_neither_importers_nor_exit_handlers_are_cached() -> None:
    content = spec("Examples", "Trainer", "Report", Examples={"importer": {}})
    content["root"]["dag"]["tasks"]["Report"]["triggerPolicy"] = {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}
    content["root"]["dag"]["tasks"]["Examples"]["cachingOptions"] = {"enableCache": True}  # as TFX writes it
    convert.set_caching(content, True)
    assert [n for n, task in content["root"]["dag"]["tasks"].items() if "cachingOptions" in task] == ["Trainer"]
    convert.set_caching(content, False)
    assert not any("cachingOptions" in task for task in content["root"]["dag"]["tasks"].values())


def test_a_parameter_without_default_must_be_given() -> None:
    content = {"root": {"inputDefinitions": {"parameters": {"a": {}, "b": {}}}}}
    convert.restore_defaults(content, {"a": None, "b": 0})
    assert content["root"]["inputDefinitions"]["parameters"] == {"a": {}, "b": {"defaultValue": 0}}


def test_conditions_on_inputs_that_are_there_stay() -> None:
    content = spec("A", "B")
    artifact = {"taskOutputArtifact": {"producerTask": "A", "outputArtifactKey": "model"}}
    task = content["root"]["dag"]["tasks"]["B"]
    task["inputs"] = {"artifacts": {"_A.model": artifact}}
    task["triggerPolicy"] = {"condition": "inputs.artifacts['_A.model'].artifacts[0].metadata['x'] > 1.0"}
    before = task["triggerPolicy"]["condition"]
    convert.fix_conditions(content)
    assert task["triggerPolicy"]["condition"] == before


def test_a_sub_dag_is_handed_its_parameters() -> None:
    content = spec("tfx-dag", "Report")
    parameters = {"text": {"parameterType": "STRING", "defaultValue": "x"}}
    content["root"]["inputDefinitions"] = {"parameters": parameters}
    inner = {"tasks": {"Count": {"inputs": {"parameters": {"words": {"componentInputParameter": "text"}}}}}}
    content["components"]["tfx-dag"] = {"dag": inner}
    inner["tasks"]["Count"]["componentRef"] = {"name": "Report"}
    convert.forward_parameters(content)
    # without the default: it would be taken in silence where the value is not handed on
    assert content["components"]["tfx-dag"]["inputDefinitions"] == {"parameters": {"text": {"parameterType": "STRING"}}}
    assert content["root"]["dag"]["tasks"]["tfx-dag"]["inputs"] == {
        "parameters": {"text": {"componentInputParameter": "text"}}
    }


@pytest.mark.parametrize(
    ("inputs", "condition", "message"),
    [
        ({"artifacts": {"model": {"taskOutputArtifact": {"producerTask": "C"}}}}, "", "the task 'C'"),
        ({"parameters": {"n": {"componentInputParameter": "m"}}}, "", "the parameter 'm'"),
        ({"parameters": {"k": {"runtimeValue": {"constant": 1}}}}, "", "the port of its parameters 'k'"),
        (
            {"artifacts": {"data": {"taskOutputArtifact": {"producerTask": "A"}}}},
            "",
            "the port of its artifacts 'data'",
        ),
        ({}, "inputs.artifacts['model'].artifacts[0].metadata['x'] > 1.0", "the condition's input 'model'"),
    ],
)
def test_what_refers_to_nothing_is_refused(inputs: dict[str, Any], condition: str, message: str) -> None:
    content = spec("A", "B")
    content["components"]["B"]["inputDefinitions"] = {"artifacts": {"model": {}}, "parameters": {"n": {}}}
    convert.check_wiring(content)
    content["root"]["dag"]["tasks"]["B"] |= {"inputs": inputs, "triggerPolicy": {"condition": condition}}
    with pytest.raises(UserError, match=f"task B asks for {message}, which is not there"):
        convert.check_wiring(content)


def test_one_artifact_as_two_inputs_is_refused() -> None:
    content = spec("A", "B")
    content["components"]["B"]["inputDefinitions"] = {"artifacts": {"one": {}, "two": {}}}
    given = {key: {"taskOutputArtifact": {"producerTask": "A", "outputArtifactKey": key}} for key in ("one", "two")}
    content["root"]["dag"]["tasks"]["B"]["inputs"] = {"artifacts": given}
    convert.check_wiring(content)
    given["two"] = given["one"]
    with pytest.raises(UserError, match="the inputs one and two of task B are one artifact, one of A, which Kubeflow"):
        convert.check_wiring(content)
