/* Tests of the heap: nothing a file says makes opening take more than the file's size plus 1 MiB,
 * no failure leaves anything behind, and what was checked is the copy and not the file.
 *
 *     test_allocations FILE...      (golden containers, fine and corrupt) */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "allocations.h"
#include "internal.h"

static unsigned long n_opens;
static unsigned long n_failures;

static void fault(const char *what, const char *path, uint64_t value) {
  n_failures++;
  if (n_failures <= 20) {
    fprintf(stderr, "%s: %s (%llu)\n", path, what, (unsigned long long)value);
  }
}

/* Opens and closes bytes; path NULL: from memory. Answers the bytes that opening asked for. */
static uint64_t open_counted(const char *path, uint32_t mode, const unsigned char *bytes,
                             uint64_t n_bytes, uint64_t most_bytes, int *status) {
  hilum_container *container = NULL;
  hilum_error error;
  allocations_start(most_bytes);
  *status = path != NULL ? hilum_open(path, mode, &container, &error)
                         : hilum_open_memory(bytes, n_bytes, &container, &error);
  const uint64_t asked = allocations_bytes;
  hilum_close(container);
  allocations_stop();
  if (allocations_alive != 0) fault("blocks left behind", "heap", (uint64_t)allocations_alive);
  n_opens++;
  return asked;
}

static void seal_header(unsigned char *bytes) {
  const uint32_t crc = hilum_crc32c(0, bytes, HILUM_HEADER_BYTES - sizeof crc);
  memcpy(bytes + HILUM_HEADER_BYTES - sizeof crc, &crc, sizeof crc);
}

/* Each number of the header that stands for an amount, as large as its field allows, and less. */
static void test_hostile_header(const char *path, const unsigned char *bytes, uint64_t n_bytes) {
  static const struct {
    size_t offset;
    size_t size;
  } AMOUNTS[] = {
      {offsetof(hilum_header, file_size), 8},       {offsetof(hilum_header, n_rows), 8},
      {offsetof(hilum_header, dim), 4},             {offsetof(hilum_header, n_columns), 1},
      {offsetof(hilum_header, features.length), 8}, {offsetof(hilum_header, scales.length), 8},
      {offsetof(hilum_header, table.length), 8},    {offsetof(hilum_header, notes.length), 8},
      {offsetof(hilum_header, table.offset), 8},    {offsetof(hilum_header, notes.offset), 8},
  };
  static const struct {
    size_t offset;
    size_t size;
  } OF_A_COLUMN[] = {
      {offsetof(hilum_column, width), 4},
      {offsetof(hilum_column, offset), 8},
      {offsetof(hilum_column, length), 8},
      {offsetof(hilum_column, n_values), 4},
  };
  static const uint64_t VALUES[] = {0,          1,          33,         65536,      1048576,
                                    1ull << 30, 0x7FFFFFFF, 0xFFFFFFFF, 1ull << 40, 1ull << 62,
                                    1ull << 63, UINT64_MAX};
  unsigned char *spoilt = malloc((size_t)n_bytes);
  if (spoilt == NULL) exit(3);
  const size_t n_plain = sizeof AMOUNTS / sizeof AMOUNTS[0];
  const size_t n_fields = n_plain + 4 * 32;
  for (size_t field = 0; field < n_fields; field++) {
    const size_t column = (field - n_plain) / 4;
    const size_t member = (field - n_plain) % 4;
    const size_t offset = field < n_plain ? AMOUNTS[field].offset
                                          : offsetof(hilum_header, columns) +
                                                column * sizeof(hilum_column) +
                                                OF_A_COLUMN[member].offset;
    const size_t size = field < n_plain ? AMOUNTS[field].size : OF_A_COLUMN[member].size;
    for (size_t i = 0; i < sizeof VALUES / sizeof VALUES[0]; i++) {
      int status;
      memcpy(spoilt, bytes, (size_t)n_bytes);
      memcpy(spoilt + offset, &VALUES[i], size); /* little-endian: the low bytes */
      seal_header(spoilt);
      open_counted(NULL, 0, spoilt, n_bytes, n_bytes + ALLOCATION_ALLOWANCE_BYTES, &status);
      if (allocations_too_many) fault("opening asked for more than size + 1 MiB", path, offset);
      if (status == HILUM_ERR_MEMORY) fault("out of memory by what a header says", path, offset);
    }
  }
  free(spoilt);
}

/* A heap that gives less and less: every refused request is HILUM_ERR_MEMORY and leaks nothing. */
static void test_exhausted(const char *path, const unsigned char *bytes, uint64_t n_bytes) {
  int status;
  const uint64_t needed = open_counted(NULL, 0, bytes, n_bytes, UINT64_MAX, &status);
  if (status != HILUM_OK) return;
  if (needed > n_bytes + ALLOCATION_ALLOWANCE_BYTES) {
    fault("size + 1 MiB exceeded", path, needed);
    return;
  }
  for (uint64_t most = 0; most < needed; most++) {
    open_counted(NULL, 0, bytes, n_bytes, most, &status);
    if (status != HILUM_ERR_MEMORY) fault("not told that memory ran out", path, most);
  }
  open_counted(NULL, 0, bytes, n_bytes, needed, &status);
  if (status != HILUM_OK) fault("needs more than it asked for", path, needed);
}

/* ---- a file that changes while it is being opened -------------------------------------- */

static struct {
  unsigned char *bytes;
  hilum_section loaded[2 + HILUM_MAX_COLUMNS + 1]; /* in the order in which opening reads them */
  size_t n_sections;
  size_t n_allocations;
} changing;

/* The container is allocated first, and then a block for each section: when one is asked for, what
 * came before has been read. It is spoilt here: a second look at it would find something else. */
static void spoil_what_was_read(void) {
  const size_t n = changing.n_allocations++;
  if (n == 0 || n > changing.n_sections) return;
  const hilum_section *section = &changing.loaded[n - 1];
  for (uint64_t i = 0; i < section->length; i++) changing.bytes[section->offset + i] ^= 0xFF;
}

static void test_changing(const char *path, const unsigned char *bytes, uint64_t n_bytes) {
  hilum_header header;
  unsigned char *source = malloc((size_t)n_bytes);
  if (source == NULL) exit(3);
  memcpy(source, bytes, (size_t)n_bytes);
  memcpy(&header, bytes, sizeof header);
  memset(&changing, 0, sizeof changing);
  changing.bytes = source;
  changing.loaded[changing.n_sections++] = (hilum_section){0, HILUM_HEADER_BYTES};
  changing.loaded[changing.n_sections++] = header.table;
  if (header.dtype == HILUM_DTYPE_I8) changing.loaded[changing.n_sections++] = header.scales;
  for (uint32_t i = 0; i < header.n_columns; i++) {
    changing.loaded[changing.n_sections++] =
        (hilum_section){header.columns[i].offset, header.columns[i].length};
  }
  hilum_container *container = NULL;
  hilum_error error;
  allocations_hook = spoil_what_was_read;
  allocations_start(UINT64_MAX);
  const int status = hilum_open_memory(source, n_bytes, &container, &error);
  allocations_stop();
  allocations_hook = NULL;
  n_opens++;
  if (status != HILUM_OK) {
    fault("what was read is looked at again", path, error.offset);
  } else {
    bool same = memcmp(hilum_get_header(container), &header, sizeof header) == 0 &&
                memcmp(source, &header, sizeof header) != 0;
    for (uint32_t i = 0; i < header.n_columns; i++) {
      same = same && memcmp(hilum_column_data(container, i), bytes + header.columns[i].offset,
                            (size_t)header.columns[i].length) == 0;
    }
    if (!same) fault("shows what was not checked", path, 0);
    hilum_container *unchanged = NULL;
    if (hilum_open_memory(bytes, n_bytes, &unchanged, NULL) != HILUM_OK ||
        hilum_verify_chunk(container, 0, NULL) != hilum_verify_chunk(unchanged, 0, NULL)) {
      fault("the table is looked at again", path, header.table.offset);
    }
    hilum_close(unchanged);
  }
  hilum_close(container);
  free(source);
}

static void test_file(const char *path) {
  FILE *stream = fopen(path, "rb");
  if (stream == NULL || fseek(stream, 0, SEEK_END) != 0) {
    fprintf(stderr, "cannot read %s\n", path);
    exit(3);
  }
  const uint64_t n_bytes = (uint64_t)ftell(stream);
  rewind(stream);
  unsigned char *bytes = malloc((size_t)n_bytes + 1);
  if (bytes == NULL || fread(bytes, 1, (size_t)n_bytes, stream) != n_bytes) exit(3);
  fclose(stream);

  int from_memory;
  const uint64_t most = n_bytes + ALLOCATION_ALLOWANCE_BYTES;
  open_counted(NULL, 0, bytes, n_bytes, most, &from_memory);
  if (allocations_too_many) fault("opening asked for more than size + 1 MiB", path, n_bytes);
  for (uint32_t mode = HILUM_MODE_MMAP; mode <= HILUM_MODE_READ; mode++) {
    int status;
    open_counted(path, mode, NULL, 0, most, &status);
    if (allocations_too_many) fault("opening asked for more than size + 1 MiB", path, n_bytes);
    if (status != from_memory) fault("the file says another status than its bytes", path, mode);
  }
  if (n_bytes >= HILUM_HEADER_BYTES) test_hostile_header(path, bytes, n_bytes);
  test_exhausted(path, bytes, n_bytes);
  if (from_memory == HILUM_OK) test_changing(path, bytes, n_bytes);
  free(bytes);
}

int main(int argc, char **argv) {
  if (argc < 2) {
    fprintf(stderr, "usage: test_allocations FILE...\n");
    return 2;
  }
  for (int i = 1; i < argc; i++) test_file(argv[i]);
  printf("%d files, %lu opens, %lu faults\n", argc - 1, n_opens, n_failures);
  return n_failures == 0 ? 0 : 1;
}
