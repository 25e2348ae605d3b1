"""Problems: generators, loaders, vocabularies, metrics. A task knows no model."""

from zoo.tasks.base import Batch, HostTask, Task

__all__ = ["Batch", "HostTask", "Task"]
