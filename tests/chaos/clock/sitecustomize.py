"""For a process under faketime, which hands on a sleep whose end has just passed as a negative time: that is
an invalid argument to Python, where without faketime it is a sleep that is over.
"""

import errno
import time

_sleep = time.sleep


def sleep(seconds: float) -> None:
    """As `time.sleep`."""
    try:
        _sleep(seconds)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


time.sleep = sleep
