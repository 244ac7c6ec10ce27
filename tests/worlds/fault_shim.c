/* Fails or kills at the Nth call that changes a file below a folder. Loaded with LD_PRELOAD.

   fault_arm(folder, n, kind, log): from now on calls are counted; the nth is given a fault and named
   on the descriptor `log`. Kinds: 'e' EIO once, 'd' EIO from there on, 's' ENOSPC from there on for
   calls that need space, 'h' half of a write and a short count, 'k' SIGKILL before the call, 'K'
   SIGKILL after half of a write or after the call. fault_count() says how many calls there were. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static char home[PATH_MAX];
static long count, at;
static int kind, log_to = -1, active;

void fault_arm(const char *folder, long n, int what, int log_descriptor) {
    strncpy(home, folder, sizeof home - 1);
    count = 0;
    at = n;
    kind = what;
    log_to = log_descriptor;
    active = 1;
}

long fault_count(void) { return count; }

enum { GO, FAIL, HALF, DIE_AFTER };

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

static int fault(const char *call, const char *path, int needs_space, int halves) {
    if (!active || strncmp(path, home, strlen(home)) != 0) return GO;
    long number = ++count;
    if (number == at) dprintf(log_to, "%s %s\n", call, path + strlen(home));
    if (number < at) return GO;
    switch (kind) {
    case 'e': errno = EIO; return number == at ? FAIL : GO;
    case 'd': errno = EIO; return FAIL;
    case 's': errno = ENOSPC; return needs_space ? FAIL : GO;
    case 'h': return number == at && halves ? HALF : GO;
    case 'k': if (number == at) die(); return GO;
    case 'K': return number == at ? DIE_AFTER : GO;
    }
    return GO;
}

static int on_descriptor(const char *call, int descriptor, int needs_space, int halves) {
    if (!active) return GO;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return GO;
    path[length] = 0;
    return fault(call, path, needs_space, halves);
}

#define REAL(type, name, ...)                                         \
    static type (*real)(__VA_ARGS__);                                 \
    if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

#define WRITE(name, whole, half)                                      \
    int what = on_descriptor(name, descriptor, 1, 1);                 \
    if (what == FAIL) return -1;                                      \
    if (what == HALF && size > 1) return half;                        \
    if (what == DIE_AFTER) { (void)!half; die(); }                    \
    return whole;

ssize_t write(int descriptor, const void *data, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t);
    WRITE("write", real(descriptor, data, size), real(descriptor, data, (size + 1) / 2))
}

ssize_t pwrite(int descriptor, const void *data, size_t size, off_t offset) {
    REAL(ssize_t, "pwrite", int, const void *, size_t, off_t);
    WRITE("pwrite", real(descriptor, data, size, offset),
          real(descriptor, data, (size + 1) / 2, offset))
}

ssize_t pwrite64(int descriptor, const void *data, size_t size, off64_t offset) {
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t);
    WRITE("pwrite", real(descriptor, data, size, offset),
          real(descriptor, data, (size + 1) / 2, offset))
}

#define CALL(what, expression)                                        \
    int fate = what;                                                  \
    if (fate == FAIL) return -1;                                      \
    int result = expression;                                          \
    if (fate == DIE_AFTER) die();                                     \
    return result;

int fsync(int descriptor) {
    REAL(int, "fsync", int);
    CALL(on_descriptor("fsync", descriptor, 0, 0), real(descriptor))
}

int fdatasync(int descriptor) {
    REAL(int, "fdatasync", int);
    CALL(on_descriptor("fsync", descriptor, 0, 0), real(descriptor))
}

int ftruncate(int descriptor, off_t size) {
    REAL(int, "ftruncate", int, off_t);
    CALL(on_descriptor("ftruncate", descriptor, size > 0, 0), real(descriptor, size))
}

int ftruncate64(int descriptor, off64_t size) {
    REAL(int, "ftruncate64", int, off64_t);
    CALL(on_descriptor("ftruncate", descriptor, size > 0, 0), real(descriptor, size))
}

int rename(const char *old, const char *new) {
    REAL(int, "rename", const char *, const char *);
    CALL(fault("rename", new, 0, 0), real(old, new))
}

int unlink(const char *path) {
    REAL(int, "unlink", const char *);
    CALL(fault("unlink", path, 0, 0), real(path))
}

#define OPEN(name, path, real_call)                                   \
    va_list rest;                                                     \
    va_start(rest, flags);                                            \
    mode_t mode = va_arg(rest, mode_t);                               \
    va_end(rest);                                                     \
    int fate = flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)        \
                   ? fault("open", path, flags & O_CREAT, 0)          \
                   : GO;                                              \
    if (fate == FAIL) return -1;                                      \
    int result = real_call;                                           \
    if (fate == DIE_AFTER) die();                                     \
    return result;

int open(const char *path, int flags, ...) {
    REAL(int, "open", const char *, int, ...);
    OPEN("open", path, real(path, flags, mode))
}

int open64(const char *path, int flags, ...) {
    REAL(int, "open64", const char *, int, ...);
    OPEN("open", path, real(path, flags, mode))
}

int openat(int folder, const char *path, int flags, ...) {
    REAL(int, "openat", int, const char *, int, ...);
    OPEN("open", path, real(folder, path, flags, mode))
}

int openat64(int folder, const char *path, int flags, ...) {
    REAL(int, "openat64", int, const char *, int, ...);
    OPEN("open", path, real(folder, path, flags, mode))
}
