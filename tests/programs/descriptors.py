"""Uses state while the process can open no file, then one, and so on; in the end as many as it likes."""

import logging
import os
import resource
import sys
import warnings

from async_state.errors import StoreError
from tests.programs.common import say, start, task, use


def main() -> None:
    backend = start(max_attempts=1)
    # asyncio complains of the loop that it could not make, and telemetry that it is off.
    warnings.simplefilter("ignore", ResourceWarning)
    sys.unraisablehook = lambda _: None
    logging.disable()
    unlimited = resource.getrlimit(resource.RLIMIT_NOFILE)
    worked, refused = [], []
    for count in range(20):
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + count, unlimited[1]))
        try:
            backend.set(task("few"), "key", "1")
            worked.append(True)
        except StoreError as e:
            worked.append(False)
            refused.append(str(e))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, unlimited)
    assert all(sys.argv[1] in reason for reason in refused)
    assert not worked[0]
    assert worked[-1]
    use(backend, "many")
    say("fine")


if __name__ == "__main__":
    main()
