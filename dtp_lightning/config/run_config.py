"""The configuration of one run, and of one evaluation, as typed values.

Every top-level key is a field here. A group is a node, which names the class that is built from it (``_target_``) and
that class's arguments: its signature is the schema of what lies inside (:mod:`dtp_lightning.config.schema`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

Node = dict[str, Any]
"""``_target_`` and the arguments of what it names."""
Nodes = dict[str, Node]
"""Nodes by name, where a group takes several options."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What NumPy's generator takes."""


class RunConfig(BaseModel):
    """One training with its evaluation: ``conf/train.yaml``.

    Attributes:
        seed: of all randomness.
        batch_size: images; each becomes V views.
        loading: whether images live on the device (memory), or are read by workers (stream); auto decides by size.
        workers: processes that read images when streaming; each has a copy of what it reads.
        mode: ``views`` only draws the augmented views.
        resume: True goes on with the run in the run folder; a path names a checkpoint, or a run folder, to go on from.
        schedule: of learning rates and the like; None keeps them.
        average: of the weights, for evaluation; None evaluates the weights that training ends with.
        trainer: arguments of Lightning's Trainer, and two of ours (see :attr:`lightning_trainer`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: Seed
    batch_size: PositiveInt
    loading: Literal["auto", "memory", "stream"]
    workers: Annotated[int, Field(ge=0, le=256)]
    mode: Literal["train", "views"]
    resume: bool | str
    learner: Node
    loss: Node
    model: Node
    dataset: Node
    augment: Node
    trainer: Node
    schedule: Node | None = None
    average: Node | None = None
    evaluation: Nodes = Field(default_factory=dict)
    callbacks: Nodes = Field(default_factory=dict)
    logger: Nodes = Field(default_factory=dict)

    @property
    def max_epochs(self) -> int:
        """Epochs that the run shall have at its end."""
        return int(self.trainer["max_epochs"])

    @property
    def on_nonfinite(self) -> Literal["stop", "warn"]:
        """What happens when a number of the training is not finite."""
        return self.trainer.get("on_nonfinite") or "stop"

    @property
    def save_every_n_steps(self) -> int | None:
        """Batches between checkpoints within an epoch; None saves at epoch ends alone."""
        return self.trainer.get("save_every_n_steps")

    @property
    def lightning_trainer(self) -> Node:
        """The trainer's node without our own keys."""
        return without_ours("trainer", self.trainer)

    @property
    def images(self) -> Node:
        """The data set's node without our own keys."""
        return without_ours("dataset", self.dataset)

    @property
    def label_options(self) -> dict[str, Any]:
        """The labels of a supervised objective: our own keys of the data set's node."""
        return {key: value for key, value in self.dataset.items() if key in OUR_KEYS["dataset"]}


class EvaluationConfig(BaseModel):
    """One evaluation of a checkpoint: ``conf/evaluate.yaml``.

    Attributes:
        checkpoint: a file that training wrote.
        accelerator: Lightning's name of the device that computes features.
        dataset: None evaluates on the data set of the run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: str
    accelerator: str
    dataset: Node | None = None
    evaluation: Nodes = Field(default_factory=dict)
    logger: Nodes = Field(default_factory=dict)


OUR_KEYS: dict[str, dict[str, Any]] = {
    "dataset": {  # arguments of dtp_lightning.data.relabel
        "labels": Literal["fine", "coarse"],
        "label_noise": Annotated[float, Field(ge=0, le=1)],
        "labelled_fraction": Annotated[float, Field(gt=0, le=1)],
        "label_seed": Seed,
    },
    "learner": {"feedback_map": Literal["strided", "unpool", "transposable"] | None},
    "trainer": {"on_nonfinite": Literal["stop", "warn"], "save_every_n_steps": PositiveInt | None},
}
"""Keys of ours, with their types, that a node's ``_target_`` does not take as arguments.

``learner.feedback_map`` is the model's: a rule names the map that it was published with, and ``model.feedback`` is that
one unless it is given (conf/model/cnn4.yaml).
"""


def without_ours(group: str, node: Mapping[str, Any]) -> Node:
    """A group's node without the keys of :data:`OUR_KEYS`: what its ``_target_`` takes."""
    return {key: value for key, value in node.items() if key not in OUR_KEYS[group]}
