/* A library to preload: it lets a program's Nth file operation below a folder fail, or kills the program there.

   cc -shared -fPIC -O1 -o fault.so fault.c -ldl
   LD_PRELOAD=./fault.so FAULT_PREFIX=/folder ... PROGRAM

   FAULT_LOG=FILE    append a line an operation: its number, the process, its kind and the path; before that of a rename one
                     of the number 0 and the kind "from"
   FAULT_OPS=,a,b,   the kinds that count: open, write, fsync, rename, mkdir, unlink, link, truncate; look and read where named
   FAULT_AT=N        the operation that is struck, counted in each process; without it none is
   FAULT_COUNTER=F   or over all processes that share this file, of eight zero bytes
   FAULT_ERRNO=E     it fails with this error, and with FAULT_STICKY so do all that follow
   FAULT_KILL=HOW    or the process gets SIGKILL: "before" it, "half" way through a write, or "after" it
   FAULT_WHOM=WHO    and who with it: "self" alone, its process "group", or the group's "leader" in its stead

   What Rust or Go write past libc is not seen. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum verdict { GO_ON, FAIL, HALF, AFTER };

static atomic_long counted;

/* Kill whom FAULT_WHOM says. Returns only where that is another process. */
static void die(void) {
    const char *whom = getenv("FAULT_WHOM");
    pid_t victim = getpid();
    if (whom && !strcmp(whom, "group")) victim = 0;
    if (whom && !strcmp(whom, "leader")) victim = getpgrp();
    syscall(SYS_kill, victim, SIGKILL);
    while (!victim || victim == getpid()) pause();
}

static long number(const char *name) {
    const char *text = getenv(name);
    return text ? atol(text) : 0;
}

/* The path behind a descriptor, or AT_FDCWD; empty where there is none. */
static void path_of(int fd, char *path) {
    char link[64];
    if (fd == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    long length = syscall(SYS_readlink, link, path, PATH_MAX - 1L);
    path[length < 0 ? 0 : length] = 0;
}

static void absolute(int folder, const char *name, char *path) {
    if (name[0] == '/') {
        snprintf(path, PATH_MAX, "%s", name);
        return;
    }
    char base[PATH_MAX];
    path_of(folder, base);
    if (snprintf(path, PATH_MAX, "%s/%s", base, name) >= PATH_MAX) path[0] = 0;
}

static int is_counted(const char *kind, const char *path) {
    const char *prefix = getenv("FAULT_PREFIX"), *kinds = getenv("FAULT_OPS");
    char word[64];
    snprintf(word, sizeof word, ",%s,", kind);
    int reads = !strcmp(kind, "look") || !strcmp(kind, "read");
    return prefix && !strncmp(path, prefix, strlen(prefix)) && (kinds ? strstr(kinds, word) != NULL : !reads);
}

/* The number of the next operation. */
static long next_number(void) {
    static _Atomic(atomic_long *) shared;
    const char *file = getenv("FAULT_COUNTER");
    if (!file) return atomic_fetch_add(&counted, 1) + 1;
    if (!shared) {
        int fd = (int)syscall(SYS_openat, AT_FDCWD, file, O_RDWR);
        void *page = mmap(NULL, sizeof(atomic_long), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        syscall(SYS_close, fd);
        if (page == MAP_FAILED) return 0;
        shared = page;
    }
    return atomic_fetch_add(shared, 1) + 1;
}

static void note(long n, const char *kind, const char *path) {
    const char *log = getenv("FAULT_LOG");
    if (!log) return;
    char line[PATH_MAX + 64];
    int length = snprintf(line, sizeof line, "%ld %d %s %s\n", n, (int)getpid(), kind, path);
    long fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND, 0666);
    if (fd < 0) return;
    syscall(SYS_write, fd, line, (long)length);
    syscall(SYS_close, fd);
}

/* Count one operation, and decide on it. */
static enum verdict strike(const char *kind, const char *path) {
    if (!is_counted(kind, path)) return GO_ON;
    long n = next_number(), at = number("FAULT_AT");
    note(n, kind, path);
    if (!at || !(n == at || (n > at && getenv("FAULT_STICKY")))) return GO_ON;
    const char *how = getenv("FAULT_KILL");
    if (!how) {
        errno = (int)number("FAULT_ERRNO");
        return FAIL;
    }
    if (strcmp(how, "before")) return !strcmp(how, "half") ? HALF : AFTER;
    die();
    return GO_ON;
}

static enum verdict strike_at(const char *kind, int folder, const char *name) {
    char path[PATH_MAX];
    absolute(folder, name, path);
    return strike(kind, path);
}

static enum verdict strike_file(const char *kind, int fd) {
    char path[PATH_MAX];
    int before = errno;
    path_of(fd, path);
    errno = before;
    return strike(kind, path);
}

/* Say what is renamed, where that is counted. */
static void note_source(int from, const char *old, int at, const char *name) {
    char path[PATH_MAX];
    absolute(at, name, path);
    if (!is_counted("rename", path)) return;
    absolute(from, old, path);
    note(0, "from", path);
}

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define CALL(type, decided, call) \
    do { \
        enum verdict found = decided; \
        if (found == FAIL) return -1; \
        type result = call; \
        if (found != GO_ON) die(); \
        return result; \
    } while (0)
#define KIND(flags) ((flags) & (O_CREAT | O_WRONLY | O_RDWR | O_TRUNC) ? "open" : "look")
#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { \
        va_list more; \
        va_start(more, flags); \
        mode = va_arg(more, mode_t); \
        va_end(more); \
    }

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name); \
        MODE(flags) \
        CALL(int, strike_at(KIND(flags), AT_FDCWD, path), real(path, flags, mode)); \
    }
OPEN(open)
OPEN(open64)
#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        REAL(name); \
        MODE(flags) \
        CALL(int, strike_at(KIND(flags), folder, path), real(folder, path, flags, mode)); \
    }
OPENAT(openat)
OPENAT(openat64)

ssize_t read(int fd, void *data, size_t size) {
    REAL(read);
    CALL(ssize_t, strike_file("read", fd), real(fd, data, size));
}
ssize_t pread64(int fd, void *data, size_t size, off64_t at) {
    REAL(pread64);
    CALL(ssize_t, strike_file("read", fd), real(fd, data, size, at));
}
ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    if (fd < 3) return real(fd, data, size);
    enum verdict found = strike_file("write", fd);
    if (found == FAIL) return -1;
    ssize_t result = real(fd, data, found == HALF ? size / 2 : size);
    if (found != GO_ON) die();
    return result;
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    REAL(pwrite64);
    CALL(ssize_t, strike_file("write", fd), real(fd, data, size, at));
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(writev);
    CALL(ssize_t, strike_file("write", fd), real(fd, parts, count));
}
ssize_t sendfile64(int out, int in, off64_t *at, size_t size) {
    static ssize_t (*real)(int, int, off64_t *, size_t);
    if (!real) real = (ssize_t(*)(int, int, off64_t *, size_t))dlsym(RTLD_NEXT, "sendfile64");
    CALL(ssize_t, strike_file("write", out), real(out, in, at, size));
}
ssize_t sendfile(int out, int in, off_t *at, size_t size) { return sendfile64(out, in, (off64_t *)at, size); }
ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags) {
    REAL(copy_file_range);
    CALL(ssize_t, strike_file("write", out), real(in, from, out, to, size, flags));
}
int fsync(int fd) {
    REAL(fsync);
    CALL(int, strike_file("fsync", fd), real(fd));
}
int fdatasync(int fd) {
    REAL(fdatasync);
    CALL(int, strike_file("fsync", fd), real(fd));
}
int ftruncate64(int fd, off64_t size) {
    REAL(ftruncate64);
    CALL(int, strike_file("truncate", fd), real(fd, size));
}

#define ONE_PATH(name, kind, parameters, folder, path, arguments) \
    int name parameters { \
        REAL(name); \
        CALL(int, strike_at(kind, folder, path), real arguments); \
    }
ONE_PATH(mkdir, "mkdir", (const char *path, mode_t mode), AT_FDCWD, path, (path, mode))
ONE_PATH(mkdirat, "mkdir", (int at, const char *path, mode_t mode), at, path, (at, path, mode))
ONE_PATH(unlink, "unlink", (const char *path), AT_FDCWD, path, (path))
ONE_PATH(unlinkat, "unlink", (int at, const char *path, int flags), at, path, (at, path, flags))
ONE_PATH(rmdir, "unlink", (const char *path), AT_FDCWD, path, (path))
#define RENAME(name, parameters, from, at, arguments) \
    int name parameters { \
        REAL(name); \
        note_source(from, old, at, path); \
        CALL(int, strike_at("rename", at, path), real arguments); \
    }
RENAME(rename, (const char *old, const char *path), AT_FDCWD, AT_FDCWD, (old, path))
RENAME(renameat, (int from, const char *old, int at, const char *path), from, at, (from, old, at, path))
ONE_PATH(link, "link", (const char *old, const char *path), AT_FDCWD, path, (old, path))
ONE_PATH(linkat, "link", (int from, const char *old, int at, const char *path, int flags), at, path,
         (from, old, at, path, flags))
