from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeline import training
from edgeline.passport import Promise
from edgeline.pruner import pruning
from edgeline.pruner.config import Prune

CONFIGS = [
    Prune(0.8),
    Prune(0.8, "constant"),
    Prune(0.8, ramp=1),
    Prune(0.8, ramp=1e-6),
    Prune(0.8, initial_sparsity=0.8),
    Prune(0.8, "constant", ramp=0.01),
]


def simulate(config: Prune, steps: int) -> list[tuple[int, float]]:
    """What tfmot's own schedule does in a training: (step, sparsity) of every mask update; steps count from 1."""
    schedule = pruning.schedule(config, steps)
    updates = []
    for step in range(1, steps + 1):
        due, sparsity = schedule(step)
        if bool(due):
            updates.append((step, float(sparsity)))
    return updates


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 51, 99, 100])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.token)
def test_the_last_mask_update_has_the_final_sparsity(config: Prune, steps: int) -> None:
    updates = simulate(config, steps)
    assert updates
    assert updates[-1][1] == pytest.approx(0.8)
    reached = next(step for step, sparsity in updates if sparsity == pytest.approx(0.8))
    assert reached <= max(int(config.ramp * steps), 1)
    sparsities = [sparsity for _, sparsity in updates]
    assert sparsities == sorted(sparsities)
    assert len(updates) <= 50


@pytest.mark.parametrize("config", CONFIGS[:2], ids=lambda config: config.token)
def test_a_long_fine_tuning(config: Prune) -> None:
    # the schedule's own rule, in numbers: an eager call of it 10,000 times takes seconds
    schedule = pruning.schedule(config, 10_000)
    due = [
        s for s in range(1, 10_001) if s >= schedule.begin_step and (s - schedule.begin_step) % schedule.frequency == 0
    ]
    due = [step for step in due if schedule.end_step == -1 or step <= schedule.end_step]
    assert 25 <= len(due) <= 50
    assert due[-1] == 7500 if config.schedule == "polynomial_decay" else due[0] == 1
    for step in (due[0], due[-1]):
        assert bool(schedule(step)[0])
    assert not bool(schedule(due[-1] - 1)[0])
    assert float(schedule(due[-1])[1]) == pytest.approx(0.8)


def test_the_ramp_begins_at_the_initial_sparsity() -> None:
    updates = simulate(Prune(0.8, initial_sparsity=0.5, ramp=1), 10)
    assert [step for step, _ in updates] == list(range(1, 11))
    # 0.8 - 0.3 * (1 - step / 10) ** 3
    assert updates[0][1] == pytest.approx(0.8 - 0.3 * 0.729)
    assert updates[4][1] == pytest.approx(0.8 - 0.3 * 0.125)


def zeros(model: Any) -> dict[str, int]:
    return {
        layer.name: int((layer.kernel.numpy() == 0).sum())
        for layer in model.layers
        if getattr(layer, "kernel", None) is not None
    }


def test_every_chosen_kernel_is_pruned_and_small_layers_are_left_alone(pruned: Any) -> None:
    # tfmot keeps round(0.2 * size) weights: 29 of 144, 410 of 2048, 10 of 48
    assert zeros(pruned.outcome.model) == {"conv1": 0, "conv2": 115, "hidden": 1638, "logits": 38}
    assert pruned.outcome.promises == (
        Promise("sparsity", "conv2", (3, 3, 2, 8), 0.8),
        Promise("sparsity", "hidden", (128, 16), 0.8),
        Promise("sparsity", "logits", (16, 3), 0.8),
    )
    assert {fact["name"]: fact["note"] for fact in pruned.outcome.layers} == {
        "conv1": "holds 0.78% of the weights, under 1.00%",
        "norm": "tfmot has nothing to prune in BatchNormalization",
        "conv2": "pruned to 0.8",
        "hidden": "pruned to 0.8",
        "logits": "pruned to 0.8",
    }


def test_the_result_is_the_plain_model_and_still_works(small: Any, pruned: Any) -> None:
    assert [layer.name for layer in pruned.outcome.model.layers] == [layer.name for layer in small.load().layers]
    assert pruned.outcome.model.count_params() == 2293
    assert pruned.outcome.metrics["accuracy"] > 0.5
    assert len(pruned.outcome.history["val_loss"]) == 2
    # masks do not outlive the stripping: what is saved and loaded is as sparse
    assert zeros(pruned.load())["hidden"] == 1638


def prune(small: Any, config: Prune, log_dir: Path, promises: tuple[Promise, ...] = ()) -> training.Outcome:
    training.start(config.seed)
    splits = training.open_splits(small.examples, small.module, config)
    return pruning.prune(small.load(), small.module, splits, config, promises, str(log_dir))


@pytest.mark.parametrize("schedule", ["polynomial_decay", pytest.param("constant", marks=pytest.mark.slow)])
def test_a_single_step_prunes_too(small: Any, tmp_path: Path, schedule: str) -> None:
    outcome = prune(small, Prune(0.5, schedule, epochs=1, batch_size=64, min_layer_share=0.5), tmp_path)
    assert zeros(outcome.model) == {"conv1": 0, "conv2": 0, "hidden": 1024, "logits": 0}


def test_nothing_to_prune(small: Any, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"Pruner: no layer can be pruned: conv1: holds 0.78%.*; norm: tfmot.*; hidden"
    ):
        prune(small, Prune(0.5, min_layer_share=0.95, epochs=1), tmp_path)


@pytest.mark.slow
def test_an_earlier_promise_is_checked_too(small: Any, tmp_path: Path) -> None:
    promise = Promise("clusters", "hidden", (128, 16), 4)
    with pytest.raises(Exception, match=r"Pruner broke what was promised for 1 layers: hidden \(clusters 4, found"):
        prune(small, Prune(0.5, "constant", epochs=1, batch_size=64), tmp_path, (promise,))


def test_logs_are_written(pruned: Any) -> None:
    assert any(Path(pruned.folder).rglob("events.out.tfevents*"))
    assert np.isfinite(pruned.outcome.history["loss"]).all()
