/* Loaded before the C library: makes the n-th call of a kind fail, be short, or end the process.
   Calls count that are about files below one directory. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

enum { SHORT = -1, DIE = -2 };

static char root[4096], kind[32];
static atomic_int left;
static int fault;
static atomic_bool ours[4096]; /* descriptors */

void set_fault(const char* directory, const char* call, int number, int what) {
    strncpy(root, directory, sizeof root - 1);
    strncpy(kind, call, sizeof kind - 1);
    fault = what;
    left = number;
}

int faults_left(void) { return left; }

static int is_below(const char* path) { return root[0] && strncmp(path, root, strlen(root)) == 0; }
static int is_ours(int file) { return file >= 0 && file < 4096 && ours[file]; }

/* 0, or what to do. */
static int hit(const char* call, int counts) {
    if (!counts || strcmp(call, kind) != 0 || atomic_fetch_sub(&left, 1) != 1) return 0;
    if (fault == DIE) kill(getpid(), SIGKILL);
    if (fault > 0) errno = fault;
    return fault;
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define OPEN(name)                                                   \
    int name(const char* path, int flags, ...) {                     \
        REAL(name);                                                  \
        va_list rest;                                                \
        va_start(rest, flags);                                       \
        int mode = flags & O_CREAT ? va_arg(rest, int) : 0;          \
        va_end(rest);                                                \
        if (hit("open", is_below(path)) > 0) return -1;              \
        int file = real(path, flags, mode);                          \
        if (file >= 0 && file < 4096) ours[file] = is_below(path);   \
        return file;                                                 \
    }
OPEN(open)
OPEN(open64)

int close(int file) {
    REAL(close);
    if (file >= 0 && file < 4096) ours[file] = 0;
    return real(file);
}

#define PREADV(name, offset_type)                                                    \
    ssize_t name(int file, const struct iovec* parts, int count, offset_type at) {   \
        REAL(name);                                                                  \
        int what = hit("read", is_ours(file));                                       \
        if (what > 0) return -1;                                                     \
        struct iovec half = {parts[0].iov_base, (parts[0].iov_len + 1) / 2};         \
        return what == SHORT ? real(file, &half, 1, at) : real(file, parts, count, at); \
    }
/* CPython's os.preadv calls this one. */
#define PREADV2(name, offset_type)                                                              \
    ssize_t name(int file, const struct iovec* parts, int count, offset_type at, int flags) {   \
        REAL(name);                                                                             \
        int what = hit("read", is_ours(file));                                                  \
        if (what > 0) return -1;                                                                \
        struct iovec half = {parts[0].iov_base, (parts[0].iov_len + 1) / 2};                    \
        return what == SHORT ? real(file, &half, 1, at, flags) : real(file, parts, count, at, flags); \
    }
PREADV2(preadv2, off_t)
PREADV2(preadv64v2, off64_t)

PREADV(preadv, off_t)
PREADV(preadv64, off64_t)

#define PWRITE(name, offset_type)                                                   \
    ssize_t name(int file, const void* data, size_t count, offset_type at) {        \
        REAL(name);                                                                 \
        int what = hit("write", is_ours(file));                                     \
        if (what > 0) return -1;                                                    \
        return real(file, data, what == SHORT ? (count + 1) / 2 : count, at);       \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

int fsync(int file) {
    REAL(fsync);
    return hit("fsync", is_ours(file)) > 0 ? -1 : real(file);
}

int posix_fallocate(int file, off_t at, off_t count) {
    REAL(posix_fallocate);
    int what = hit("fallocate", is_ours(file));
    return what > 0 ? what : real(file, at, count);
}

int posix_fallocate64(int file, off64_t at, off64_t count) {
    REAL(posix_fallocate64);
    int what = hit("fallocate", is_ours(file));
    return what > 0 ? what : real(file, at, count);
}

int rename(const char* from, const char* to) {
    REAL(rename);
    return hit("rename", is_below(to)) > 0 ? -1 : real(from, to);
}
