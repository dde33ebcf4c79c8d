/* The n-th write, fsync, rename or open below one directory fails with a chosen error; everything else is as it was.
   Loaded before the C library (LD_PRELOAD), so that SQLite and Python are met alike. Armed by a call from the process itself. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { WRITE = 1, FSYNC = 2, RENAME = 3, OPEN = 4 };
static char root[4096];
static int armed_kind, armed_error, seen, calls[5];
static long countdown;

void failing_arm(const char *directory, int kind, int error, long n) {
    snprintf(root, sizeof root, "%s", directory);
    armed_error = error; countdown = n; seen = 0; armed_kind = kind;
}
int failing_seen(void) { return seen; }
int failing_calls(int kind) { return calls[kind]; }

static int below(const char *path) { return path && *root && strncmp(path, root, strlen(root)) == 0; }

static int fails(int kind, const char *path) {
    if (!below(path)) return 0;
    calls[kind]++;
    if (kind != armed_kind || --countdown) return 0;
    seen = 1; errno = armed_error;
    return 1;
}

static int fails_fd(int kind, int fd) {
    char link[64], path[4096];
    if (!*root) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return fails(kind, path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *b, size_t n) { return fails_fd(WRITE, fd) ? -1 : REAL(write)(fd, b, n); }
ssize_t pwrite(int fd, const void *b, size_t n, off_t o) { return fails_fd(WRITE, fd) ? -1 : REAL(pwrite)(fd, b, n, o); }
ssize_t pwrite64(int fd, const void *b, size_t n, off64_t o) { return fails_fd(WRITE, fd) ? -1 : REAL(pwrite64)(fd, b, n, o); }
ssize_t writev(int fd, const struct iovec *v, int n) { return fails_fd(WRITE, fd) ? -1 : REAL(writev)(fd, v, n); }
int ftruncate(int fd, off_t n) { return fails_fd(WRITE, fd) ? -1 : REAL(ftruncate)(fd, n); }
int ftruncate64(int fd, off64_t n) { return fails_fd(WRITE, fd) ? -1 : REAL(ftruncate64)(fd, n); }
int fsync(int fd) { return fails_fd(FSYNC, fd) ? -1 : REAL(fsync)(fd); }
int fdatasync(int fd) { return fails_fd(FSYNC, fd) ? -1 : REAL(fdatasync)(fd); }
int rename(const char *a, const char *b) { return fails(RENAME, b) ? -1 : REAL(rename)(a, b); }
int renameat(int p, const char *a, int q, const char *b) { return fails(RENAME, b) ? -1 : REAL(renameat)(p, a, q, b); }

#define MODE(flags) mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); }

int open(const char *path, int flags, ...) { MODE(flags) return fails(OPEN, path) ? -1 : REAL(open)(path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return fails(OPEN, path) ? -1 : REAL(open64)(path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { MODE(flags) return fails(OPEN, path) ? -1 : REAL(openat)(at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE(flags) return fails(OPEN, path) ? -1 : REAL(openat64)(at, path, flags, mode); }
