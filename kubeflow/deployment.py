"""Where a pipeline will run, checked before anything slow is imported."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from edgeline.errors import UserError
from edgeline.isolation import limits
from edgeline.kubeflow.settings import Settings, mounted_at
from edgeline.pipelines.root import PUSHED

TARGETS = ("oss", "vertex")
_SCHEMES = {"oss": ("gs", "s3", "minio"), "vertex": ("gs",)}
_DIGEST = re.compile(r"\S+@sha256:[0-9a-f]{64}")

#: Where the Pusher of a cluster without a mounted volume pushes to: it must push somewhere. What lasts is its artifact.
SCRATCH = "/tmp/edgeline-pushed"

#: The steps that need the folder that models are pushed to, and what becomes of a run where one has it not.
_NEEDS_PUSHED = {
    "Pusher": "what is pushed would vanish with the container",
    "Evaluator": "it would not find the model that was pushed last, which the candidates are compared with",
}


@dataclass(frozen=True)
class Deployment:
    """Where a pipeline will run.

    Attributes:
      target: `oss` (Kubeflow Pipelines on a cluster of one's own) or `vertex`.
      image: in which every step runs, by digest: `NAME@sha256:...`.
      pipeline_root: URI below which the artifacts of all runs are kept.
      settings: what each step needs of the cluster.
      push_to: the folder that gets a folder per pushed model: a path in a volume that the settings mount for the
        Pusher and the Evaluator, or a gs:// URI. None: on Vertex `pushed` in the root; on `oss` the artifact in the
        run's folder is all.
      allow_mutable_tag: whether an image may be named by a tag, which can come to mean another image.
      memory_limit: GiB that a process may take which opens a stranger's model, in every step; None: what the image's
        environment says, else half of the node's memory.

    Raises:
      UserError: something of that is missing or does not fit the target; says how it must be.
    """

    target: str
    image: str
    pipeline_root: str
    settings: Settings = field(default_factory=Settings)
    push_to: str | None = None
    allow_mutable_tag: bool = False
    memory_limit: float | None = None

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise UserError(f"--target must be {' or '.join(TARGETS)}, received {self.target!r}")
        if not _DIGEST.fullmatch(self.image) and not (self.allow_mutable_tag and re.fullmatch(r"\S+", self.image)):
            raise UserError(
                f"--image must name an image by digest, NAME@sha256:... (docker push prints it), received "
                f"{self.image!r}: a tag can come to mean another image while the cache still serves what the old one "
                f"made; --allow-mutable-tag allows it"
            )
        check_uri("--pipeline-root", self.pipeline_root, self.target)
        if self.push_to is not None:
            self._check_push_to(self.push_to)
        if self.memory_limit is not None:
            limits.checked_gib(self.memory_limit)

    def _check_push_to(self, push_to: str) -> None:
        if push_to.startswith("gs://"):
            return
        if not push_to.startswith("/"):
            raise UserError(
                f"--push-to must be a gs:// URI or the absolute path of a mounted volume, received {push_to!r}: TFX's "
                f"Pusher cannot write to other stores (the pushed model is also an artifact below the pipeline root)"
            )
        if self.target == "vertex":
            raise UserError(f"--push-to must be a gs:// URI on Vertex, which mounts no volumes, received {push_to!r}")
        for step, loss in _NEEDS_PUSHED.items():
            if not mounted_at(self.settings, step, push_to):
                raise UserError(
                    f"--push-to {push_to}: no volume is mounted there for the {step}, so {loss}; mount the same one "
                    f"for {' and '.join(_NEEDS_PUSHED)} in the settings file (steps: {step}: volumes: [{{claim: NAME, "
                    f"path: {push_to}}}])"
                )

    @property
    def push_destination(self) -> str:
        """What the Pusher is told to push to."""
        default = SCRATCH if self.target == "oss" else f"{self.pipeline_root.rstrip('/')}/{PUSHED}"
        return self.push_to or default

    @property
    def deployed(self) -> str:
        """Where the Evaluator is told to look for the model that was pushed last; empty where nothing pushed lasts."""
        return "" if self.push_destination == SCRATCH else self.push_destination


def check_uri(option: str, uri: str, target: str) -> None:
    """Checks that a URI is one that the target can read and write.

    Raises:
      UserError: it is missing, or of another form; names the option.
    """
    schemes = _SCHEMES[target]
    if not re.fullmatch(rf"({'|'.join(schemes)})://[^/\s?]+(/[^\s?]*)?", uri):
        allowed = " or ".join(f"{scheme}://BUCKET/PATH" for scheme in schemes)
        raise UserError(f"{option} must be {allowed} for --target {target}, received {uri or 'nothing'}")


def check_module(reference: str) -> None:
    """Checks that a model module is named so that the containers find it.

    Raises:
      UserError: it is a file of this machine.
    """
    if reference.endswith(".py") or "/" in reference:
        raise UserError(
            f"--module {reference} is a file of this machine, which the cluster does not have: put it into a package "
            f"that is installed in the image, and give its dotted name"
        )
