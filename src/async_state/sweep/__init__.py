"""What ``sweep`` and ``export-refs`` do: find the objects to which no row refers, and delete them and nothing else.

`references` finds references in a row's value, `database` and `rest` read the rows, and `snapshot` carries references
from one machine to another. `survey` lists the store and decides what each object is, with `ledger` to remember it in
constant memory, and `remove` deletes. This package is not part of the public interface.
"""
