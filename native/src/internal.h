/* What the source files share and no caller sees. */
#ifndef HILUM_INTERNAL_H
#define HILUM_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "hilum.h"

/* The header is used as it lies in the file, and features are handed out unconverted. */
#if defined(__BYTE_ORDER__)
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "libhilum reads little-endian files in place: big-endian hosts are not supported"
#endif
#elif !defined(_WIN32)
#error "libhilum cannot tell the byte order of this host"
#endif

_Static_assert(sizeof(size_t) == 8, "containers exceed a 32-bit address space");

/* An open file. Which member is used depends on the platform layer compiled. */
typedef struct hilum_file {
#ifdef _WIN32
  void *handle;
#else
  int descriptor;
#endif
  bool is_open;
} hilum_file;

/* Where bytes come from: memory when it is not NULL, else the file. */
typedef struct hilum_source {
  const unsigned char *memory;
  hilum_file file;
  uint64_t n_bytes;
} hilum_source;

struct hilum_container {
  hilum_source source;
  hilum_header header;           /* the copy every check was made on */
  const unsigned char *features; /* NULL in HILUM_MODE_READ */
  void *mapping;                 /* NULL unless mapped; starts at byte 0 of the file */
  uint64_t mapping_bytes;
  uint64_t row_bytes;
  uint64_t n_chunks;
  void *columns[HILUM_MAX_COLUMNS];
  float *scales;
  uint32_t *table;
  char *notes;
};

/* ---- errors (status.c) ----------------------------------------------------------------- */

void hilum_clear_error(hilum_error *error);

/* Fills error (may be NULL) and returns status: for return hilum_fail(...). */
int hilum_fail(hilum_error *error, enum hilum_status status, const char *field, uint64_t offset,
               uint64_t found, uint64_t expected);

int hilum_fail_system(hilum_error *error, enum hilum_status status, const char *field,
                      uint64_t offset, int32_t system_error);

/* Pass a failure on; never where something is to be freed first. */
#define TRY(call)                                  \
  do {                                             \
    const int try_status = (call);                 \
    if (try_status != HILUM_OK) return try_status; \
  } while (0)

/* ---- arithmetic ------------------------------------------------------------------------ */

/* Both answer false on overflow. Portable: MSVC has no __builtin_mul_overflow. */
static inline bool hilum_multiply(uint64_t a, uint64_t b, uint64_t *product) {
  if (a != 0 && b > UINT64_MAX / a) return false;
  *product = a * b;
  return true;
}

static inline bool hilum_add(uint64_t a, uint64_t b, uint64_t *sum) {
  if (b > UINT64_MAX - a) return false;
  *sum = a + b;
  return true;
}

/* The fuzzer cannot guess checksums, and would never get behind them. */
static inline bool hilum_crc_differs(uint32_t found, uint32_t expected) {
#ifdef HILUM_FUZZING
  (void)found;
  (void)expected;
  return false;
#else
  return found != expected;
#endif
}

/* ---- sizes (validate.c) ---------------------------------------------------------------- */

/* Bytes of one element, 0 for a type unknown to this version. */
uint64_t hilum_dtype_bytes(uint32_t dtype);
uint64_t hilum_type_bytes(uint32_t type);

/* ---- validation (validate.c) ----------------------------------------------------------- */

/* first: the min(n_bytes, 8) first bytes of a file of n_bytes. Is this a container at all? */
int hilum_check_magic(const unsigned char *first, uint64_t n_bytes, hilum_error *error);

/* Every rule on the header alone. After success offsets and lengths are the derived ones, do not
 * overlap and end at file_size, which is n_bytes. */
int hilum_check_header(const hilum_header *header, uint64_t n_bytes, hilum_error *error);

/* Every value of column index, its n_rows * width elements given. */
int hilum_check_column_values(const hilum_header *header, uint32_t index, const void *values,
                              hilum_error *error);

/* If flagged GROUP_CLEAN: no group has rows in two of train, valid and test.
 * columns: the data of all columns. */
int hilum_check_groups(const hilum_header *header, void *const *columns, hilum_error *error);

/* ---- checksums (crc32c.c) -------------------------------------------------------------- */

uint32_t hilum_crc32c_software(uint32_t crc, const void *bytes, uint64_t n_bytes);

/* The same by the CPU's instruction; only where hilum_crc32c_has_hardware() says true. */
uint32_t hilum_crc32c_hardware(uint32_t crc, const void *bytes, uint64_t n_bytes);
bool hilum_crc32c_has_hardware(void);

/* ---- the platform (platform_posix.c, platform_windows.c) ------------------------------- */

/* Opens a regular file for reading; never waits (a FIFO without a writer is refused). */
int hilum_file_open(const char *path, hilum_file *file, uint64_t *n_bytes, hilum_error *error);

/* Reads exactly n_bytes at offset. A file that ends earlier is HILUM_ERR_TRUNCATED. Does not move
 * a shared file position, so that threads may read at once. */
int hilum_file_read(const hilum_file *file, uint64_t offset, void *out, uint64_t n_bytes,
                    hilum_error *error);

/* Maps bytes [0, n_bytes) read-only; NULL where the system refuses. From 0 because an offset of
 * 4096 is no page boundary where pages have 16 or 64 KiB. */
void *hilum_file_map(const hilum_file *file, uint64_t n_bytes);
void hilum_file_unmap(void *mapping, uint64_t n_bytes);
void hilum_file_close(hilum_file *file);

#endif
