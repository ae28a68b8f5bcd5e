/* Lets one sync below a folder "logs" fail with EIO, and those of node.redb be slow, when the test says so.
 *
 * Preloaded into the node. The node makes some system calls itself, so that there is no function to
 * replace: a filter of the kernel turns fdatasync and fsync into a signal, and its handler answers.
 * "$PGCAPTURE_REFUSE/fdatasync" is the order for one fdatasync of a file, "$PGCAPTURE_REFUSE/fsync"
 * for one fsync of a directory (which makes a new name durable); who obeys removes it.
 * "$PGCAPTURE_REFUSE/slow" holds the milliseconds that a sync of node.redb takes while it is there;
 * the first one that did leaves "was_slow".
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

/* A second argument that the real calls do not have: the filter lets it pass. */
#define OURS 0x70676370

static char of_file[4096], of_directory[4096], of_store[4096], of_slept[4096];

static void be_slow(void) {
    char text[16] = "";
    int order = open(of_store, O_RDONLY | O_CLOEXEC);
    if (order < 0)
        return;
    long millis = read(order, text, sizeof text - 1) > 0 ? atol(text) : 0;
    close(order);
    struct timespec pause = {.tv_sec = millis / 1000, .tv_nsec = millis % 1000 * 1000000};
    while (nanosleep(&pause, &pause) != 0 && errno == EINTR)
        ;
    int slept = open(of_slept, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    if (slept >= 0)
        close(slept);
}

static long answer(long number, long fd) {
    char link[64], path[4096] = "";
    snprintf(link, sizeof link, "/proc/self/fd/%ld", fd);
    if (readlink(link, path, sizeof path - 1) < 0)
        path[0] = 0;
    const char *name = strrchr(path, '/');
    int is_directory = name != NULL && strchr(name, '.') == NULL;
    int is_meant = (number == SYS_fsync) == is_directory;
    const char *order = number == SYS_fsync ? of_directory : of_file;
    if (is_meant && strstr(path, "/logs/") != NULL && unlink(order) == 0)
        return -EIO;
    if (name != NULL && strcmp(name, "/node.redb") == 0)
        be_slow();
    return syscall(number, fd, (long)OURS) == 0 ? 0 : -errno;
}

static void on_call(int signal, siginfo_t *info, void *context) {
    int saved = errno;
    mcontext_t *machine = &((ucontext_t *)context)->uc_mcontext;
    (void)signal;
#if defined(__x86_64__)
    machine->gregs[REG_RAX] = answer(info->si_syscall, machine->gregs[REG_RDI]);
#elif defined(__aarch64__)
    machine->regs[0] = answer(info->si_syscall, machine->regs[0]);
#else
#error "the registers of a system call are not known here"
#endif
    errno = saved;
}

__attribute__((constructor)) static void begin(void) {
    const char *orders = getenv("PGCAPTURE_REFUSE");
    struct sigaction action = {.sa_sigaction = on_call, .sa_flags = SA_SIGINFO};
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_fdatasync, 1, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_fsync, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, OURS, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = sizeof filter / sizeof *filter, .filter = filter};
    if (orders == NULL)
        return;
    snprintf(of_file, sizeof of_file, "%s/fdatasync", orders);
    snprintf(of_directory, sizeof of_directory, "%s/fsync", orders);
    snprintf(of_store, sizeof of_store, "%s/slow", orders);
    snprintf(of_slept, sizeof of_slept, "%s/was_slow", orders);
    if (sigaction(SIGSYS, &action, NULL) != 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
        perror("cannot filter system calls");
        _exit(99);
    }
}
