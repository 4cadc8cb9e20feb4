"""The gate before the device: alone means alone, who waits is not watched, and nobody starves."""

import threading
import time

from workers.gate import Gate
from workers.progress import Progress


def test_who_waits_at_the_gate_does_not_stall() -> None:
    """While one is inside alone and moves, those who wait for it count as no stall, however long it takes."""
    progress = Progress()
    gate = Gate(progress)
    inside, leave = threading.Event(), threading.Event()

    def alone() -> None:
        with progress.in_hand(), gate.alone():
            inside.set()
            while not leave.wait(0.05):
                progress.moved()

    def wait(how: str) -> None:
        with progress.in_hand(), gate.alone() if how == "alone" else gate.together():
            pass

    threads = [threading.Thread(target=alone)]
    threads[0].start()
    inside.wait()
    threads += [threading.Thread(target=wait, args=(how,)) for how in ("alone", "together")]
    for thread in threads[1:]:
        thread.start()
    time.sleep(0.8)
    assert progress.stalled_s() < 0.4
    leave.set()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()


def test_between_two_who_pass_alone_all_pass_who_came_meanwhile() -> None:
    """A queue of suspects does not keep others out: who came while one was inside passes before the next one."""
    gate = Gate(Progress())
    passed: list[str] = []
    inside, leave = threading.Event(), threading.Event()

    def suspects() -> None:
        for i in range(20):
            with gate.alone():
                inside.set()
                leave.wait()
                passed.append(f"alone {i}")

    def other() -> None:
        with gate.together():
            passed.append("together")

    first = threading.Thread(target=suspects)
    first.start()
    inside.wait()
    second = threading.Thread(target=other)
    second.start()
    while not gate._coming:
        time.sleep(0.01)
    leave.set()
    first.join(5)
    second.join(5)
    assert passed.index("together") == 1


def test_alone_finds_nobody_inside() -> None:
    """Under a crowd of both kinds nobody is ever inside beside one who passes alone."""
    gate = Gate(Progress())
    inside: list[int] = []
    wrong: list[int] = []

    def together(me: int) -> None:
        for _ in range(200):
            with gate.together():
                inside.append(me)
                inside.remove(me)

    def alone() -> None:
        for _ in range(200):
            with gate.alone():
                wrong.extend(inside)

    threads = [threading.Thread(target=together, args=(i,)) for i in range(3)]
    threads += [threading.Thread(target=alone) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert wrong == []
