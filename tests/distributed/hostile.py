"""Worlds that do what is allowed and not expected, worlds that break their word, and ranks that end without a word."""

import threading
import time
from random import Random

import numpy as np

from fusedstep import distributed

HANGS = 30  # seconds after which a rank counts as one that waits for ever


def outcomes(size, function, timeout):
    """
    Call a function on each rank of a world of threads; return what each has returned or raised.

    Ranks that raise tell nobody, like processes: whoever waits for them waits for `timeout` seconds.
    """
    found = ["hangs"] * size

    def run(world):
        world.timeout = timeout
        try:
            found[world.rank] = function(world)
        except BaseException as error:
            found[world.rank] = error

    ranks = [threading.Thread(target=run, args=(world,), daemon=True) for world in distributed.threads(size)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(HANGS)
    return found


class Around:
    """A world around another one."""

    def __init__(self, world):
        self.inner, self.rank, self.size = world, world.rank, world.size

    @property
    def timeout(self):
        return self.inner.timeout

    @timeout.setter
    def timeout(self, seconds):
        self.inner.timeout = seconds

    def start(self, sends, receives):
        return self.inner.start(sends, receives)

    def wait(self, handle):
        self.inner.wait(handle)


class Unsteady(Around):
    """
    A world in which messages start late and one by one, arrive at the last moment, and are in any order in time.

    It keeps to what a world promises: messages from one rank to another have one order, and all that is started is
    under way when its rank waits for anything. What is to be received is overwritten at once, as `start` allows.
    """

    def __init__(self, world, seed):
        super().__init__(world)
        self.random = Random(f"{seed} {world.rank}")
        self.late = []  # messages that have not been started, in the order in which they were asked for

    def start(self, sends, receives):
        handle = []
        for is_sent, messages in self.random.sample([(True, sends), (False, receives)], 2):
            for other, array in messages:
                if not is_sent and array.size:
                    array.reshape(-1).view(np.uint8)[...] = self.random.randrange(256)
                aside = array if is_sent or self.random.random() < 0.5 else np.empty_like(array)
                handle.append([is_sent, other, array, aside, None])
        self.late += handle
        self._go_on(self.random.randrange(len(self.late) + 1))
        self._pause()
        return handle

    def wait(self, handle):
        self._go_on(len(self.late))
        for message in self.random.sample(handle, len(handle)):
            self._pause()
            self.inner.wait(message[-1])
        for is_sent, _, array, aside, _ in handle:
            if not is_sent and aside is not array:
                array[...] = aside
        self._pause()

    def _go_on(self, count):
        """Start some messages: those to or from one other rank stay in their order."""
        for _ in range(count):
            firsts = {tuple(message[:2]): message for message in reversed(self.late)}
            message = self.random.choice([*firsts.values()])
            self.late = [other for other in self.late if other is not message]
            self._pause()
            is_sent, other, _, aside, _ = message
            message[-1] = self.inner.start([(other, aside)] if is_sent else [], [] if is_sent else [(other, aside)])

    def _pause(self):
        if self.random.random() < 0.3:
            time.sleep(self.random.choice([0, 0, 0, 0.0005]))


class Faulty(Around):
    """
    A world that breaks its word once, on one rank.

    Parameters
    ----------
    world : World
        The world of a rank.
    fault : str
        "lose" or "twice" for a message that is sent, "short" or "long" for one of another size; "start" or "wait" for
        an error that is raised there.
    number : int
        Which of the messages that are sent, or which call of `start` or `wait`, from 0.
    """

    def __init__(self, world, fault, number):
        super().__init__(world)
        self.fault, self.left = fault, number

    def _is_now(self):
        self.left -= 1
        return self.left == -1

    def start(self, sends, receives):
        if self.fault == "start" and self._is_now():
            raise ConnectionError("the network is down")
        if self.fault in ("start", "wait"):
            return self.inner.start(sends, receives)
        given = []
        for other, array in sends:
            given += self._sent(other, array) if array.size and self._is_now() else [(other, array)]
        return self.inner.start(given, receives)

    def _sent(self, other, array):
        line = array.reshape(-1).view(np.uint8)
        lines = {"lose": [], "twice": [line, line], "short": [line[1:]], "long": [np.append(line, line[:1])]}
        return [(other, line) for line in lines[self.fault]]

    def wait(self, handle):
        if self.fault == "wait" and self._is_now():
            raise ConnectionError("the network is down")
        self.inner.wait(handle)
