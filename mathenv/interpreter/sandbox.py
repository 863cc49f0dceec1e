"""Linux system calls that confine a process. Standard library only, no package imports.

The runner loads this file by path, so it also works where `mathenv` is not installed.
Sources: seccomp(2), landlock(7), user_namespaces(7), pivot_root(2), mount_setattr(2).
Every function raises `OSError` naming the call that the kernel refused; nothing here
falls back silently.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import stat
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

# Column of each number in the tables below, and AUDIT_ARCH_* from linux/audit.h.
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_COLUMN, _AUDIT_ARCH = _MACHINES.get(platform.machine(), (-1, 0))

# name, x86-64 number, aarch64 number ("-": the machine has no such call), taken from
# the kernel's asm/unistd_64.h and asm-generic/unistd.h. An allow-list: what is not here
# is refused, so a call added to a later kernel is refused too. chmod, utime and truncate
# by path are left out because Landlock (the last one: before ABI 3) does not cover them;
# timer_create because its signal may be SIGKILL, by which we know the kernel and operators.
_ALLOWED = """
read 0 63; write 1 64; readv 19 65; writev 20 66; pread64 17 67; pwrite64 18 68
preadv 295 69; pwritev 296 70; preadv2 327 286; pwritev2 328 287; recvmsg 47 212
close 3 57; close_range 436 436; lseek 8 62; sendfile 40 71; copy_file_range 326 285
mprotect 10 226; munmap 11 215; mremap 25 216; brk 12 214; madvise 28 233
msync 26 227; mincore 27 232; membarrier 324 283
rt_sigaction 13 134; rt_sigprocmask 14 135; rt_sigreturn 15 139; rt_sigpending 127 136
rt_sigtimedwait 128 137; rt_sigsuspend 130 133; sigaltstack 131 132; restart_syscall 219 128
access 21 -; faccessat 269 48; faccessat2 439 439; stat 4 -; fstat 5 80; lstat 6 -
newfstatat 262 79; statx 332 291; statfs 137 43; fstatfs 138 44; getdents 78 -
getdents64 217 61; getcwd 79 17; chdir 80 49; fchdir 81 50; readlink 89 -; readlinkat 267 78
creat 85 -; mkdir 83 -; mkdirat 258 34; rmdir 84 -; rename 82 -; renameat 264 38
renameat2 316 276; link 86 -; linkat 265 37; unlink 87 -; unlinkat 263 35; symlink 88 -
symlinkat 266 36; umask 95 166; ftruncate 77 46; fallocate 285 47
fsync 74 82; fdatasync 75 83; fadvise64 221 223
dup 32 23; dup2 33 -; dup3 292 24; pipe 22 -; pipe2 293 59
select 23 -; pselect6 270 72; poll 7 -; ppoll 271 73; epoll_create 213 -
epoll_create1 291 20; epoll_ctl 233 21; epoll_wait 232 -; epoll_pwait 281 22
eventfd 284 -; eventfd2 290 19; timerfd_create 283 85; timerfd_settime 286 86
timerfd_gettime 287 87; nanosleep 35 101; clock_nanosleep 230 115; clock_gettime 228 113
clock_getres 229 114; gettimeofday 96 169; time 201 -; times 100 153; getitimer 36 102
setitimer 38 103; alarm 37 -; pause 34 -
getpid 39 172; getppid 110 173; gettid 186 178; getpgrp 111 -; getpgid 121 155
getsid 124 156; getuid 102 174; geteuid 107 175; getgid 104 176; getegid 108 177
getresuid 118 148; getresgid 120 150; getgroups 115 158; getrusage 98 165
getrlimit 97 163; getpriority 140 141; sched_yield 24 124
sched_getaffinity 204 123; sched_getparam 143 121; sched_getscheduler 145 120
sched_get_priority_max 146 125; sched_get_priority_min 147 126; getcpu 309 168
uname 63 160; sysinfo 99 179; getrandom 318 278; futex 202 98; set_robust_list 273 99
get_robust_list 274 100; set_tid_address 218 96; rseq 334 293; arch_prctl 158 -
exit 60 93; exit_group 231 94
landlock_create_ruleset 444 444; landlock_add_rule 445 445; landlock_restrict_self 446 446
"""
# Allowed for some arguments only, see `_argument_rules`.
_CHECKED = """
clone 56 220; prctl 157 167; prlimit64 302 261; ioctl 16 29; fcntl 72 25; mmap 9 222
open 2 -; openat 257 56; setrlimit 160 164; flock 73 32
"""
# glibc falls back to an older call on ENOSYS, but not on EPERM.
_ABSENT = "clone3 435 435; epoll_pwait2 441 441"
_SETUP = """
seccomp 317 277; pivot_root 155 41; mount_setattr 442 442; capset 126 91
"""


def _numbers(table: str) -> dict[str, int]:
    rows = (row.split() for row in table.replace("\n", ";").split(";") if row.strip())
    cells = ((name, columns[_COLUMN]) for name, *columns in rows)
    return {name: int(number) for name, number in cells if number != "-"}


_NUMBER = _numbers(_ALLOWED + _CHECKED + _SETUP)


def _check(value: int, call: str) -> int:
    if value < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{call}: {os.strerror(code)}")
    return value


def _syscall(name: str, *arguments: object) -> int:
    if _COLUMN < 0:
        raise OSError(f"{name}: no system call numbers for {platform.machine()}")
    longs = (ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)
    return _check(_libc.syscall(ctypes.c_long(_NUMBER[name]), *longs), name)


# ---------------------------------------------------------------- process attributes


def prctl(option: int, *arguments: int) -> int:
    """prctl(2) with unsigned long arguments."""
    padded = (*arguments, 0, 0, 0, 0)[:4]
    values = [ctypes.c_ulong(argument) for argument in padded]
    return _check(_libc.prctl(ctypes.c_int(option), *values), f"prctl({option})")


def die_with_parent() -> None:
    """SIGKILL this process when the THREAD that forked it ends (PR_SET_PDEATHSIG)."""
    prctl(1, 9)


def adopt_orphans() -> None:
    """Become the parent of descendants whose parent ends (PR_SET_CHILD_SUBREAPER)."""
    prctl(36, 1)


def forbid_inspection() -> None:
    """PR_SET_DUMPABLE 0: no ptrace by the same user, no core file."""
    prctl(4, 0)


def no_new_privileges() -> None:
    """PR_SET_NO_NEW_PRIVS, which an unprivileged seccomp filter or Landlock needs."""
    prctl(38, 1)


CAP_DAC_READ_SEARCH = 2


def set_capabilities(mask: int) -> None:
    """Make `mask` (bits) the permitted and effective set and empty the inheritable one."""
    header = struct.pack("Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    low, high = mask & 0xFFFFFFFF, mask >> 32
    _syscall("capset", header, struct.pack("6I", low, low, 0, high, high, 0))


def become(uid: int, keep: int = 0) -> None:
    """Give up root for `uid` (also as group, no further groups), keeping capabilities `keep`."""
    os.setgroups([])
    prctl(8, 1 if keep else 0)  # PR_SET_KEEPCAPS
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    set_capabilities(keep)


# ------------------------------------------------------------------------ namespaces

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = (
    0x00020000,
    0x04000000,
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _BIND, _REC, _PRIVATE = 1, 2, 4, 8, 4096, 16384, 1 << 18
_MNT_DETACH = 2
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000


def unshare(flags: int) -> None:
    """Move into new namespaces of the given kinds."""
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def setns(fd: int, kind: int) -> None:
    """Join the namespace `fd`; for NEWPID this is about future children."""
    _check(_libc.setns(ctypes.c_int(fd), ctypes.c_int(kind)), "setns")


def enter_user_namespace(flags: int, uid: int, proc: int) -> None:
    """unshare NEWUSER and `flags`; inside, uid and gid 0 stand for `uid` outside.

    `proc` is an open descriptor of /proc. A helper that stays outside writes the maps,
    because only it may map an id that is not its own (root mapping an unprivileged one).
    """
    target, outside_root = os.getpid(), os.geteuid() == 0
    read_end, write_end = os.pipe()
    helper = os.fork()
    if helper == 0:
        status = 1
        try:
            os.close(write_end)
            os.read(read_end, 1)
            if not outside_root:  # an unprivileged gid map needs this (user_namespaces(7))
                write_at(proc, f"{target}/setgroups", "deny")
            write_at(proc, f"{target}/uid_map", f"0 {uid} 1")
            write_at(proc, f"{target}/gid_map", f"0 {uid if outside_root else os.getgid()} 1")
            status = 0
        finally:
            os._exit(status)
    try:
        unshare(NEWUSER | flags)
    finally:
        os.close(read_end)
        os.close(write_end)
        status = os.waitpid(helper, 0)[1]
    if status != 0:
        raise OSError("uid_map: the user namespace could not be mapped")
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def write_at(directory: int, path: str, text: str) -> None:
    """Write to a file below an open directory."""
    fd = os.open(path, os.O_WRONLY, dir_fd=directory)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    value = _libc.mount(
        source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()
    )
    _check(value, f"mount {target}")


def mount_scratch(target: str, size: int) -> None:
    """Mount an empty tmpfs of `size` bytes that only its owner sees."""
    options = f"size={size},nr_inodes=4096,mode=0700"
    _mount("scratch", target, "tmpfs", _NOSUID | _NODEV | _NOEXEC, options)


def unmount(target: str) -> None:
    """Detach what is mounted at `target`; its files go when the last user has gone."""
    _check(_libc.umount2(target.encode(), ctypes.c_int(_MNT_DETACH)), f"umount {target}")


DEVICES = ("/dev/null", "/dev/urandom", "/dev/random", "/dev/zero")


def build_root(
    readable: Iterable[str], hidden: Iterable[str], links: Mapping[str, str], empty: Iterable[str]
) -> None:
    """Replace the file system by a read-only tree that holds only what is named here.

    Call inside a new mount namespace. The paths `readable` keep their names, the folders
    `hidden` below them are empty; `links` maps further paths to what they show; the paths
    `empty` are empty folders.
    """
    sources = {path: os.path.realpath(path) for path in readable}
    masks = [os.path.realpath(path) for path in hidden]
    links = {path: os.path.realpath(source) for path, source in links.items()}
    _mount("none", "/", "", _REC | _PRIVATE)
    _mount("root", "/tmp", "tmpfs", _NOSUID | _NODEV, "mode=0755")
    os.mkdir("/tmp/old")
    os.chdir("/tmp")
    _syscall("pivot_root", b".", b"old")
    os.chdir("/")
    for path, source in {**sources, **links}.items():
        if source != path and source in sources:  # /lib where all is in /usr
            os.symlink(source, path)
            continue
        _bind("/old" + source, path)
        for mask in masks:
            if path in sources and mask.startswith(source + "/"):
                _mount("hidden", path + mask[len(source) :], "tmpfs", _RDONLY, "nr_inodes=1")
    for path in DEVICES:
        _bind("/old" + path, path)
    for path in empty:
        os.makedirs(path, exist_ok=True)
    unmount("/old")
    os.rmdir("/old")
    _set_mount_flags("/", add=_RDONLY | _NOSUID | _NODEV)
    for path in DEVICES:
        _set_mount_flags(path, clear=_NODEV | (_RDONLY if path == "/dev/null" else 0))


def _bind(source: str, target: str) -> None:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    _mount(source, target, "", _BIND | _REC)


def _set_mount_flags(path: str, add: int = 0, clear: int = 0) -> None:
    attributes = struct.pack("QQQQ", add, clear, 0, 0)  # MOUNT_ATTR_* equal the MS_* bits here
    _syscall("mount_setattr", _AT_FDCWD, path.encode(), _AT_RECURSIVE, attributes, len(attributes))


# -------------------------------------------------------------------------- Landlock

_LIST = 1 << 3  # directories
_READ = 1 << 2 | _LIST
_WRITE = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 12
_REFER, _TRUNCATE, _IOCTL_DEVICE = 1 << 13, 1 << 14, 1 << 15


def landlock_abi() -> int:
    """Version of Landlock that the kernel offers; 0 without Landlock."""
    try:
        return _syscall("landlock_create_ruleset", None, 0, 1)
    except OSError:
        return 0


def landlock(abi: int, readable: Iterable[str], writable: Iterable[str | int]) -> None:
    """Confine this process to reading `readable` and using `writable`; no TCP, no signals out.

    A number is a descriptor (O_PATH). At most 16 confinements fit on each other (E2BIG).
    Paths can still be looked at with stat(2) and readlink(2), which Landlock does not cover.
    Needs `no_new_privileges`. Rights that the version `abi` does not know are left out.
    """
    rights = (1 << 13) - 1
    for version, right in ((2, _REFER), (3, _TRUNCATE), (5, _IOCTL_DEVICE)):
        rights |= right if abi >= version else 0
    # handled file rights; TCP bind and connect (ABI 4); abstract sockets, signals (ABI 6)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    handled = struct.pack("QQQ", rights, 3, 3)[:size]
    ruleset = _syscall("landlock_create_ruleset", handled, size, 0)
    try:
        for path in readable:
            _landlock_rule(ruleset, path, _READ)
        for path in DEVICES:
            use = 1 << 1 | _TRUNCATE if path == "/dev/null" else 0
            _landlock_rule(ruleset, path, (_READ | use) & rights)
        for place in writable:
            _landlock_rule(ruleset, place, (_READ | _WRITE | _REFER | _TRUNCATE) & rights)
        _syscall("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)


def without(path: str, hidden: Collection[str]) -> Iterator[str]:
    """Yield files and folders that make up what is below `path`, but for the folders `hidden`.

    All paths are real ones. Links are left out: a rule for one would be for what it names.
    """
    if path in hidden:
        return
    if not any(folder.startswith(path + "/") for folder in hidden):
        yield path
        return
    with os.scandir(path) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if not entry.is_symlink():
                yield from without(entry.path, hidden)


def _landlock_rule(ruleset: int, path: str | int, rights: int) -> None:
    fd = os.dup(path) if isinstance(path, int) else os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= 1 << 1 | 1 << 2 | _TRUNCATE  # the only rights a file can carry
        _syscall("landlock_add_rule", ruleset, 1, struct.pack("=Qi", rights, fd), 0)
    finally:
        os.close(fd)


# --------------------------------------------------------------------------- seccomp

_KILL, _NOTIFY, _ALLOW, _ERRNO = 0x80000000, 0x7FC00000, 0x7FFF0000, 0x00050000
_EPERM, _ENOSYS, _DONE = _ERRNO | 1, _ERRNO | 38, _ERRNO  # the last: 0, and nothing happens
_LOAD, _AND, _JUMP_EQUAL, _JUMP_GE, _JUMP_SET, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
_Instruction = tuple[int, int, int, int]

# The copy of a session is a child of the zygote (CLONE_PARENT), with SIGCHLD at its end.
_FORK_FLAGS = 0x8000 | 17
_CLONE_THREAD = 0x10000
_LOAD_NUMBER = [
    (_LOAD, 0, 0, 4),
    (_JUMP_EQUAL, 1, 0, _AUDIT_ARCH),
    (_RETURN, 0, 0, _KILL),
    (_LOAD, 0, 0, 0),
]


def _argument(index: int, high: bool = False) -> _Instruction:
    # struct seccomp_data: nr, arch, ip, args[6]; one half of a little-endian argument
    return (_LOAD, 0, 0, 16 + 8 * index + (4 if high else 0))


def _when(value: int, verdict: int, jump: int = _JUMP_EQUAL) -> list[_Instruction]:
    return [(jump, 0, 1, value), (_RETURN, 0, 0, verdict)]


def _unless(value: int, verdict: int) -> list[_Instruction]:
    return [(_JUMP_EQUAL, 1, 0, value), (_RETURN, 0, 0, verdict)]


def _argument_rules(forks: bool) -> dict[str, list[_Instruction]]:
    """What each checked call may do; every rule ends in a verdict."""

    def only(index: int, values: Sequence[int]) -> list[_Instruction]:
        rules = [rule for value in values for rule in _when(value, _ALLOW)]
        return [_argument(index), *rules, (_RETURN, 0, 0, _EPERM)]

    # What concerns the descriptor and the pipe only: F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL,
    # F_GETLK, F_OFD_GETLK, F_DUPFD_CLOEXEC, F_GETPIPE_SZ, F_GET_SEALS. Others reach out of the
    # session: signals (F_SETOWN), leases and notices, which hold up whoever writes to a library.
    own = [
        rule for value in (0, 1, 2, 3, 4, 5, 36, 1030, 1032, 1034) for rule in _when(value, _ALLOW)
    ]
    # Locks on a library's file would be seen by other sessions. F_SETLK, F_SETLKW and the same
    # of open files say "done", as they would to the only process that uses its files.
    locks = [rule for value in (6, 7, 37, 38) for rule in _when(value, _DONE)]
    threads = _when(_CLONE_THREAD, _ALLOW, _JUMP_SET)
    # Memory that a copy of the session would share: MAP_SHARED (1) with MAP_ANONYMOUS (0x20),
    # which mprotect could make writable later, or with PROT_WRITE (2).
    shared = [*_when(0x20, _EPERM, _JUMP_SET), _argument(2), *_when(2, _EPERM, _JUMP_SET)]
    # A limit below what it was makes the kernel kill the process, as if from outside. Only
    # RLIMIT_AS (9) is set: by us, at a MemoryError. Reading is prlimit64 with no new limit.
    reads = [rule for high in (False, True) for rule in (_argument(2, high), *_unless(0, _EPERM))]
    limits = [*_unless(0, _EPERM), _argument(1), *_when(9, _ALLOW), *reads]

    def opens(flags: int) -> list[_Instruction]:
        # O_TRUNC (0x200) without access, or for reading: Landlock before ABI 3 asks for no
        # right to write. Access mode 3 stands for neither.
        truncates = [rule for mode in (0, 3) for rule in _when(0x200 | mode, _EPERM)]
        return [_argument(flags), (_AND, 0, 0, 0x203), *truncates, (_RETURN, 0, 0, _ALLOW)]

    # GET_DUMPABLE, SET_NAME, GET_NAME, CAPBSET_READ, SET_VMA; SET_PDEATHSIG (1) to SIGKILL
    harmless = [rule for value in (3, 15, 16, 23, 0x53564D41) for rule in _when(value, _ALLOW)]
    copies = _when(_FORK_FLAGS, _ALLOW) if forks else []  # then `watch_forks` decides
    return {
        "clone": [_argument(0), *threads, *copies, (_RETURN, 0, 0, _EPERM)],
        "prctl": [_argument(0), *harmless, *_unless(1, _EPERM), *only(1, [9])],
        "prlimit64": [_argument(0), *limits, (_RETURN, 0, 0, _ALLOW)],
        "setrlimit": only(0, [9]),
        "open": opens(1),
        "openat": opens(2),
        # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
        "ioctl": only(1, [0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451]),
        "fcntl": [_argument(1), *own, *locks, (_RETURN, 0, 0, _EPERM)],
        "flock": [(_RETURN, 0, 0, _DONE)],
        "mmap": [_argument(3), (_JUMP_SET, 0, len(shared), 1), *shared, (_RETURN, 0, 0, _ALLOW)],
    }


def seccomp_filter(forks: bool) -> bytes:
    """Compile the filter of a session: an array of sock_filter.

    `forks` lets `fork_here` through; only after `watch_forks`, which decides about it.
    Allowed: files, memory, threads, time. Refused with EPERM: sockets, new processes, exec,
    signals, ptrace, namespaces, mounts, shared memory, limits, priorities, and all else.
    """
    program: list[_Instruction] = [*_LOAD_NUMBER]
    if _COLUMN == 0:
        program += _when(0x40000000, _EPERM, _JUMP_GE)  # the x32 aliases of the same calls
    rules = _argument_rules(forks)
    for name, number in _numbers(_CHECKED).items():
        program += [(_JUMP_EQUAL, 0, len(rules[name]), number), *rules[name]]
    for number in sorted(_numbers(_ALLOWED).values()):
        program += _when(number, _ALLOW)
    for number in _numbers(_ABSENT).values():
        program += _when(number, _ENOSYS)
    program.append((_RETURN, 0, 0, _EPERM))
    return _pack(program)


def _pack(program: Iterable[_Instruction]) -> bytes:
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


def seccomp(program: bytes, flags: int = 1) -> int:
    """Install a compiled filter on all threads (flag TSYNC). Needs `no_new_privileges`."""
    if _COLUMN < 0:
        raise OSError(f"seccomp: no system call numbers for {platform.machine()}")
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    return _syscall("seccomp", 1, flags, header)  # SECCOMP_SET_MODE_FILTER


# -------------------------------------------------- forks that another process decides about

_NOTIFY_RECEIVE, _NOTIFY_SEND = 0xC0502100, 0xC0182101
_CONTINUE = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE, since Linux 5.5
# PyDLL, not CDLL: the interpreter lock stays held over the call, so both copies own it.
_holding_lock = ctypes.PyDLL(None, use_errno=True)
_holding_lock.syscall.restype = ctypes.c_long


def watch_forks() -> int:
    """Make every `fork_here` below this process wait for `decide_fork`; the descriptor for it.

    Sources: seccomp_unotify(2). Without a reader of the descriptor they fail with ENOSYS.
    Needs `no_new_privileges`.
    """
    rule = [_argument(0), *_when(_FORK_FLAGS, _NOTIFY), (_RETURN, 0, 0, _ALLOW)]
    program = [(_LOAD, 0, 0, 0), (_JUMP_EQUAL, 0, len(rule), _NUMBER["clone"]), *rule]
    return seccomp(_pack([*program, (_RETURN, 0, 0, _ALLOW)]), 8)  # ..._FLAG_NEW_LISTENER


def decide_fork(listener: int, allowed: int) -> bool:
    """Answer one waiting `fork_here`: yes if process `allowed` asks, else EPERM.

    Returns whether it was allowed. The flags are a register, so nothing can be changed
    between the check and the call.
    """
    notice = bytearray(80)
    try:
        fcntl.ioctl(listener, _NOTIFY_RECEIVE, notice)
        number, process = struct.unpack_from("=QI", notice)
        granted = process == allowed
        verdict = (0, _CONTINUE) if granted else (-1, 0)
        fcntl.ioctl(listener, _NOTIFY_SEND, struct.pack("=QqiI", number, 0, *verdict))
    except FileNotFoundError:  # it was killed meanwhile
        return False
    return granted


def fork_here(sibling: bool = True) -> int:
    """Copy this process, as a sibling or as a child; 0 in the copy.

    Nothing of Python's `os.fork` hooks runs (one of them reseeds `random`), so the copy goes
    on exactly as it was. There must be no other thread.
    """
    flags = _FORK_FLAGS if sibling else _FORK_FLAGS & 0xFF
    arguments = (_NUMBER["clone"], flags, 0, 0, 0, 0)
    return _check(_holding_lock.syscall(*map(ctypes.c_long, arguments)), "clone")
