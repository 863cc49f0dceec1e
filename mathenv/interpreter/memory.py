"""The memory that sessions share with their zygote, and the pages that each will write to.

Standard library only, loaded by path by `runner.py`. It only makes sessions faster: where the
kernel does not offer a call, nothing happens. Sources: madvise(2), proc_pid_pagemap(5).
"""

from __future__ import annotations

import array
import ctypes
import errno
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

_libc = ctypes.CDLL(None, use_errno=True)
_madvise = _libc.madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_POPULATE_WRITE, _COLLAPSE = 23, 25
_OWN = 1 << 63 | 1 << 56  # present, and mapped by this process only
_PAGE = os.sysconf("SC_PAGE_SIZE")
_BYTES_HEADER = sys.getsizeof(b"")

Range = tuple[int, int]  # address, bytes


def use_huge_pages(proc: int) -> None:
    """Put this process's private memory on huge pages (MADV_COLLAPSE, Linux 6.1).

    A fork then copies one entry instead of 512, and still shares all but the 4 KiB pages
    that are written to. `proc` is an open descriptor of /proc.
    """
    for (start, size), is_file in _writable(proc):
        if not is_file:
            _madvise(start, size, _COLLAPSE)


_held: list[bytes] = []


def fill_holes() -> None:
    """Use up the free blocks between objects.

    What sessions allocate then lies side by side in new pages, not in copies of shared ones.
    """
    for size, free in _free_blocks():
        _held.extend(bytes(size - _BYTES_HEADER) for _ in range(free))
    highest = 0
    for size in range(8192, 512, -16):  # the sizes that Python leaves to malloc
        while True:
            _held.append(bytes(size))
            if id(_held[-1]) > highest:  # no hole of this size was left
                highest = id(_held[-1])
                break


def _free_blocks() -> list[tuple[int, int]]:
    """Size and number of the free blocks in pools that Python has begun to use."""
    show = getattr(sys, "_debugmallocstats", None)  # CPython's, which writes to descriptor 2
    if show is None:
        return []
    with open(os.memfd_create("statistics"), "w+b") as file:
        saved = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            show()
        finally:
            os.dup2(saved, 2)
            os.close(saved)
        file.seek(0)
        rows = [line.split() for line in file]
    # class, size, pools, blocks in use, free blocks
    table = [list(map(int, row)) for row in rows if len(row) == 5 and all(map(bytes.isdigit, row))]
    return [(size, free) for _, size, _, _, free in table if size > _BYTES_HEADER]


def often_written(sessions: Sequence[Callable[[], object]], proc: int) -> list[Range]:
    """Find the memory of this process that each of these sessions would write to.

    Forks of this process do what they do. `proc` is an open descriptor of /proc.
    """
    nothing = _written_by(lambda: None, proc)  # by the measurement
    pages = set.intersection(*(_written_by(work, proc) for work in sessions)) - nothing
    return _ranges(sorted(pages))


def _written_by(work: Callable[[], object], proc: int) -> set[int]:
    areas = [area for area, _ in _writable(proc)]
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: it may see its own page map
            work()
            found = array.array("Q", (page for area in areas for page in _own_pages(area, proc)))
            with open(write_end, "wb") as answer:
                answer.write(found)
        finally:
            os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as answer:
        pages = array.array("Q", answer.read())
    os.waitpid(child, 0)
    return set(pages)


def populate(ranges: Iterable[Range]) -> None:
    """Make pages this process's own (MADV_POPULATE_WRITE, Linux 5.14), without a fault each."""
    for start, size in ranges:
        if _madvise(start, size, _POPULATE_WRITE) and ctypes.get_errno() == errno.EINVAL:
            return


def _writable(proc: int) -> Iterator[tuple[Range, bool]]:
    """Private writable areas, and whether each is of a file."""
    with open(os.open("self/maps", os.O_RDONLY, dir_fd=proc), encoding="utf-8") as maps:
        for line in maps:
            extent, mode, _, _, inode, *name = line.split(maxsplit=5)
            start, end = (int(number, 16) for number in extent.split("-"))
            if mode == "rw-p" and (inode != "0" or name in ([], ["[heap]\n"])):
                yield (start, end - start), inode != "0"


def _own_pages(area: Range, proc: int) -> Iterator[int]:
    """Addresses of the pages of an area that no other process shares."""
    start, size = area
    entries = array.array("Q")
    with open(os.open("self/pagemap", os.O_RDONLY, dir_fd=proc), "rb") as pages:
        pages.seek(start // _PAGE * 8)
        entries.frombytes(pages.read(size // _PAGE * 8))
    for place, entry in enumerate(entries):
        if entry & _OWN == _OWN:
            yield start + place * _PAGE


def _ranges(pages: Iterable[int]) -> list[Range]:
    """Join neighbours; `pages` is in order."""
    found: list[Range] = []
    for page in pages:
        if found and sum(found[-1]) == page:
            found[-1] = (found[-1][0], found[-1][1] + _PAGE)
        else:
            found.append((page, _PAGE))
    return found
