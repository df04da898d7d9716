"""The command ``airflow async-state``, which is ``python -m async_state`` as well.

`definition` has its commands and their options, and imports nothing else. Each command has a module of its own, with a
coroutine or function ``run`` that takes the parsed arguments and returns the exit code: 0 for done, 1 for found or
failed, 2 for a wrong use. `output` prints. This package is not part of the public interface.
"""
