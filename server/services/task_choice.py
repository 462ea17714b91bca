"""Which task of an adapter a message names; shared by requests, loads and merges."""

from typing import Literal, Protocol

from hotshoe.server.errors import InvalidRequest


class NamesTask(Protocol):
    """A message that may name a task of an adapter."""

    task: int

    def HasField(self, name: Literal["task"], /) -> bool: ...


def chosen_task(field: str, message: NamesTask, num_tasks: int) -> int | None:
    """The task that a message names, of an adapter that has so many. Raises InvalidRequest if it must, or must not."""
    task = message.task if message.HasField("task") else None
    if num_tasks == 0:
        if task is not None:
            raise InvalidRequest(field, f"found {task}, expected none: the adapter has no tasks")
    elif task is None or task >= num_tasks:
        found = "missing" if task is None else f"found {task}"
        raise InvalidRequest(field, f"{found}, expected a task from 0 to {num_tasks - 1}: the adapter has {num_tasks}")
    return task
