"""Problems: generators, loaders, vocabularies, metrics. A task knows no model."""

from zoo.tasks.agreement import Agreement
from zoo.tasks.algorithmic import Algorithmic
from zoo.tasks.babi import Babi
from zoo.tasks.base import Batch, HostTask, Task
from zoo.tasks.lambada import Lambada
from zoo.tasks.learning_to_execute import LearningToExecute
from zoo.tasks.pointer_chasing import ChainRoot, Hop

__all__ = [
    "Agreement",
    "Algorithmic",
    "Babi",
    "Batch",
    "ChainRoot",
    "Hop",
    "HostTask",
    "Lambada",
    "LearningToExecute",
    "Task",
]
