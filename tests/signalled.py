"""A script that a signal meets in a finaliser, where Python drops every exception."""

import signal

from utils import run_script


class Finaliser:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)


def main():
    Finaliser()
    print("the script went on")


run_script(main, "signalled.py")
