"""Children that end with their parent, and that hear no signal but its own.

A terminal sends Ctrl-C and its hang-up to every process of the foreground group, and a service
manager sends SIGTERM to everything that a service has started. What such a signal means is for the
parent to say: its children stay until it ends them. :func:`tied` gives the command line of such a
child: this file, run by a bare interpreter (about 30 ms), asks the kernel to kill the process when
its parent dies, however that dies (``PR_SET_PDEATHSIG``, prctl(2)), ignores what is not for it, and
becomes the command. Start it with ``start_new_session=True``, so that it has no terminal.
"""

import os
import signal
import sys

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What terminals, people and service managers send to have a program end."""
_PR_SET_PDEATHSIG = 1


def tied(*argv: str, death: signal.Signals = signal.SIGKILL) -> tuple[str, ...]:
    """The command line that runs ``argv`` tied to this process.

    :param argv: a program's path and its arguments
    :param death: the signal that the child gets when this process dies. With SIGKILL it ignores
        :data:`SIGNALS`, unless the program itself asks for one of them; with another one, which it
        is to take care of, it ignores none.
    """
    here = os.path.abspath(__file__)
    return (sys.executable, "-I", "-S", here, str(os.getpid()), str(int(death)), *argv)


def command(*arguments: str) -> tuple[str, ...]:
    """The command line that runs ``artel ARGUMENTS`` tied to this process.

    A swarm whose runner was killed leaves no process behind: each one then gets a SIGTERM from the
    kernel, and takes its leave.
    """
    return tied(sys.executable, "-P", "-m", "artel", *arguments, death=signal.SIGTERM)


def environment(**more: str) -> dict[str, str]:
    """Our environment for a Python child, which finds ``artel`` where this process found it."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    # What it prints goes to pipes and logs, which are UTF-8 whatever the terminal is.
    fixed = {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    return {**os.environ, "PYTHONPATH": path, **fixed, **more}


def ending(code: int) -> str:
    """How a process ended, in words, from its exit code (negative: a signal)."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def main(argv: list[str]) -> None:
    """Tie this process to its parent and become the command; exits with 1 without a parent."""
    parent, death = int(argv[0]), int(argv[1])
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, death)
    if os.getppid() != parent:  # it died before the kernel knew of our wish
        sys.exit(1)
    if death == signal.SIGKILL:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
    os.execv(argv[2], argv[2:])


if __name__ == "__main__":
    main(sys.argv[1:])
