"""``python -m async_state``: the same commands as ``airflow async-state``, where there is no ``airflow``."""

from __future__ import annotations

from async_state.cli.definition import parser

if __name__ == "__main__":
    arguments = parser().parse_args()
    arguments.func(arguments)
