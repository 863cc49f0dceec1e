"""What holds for all tests."""

import signal

# A shell starts background jobs with SIGINT ignored, and children inherit that: tests of Ctrl-C
# would test nothing.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
