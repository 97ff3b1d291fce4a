"""The one thread that owns an engine's device state: it takes requests and runs steps."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from oxibonsai.model.engine.request import FinishReason
from oxibonsai.model.engine.scheduler import Plan, Scheduler, Stage
from oxibonsai.model.engine.scheduler import Sequence as TokenSequence
from oxibonsai.model.engine.statistics import Counters, EngineStatistics
from oxibonsai.model.engine.task import Task
from oxibonsai.model.errors import EngineClosedError, EngineFullError
from oxibonsai.model.runtime.batchshape import BatchDevice, Choices, Saved
from oxibonsai.model.runtime.checkpointpool import CheckpointPool
from oxibonsai.model.runtime.pages import PagePool, pages_of

__all__ = ["Worker"]


class Worker:
    """Runs tasks in a thread of its own, which ends with stop().

    What other threads touch, the mail and the number of waiting tasks, is behind `_change`; all
    else belongs to the thread. The lock is never held while a step runs.

    Parameters
    ----------
    runner : BatchDevice
        The device's side, which the thread closes at its end.
    pool : PagePool
        The pages.
    scheduler : Scheduler
        Of these pages.
    max_waiting : int
        Tasks that may wait.
    lookahead : int
        Steps in flight while the next one is submitted.
    checkpoints : CheckpointPool, optional
        Of the recurrent states that are kept, where the model has any.
    """

    def __init__(
        self,
        runner: BatchDevice,
        pool: PagePool,
        scheduler: Scheduler,
        max_waiting: int,
        lookahead: int,
        checkpoints: CheckpointPool | None = None,
    ) -> None:
        self._runner = runner
        self._pool = pool
        self._checkpoints = checkpoints
        self._scheduler = scheduler
        self._max_waiting = max_waiting
        self._lookahead = lookahead
        self._change = threading.Condition()
        self._mail: deque[tuple[str, Task]] = deque()
        self._n_queued = 0
        self._stopping = False
        self._failure: BaseException | None = None
        self._room_listeners: list[Callable[[], None]] = []
        self.counters = Counters()
        self._tasks: dict[TokenSequence, Task] = {}
        self._free_slots = list(range(runner.n_slots - 1, -1, -1))
        self._plan: Plan | None = None
        self._changed = True
        self._flying: deque[Plan] = deque()
        self._row_settings: list[Task | None] = []  # whose settings the device has
        # A daemon: an interpreter that exits never waits for a text to end.
        self._thread = threading.Thread(target=self._run, name="oxibonsai-engine", daemon=True)
        self._thread.start()

    # What other threads call

    def submit(self, task: Task, *, block: bool, timeout: float | None) -> None:
        """Let a task wait for its turn.

        Raises
        ------
        EngineFullError
            Where max_waiting tasks wait, at once or after `timeout` seconds.
        EngineClosedError
            Where the engine is closed, also while this waits.
        """
        with self._change:
            # A callback must not wait for the thread it runs in.
            if block and threading.current_thread() is not self._thread:
                self._change.wait_for(
                    lambda: self._stopping or self._n_queued < self._max_waiting, timeout
                )
            if self._stopping:
                raise closed_error() from self._failure
            if self._n_queued >= self._max_waiting:
                raise EngineFullError(
                    f"{self._n_queued} requests wait and max_waiting = {self._max_waiting}: try "
                    "again later, or make the engine with a larger max_waiting"
                )
            self._n_queued += 1
            self._mail.append(("add", task))
            self._change.notify_all()

    def check_wait(self) -> None:
        """Raise RuntimeError where waiting for a task would never end."""
        if threading.current_thread() is self._thread:
            raise RuntimeError(
                "a callback of the engine waits for one of its requests, and the engine for the "
                "callback: wait in another thread"
            )
        if not self._thread.is_alive():
            raise RuntimeError("a forked process has no engine: wait in the one that made it")

    def cancel(self, task: Task) -> None:
        """End a task before the next step; one that has ended is left as it is."""
        with self._change:
            if not self._stopping and task.outbox.result is None:
                self._mail.append(("cancel", task))
                self._change.notify_all()

    def listen_for_room(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` whenever a task no longer waits, and return what stops that."""
        with self._change:
            self._room_listeners.append(listener)

        def stop() -> None:
            with self._change:
                if listener in self._room_listeners:
                    self._room_listeners.remove(listener)

        return stop

    @property
    def stopping(self) -> bool:
        """Whether stop() was called, or the thread has ended."""
        return self._stopping

    def stop(self, timeout: float | None = None) -> None:
        """End the thread after the step that runs; what has not ended fails. Idempotent."""
        with self._change:
            self._stopping = True
            self._change.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def statistics(self) -> EngineStatistics:
        """Return what is going on."""
        scheduler, pool, counters = self._scheduler, self._pool, self.counters
        with self._change:
            waiting = self._n_queued
        return EngineStatistics(
            running=scheduler.n_active,
            waiting=waiting,
            aside=scheduler.n_aside,
            pages_total=pool.n_pages,
            pages_used=pool.n_used,
            pages_cached=pool.n_cached,
            steps=counters.steps,
            prompt_tokens_computed=counters.prompt_tokens_computed,
            prompt_tokens_shared=counters.prompt_tokens_shared,
            generated_tokens=counters.generated_tokens,
            tokens_per_second=counters.rate(),
            times_to_first_token=tuple(counters.times_to_first_token.copy()),
            checkpoints_total=self._checkpoints.n_places if self._checkpoints else 0,
            checkpoints_kept=self._checkpoints.n_kept if self._checkpoints else 0,
        )

    # The thread

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            while self._receive():
                self._turn()
        except BaseException as failure:  # none is expected; nobody may wait for ever
            error = failure
        finally:
            with self._change:
                self._stopping = True
                self._failure = error
                mail, self._mail = self._mail, deque()
                self._change.notify_all()
            for kind, task in mail:
                if kind == "add":
                    self._tasks[task.sequence] = task
            for task in list(self._tasks.values()):
                self._end(task, "error", error or closed_error())
            self._wake_room()
            self._forget()
            with suppress(RuntimeError):
                self._runner.close()

    def _receive(self) -> bool:
        """Take what others sent, waiting for it where there is nothing to run."""
        with self._change:
            while not (self._mail or self._stopping or self._scheduler.busy):
                self._change.wait()
            if self._stopping:
                return False
            mail, self._mail = self._mail, deque()
        for kind, task in mail:
            if kind == "add":
                self._add(task)
            elif task.outbox.result is None:
                task.flush()
                self._end(task, "cancelled")
        if self._runner.model.closed:
            raise EngineClosedError("the model is closed: load it again, and make a new engine")
        return True

    def _add(self, task: Task) -> None:
        if not self._scheduler.busy:
            self.counters.begin()
        self._tasks[task.sequence] = task
        self._scheduler.add(task.sequence)
        self._changed = True
        self._guard(task, task.next_mask)

    def _guard(self, task: Task, call: Callable[[], object]) -> bool:
        """Run a caller's function; what it raises ends its task alone."""
        try:
            call()
        except BaseException as error:
            self._end(task, "error", error)
            return False
        return True

    def _end(self, task: Task, reason: FinishReason, error: BaseException | None = None) -> None:
        """Take a task out; its row of a step in flight is wasted, and nothing else."""
        self._scheduler.end(task.sequence)
        self._tasks.pop(task.sequence, None)
        self._leave(task)
        self._changed = True
        task.saved = None
        task.outbox.finish(reason, error, task.sequence.n_shared)
        self._unqueue(task)

    def _leave(self, task: Task) -> None:
        if task.slot >= 0:
            self._free_slots.append(task.slot)
            task.slot = -1

    def _unqueue(self, task: Task) -> None:
        """Count a task as waiting no longer."""
        if task.queued:
            task.queued = False
            with self._change:
                self._n_queued -= 1
                self._change.notify_all()
            self._wake_room()

    def _wake_room(self) -> None:
        with self._change:
            listeners = list(self._room_listeners)
        for listener in listeners:
            listener()

    # Steps

    def _turn(self) -> None:
        """Submit a step, and read what is not to stay in flight."""
        try:
            plan = None
            if self._plan is not None and not self._changed:
                plan = self._scheduler.repeat(self._plan)
            if plan is None:
                while self._flying:
                    self._read()
                plan = self._scheduler.plan()
                self._changed = False
                if plan is not None:
                    self._prepare(plan)
            self._plan = plan
            if plan is not None:
                self._submit(plan)
            while len(self._flying) > self._lookahead_now():
                self._read()
        except Exception as error:
            self._fail_running(error)

    def _lookahead_now(self) -> int:
        return 0 if any(task.stepwise for task in self._tasks.values()) else self._lookahead

    def _fail_running(self, error: Exception) -> None:
        """End all tasks that the device held: what their keys and values are is not known."""
        self._runner.drain()
        self._flying.clear()
        self._plan = None
        self._changed = True
        self._row_settings = []
        active = set(self._scheduler.running)
        failed = [t for t in self._tasks.values() if t.slot >= 0 or t.sequence in active]
        if not failed:
            raise error  # nothing that could go on without it
        for task in failed:
            self._end(task, "error", error)
        self._forget()

    def _forget(self) -> None:
        """Share nothing of what the device holds: it is not known, or gone."""
        self._pool.forget_all()
        if self._checkpoints is not None:
            self._checkpoints.forget_all()

    def _prepare(self, plan: Plan) -> None:
        """Write to the device what the step needs, with nothing in flight."""
        runner, tasks = self._runner, self._tasks
        runner.keep_states([(tasks[s].slot, place) for s, place in plan.kept])
        for sequence, pages in plan.aside:
            task = tasks[sequence]
            task.saved = Saved(
                runner.read_pages(pages[: pages_of(sequence.position)]),
                runner.read_state(task.slot),
            )
            self._leave(task)
        joined = set(plan.joined)
        for sequence in plan.joined:
            self._join(tasks[sequence])
        runner.restore_states([(place, tasks[s].slot) for s, place in plan.restored])
        running = [sequence for sequence, _ in plan.rows]
        chunk = plan.chunk
        active = [*running, *([chunk.sequence] if chunk else [])]
        runner.write_tables(
            [
                (tasks[s].slot, s.pages)
                for s in active
                if s in joined or runner.table_length(tasks[s].slot) != len(s.pages)
            ]
        )
        runner.write_states(
            (tasks[chunk.sequence].slot, chunk.start, chunk.n_tokens) if chunk else None,
            [(tasks[s].slot, at) for s, at in plan.rows],
        )
        self._write_settings(plan)

    def _join(self, task: Task) -> None:
        runner, sequence = self._runner, task.sequence
        task.slot = self._free_slots.pop()
        self._row_settings = []
        runner.write_text(task.slot, sequence.tokens)
        if task.saved is not None:
            pages, state = task.saved
            runner.write_pages(sequence.pages[: len(pages)], pages)
            runner.write_state(task.slot, state)
            task.saved = None
        elif task.queued:
            self.counters.prompt_tokens_shared += sequence.n_shared
        biases = task.settings.biases
        if runner.reserve_biases(len(biases) // 8):
            for other in self._tasks.values():
                if other.slot >= 0 and other.settings.biases:
                    runner.write_biases(other.slot, other.settings.biases)
        elif biases:
            runner.write_biases(task.slot, biases)
        if task.mask is not None and task.make_mask is None:
            runner.write_mask(task.slot, task.mask)
        self._unqueue(task)

    def _write_settings(self, plan: Plan) -> None:
        """Write whose settings the rows choose by, where that has changed."""
        tasks = self._tasks
        first = tasks[plan.chunk.sequence] if plan.chunk and plan.chunk.ends else None
        rows = [tasks[s] for s, _ in plan.rows]
        if self._row_settings != [first, *rows]:
            self._row_settings = [first, *rows]
            placed = [(t.slot, t.settings, t.mask is not None) for t in rows]
            chunk = (first.slot, first.settings, first.mask is not None) if first else None
            self._runner.write_settings(chunk, placed)

    def _choosing(self, plan: Plan) -> list[tuple[TokenSequence, int]]:
        """Return whose tokens a step chooses, and their places."""
        chunk = plan.chunk
        first = [(chunk.sequence, chunk.stop)] if chunk and chunk.ends else []
        return [*first, *((sequence, at + 1) for sequence, at in plan.rows)]

    def _submit(self, plan: Plan) -> None:
        chunk = plan.chunk
        choosing = self._choosing(plan)
        tasks = [self._tasks[sequence] for sequence, _ in choosing]
        for task in tasks:
            if task.make_mask is not None and task.mask is not None:
                self._runner.write_mask(task.slot, task.mask)
        by_hand = [i for i, task in enumerate(tasks) if task.logits_callback is not None]
        places = [at for _, at in choosing]
        step = self._runner.step(
            (chunk.start, chunk.n_tokens) if chunk else None,
            [at for _, at in plan.rows],
            ends=chunk is not None and chunk.ends,
            chooses=not by_hand,
            n_best=max((task.n_best for task in tasks), default=0),
            scores=any(task.scores for task in tasks),
        )
        self._runner.submit(step, places)
        self.counters.steps += 1
        if chunk is not None:
            self.counters.prompt_tokens_computed += chunk.n_tokens
            self._scheduler.index(chunk.sequence, chunk.stop)
        if not by_hand:
            self._flying.append(plan)
            return
        self._runner.finish_logits()
        for i in by_hand:
            self._change_logits(tasks[i], i + step.first)
        self._take(plan, self._runner.choose(step, places))

    def _change_logits(self, task: Task, row: int) -> None:
        logits = self._runner.read_logits(row)
        callback = task.logits_callback
        assert callback is not None
        if self._guard(task, lambda: callback(logits)):
            self._runner.write_logits(row, logits)

    def _read(self) -> None:
        """Wait for the oldest step in flight, and hand its choices out."""
        choices = self._runner.finish()
        self._take(self._flying.popleft(), choices)

    def _take(self, plan: Plan, choices: Choices) -> None:
        n = 0
        for i, (sequence, place) in enumerate(self._choosing(plan)):
            task = self._tasks.get(sequence)
            if task is None or sequence.stage is Stage.ENDED:
                continue
            n += 1
            new = len(sequence.tokens) == sequence.n_prompt
            best = choices.best[i] if task.n_best else ()
            try:
                reason = task.take(choices.tokens[i], choices.log_probabilities[i], best)
            except Exception as error:
                self._end(task, "error", error)
                continue
            if new:
                self.counters.times_to_first_token.append(task.outbox.first_token())
            # Its pages that are full by now, and whose tokens are known, may be shared.
            self._scheduler.index(sequence, place)
            if reason is not None:
                self._end(task, reason)
            else:
                self._guard(task, task.next_mask)
        if n:
            self.counters.chose(n)


def closed_error() -> EngineClosedError:
    """Return the error of a request to an engine that is closed."""
    return EngineClosedError("the engine is closed: make a new one with model.engine()")
