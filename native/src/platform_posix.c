/* Files on POSIX systems. */
#ifndef _WIN32

#define _POSIX_C_SOURCE 200809L
#define _FILE_OFFSET_BITS 64

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "internal.h"

_Static_assert(sizeof(off_t) == 8, "files exceed a 32-bit offset");

/* Linux reads at most 2 GiB - 4 KiB at once, macOS refuses more than INT_MAX. */
enum { MOST_BYTES_PER_READ = 1 << 30 };

int hilum_file_open(const char *path, hilum_file *file, uint64_t *n_bytes, hilum_error *error) {
  /* O_NONBLOCK: opening a FIFO must not wait for a writer. It does nothing to regular files. */
  int descriptor;
  do {
    descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  } while (descriptor < 0 && errno == EINTR);
  if (descriptor < 0) return hilum_fail_system(error, HILUM_ERR_OPEN, "path", 0, errno);
  file->descriptor = descriptor;
  file->is_open = true;

  struct stat about;
  if (fstat(descriptor, &about) != 0) {
    return hilum_fail_system(error, HILUM_ERR_OPEN, "path", 0, errno);
  }
  if (S_ISDIR(about.st_mode)) return hilum_fail_system(error, HILUM_ERR_OPEN, "path", 0, EISDIR);
  if (!S_ISREG(about.st_mode)) {
    return hilum_fail(error, HILUM_ERR_NOT_A_CONTAINER, "file_type", 0,
                      (uint64_t)(about.st_mode & S_IFMT), S_IFREG);
  }
  *n_bytes = (uint64_t)about.st_size;
  return HILUM_OK;
}

int hilum_file_read(const hilum_file *file, uint64_t offset, void *out, uint64_t n_bytes,
                    hilum_error *error) {
  unsigned char *next = out;
  const uint64_t end = offset + n_bytes; /* the caller checked against the file's size */
  while (n_bytes > 0) {
    size_t wanted = n_bytes < MOST_BYTES_PER_READ ? (size_t)n_bytes : (size_t)MOST_BYTES_PER_READ;
    ssize_t got = pread(file->descriptor, next, wanted, (off_t)offset);
    if (got < 0) {
      if (errno == EINTR) continue;
      return hilum_fail_system(error, HILUM_ERR_READ, "file", offset, errno);
    }
    if (got == 0) return hilum_fail(error, HILUM_ERR_TRUNCATED, "file", offset, offset, end);
    next += got;
    offset += (uint64_t)got;
    n_bytes -= (uint64_t)got;
  }
  return HILUM_OK;
}

void *hilum_file_map(const hilum_file *file, uint64_t n_bytes) {
  /* MAP_PRIVATE: some FUSE and 9p mounts refuse MAP_SHARED; unwritten pages are shared anyway. */
  void *mapping = mmap(NULL, (size_t)n_bytes, PROT_READ, MAP_PRIVATE, file->descriptor, 0);
  return mapping == MAP_FAILED ? NULL : mapping;
}

void hilum_file_unmap(void *mapping, uint64_t n_bytes) { (void)munmap(mapping, (size_t)n_bytes); }

void hilum_file_close(hilum_file *file) {
  if (file->is_open) (void)close(file->descriptor); /* read-only: nothing can be lost */
  file->is_open = false;
}

#else
typedef int hilum_no_posix; /* ISO C forbids an empty translation unit */
#endif
