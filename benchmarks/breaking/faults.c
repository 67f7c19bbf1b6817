// A disk that is full from the n-th write on, a clock that is wrong, a network that is not there: loaded by LD_PRELOAD, so
// that no library goes around it. Files below one folder only are concerned; deleting is always possible, as on a full disk.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netdb.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static char below[PATH_MAX] = "";
static long calls = 0, full_after = LONG_MAX, refused_sockets = 0;
static long long clock_off = 0;
static int offline = 0;

#define TRUE_OF(name) __typeof__(&name) true_##name = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

// after: how many writes below the folder still succeed (negative: all); their number so far is `fx_calls()`.
void fx_full(const char* folder, long after) {
    snprintf(below, sizeof below, "%s", folder);
    calls = 0;
    full_after = after < 0 ? LONG_MAX : after;
}
long fx_calls(void) { return calls; }
void fx_clock(long long seconds) { clock_off = seconds; }
void fx_offline(int yes) { offline = yes; }
long fx_refused(void) { return refused_sockets; }

__attribute__((constructor)) static void from_environment(void) {
    const char* seconds = getenv("FX_CLOCK");
    if (seconds) clock_off = atoll(seconds);
    if (getenv("FX_OFFLINE")) offline = 1;
}

// Whether a write to this path fails.
static int no_room(const char* path) {
    size_t length = strlen(below);
    if (length == 0 || strncmp(path, below, length) != 0) return 0;
    if (calls++ < full_after) return 0;
    errno = ENOSPC;
    return 1;
}
static int no_room_at(int descriptor) {
    if (below[0] == 0) return 0;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return no_room(path);
}

ssize_t write(int fd, const void* data, size_t size) {
    TRUE_OF(write);
    return no_room_at(fd) ? -1 : true_write(fd, data, size);
}
ssize_t pwrite(int fd, const void* data, size_t size, off_t at) {
    TRUE_OF(pwrite);
    return no_room_at(fd) ? -1 : true_pwrite(fd, data, size, at);
}
ssize_t pwrite64(int fd, const void* data, size_t size, off64_t at) {
    TRUE_OF(pwrite64);
    return no_room_at(fd) ? -1 : true_pwrite64(fd, data, size, at);
}
ssize_t writev(int fd, const struct iovec* parts, int count) {
    TRUE_OF(writev);
    return no_room_at(fd) ? -1 : true_writev(fd, parts, count);
}
int fsync(int fd) {
    TRUE_OF(fsync);
    return no_room_at(fd) ? -1 : true_fsync(fd);
}
int fdatasync(int fd) {
    TRUE_OF(fdatasync);
    return no_room_at(fd) ? -1 : true_fdatasync(fd);
}
int mkdir(const char* path, mode_t mode) {
    TRUE_OF(mkdir);
    return no_room(path) ? -1 : true_mkdir(path, mode);
}
int rename(const char* from, const char* to) {
    TRUE_OF(rename);
    return no_room(to) ? -1 : true_rename(from, to);
}
#define OPEN(name)                                                           \
    int name(const char* path, int flags, ...) {                             \
        TRUE_OF(name);                                                       \
        va_list rest;                                                        \
        va_start(rest, flags);                                               \
        mode_t mode = (flags & O_CREAT) ? va_arg(rest, mode_t) : 0;          \
        va_end(rest);                                                        \
        if ((flags & O_CREAT) && access(path, F_OK) && no_room(path)) return -1; \
        return true_##name(path, flags, mode);                               \
    }
OPEN(open)
OPEN(open64)

int clock_gettime(clockid_t which, struct timespec* now) {
    TRUE_OF(clock_gettime);
    int status = true_clock_gettime(which, now);
    if (which == CLOCK_REALTIME) now->tv_sec += clock_off;
    return status;
}
int gettimeofday(struct timeval* now, void* zone) {
    TRUE_OF(gettimeofday);
    int status = true_gettimeofday(now, zone);
    now->tv_sec += clock_off;
    return status;
}
time_t time(time_t* now) {
    TRUE_OF(time);
    time_t moved = true_time(NULL) + clock_off;
    if (now) *now = moved;
    return moved;
}

int socket(int family, int type, int protocol) {
    TRUE_OF(socket);
    if (offline && family != AF_UNIX) {
        ++refused_sockets;
        errno = EACCES;
        return -1;
    }
    return true_socket(family, type, protocol);
}
int getaddrinfo(const char* host, const char* service, const struct addrinfo* hints, struct addrinfo** found) {
    TRUE_OF(getaddrinfo);
    if (offline) {
        ++refused_sockets;
        return EAI_FAIL;
    }
    return true_getaddrinfo(host, service, hints, found);
}
