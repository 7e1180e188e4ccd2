"""The system calls that a session's processes may make. Everything else is refused; what is new to this list is unknown to it.

Left out on purpose: io_uring, bpf, the kernel's keyrings, user namespaces (and all others), userfaultfd, perf events,
mounts, modules, the clock, swap, reboot, other processes' handles beyond ptrace's own rules.
"""

from __future__ import annotations

import json
from typing import Any, Final

_FILES: Final = """
access chdir chmod chown close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64 fallocate
fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fremovexattr fsetxattr fstat
fstatfs fsync ftruncate futimesat getcwd getdents getdents64 getxattr getxattrat inotify_add_watch inotify_init
inotify_init1 inotify_rm_watch fanotify_mark ioctl lchown lgetxattr link linkat listxattr listxattrat llistxattr
lremovexattr lseek lsetxattr lstat mkdir mkdirat mknod mknodat name_to_handle_at newfstatat open openat openat2 pread64
preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv removexattr removexattrat rename
renameat renameat2 rmdir sendfile setxattr setxattrat splice stat statfs statx symlink symlinkat sync sync_file_range
syncfs tee truncate umask unlink unlinkat ustat utime utimensat utimes vmsplice write writev cachestat file_getattr
"""
_MEMORY: Final = """
brk get_mempolicy madvise map_shadow_stack mbind membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap
move_pages mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect process_madvise
process_mrelease remap_file_pages set_mempolicy set_mempolicy_home_node migrate_pages
"""
_PROCESSES: Final = """
alarm arch_prctl capget capset execve execveat exit exit_group fork vfork getcpu getegid geteuid getgid getgroups
getitimer getpgid getpgrp getpid getppid getpriority getrandom getresgid getresuid getrlimit getrusage getsid gettid
getuid ioprio_get ioprio_set kill landlock_add_rule landlock_create_ruleset landlock_restrict_self pause pidfd_getfd
pidfd_open pidfd_send_signal prctl prlimit64 process_vm_readv process_vm_writev ptrace restart_syscall rseq
rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam
sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield
seccomp set_robust_list get_robust_list set_tid_address setfsgid setfsuid setgid setgroups setitimer setpgid
setpriority setregid setresgid setresuid setreuid setrlimit setsid setuid sigaltstack signalfd signalfd4 sysinfo tgkill
time times tkill uname uretprobe wait4 waitid
"""
_WAITING: Final = """
clock_getres clock_gettime clock_nanosleep epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2
epoll_wait epoll_wait_old eventfd eventfd2 futex futex_requeue futex_wait futex_waitv futex_wake gettimeofday io_cancel
io_destroy io_getevents io_pgetevents io_setup io_submit nanosleep poll ppoll pselect6 select timer_create timer_delete
timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime adjtimex clock_adjtime
"""
_TALKING: Final = """
accept accept4 bind connect getpeername getsockname getsockopt listen mq_getsetattr mq_notify mq_open mq_timedreceive
mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd pipe pipe2 recvfrom recvmmsg recvmsg semctl semget semop semtimedop
sendmmsg sendmsg sendto setsockopt shmat shmctl shmdt shmget shutdown socketpair
"""
#: clone's flags for new namespaces: none may be set.
_NAMESPACES: Final = 0x7E020080
_ENOSYS: Final = 38
_AF_VSOCK: Final = 40
#: What personality may be set to: what it is, Linux, and without address randomisation, as debuggers do.
_PERSONALITIES: Final = (0x0, 0x0008, 0x20000, 0x20008, 0x40000, 0xFFFFFFFF)


def profile() -> str:
    """For the engine, as the JSON of `--security-opt seccomp=`."""
    names = sorted({*_FILES.split(), *_MEMORY.split(), *_PROCESSES.split(), *_WAITING.split(), *_TALKING.split()})
    rules: list[dict[str, Any]] = [
        _allow(names),
        _allow(["clone"], _when(0, "SCMP_CMP_MASKED_EQ", _NAMESPACES, 0)),
        # Its flags lie in memory, where no filter can look: C libraries fall back to clone when it is not there.
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS},
        # The host's hypervisor answers there, past every network rule.
        _allow(["socket"], _when(0, "SCMP_CMP_NE", _AF_VSOCK)),
        *[_allow(["personality"], _when(0, "SCMP_CMP_EQ", value)) for value in _PERSONALITIES],
    ]
    return json.dumps(
        {
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 1,
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
            "syscalls": rules,
        }
    )


def _allow(names: list[str], *conditions: dict[str, int | str]) -> dict[str, Any]:
    return {"names": names, "action": "SCMP_ACT_ALLOW", "args": list(conditions)}


def _when(index: int, operator: str, value: int, value_two: int = 0) -> dict[str, int | str]:
    return {"index": index, "op": operator, "value": value, "valueTwo": value_two}
