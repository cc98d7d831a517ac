"""What a process that runs code of others gives up, for itself and for good: system calls, memory, time, files.

After `confine` the process can compute, and read and write the pipes it has; it can read files. It cannot open a file
for writing, make, rename or remove one, start a process, open a socket, signal or trace another process, or raise its
own limits: a seccomp filter answers every system call that is not listed here with EPERM. Linux on x86-64.
"""

import ctypes
import errno
import os
import platform
import resource
import signal
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 1, 38, 22, 2
X86_64 = 0xC000003E
ALLOW, KILL, ERROR = 0x7FFF0000, 0x80000000, 0x00050000
LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06  # BPF: load a word, jump if equal, jump if a bit is set, return
NUMBER, ARCHITECTURE = 0, 4  # offsets in struct seccomp_data


def argument(index: int) -> int:
    """Offset of the low half of a system call's argument."""
    return 16 + 8 * index


# Numbers of /usr/include/asm/unistd_64.h.
PLAIN = {
    "read": 0, "write": 1, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "poll": 7, "lseek": 8, "mmap": 9,
    "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15,
    "pread64": 17, "readv": 19, "writev": 20, "access": 21, "pipe": 22, "select": 23, "sched_yield": 24, "mremap": 25,
    "madvise": 28, "dup": 32, "nanosleep": 35, "getpid": 39, "exit": 60, "uname": 63, "getcwd": 79, "readlink": 89,
    "gettimeofday": 96, "getrlimit": 97, "getrusage": 98, "sysinfo": 99, "times": 100, "getuid": 102, "getgid": 104,
    "geteuid": 107, "getegid": 108, "getppid": 110, "sigaltstack": 131, "gettid": 186, "time": 201, "futex": 202,
    "sched_getaffinity": 204, "getdents64": 217, "set_tid_address": 218, "restart_syscall": 219, "clock_gettime": 228,
    "clock_getres": 229, "clock_nanosleep": 230, "exit_group": 231, "newfstatat": 262, "readlinkat": 267,
    "faccessat": 269, "pselect6": 270, "ppoll": 271, "set_robust_list": 273, "pipe2": 293, "getcpu": 309,
    "getrandom": 318, "membarrier": 324, "statx": 332, "rseq": 334, "faccessat2": 439,
}  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | 0x400000  # the last: __O_TMPFILE
OPENING = {2: 1, 257: 2}  # open, openat -> place of the flags
CLONE, CLONE3, FCNTL, PRLIMIT64 = 56, 435, 72, 302
CLONE_THREAD = 0x10000
FCNTL_COMMANDS = (0, 1, 2, 3, 1030)  # dup, get and set close-on-exec, get flags, dup close-on-exec; no owner of signals


class Instruction(ctypes.Structure):
    """struct sock_filter."""

    _fields_ = (("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint32))


class Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.POINTER(Instruction)))


def confine(memory_bytes: int, cpu_seconds: int) -> None:
    """Confine this process. OSError where the kernel or the machine does not offer it; then nothing may be run.

    Args:
        memory_bytes: how far the address space may grow.
        cpu_seconds: of processor time, after which the kernel ends the process.
    """
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        raise OSError(errno.ENOSYS, f"the filter is written for Linux on x86-64, not {platform.machine()}")
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    for kind, limit in (
        (resource.RLIMIT_AS, size + memory_bytes),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        _, hard = resource.getrlimit(kind)
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (limit, limit))
    libc = ctypes.CDLL(None, use_errno=True)
    _prctl(libc, PR_SET_PDEATHSIG, signal.SIGKILL)
    _prctl(libc, PR_SET_NO_NEW_PRIVS, 1)
    instructions = filter_instructions()
    array = (Instruction * len(instructions))(*instructions)
    _prctl(libc, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(Program(len(instructions), array)))


def _prctl(libc: ctypes.CDLL, option: int, value: int, pointer: object = None) -> None:
    if libc.prctl(option, value, pointer, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}) is refused: {os.strerror(number)}")


def filter_instructions() -> list[Instruction]:
    """The filter: listed system calls pass, some by their arguments; others fail with EPERM, other ABIs are killed."""
    rules = [_rule(number, [_return(ALLOW)]) for number in PLAIN.values()]
    for number, place in OPENING.items():
        rules.append(_rule(number, [_load(argument(place)), _jump(ANY_BIT, WRITING, 0, 1), _deny(), _return(ALLOW)]))
    threads_only = [_load(argument(0)), _jump(ANY_BIT, CLONE_THREAD, 0, 1), _return(ALLOW), _deny()]
    rules.append(_rule(CLONE, threads_only))
    rules.append(_rule(CLONE3, [_deny(errno.ENOSYS)]))  # its flags lie in memory; the C library then calls clone
    commands = [step for command in FCNTL_COMMANDS for step in (_jump(EQUAL, command, 0, 1), _return(ALLOW))]
    rules.append(_rule(FCNTL, [_load(argument(1)), *commands, _deny()]))
    reading = [_load(argument(2)), _jump(EQUAL, 0, 0, 2), _load(argument(2) + 4), _jump(EQUAL, 0, 1, 0), _deny()]
    rules.append(_rule(PRLIMIT64, [*reading, _return(ALLOW)]))
    head = [_load(ARCHITECTURE), _jump(EQUAL, X86_64, 1, 0), _return(KILL), _load(NUMBER)]
    return [*head, *(step for rule in rules for step in rule), _deny()]


def _rule(number: int, steps: list[Instruction]) -> list[Instruction]:
    """`steps`, which end in a return, for one system call; the next rule for any other."""
    return [_jump(EQUAL, number, 0, len(steps)), *steps]


def _load(offset: int) -> Instruction:
    return Instruction(LOAD, 0, 0, offset)


def _jump(kind: int, value: int, if_true: int, if_false: int) -> Instruction:
    return Instruction(kind, if_true, if_false, value)


def _return(action: int) -> Instruction:
    return Instruction(RETURN, 0, 0, action)


def _deny(number: int = errno.EPERM) -> Instruction:
    return _return(ERROR | number)
