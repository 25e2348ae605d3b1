"""Joining several processes into one run, and noticing when one of them dies.

JAX ends a process whose peer died by aborting it after a heartbeat timeout, or leaves it waiting in a collective. Here
every process keeps a socket open to the first one. A process that dies closes its sockets, whatever killed it; the
others see that at once, say so in one line and exit with status 1.
"""

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Callable

import jax
import numpy as np

from experiments.errors import UsageError

_GOODBYE = b"."


def initialize(coordinator: str, num_processes: int, process_id: int) -> "Lifeline":
    """Joins the processes of a run, before anything else touches a device.

    Args:
      coordinator: host:port of the first process.
      num_processes: how many there are.
      process_id: 0 .. num_processes - 1, which one this is.

    Returns:
      The lifeline to the others; ``close`` it when this process ends well.

    Raises:
      UsageError: arguments that cannot be, or the others did not turn up in time.
    """
    host, colon, port = coordinator.rpartition(":")
    if not colon or not host or not port.isdigit():
        raise UsageError(f"--coordinator={coordinator} must be HOST:PORT, e.g. 10.0.0.1:12345")
    if num_processes < 1 or not 0 <= process_id < num_processes:
        raise UsageError(
            f"--process_id={process_id} must lie in 0..--num_processes - 1, and --num_processes={num_processes} be positive"
        )
    if (jax.config.jax_platforms or "").startswith("cpu") or not jax.config.jax_platforms:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is ours
    jax.config.update("jax_enable_recoverability", True)  # a dead peer must not abort this process before it can speak
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id, initialization_timeout=120)
    except RuntimeError as error:
        raise UsageError(
            f"the {num_processes} processes did not all reach {coordinator}: {str(error).splitlines()[0]}"
        ) from error
    return Lifeline(host)


class Lifeline:
    """Sockets between process 0 and each other process, watched by a thread each."""

    def __init__(self, host: str, on_death: Callable[[str], None] | None = None):
        self._on_death = _exit if on_death is None else on_death
        self._closing = threading.Event()
        self._sockets: list[socket.socket] = []
        if jax.process_count() == 1:
            return
        from jax.experimental import multihost_utils

        me = jax.process_index()
        server = socket.create_server(("", 0)) if me == 0 else None
        port = int(multihost_utils.broadcast_one_to_all(np.int32(server.getsockname()[1] if server else 0)))
        if server is not None:
            for _ in range(jax.process_count() - 1):
                connection, _ = server.accept()
                peer = int.from_bytes(connection.recv(4, socket.MSG_WAITALL), "big")
                self._watch(connection, peer)
            server.close()
        else:
            connection = socket.create_connection((host, port), timeout=60)
            connection.settimeout(None)
            connection.sendall(me.to_bytes(4, "big"))
            self._watch(connection, 0)

    def close(self) -> None:
        """Tells the others that this process has finished, so that its end is not taken for a death."""
        self._closing.set()
        for connection in self._sockets:
            with contextlib.suppress(OSError):  # the other one has gone already
                connection.sendall(_GOODBYE)

    def _watch(self, connection: socket.socket, peer: int) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
            if hasattr(socket, option):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        self._sockets.append(connection)
        threading.Thread(target=self._wait, args=(connection, peer), daemon=True).start()

    def _wait(self, connection: socket.socket, peer: int) -> None:
        try:
            word = connection.recv(1)
        except OSError:
            word = b""
        if word != _GOODBYE and not self._closing.is_set():
            self._on_death(f"process {peer} of this run died or cannot be reached; its last checkpoint is kept")


def _exit(message: str) -> None:
    sys.stderr.flush()
    line = f"{message}; start all processes again with --resume\n"
    os.write(
        sys.stderr.fileno(), line.encode()
    )  # in one piece: JAX's own threads may be writing, and ending this process
    os._exit(1)


def barrier(name: str) -> None:
    """Waits for all processes; nothing to do for one."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)
