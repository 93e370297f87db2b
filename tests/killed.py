"""train_snn_fisherinfo.py, killed just before its N-th write in the run folder: killed.py N ..."""

import os
import signal
import sys

import train_snn_fisherinfo

writes_left = int(sys.argv.pop(1))


def count(event, arguments):
    """Python calls this before it opens or renames a file."""
    global writes_left
    write = event == "os.rename" or (event == "open" and arguments[2] & os.O_WRONLY)
    if write and "/run/" in str(arguments[0]):
        writes_left -= 1
        if writes_left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


sys.addaudithook(count)
train_snn_fisherinfo.main()
