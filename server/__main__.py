"""`python -m hotshoe.server`: arguments → config → serve. One ready line on standard output, logs on standard error."""

import asyncio
import contextlib
import logging
import os
import sys

from hotshoe.server import logs
from hotshoe.server.flags import parse_arguments


def main() -> None:
    config = parse_arguments(sys.argv[1:], os.environ)
    logs.configure(level=config.log_level, as_json=config.log_json)
    # OpenMP's threads spin for milliseconds after each product of torch's, on cores that the decode team then lacks.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        from hotshoe.server.lifecycle import serve  # torch and all: not before the arguments are known to be good

        code = asyncio.Runner().run(serve(config))
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        logs.log_event(logging.CRITICAL, "crashed", error=error)
        code = 1
    logging.shutdown()
    with contextlib.suppress(AttributeError, OSError):  # there is none, or nobody reads it
        sys.stdout.flush()
    os._exit(code)  # threads that wait for a disk must not keep a server that has stopped


if __name__ == "__main__":
    main()
