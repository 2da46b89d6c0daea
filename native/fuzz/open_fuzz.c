/* libFuzzer target: open any bytes, touch everything the library shows of them, and hold it to what
 * it promises. container_mutator.c makes the bytes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "allocations.h"
#include "internal.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A broken promise ends the run as a crash does, and says which one it was. */
#define PROMISE(condition)                                                 \
  do {                                                                     \
    if (!(condition)) {                                                    \
      fprintf(stderr, "%s:%d: broken: %s\n", __FILE__, __LINE__, #condition); \
      abort();                                                             \
    }                                                                      \
  } while (0)

/* Keeps the compiler from leaving the reads out. */
static volatile uint64_t sink;

/* Reads every byte, eight at a time. */
static void touch(const void *bytes, uint64_t n_bytes) {
  const unsigned char *next = bytes;
  uint64_t all = 0;
  for (; n_bytes >= 8; n_bytes -= 8, next += 8) {
    uint64_t word;
    memcpy(&word, next, sizeof word);
    all ^= word;
  }
  for (; n_bytes > 0; n_bytes--) all ^= *next++;
  sink = all;
}

static bool all_zero(const void *bytes, size_t n_bytes) {
  for (size_t i = 0; i < n_bytes; i++) {
    if (((const unsigned char *)bytes)[i] != 0) return false;
  }
  return true;
}

/* An error names its status, and its field is text that ends. */
static void look_at_error(int status, const hilum_error *error) {
  PROMISE(error->status == status);
  if (status == HILUM_OK) {
    PROMISE(all_zero(error, sizeof *error));
    return;
  }
  PROMISE(strcmp(hilum_status_text(status), hilum_status_text(-1)) != 0);
  const size_t length = strnlen(error->field, sizeof error->field);
  PROMISE(length > 0 && length < sizeof error->field);
  for (size_t i = 0; i < length; i++) {
    PROMISE(error->field[i] > ' ' && error->field[i] < 0x7F);
  }
}

static void look_at_columns(const hilum_container *container, const unsigned char *bytes) {
  const hilum_header *header = hilum_get_header(container);
  for (uint32_t i = 0; i < header->n_columns; i++) {
    const hilum_column *column = &header->columns[i];
    const unsigned char *data = hilum_column_data(container, i);
    PROMISE(memcmp(data, bytes + column->offset, (size_t)column->length) == 0);
    PROMISE(memchr(column->name, 0, sizeof column->name) != NULL);
    /* Said once more, and simply: every value is below n_values, a multi-label from -2 to 1. */
    const size_t element = (size_t)(column->length / header->n_rows / column->width);
    const bool multi_label = column->role == HILUM_ROLE_LABEL && column->type == HILUM_TYPE_I8;
    if (column->n_values == 0 && !multi_label) continue;
    for (uint64_t at = 0; at < column->length; at += element) {
      uint32_t value = 0;
      memcpy(&value, data + at, element);
      PROMISE(multi_label ? (uint8_t)(value + 2) < 4 : value < column->n_values);
    }
  }
  PROMISE(hilum_column_data(container, header->n_columns) == NULL);
  PROMISE(hilum_column_data(container, UINT32_MAX) == NULL);
}

/* GROUP_CLEAN by comparing all pairs of rows: only where they are few. */
static void look_at_groups(const hilum_container *container) {
  const hilum_header *header = hilum_get_header(container);
  if ((header->compatible & HILUM_COMPATIBLE_GROUP_CLEAN) == 0 || header->n_rows > 64) return;
  const uint32_t *groups = NULL;
  const uint8_t *splits = NULL;
  for (uint32_t i = 0; i < header->n_columns; i++) {
    if (strcmp(header->columns[i].name, "group") == 0) groups = hilum_column_data(container, i);
    if (strcmp(header->columns[i].name, "split") == 0) splits = hilum_column_data(container, i);
  }
  PROMISE(groups != NULL && splits != NULL);
  for (uint64_t a = 0; a < header->n_rows; a++) {
    for (uint64_t b = 0; b < a; b++) {
      PROMISE(groups[a] != groups[b] || splits[a] == splits[b] || splits[a] == HILUM_SPLIT_NONE ||
              splits[b] == HILUM_SPLIT_NONE);
    }
  }
}

static void look_at_chunks(const hilum_container *container) {
  const hilum_header *header = hilum_get_header(container);
  const uint64_t n_chunks = hilum_n_chunks(container);
  hilum_error error;
  PROMISE(n_chunks == (header->n_rows + 1023) / 1024);
  for (uint64_t chunk = 0; chunk < n_chunks; chunk++) {
    const int status = hilum_verify_chunk(container, chunk, &error);
    look_at_error(status, &error);
    PROMISE(status == HILUM_OK || (status == HILUM_ERR_NOT_FINITE &&
                                   (header->compatible & HILUM_COMPATIBLE_ALL_FINITE) != 0));
    PROMISE(hilum_verify_chunk(container, chunk, NULL) == status);
  }
  PROMISE(hilum_verify_chunk(container, n_chunks, &error) == HILUM_ERR_ARGUMENT);
  PROMISE(hilum_verify_chunk(container, UINT64_MAX, NULL) == HILUM_ERR_ARGUMENT);
}

/* Reads rows both ways: from what stands for the mapping, and through the path of READ mode. */
static void look_at_rows(hilum_container *container, const unsigned char *bytes, uint64_t first_row,
                         uint64_t n_rows) {
  const hilum_header *header = hilum_get_header(container);
  const uint64_t row_bytes = header->features.length / header->n_rows;
  const uint64_t n_bytes = n_rows * row_bytes;
  const unsigned char *expected = bytes + header->features.offset + first_row * row_bytes;
  const unsigned char *mapped = container->features;
  void *rows = malloc((size_t)n_bytes); /* exactly: AddressSanitizer sees a byte too many */
  if (rows == NULL) return;
  hilum_error error;
  for (int mode = HILUM_MODE_MMAP; mode <= HILUM_MODE_READ; mode++) {
    container->features = mode == HILUM_MODE_MMAP ? mapped : NULL;
    memset(rows, 0xA5, (size_t)n_bytes);
    PROMISE(hilum_read_rows(container, first_row, n_rows, rows, n_bytes, &error) == HILUM_OK);
    look_at_error(HILUM_OK, &error);
    PROMISE(memcmp(rows, expected, (size_t)n_bytes) == 0);
    PROMISE(hilum_read_rows(container, first_row, n_rows, rows, n_bytes - 1, &error) ==
            HILUM_ERR_ARGUMENT);
    PROMISE(hilum_read_rows(container, first_row, n_rows, rows, n_bytes + 1, NULL) ==
            HILUM_ERR_ARGUMENT);
    PROMISE(hilum_read_rows(container, first_row, n_rows, NULL, n_bytes, &error) ==
            HILUM_ERR_ARGUMENT);
    look_at_error(HILUM_ERR_ARGUMENT, &error);
    PROMISE(hilum_read_rows(container, header->n_rows - n_rows + 1, n_rows, rows, n_bytes, NULL) ==
            HILUM_ERR_ARGUMENT);
  }
  container->features = mapped;
  free(rows);
}

static void look_at_container(hilum_container *container, const unsigned char *bytes,
                              uint64_t size) {
  const hilum_header *header = hilum_get_header(container);
  PROMISE(memcmp(header, bytes, sizeof *header) == 0);
  PROMISE(header->file_size == size);
  PROMISE(header->notes.offset + header->notes.length == size);
  PROMISE(hilum_features(container) == bytes + HILUM_HEADER_BYTES);
  touch(hilum_features(container), header->features.length);
  PROMISE(memcmp(hilum_notes(container), bytes + header->notes.offset,
                 (size_t)header->notes.length) == 0);
  PROMISE((hilum_scales(container) != NULL) == (header->dtype == HILUM_DTYPE_I8));
  if (hilum_scales(container) != NULL) {
    PROMISE(memcmp(hilum_scales(container), bytes + header->scales.offset,
                   (size_t)header->scales.length) == 0);
  }
  look_at_columns(container, bytes);
  look_at_groups(container);
  look_at_chunks(container);

  const uint64_t n_rows = header->n_rows;
  look_at_rows(container, bytes, 0, 1);
  look_at_rows(container, bytes, n_rows / 2, 1);
  look_at_rows(container, bytes, n_rows - 1, 1);
  look_at_rows(container, bytes, n_rows / 3, n_rows - n_rows / 3);
  hilum_error error;
  PROMISE(hilum_read_rows(container, n_rows, 0, NULL, 0, &error) == HILUM_OK);
  PROMISE(hilum_read_rows(container, n_rows + 1, 0, NULL, 0, &error) == HILUM_ERR_ARGUMENT);
  PROMISE(hilum_read_rows(container, UINT64_MAX, 1, NULL, 1, NULL) == HILUM_ERR_ARGUMENT);
  unsigned char none; /* sums and products that wrap to what would be right */
  const uint64_t row_bytes = header->features.length / n_rows;
  PROMISE(hilum_read_rows(container, 1, UINT64_MAX, &none, UINT64_MAX * row_bytes, NULL) ==
          HILUM_ERR_ARGUMENT);
  const uint64_t too_many = UINT64_MAX / row_bytes + (row_bytes > 1 ? 1 : 0);
  PROMISE(hilum_read_rows(container, 0, too_many, &none, too_many * row_bytes, NULL) ==
          HILUM_ERR_ARGUMENT);
}

/* How many inputs came behind all checks: near 0, a run would say little. */
static unsigned long long n_inputs;
static unsigned long long n_opened;

static void say_counts(void) {
  fprintf(stderr, "%llu inputs, %llu of them opened\n", n_inputs, n_opened);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
  (void)argc;
  (void)argv;
  return atexit(say_counts);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  /* Aligned, and of exactly this size: AddressSanitizer sees the first byte too far. */
  unsigned char *bytes = malloc(size > 0 ? size : 1);
  if (bytes == NULL) return 0;
  if (size > 0) memcpy(bytes, data, size);

  hilum_container *container;
  hilum_error error;
  allocations_start(size + ALLOCATION_ALLOWANCE_BYTES);
  const int status = hilum_open_memory(bytes, size, &container, &error);
  PROMISE(!allocations_too_many);
  PROMISE((status == HILUM_OK) == (container != NULL));
  look_at_error(status, &error);
  n_inputs++;
  if (container != NULL) {
    n_opened++;
    allocations_counted = false;
    look_at_container(container, bytes, size);
    allocations_counted = true;
    hilum_close(container);
  }
  PROMISE(allocations_alive == 0);
  allocations_stop();

  /* Now and then: a caller who wants no details is told the same. */
  if (size % 8 == 0) {
    PROMISE(hilum_open_memory(bytes, size, &container, NULL) == status);
    hilum_close(container);
    PROMISE(hilum_crc32c(0, bytes, size) == hilum_crc32c_software(0, bytes, size));
  }
  free(bytes);
  return 0;
}
