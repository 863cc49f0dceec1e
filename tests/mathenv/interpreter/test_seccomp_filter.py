"""What the system call filter answers, for each machine it is written for.

The kernel of the machine that runs the tests knows only one of them. So the filter is compiled
for each and executed here, as seccomp(2) says, on calls whose arguments decide.
"""

import importlib.util
import platform
import struct
from types import ModuleType

import pytest

from mathenv.interpreter import sandbox

ALLOW, EPERM, KILL, DONE = 0x7FFF0000, 0x00050001, 0x80000000, 0x00050000
ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
O_RDONLY, O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_CLOEXEC = 0, 1, 2, 0o100, 0o1000, 0o2000000
POINTER, HIGH_POINTER = 0x7F0000001000, 0x7F0000000000  # the low half of the second is zero
PRIVATE, SHARED, ANONYMOUS = 2, 1, 0x20

# name, number on x86-64 and aarch64 (None: no such call), arguments, verdict
CALLS = [
    ("setrlimit", 160, 164, (9, POINTER), ALLOW),
    *[("setrlimit", 160, 164, (kind, POINTER), EPERM) for kind in (0, 1, 4, 6, 7, 8, 13, 15)],
    ("prlimit64", 302, 261, (0, 9, POINTER, 0), ALLOW),
    ("prlimit64", 302, 261, (0, 0, 0, POINTER), ALLOW),
    ("prlimit64", 302, 261, (0, 0, POINTER, 0), EPERM),
    ("prlimit64", 302, 261, (0, 0, HIGH_POINTER, 0), EPERM),
    ("prlimit64", 302, 261, (77, 9, POINTER, 0), EPERM),
    ("prlimit64", 302, 261, (77, 0, 0, POINTER), EPERM),
    ("timer_create", 222, 107, (1, POINTER, POINTER), EPERM),
    ("timer_settime", 223, 110, (0, 0, POINTER, 0), EPERM),
    *[
        (f"open {flags:o}", *numbers, (*before, POINTER, flags, 0), verdict)
        for numbers, before in (((2, None), ()), ((257, 56), (-100,)))
        for flags, verdict in (
            (O_RDONLY | O_CLOEXEC, ALLOW),
            (O_WRONLY | O_CREAT | O_TRUNC, ALLOW),
            (O_RDWR | O_TRUNC, ALLOW),
            (3, ALLOW),
            (O_RDONLY | O_TRUNC, EPERM),
            (O_RDONLY | O_CREAT | O_TRUNC | O_CLOEXEC, EPERM),
            (3 | O_TRUNC, EPERM),
        )
    ],
    ("mmap", 9, 222, (0, 4096, 3, PRIVATE | ANONYMOUS, -1, 0), ALLOW),
    ("mmap", 9, 222, (0, 4096, 1, SHARED, 5, 0), ALLOW),
    ("mmap", 9, 222, (0, 4096, 3, SHARED, 5, 0), EPERM),
    ("mmap", 9, 222, (0, 4096, 1, SHARED | ANONYMOUS, -1, 0), EPERM),
    ("mmap", 9, 222, (0, 4096, 0, SHARED | ANONYMOUS, -1, 0), EPERM),
    ("mmap", 9, 222, (0, 4096, 1, 3 | ANONYMOUS, -1, 0), EPERM),
    ("prctl", 157, 167, (1, 9), ALLOW),
    ("prctl", 157, 167, (1, 0), EPERM),
    ("prctl", 157, 167, (15, POINTER), ALLOW),
    ("prctl", 157, 167, (4, 1), EPERM),
    # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_GETLK, F_OFD_GETLK, F_DUPFD_CLOEXEC, ...
    *[("fcntl", 72, 25, (3, n, 0), ALLOW) for n in (0, 1, 2, 3, 4, 5, 36, 1030, 1032, 1034)],
    *[("fcntl", 72, 25, (3, n, POINTER), DONE) for n in (6, 7, 37, 38)],  # set a lock
    # F_SETOWN, F_SETSIG, F_SETOWN_EX, F_SETLEASE, F_NOTIFY, F_SETPIPE_SZ, F_ADD_SEALS, hints
    *[("fcntl", 72, 25, (3, n, 1), EPERM) for n in (8, 10, 15, 1024, 1026, 1031, 1033, 1036)],
    ("fcntl", 72, 25, (3, 5000, 1), EPERM),
    ("flock", 73, 32, (3, 2), DONE),
    ("clone", 56, 220, (0x3D0F00, POINTER), ALLOW),
    ("clone", 56, 220, (17, 0), EPERM),
    ("kill", 62, 129, (1, 9), EPERM),
    ("write", 1, 64, (1, POINTER, 1), ALLOW),
]


@pytest.fixture(params=list(ARCHITECTURE))
def machine(request, monkeypatch) -> ModuleType:
    """`sandbox.py` as it is on that machine."""
    monkeypatch.setattr(platform, "machine", lambda: request.param)
    spec = importlib.util.spec_from_file_location("sandbox_elsewhere", sandbox.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def verdict(program: bytes, architecture: int, number: int, arguments: tuple[int, ...]) -> int:
    """Execute a filter on one call."""
    padded = [value % 2**64 for value in (*arguments, *[0] * 6)[:6]]
    data = struct.pack("<IIQ6Q", number, architecture, 0, *padded)
    instructions = list(struct.iter_unpack("HBBI", program))
    accumulator, position = 0, 0
    while True:
        code, if_true, if_false, value = instructions[position]
        position += 1
        match code:
            case 0x20:
                accumulator = struct.unpack_from("<I", data, value)[0]
            case 0x54:
                accumulator &= value
            case 0x15:
                position += if_true if accumulator == value else if_false
            case 0x35:
                position += if_true if accumulator >= value else if_false
            case 0x45:
                position += if_true if accumulator & value else if_false
            case 0x06:
                return value
            case _:
                raise AssertionError(f"instruction {code:#x} is not one of seccomp's")


@pytest.mark.parametrize("call", CALLS, ids=[f"{call[0]}-{n}" for n, call in enumerate(CALLS)])
def test_arguments_decide(machine, call):
    _, *numbers, arguments, expected = call
    name = machine.platform.machine()
    number = numbers[list(ARCHITECTURE).index(name)]
    if number is None:
        pytest.skip(f"{name} has no such call")
    program = machine.seccomp_filter(forks=False)
    assert verdict(program, ARCHITECTURE[name], number, arguments) == expected


def test_calls_of_another_machine_end_the_process(machine):
    others = set(ARCHITECTURE.values()) - {ARCHITECTURE[machine.platform.machine()]}
    for other in (*others, 0x40000003):  # and those of 32-bit x86
        assert verdict(machine.seccomp_filter(forks=True), other, 1, ()) == KILL
