/* SPDX-License-Identifier: Apache-2.0 */
/* For prctl and the numbers of system calls: Linux. Elsewhere it says that it cannot. */
#define _DEFAULT_SOURCE
#include "sandbox.h"

#include "message.h"

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Sanitizers look for leaks in a process of their own, which traces this one. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define HAS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define HAS_SANITIZER 1
#endif
#endif

#if defined(__linux__) && (defined(__x86_64__) || defined(__aarch64__)) && !defined(HAS_SANITIZER)
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#define THIS_MACHINE AUDIT_ARCH_X86_64
#else
#define THIS_MACHINE AUDIT_ARCH_AARCH64
#endif

#define FIELD(name) ((uint32_t)offsetof(struct seccomp_data, name))
#define LOAD(name) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, FIELD(name))
#define ALLOW BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
#define DENY BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM)
/* The number of the call is loaded. */
#define DENY_CALL(name) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##name, 0, 1), DENY
/* Opening is for reading: no flag of writing among the low 32 bits of the argument (both machines are little-endian). */
#define DENY_WRITING(name, argument)                                                                         \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##name, 0, 4), LOAD(args[argument]),                             \
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, O_WRONLY | O_RDWR | O_CREAT | O_TRUNC, 0, 1), DENY, ALLOW

const char *cli_sandbox_restrict(void) {
    static struct sock_filter filter[] = {
        LOAD(arch),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, THIS_MACHINE, 1, 0),
        DENY, /* another machine's calls, such as those of 32-bit programs, have other numbers */
        LOAD(nr),
#if defined(__x86_64__)
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, 0x40000000, 0, 1), /* x32's */
        DENY,
        DENY_CALL(unlink), DENY_CALL(rename), DENY_CALL(link), DENY_CALL(symlink), DENY_CALL(mkdir), DENY_CALL(rmdir), DENY_CALL(creat),
        DENY_CALL(chmod), DENY_CALL(chown), DENY_CALL(lchown), DENY_CALL(mknod), DENY_CALL(fork), DENY_CALL(vfork),
#endif
        DENY_CALL(execve), DENY_CALL(execveat), DENY_CALL(socket), DENY_CALL(socketpair), DENY_CALL(connect), DENY_CALL(bind),
        DENY_CALL(ptrace), DENY_CALL(process_vm_readv), DENY_CALL(process_vm_writev), DENY_CALL(kill), DENY_CALL(tkill),
        DENY_CALL(unlinkat), DENY_CALL(renameat2), DENY_CALL(linkat), DENY_CALL(symlinkat), DENY_CALL(mkdirat), DENY_CALL(mknodat),
        DENY_CALL(truncate), DENY_CALL(ftruncate), DENY_CALL(fchmod), DENY_CALL(fchmodat), DENY_CALL(fchown), DENY_CALL(fchownat), DENY_CALL(utimensat),
        DENY_CALL(mount), DENY_CALL(umount2), DENY_CALL(pivot_root), DENY_CALL(chroot), DENY_CALL(unshare), DENY_CALL(setns), DENY_CALL(bpf), DENY_CALL(keyctl),
#if defined(SYS_renameat)
        DENY_CALL(renameat),
#endif
#if defined(SYS_io_uring_setup)
        DENY_CALL(io_uring_setup), /* which opens files on another way */
#endif
#if defined(SYS_openat2)
        DENY_CALL(openat2), /* whose flags lie in memory, which a filter cannot see */
#endif
        DENY_CALL(open_by_handle_at),
#if defined(SYS_open)
        DENY_WRITING(open, 1),
        LOAD(nr),
#endif
        DENY_WRITING(openat, 2),
        ALLOW,
    };
    struct sock_fprog program = {.len = sizeof filter / sizeof *filter, .filter = filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        return "prctl(PR_SET_NO_NEW_PRIVS) failed";
    /* The libraries have started threads by now: for all of them. */
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) != 0)
        return "this kernel, or where it runs, takes no seccomp filter";
    return NULL;
}
#else
const char *cli_sandbox_restrict(void) {
    return "there is no filter for this system, or this build";
}
#endif

static bool wanted, telling;

void cli_sandbox_want(bool tell) {
    wanted = true;
    telling = tell;
}

void cli_sandbox_enter(const char *device) {
    if (!wanted)
        return;
    wanted = false;
    bool gpu = strncmp(device, "cuda", 4) == 0;
    const char *fault = gpu ? "the GPU's driver needs more" : cli_sandbox_restrict();
    if (fault && telling)
        cli_warning(NULL, "reading without a sandbox: %s", fault);
}
