/* Files on Windows. */
#ifdef _WIN32

#define WIN32_LEAN_AND_MEAN
#include <windows.h>

#include <stdlib.h>

#include "internal.h"

enum { MOST_BYTES_PER_READ = 1 << 30 }; /* ReadFile counts in 32 bits */

static int fail_last(hilum_error *error, enum hilum_status status, const char *field,
                     uint64_t offset) {
  return hilum_fail_system(error, status, field, offset, (int32_t)GetLastError());
}

int hilum_file_open(const char *path, hilum_file *file, uint64_t *n_bytes, hilum_error *error) {
  int n_units = MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, NULL, 0);
  if (n_units <= 0) return fail_last(error, HILUM_ERR_OPEN, "path", 0);
  wchar_t *wide = malloc((size_t)n_units * sizeof *wide);
  if (wide == NULL) return hilum_fail(error, HILUM_ERR_MEMORY, "path", 0, 0, 0);
  (void)MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, wide, n_units);
  /* Nobody may write while it is open, so nobody can cut it. A path may name a pipe, whose server
   * may know us but must not act in our name. */
  const DWORD flags =
      FILE_ATTRIBUTE_NORMAL | SECURITY_SQOS_PRESENT | SECURITY_IDENTIFICATION;
  HANDLE handle = CreateFileW(wide, GENERIC_READ, FILE_SHARE_READ | FILE_SHARE_DELETE, NULL,
                              OPEN_EXISTING, flags, NULL);
  DWORD reason = GetLastError();
  free(wide);
  if (handle == INVALID_HANDLE_VALUE) {
    return hilum_fail_system(error, HILUM_ERR_OPEN, "path", 0, (int32_t)reason);
  }
  file->handle = handle;
  file->is_open = true;

  DWORD type = GetFileType(handle);
  if (type != FILE_TYPE_DISK) {
    return hilum_fail(error, HILUM_ERR_NOT_A_CONTAINER, "file_type", 0, type, FILE_TYPE_DISK);
  }
  LARGE_INTEGER size;
  if (!GetFileSizeEx(handle, &size)) return fail_last(error, HILUM_ERR_OPEN, "path", 0);
  *n_bytes = (uint64_t)size.QuadPart;
  return HILUM_OK;
}

int hilum_file_read(const hilum_file *file, uint64_t offset, void *out, uint64_t n_bytes,
                    hilum_error *error) {
  unsigned char *next = out;
  const uint64_t end = offset + n_bytes;
  while (n_bytes > 0) {
    DWORD wanted = n_bytes < MOST_BYTES_PER_READ ? (DWORD)n_bytes : (DWORD)MOST_BYTES_PER_READ;
    DWORD got = 0;
    OVERLAPPED where = {0}; /* a position of its own for each call, as pread has */
    where.Offset = (DWORD)(offset & 0xFFFFFFFFu);
    where.OffsetHigh = (DWORD)(offset >> 32);
    if (!ReadFile(file->handle, next, wanted, &got, &where) &&
        GetLastError() != ERROR_HANDLE_EOF) {
      return fail_last(error, HILUM_ERR_READ, "file", offset);
    }
    if (got == 0) return hilum_fail(error, HILUM_ERR_TRUNCATED, "file", offset, offset, end);
    next += got;
    offset += got;
    n_bytes -= got;
  }
  return HILUM_OK;
}

void *hilum_file_map(const hilum_file *file, uint64_t n_bytes) {
  HANDLE section = CreateFileMappingW(file->handle, NULL, PAGE_READONLY, (DWORD)(n_bytes >> 32),
                                      (DWORD)(n_bytes & 0xFFFFFFFFu), NULL);
  if (section == NULL) return NULL;
  void *mapping = MapViewOfFile(section, FILE_MAP_READ, 0, 0, (SIZE_T)n_bytes);
  CloseHandle(section); /* the view keeps it alive */
  return mapping;
}

void hilum_file_unmap(void *mapping, uint64_t n_bytes) {
  (void)n_bytes;
  (void)UnmapViewOfFile(mapping);
}

void hilum_file_close(hilum_file *file) {
  if (file->is_open) (void)CloseHandle(file->handle);
  file->is_open = false;
}

#else
typedef int hilum_no_windows; /* ISO C forbids an empty translation unit */
#endif
