// Preloaded into a process, makes chosen system calls on the files of one folder fail, and counts them. What fails is
// told through faults_watch, faults_fail and faults_forbid, for example with ctypes. For 64-bit Linux.

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/io_uring.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

enum call { OPEN, WRITE, PWRITE, FSYNC, RENAME, FALLOCATE, FTRUNCATE, MKDIR, UNLINK, IO_URING, ANY, CALLS };
static const char *const kNames[CALLS] = {"open",      "write", "pwrite", "fsync",    "rename", "fallocate",
                                          "ftruncate", "mkdir", "unlink", "io_uring", "any"};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static char folder[PATH_MAX];
static struct fault {
  long result;  // a negative error number, or the bytes that a write is cut to
  int at;       // fails, counted from 1; 0: never
  bool for_good;
  int seen;
  int failed;
} faults[CALLS];
static bool no_io_uring, no_direct_io;
static char seen_calls[1 << 20];
static size_t seen_bytes;

// From now on count the calls on a folder and all below it, by absolute path, and let all succeed.
void faults_watch(const char *path) {
  pthread_mutex_lock(&mutex);
  snprintf(folder, sizeof folder, "%s", path);
  memset(faults, 0, sizeof faults);
  no_io_uring = no_direct_io = false;
  seen_calls[seen_bytes = 0] = '\0';
  pthread_mutex_unlock(&mutex);
}

static struct fault *named(const char *name) {
  for (int call = 0; call < CALLS; ++call) {
    if (strcmp(name, kNames[call]) == 0) return &faults[call];
  }
  abort();
}

// The `at`-th call of a kind, or of "any" but fallocate (nobody depends on it), gives `result`; with `for_good`
// all that follow too.
void faults_fail(const char *call, long result, int at, int for_good) {
  pthread_mutex_lock(&mutex);
  struct fault *fault = named(call);
  fault->result = result;
  fault->at = at;
  fault->for_good = for_good != 0;
  pthread_mutex_unlock(&mutex);
}

// What was called, as lines "call path"; as much of it as there is room for.
const char *faults_calls(void) { return seen_calls; }

int faults_seen(const char *call) { return named(call)->seen; }
int faults_failed(const char *call) { return named(call)->failed; }

void faults_forbid(int io_uring, int direct_io) {
  no_io_uring = io_uring != 0;
  no_direct_io = direct_io != 0;
}

static bool is_below(const char *path) {
  const size_t length = strlen(folder);
  return length > 0 && strncmp(path, folder, length) == 0 && (path[length] == '/' || path[length] == '\0');
}

static bool hits(struct fault *fault, long *result) {
  ++fault->seen;
  if (fault->at == 0 || fault->seen < fault->at || (fault->seen > fault->at && !fault->for_good)) return false;
  ++fault->failed;
  *result = fault->result;
  return true;
}

// Whether this call is to give *result instead.
static bool fails(enum call call, const char *path, long *result) {
  if (!is_below(path)) return false;
  pthread_mutex_lock(&mutex);
  const size_t room = sizeof seen_calls - seen_bytes;
  const int line = snprintf(seen_calls + seen_bytes, room, "%s %s\n", kNames[call], path);
  seen_bytes += (size_t)line < room ? (size_t)line : 0;
  seen_calls[seen_bytes] = '\0';
  const bool one = hits(&faults[call], result);
  const bool any = call != FALLOCATE && hits(&faults[ANY], result);
  pthread_mutex_unlock(&mutex);
  return one || any;
}

static bool fails_on_file(enum call call, int file, long *result) {
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  const ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return false;
  path[length] = '\0';
  return fails(call, path, result);
}

static int failure(long result) {
  errno = (int)-result;
  return -1;
}

#define OPENING(name)                                              \
  int name(const char *path, int flags, ...) {                     \
    va_list more;                                                  \
    va_start(more, flags);                                         \
    const mode_t mode = va_arg(more, mode_t);                      \
    va_end(more);                                                  \
    long result;                                                   \
    if (fails(OPEN, path, &result)) return failure(result);        \
    return REAL(name)(path, flags, mode);                          \
  }
OPENING(open)
OPENING(open64)

#define OPENING_AT(name)                                           \
  int name(int parent, const char *path, int flags, ...) {         \
    va_list more;                                                  \
    va_start(more, flags);                                         \
    const mode_t mode = va_arg(more, mode_t);                      \
    va_end(more);                                                  \
    long result;                                                   \
    if (fails(OPEN, path, &result)) return failure(result);        \
    return REAL(name)(parent, path, flags, mode);                  \
  }
OPENING_AT(openat)
OPENING_AT(openat64)

ssize_t write(int file, const void *data, size_t size) {
  long result;
  if (!fails_on_file(WRITE, file, &result)) return REAL(write)(file, data, size);
  if (result < 0) return failure(result);
  return REAL(write)(file, data, (size_t)result < size ? (size_t)result : size);
}

// Part of a write, as a kernel may do it even where O_DIRECT would not let anybody ask for so few bytes.
static ssize_t cut_pwrite(int file, const void *data, size_t size, off_t offset) {
  ssize_t written = REAL(pwrite)(file, data, size, offset);
  if (written >= 0 || errno != EINVAL) return written;
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  const int again = REAL(open)(link, O_WRONLY | O_CLOEXEC);
  if (again < 0) return -1;
  written = REAL(pwrite)(again, data, size, offset);
  close(again);
  return written;
}

#define PWRITING(name)                                                                                \
  ssize_t name(int file, const void *data, size_t size, off_t offset) {                              \
    long result;                                                                                      \
    if (!fails_on_file(PWRITE, file, &result)) return REAL(name)(file, data, size, offset);           \
    if (result < 0) return failure(result);                                                           \
    return cut_pwrite(file, data, (size_t)result < size ? (size_t)result : size, offset);             \
  }
PWRITING(pwrite)
PWRITING(pwrite64)

#define ON_FILE(call, name, declared, given)                             \
  int name declared {                                                    \
    long result;                                                         \
    if (fails_on_file(call, file, &result)) return failure(result);      \
    return REAL(name) given;                                             \
  }
ON_FILE(FSYNC, fsync, (int file), (file))
ON_FILE(FSYNC, fdatasync, (int file), (file))
ON_FILE(FALLOCATE, fallocate, (int file, int mode, off_t offset, off_t size), (file, mode, offset, size))
ON_FILE(FALLOCATE, fallocate64, (int file, int mode, off_t offset, off_t size), (file, mode, offset, size))
ON_FILE(FTRUNCATE, ftruncate, (int file, off_t size), (file, size))
ON_FILE(FTRUNCATE, ftruncate64, (int file, off_t size), (file, size))

#define ON_PATH(call, name, declared, given)                    \
  int name declared {                                           \
    long result;                                                \
    if (fails(call, path, &result)) return failure(result);     \
    return REAL(name) given;                                    \
  }
ON_PATH(RENAME, rename, (const char *path, const char *to), (path, to))
ON_PATH(RENAME, renameat, (int from, const char *path, int there, const char *to), (from, path, there, to))
ON_PATH(MKDIR, mkdir, (const char *path, mode_t mode), (path, mode))
ON_PATH(UNLINK, unlink, (const char *path), (path))
ON_PATH(UNLINK, unlinkat, (int parent, const char *path, int flags), (parent, path, flags))

#define CONTROLLING(name)                                                               \
  int name(int file, int command, ...) {                                                \
    va_list more;                                                                       \
    va_start(more, command);                                                            \
    const long value = va_arg(more, long);                                              \
    va_end(more);                                                                       \
    if (no_direct_io && command == F_SETFL && (value & O_DIRECT)) return failure(-EINVAL); \
    return REAL(name)(file, command, value);                                            \
  }
CONTROLLING(fcntl)
CONTROLLING(fcntl64)

// io_uring's writes are no calls: they are found in its queue when it is told of them, and can only be cut.
static struct ring {
  struct io_uring_params params;
  unsigned char *queues;
  struct io_uring_sqe *entries;
} rings[64];

static struct ring *ring_of(long file) { return file >= 0 && file < 64 ? &rings[file] : NULL; }

void *mmap(void *wish, size_t size, int access, int flags, int file, off_t offset) {
  void *memory = REAL(mmap)(wish, size, access, flags, file, offset);
  struct ring *ring = ring_of(file);
  if (ring != NULL && ring->params.sq_entries > 0 && ring->entries == NULL) {
    if (offset == IORING_OFF_SQ_RING) ring->queues = memory;
    if (offset == IORING_OFF_SQES) ring->entries = memory;
  }
  return memory;
}

static void cut_last_entry(struct ring *ring) {
  const struct io_sqring_offsets *at = &ring->params.sq_off;
  const unsigned tail = *(unsigned *)(ring->queues + at->tail), mask = *(unsigned *)(ring->queues + at->ring_mask);
  struct io_uring_sqe *entry = &ring->entries[((unsigned *)(ring->queues + at->array))[(tail - 1) & mask]];
  long result;
  if (entry->opcode != IORING_OP_WRITE || !fails_on_file(IO_URING, entry->fd, &result)) return;
  if (result > 0 && result < entry->len) entry->len = (unsigned)result;
}

long syscall(long number, ...) {
  long argument[6];
  va_list more;
  va_start(more, number);
  for (int i = 0; i < 6; ++i) argument[i] = va_arg(more, long);
  va_end(more);
  if (no_io_uring && number == __NR_io_uring_setup) return failure(-EPERM);
  struct ring *ring = number == __NR_io_uring_enter ? ring_of(argument[0]) : NULL;
  if (ring != NULL && ring->entries != NULL && argument[1] > 0) cut_last_entry(ring);
  const long result =
      REAL(syscall)(number, argument[0], argument[1], argument[2], argument[3], argument[4], argument[5]);
  if (number == __NR_io_uring_setup && (ring = ring_of(result)) != NULL) {
    *ring = (struct ring){.params = *(struct io_uring_params *)argument[1]};
  }
  return result;
}
