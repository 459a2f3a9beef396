"""A Python whose processes are forks of a server that has imported the host, which takes longer than most of them.

For commands that start others, as launchers do: each is still a process of its own, with its own arguments, folder,
environment and output, and whatever it starts beside this Python is one too. What a process imports, and in which
order, is for tests that start real ones (tests/test_boot.py, tests/test_errors.py, tests/engines/test_launched.py).
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import runpy
import select
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.engines.launch import IMPORTED

COMMANDS = ("python", "accelerate", "axolotl", "scalebio")
# The process that is started hands on what it was given, and ends as the fork does.
CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    given = json.dumps([sys.argv, os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(given).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(given)
    status = server.recv(1)
sys.exit(status[0] if status else 1)
"""


@contextmanager
def forking_python(folder: Path) -> Iterator[Path]:
    """The path of such a Python; the host's commands are beside it."""
    address = folder / "server"
    for name in COMMANDS:
        (folder / name).write_text(CLIENT.format(python=sys.executable, address=str(address)))
        (folder / name).chmod(0o755)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(list(IMPORTED))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(address))
        listening.listen()
        server = processes.Process(target=serve, args=(listening, folder), daemon=False)
        server.start()
    try:
        yield folder / "python"
    finally:
        server.terminate()
        server.join()


def serve(listening: socket.socket, folder: Path) -> None:
    """Until it is ended."""
    gc.freeze()  # this and the next two as in `on_rank` of tests/engines/launch.py
    gc.enable()
    multiprocessing.set_start_method("fork", force=True)
    answering: set[int] = set()
    while True:
        connection, _ = listening.accept()
        answering -= {process for process in answering if os.waitpid(process, os.WNOHANG)[0]}
        if process := os.fork():
            answering.add(process)
            connection.close()
        else:
            listening.close()
            answer(connection, folder)


def answer(connection: socket.socket, folder: Path) -> None:
    """Run in a fork what a client was given, and tell the client how it ended; does not return."""
    length, streams, _, _ = socket.recv_fds(connection, 8, 3)
    given = b""
    while len(given) < int.from_bytes(length, "big"):
        given += connection.recv(2**20)
    child = os.fork()
    if child == 0:
        connection.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.closerange(min(streams), max(streams) + 1)
        os._exit(status_of(*json.loads(given), folder))
    os.closerange(min(streams), max(streams) + 1)
    ended = 0, 0
    while ended[0] == 0:
        if select.select([connection], [], [], 0.02)[0]:  # the client is gone, killed by what had started it
            os.kill(child, signal.SIGTERM)
            os._exit(1)
        ended = os.waitpid(child, os.WNOHANG)
    connection.sendall(bytes([os.waitstatus_to_exitcode(ended[1]) % 256]))
    os._exit(0)


def status_of(arguments: list[str], cwd: str, environment: dict[str, str], folder: Path) -> int:
    """Run `python [-u] -m MODULE ...` or one of the host's commands, as the main program; the exit status."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [cwd, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    real, sys.executable = Path(sys.executable).parent, str(folder / "python")
    command, *rest = arguments
    try:
        if Path(command).name == "python":
            option, module, *given = rest[rest[0] == "-u" :]
            if option != "-m":
                raise ValueError(f"{arguments}: this Python runs modules alone")
            sys.argv = [module, *given]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        else:
            sys.argv = [str(real / Path(command).name), *rest]
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as ended:
        said = ended.code
        if isinstance(said, str):
            print(said, file=sys.stderr)
        status = said if isinstance(said, int) else int(said is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    else:
        status = 0
    sys.stdout.flush()
    sys.stderr.flush()
    return status % 256
