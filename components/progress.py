"""How a step tells how far it is: through standard logging, so that any runner may listen or ignore it."""

import logging

LOGGER_NAME = "edgeline.progress"


def report(done: int, total: int, text: str) -> None:
    """Logs that `done` of `total` units (epochs, batches, candidates) are finished.

    Args:
      done: units finished, 0 to `total`.
      total: units in all, at least 1.
      text: what a person reads, e.g. `"epoch 2/4 accuracy 0.871"`.
    """
    logging.getLogger(LOGGER_NAME).info(text, extra={"progress": (done, total)})
