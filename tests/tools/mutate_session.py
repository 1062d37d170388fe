"""A pytest session that runs its tests once for each of many mutants; see mutate.py."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from itertools import pairwise, takewhile
from typing import IO, NamedTuple

import pytest
from _pytest.runner import runtestprotocol
from mutator import Mutant

MEMORY = 12 << 30
# Seconds without a new test after which whatever waits for nothing counts as hanging.
PATIENCE = 120


class Known(NamedTuple):
    """What a test does without a mutant."""

    seconds: float  # of processors
    functions: list[int]
    elsewhere: bool  # runs Python in another process, too


class Child(NamedTuple):
    pid: int
    told: IO[bytes]

    def read(self) -> list[str]:
        """The lines that it wrote."""
        with self.told as file:
            file.seek(0)
            return file.read().decode().splitlines()


class Session:
    """Judges mutants in the place of pytest's own loop over the tests."""

    def __init__(self, mutator, chosen, jobs, seconds, log) -> None:
        self.mutator, self.chosen, self.jobs, self.seconds = mutator, chosen, jobs, seconds
        self.log = log
        self.survivors: list[str] = []
        self.sound: set[int] = set()  # the tests that were seen to pass alone
        self.kills: Counter[tuple[str, int]] = Counter()  # of (function or file, test)

    def pytest_configure(self) -> None:
        import hypothesis

        hypothesis.settings.register_profile(
            "mutate",
            phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),  # a failure is enough
            derandomize=True,
            deadline=None,
        )
        hypothesis.settings.load_profile("mutate")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            raise session.Failed("the tests can't be collected")
        from fastgd.kernels import _baseline, _engine

        self.items = session.items
        self.modules = [_engine, _baseline]
        self.learn()
        start = time.monotonic()
        for k, (mutant, verdict) in enumerate(self.verdicts(), 1):
            self.log.note(mutant, verdict)
            print(f"{k} {'killed  ' if verdict else 'SURVIVED'} {mutant}")
            print(
                f"         by {verdict}" if verdict else f"         line {mutant.line}", flush=True
            )
            if not verdict:
                self.survivors.append(f"{mutant.line}: {mutant}")
        print(f"{time.monotonic() - start:.0f} s")
        return True

    # ---------------------------------------------------------------------------------- children

    def fork(self, work: Callable[[IO[bytes]], None]) -> Child:
        """Let a child do some work that writes to a file."""
        told = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - open until it was read
        pid = os.fork()
        if pid:
            return Child(pid, told)
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            self.forget()
            self.modules[0]._thread_again()
            work(told)
            os._exit(0)
        except BaseException as error:
            told.write(repr(error).encode())
        finally:
            os._exit(1)

    def forget(self) -> None:
        """Forget which functions ran."""
        for module in self.modules:
            module._forget()

    def passes(self, k: int, following: int | None) -> bool:
        """Whether the k-th test is green; the number of the one to follow keeps its fixtures."""
        coming = None if following is None else self.items[following]
        reports = runtestprotocol(self.items[k], nextitem=coming, log=False)
        return not any(report.failed for report in reports)

    # ----------------------------------------------------------------------------- without mutant

    def learn(self) -> None:
        """Run the tests that the log knows nothing of without a mutant, and note what they do."""
        names = [self.name_of(item) for item in self.items]
        new = [k for k, name in enumerate(names) if name not in self.log.tests]
        shares = [new[j :: self.jobs] for j in range(self.jobs)]
        for child in [self.fork(lambda told, s=s: self.survey(s, told)) for s in shares]:
            os.waitpid(child.pid, 0)
            for line in child.read():
                pytest.exit(f"without any mutant: {line}", 2)
        self.log.read()
        if missing := [name for name in names if name not in self.log.tests]:
            pytest.exit(f"{missing[0]} brings down the process without any mutant", 2)
        self.known = [Known(*self.log.tests[name]) for name in names]
        ran = {f for known in self.known for f in known.functions}
        for k, (file, function) in enumerate(self.mutator.functions):
            if k not in ran:
                print(f"no test runs {file}: {function}, but for those in other processes")
        number = {item.nodeid.removeprefix("tests/"): k for k, item in enumerate(self.items)}
        for mutant in self.mutator.mutants:
            if (k := number.get(self.log.killer(mutant))) is not None:
                self.credit(mutant, k)
        print(f"{len(self.items)} tests, {sum(k.seconds for k in self.known):.0f} s", flush=True)

    @staticmethod
    def name_of(item: pytest.Item) -> str:
        """A test's name with a digest of its file."""
        return f"{zlib.crc32(item.path.read_bytes()):08x} {item.nodeid}"

    def survey(self, mine: list[int], told: IO[bytes]) -> None:
        launched = 0
        start_process = subprocess.Popen.__init__

        def counted(*args, **kwargs):
            nonlocal launched
            launched += 1
            start_process(*args, **kwargs)

        subprocess.Popen.__init__ = counted
        for k, following in pairwise([*mine, None]):
            launched, start = 0, time.process_time()
            green = self.passes(k, following)
            functions = sorted({f for module in self.modules for f in module._ran()})
            if not green:
                told.write(f"{self.items[k].nodeid} fails\n".encode())
                return
            known = Known(time.process_time() - start, functions, bool(launched))
            self.log.write("test", self.name_of(self.items[k]), known)
            self.forget()

    # --------------------------------------------------------------------------------- with mutant

    def tests_of(self, mutant: Mutant) -> list[int]:
        """The tests that may find a mutant, the most promising first, within the seconds given.

        Those that killed others come first, then one of each test function, the quickest.
        """
        function = self.mutator.functions.index((mutant.file, mutant.function))
        able = [k for k, known in enumerate(self.known)
                if function in known.functions or known.elsewhere]  # fmt: skip
        seen: Counter[str] = Counter()
        promise = {}
        for k in sorted(able, key=lambda k: self.known[k].seconds):
            name = self.items[k].nodeid.partition("[")[0]
            seen[name] += 1
            promise[k] = (-self.kills[f"{mutant.file} {mutant.function}", k],
                          function not in self.known[k].functions,
                          -self.kills[mutant.file, k], seen[name], self.known[k].seconds)  # fmt: skip
        tests, left = [], self.seconds
        for k in sorted(able, key=promise.__getitem__):
            left -= self.known[k].seconds
            if left < 0:
                break
            tests.append(k)
        return tests

    def attempt(self, number: int, tests: list[int], told: IO[bytes]) -> None:
        """Run tests under a mutant until one fails, whose number is told last."""
        os.environ["FASTGD_MUTANT"] = str(number)
        for module in self.modules:
            module._mutate(number)
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        for k, following in pairwise([*tests, None]):
            told.write(f"{k} ".encode())
            signal.setitimer(signal.ITIMER_PROF, 3 + 10 * self.known[k].seconds)
            if not self.passes(k, following):
                os._exit(2)

    def verdicts(self):
        """(mutant, how it was killed) of all, in the order in which they are decided."""
        waiting: list[Mutant] = list(reversed(self.chosen))
        running: dict[int, tuple[Mutant, Child]] = {}
        while waiting or running:
            while waiting and len(running) < self.jobs:
                mutant = waiting.pop()
                tests = self.tests_of(mutant)
                child = self.fork(lambda told, m=mutant, t=tests: self.attempt(m.number, t, told))
                running[child.pid] = mutant, child
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid in running:
                mutant, child = running.pop(pid)
                yield mutant, self.verdict(mutant, status, " ".join(child.read()).split())
                continue
            time.sleep(0.02)
            for _, child in running.values():
                if time.time() - os.fstat(child.told.fileno()).st_mtime > PATIENCE:
                    os.kill(child.pid, signal.SIGKILL)

    def credit(self, mutant: Mutant, k: int) -> None:
        """Note that the k-th test killed a mutant."""
        self.kills[f"{mutant.file} {mutant.function}", k] += 1
        self.kills[mutant.file, k] += 1

    def check_alone(self, k: int) -> None:
        """Stop if a test fails without any mutant where it runs alone, as it may have to here."""
        if k not in self.sound:
            self.sound.add(k)
            child = self.fork(lambda told: self.attempt(0, [k], told))
            failed = os.waitpid(child.pid, 0)[1]
            child.read()
            if failed:
                pytest.exit(f"{self.items[k].nodeid} fails alone, without any mutant", 2)

    def verdict(self, mutant: Mutant, status: int, told: list[str]) -> str:
        """How a mutant was killed; empty if it wasn't."""
        code = os.waitstatus_to_exitcode(status)
        if code == 0:
            return ""
        # A session may break where memory does; the test that it broke in is whole without that.
        begun = [int(word) for word in takewhile(str.isdigit, told)]
        if not begun:
            pytest.exit(f"the session failed at {mutant}: {' '.join(told)}", 2)
        last = begun[-1]
        self.check_alone(last)
        self.credit(mutant, last)
        how = {2: "", -signal.SIGPROF: " hangs", -signal.SIGKILL: " hangs"}.get(
            code, f" dies with {code}"
        )
        return self.items[last].nodeid.removeprefix("tests/") + how
