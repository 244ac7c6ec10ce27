"""Running things side by side, with plain errors instead of exception groups."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

from artel.protocol import tether
from artel.protocol.errors import ArtelError, ResourceError

Result = TypeVar("Result")

AGAIN_S = 5.0
"""After which a task that was cancelled, and goes on, is cancelled again."""


async def together(work: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Run all at once and return their results in order.

    When one fails the others are cancelled, and its error is raised as it is. No task group: before
    Python 3.13 one that ends with an error forgets that the caller was cancelled meanwhile (cpython
    issue 116720), and the caller then goes on as if nothing were.
    """
    tasks = [asyncio.ensure_future(coroutine) for coroutine in work]
    try:
        if tasks:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        await uninterrupted(asyncio.gather(*tasks, return_exceptions=True))
    errors = [error for task in tasks if not task.cancelled() and (error := task.exception())]
    if errors:
        raise first_error(BaseExceptionGroup("", errors))
    return [task.result() for task in tasks]


async def beside(guard: Coroutine[Any, Any, None], work: Coroutine[Any, Any, Result]) -> Result:
    """Run ``work``; when ``guard``, which does not return, fails first, its error ends both."""
    tasks = asyncio.ensure_future(guard), asyncio.ensure_future(work)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[1].done():
            tasks[0].result()
        return tasks[1].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def unless(event: asyncio.Event, work: Coroutine[Any, Any, Result]) -> Result | None:
    """The result of ``work``; None when the event is set before, and ``work`` is given up."""
    doing, waiting = asyncio.ensure_future(work), asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait((doing, waiting), return_when=asyncio.FIRST_COMPLETED)
        return await doing if doing.done() else None
    finally:
        for task in (doing, waiting):
            await end(task)


async def end(task: asyncio.Future[Any]) -> None:
    """Cancel a task until it has ended: a library on its way may swallow a cancellation."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=AGAIN_S)


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error in a group that says most to a person: one of ours if there is any."""
    flat: list[BaseException] = []
    stack: list[BaseException] = [group]
    while stack:
        error = stack.pop(0)
        if isinstance(error, BaseExceptionGroup):
            stack[:0] = error.exceptions
        else:
            flat.append(error)
    return next((error for error in flat if isinstance(error, ArtelError)), flat[0])


async def uninterrupted(
    work: Awaitable[Result], hurry: Callable[[], None] = lambda: None
) -> Result:
    """Run to the end however often the caller is cancelled; the cancellation comes after.

    :param hurry: called at a cancellation, so that the end comes soon
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
            hurry()
    if cancelled is not None:
        raise cancelled from (None if task.cancelled() else task.exception())
    return task.result()


async def output_of(what: str, *argv: str) -> bytes:
    """What a child prints to its end; it is tied to this process, and killed when the caller is
    cancelled.

    :param what: it is, for errors
    :param argv: a program's path and its arguments
    :raises ResourceError: it cannot be started, was killed, or ended with another exit code than 0
    """
    try:
        child = await asyncio.create_subprocess_exec(
            *tether.tied(*argv),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            env=tether.environment(),
            start_new_session=True,
        )
    except OSError as error:
        raise ResourceError(
            f"cannot start {what}: {error.strerror or error}", "free some memory or processes"
        ) from None
    try:
        output, _ = await child.communicate()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()
        raise
    if child.returncode:
        raise ResourceError(f"{what} {tether.ending(child.returncode)}")
    return output


async def within(work: Awaitable[Result], seconds: float) -> Result:
    """Await ``work`` for at most ``seconds``.

    Not ``asyncio.wait_for``: before Python 3.12 it loses a cancellation that arrives at the moment
    at which the work is done (cpython issue 86296), and the caller then goes on as if nothing were.

    :raises TimeoutError: when the time is over; the work is cancelled then
    """
    async with asyncio.timeout(seconds):
        return await work
