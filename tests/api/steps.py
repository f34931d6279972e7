"""Who moved a connection on: its task, or nobody."""

import trio


class Steps(trio.abc.Instrument):
    """Counts those of tasks of connections."""

    def __init__(self) -> None:
        self._taken = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._taken += task.name.endswith("ClientConnection.run")

    def since(self) -> int:
        """How many it were since it was last asked."""
        taken, self._taken = self._taken, 0
        return taken
