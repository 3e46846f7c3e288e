"""What a confined process may ask of the kernel, as a seccomp filter. All else fails as "not permitted"."""

import errno
import fcntl
import os
import tempfile
import termios
from functools import cache

# Files, by names that Landlock checks, and descriptors that are open. None that changes a file's owner, rights or
# times, or makes a folder, a link or a device: Landlock does not see all of these, and a flat folder is soon emptied.
_FILES = """
read write readv writev pread64 pwrite64 lseek close close_range dup dup2 dup3 fstat stat lstat newfstatat statx
statfs fstatfs access faccessat faccessat2 getdents64 getcwd chdir fchdir readlink readlinkat unlink unlinkat
rename renameat renameat2 ftruncate fsync fdatasync fadvise64 poll ppoll select pselect6
"""
# What RLIMIT_AS bounds.
_MEMORY = "mmap munmap mremap mprotect madvise brk"
# Signals' handlers, clocks, threads' locks, and who it is.
_ITSELF = """
rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack setitimer getitimer alarm nanosleep clock_nanosleep clock_gettime
clock_getres gettimeofday time times futex set_robust_list rseq set_tid_address arch_prctl sched_yield sched_getaffinity
getcpu getrandom getrusage getpid getppid gettid getuid geteuid getgid getegid sysinfo uname
exit exit_group restart_syscall
"""
ALLOWED = (*_FILES.split(), *_MEMORY.split(), *_ITSELF.split())
"""Names of other processors' calls are passed over where there are none such."""
_CLONE_THREAD = 0x00010000
# Of the two calls that can do almost anything, what libraries need: none that has the kernel send a signal to others.
_FCNTL = (*range(fcntl.F_DUPFD, fcntl.F_SETLKW + 1), fcntl.F_DUPFD_CLOEXEC)
_IOCTL = (termios.TCGETS, termios.TIOCGWINSZ, termios.FIONREAD, termios.FIONBIO, termios.FIOCLEX, termios.FIONCLEX)


@cache
def filter_program() -> bytes:
    """Return the filter as instructions of BPF, for this processor.

    Raises:
        RuntimeError: libseccomp is missing, or does not know this machine.
    """
    import pyseccomp  # which looks for the library as it is imported

    allowed = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.EPERM))
    arch = pyseccomp.system_arch()

    def allow(name: str, *conditions: object) -> None:
        if pyseccomp.resolve_syscall(arch, name) >= 0:
            allowed.add_rule(pyseccomp.ALLOW, name, *conditions)

    for name in ALLOWED:
        allow(name)
    # Threads, not processes. glibc asks for clone3, whose flags no filter can read, and then for clone.
    allow("clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, _CLONE_THREAD, _CLONE_THREAD))
    allowed.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "clone3")
    for name, requests in (("fcntl", _FCNTL), ("ioctl", _IOCTL)):
        for request in requests:
            allow(name, pyseccomp.Arg(1, pyseccomp.EQ, request))
    # To read its own limits, not to set any, nor another process's.
    allow("prlimit64", pyseccomp.Arg(0, pyseccomp.EQ, 0), pyseccomp.Arg(2, pyseccomp.EQ, 0))
    # Emptying a file takes the right to write it: before its third version Landlock took the right to read for enough.
    for name, place in (("open", 1), ("openat", 2)):
        allow(name, pyseccomp.Arg(place, pyseccomp.MASKED_EQ, os.O_TRUNC, 0))
        for mode in (os.O_WRONLY, os.O_RDWR):
            mask = os.O_TRUNC | os.O_ACCMODE
            allow(name, pyseccomp.Arg(place, pyseccomp.MASKED_EQ, mask, os.O_TRUNC | mode))
    with tempfile.TemporaryFile() as file:
        allowed.export_bpf(file)
        file.seek(0)
        return file.read()
