"""TEMP"""

import asyncio, contextlib, weakref


class Limiter:
    def __init__(self, count):
        self.count = count
        self.of = weakref.WeakKeyDictionary()

    def slot(self, timeout):
        loop = asyncio.get_running_loop()
        s = self.of.get(loop)
        if s is None:
            s = self.of[loop] = asyncio.Semaphore(self.count)
        return s
