/* libFuzzer target: open any bytes, then touch everything the library shows of them. */
#include <stdlib.h>
#include <string.h>

#include "internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Keeps the compiler from leaving the reads out. */
static volatile unsigned char sink;

static void touch(const void *bytes, uint64_t n_bytes) {
  unsigned char all = 0;
  for (uint64_t i = 0; i < n_bytes; i++) all ^= ((const unsigned char *)bytes)[i];
  sink = all;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  /* Aligned, and of exactly this size: AddressSanitizer sees the first byte too far. */
  unsigned char *bytes = malloc(size > 0 ? size : 1);
  if (bytes == NULL) return 0;
  if (size > 0) memcpy(bytes, data, size);
  hilum_container *container;
  hilum_error error;
  if (hilum_open_memory(bytes, size, &container, &error) == HILUM_OK) {
    const hilum_header *header = hilum_get_header(container);
    touch(hilum_features(container), header->features.length);
    if (hilum_scales(container) != NULL) touch(hilum_scales(container), header->scales.length);
    for (uint32_t i = 0; i < header->n_columns; i++) {
      touch(hilum_column_data(container, i), header->columns[i].length);
      touch(header->columns[i].name, strlen(header->columns[i].name));
    }
    touch(hilum_notes(container), header->notes.length);
    for (uint64_t chunk = 0; chunk < hilum_n_chunks(container); chunk++) {
      (void)hilum_verify_chunk(container, chunk, &error);
    }
    const uint64_t row_bytes = header->features.length / header->n_rows;
    void *row = malloc((size_t)row_bytes);
    if (row != NULL &&
        hilum_read_rows(container, header->n_rows - 1, 1, row, row_bytes, &error) == HILUM_OK) {
      touch(row, row_bytes);
    }
    free(row);
    hilum_close(container);
  } else if (container != NULL || error.status == HILUM_OK) {
    abort(); /* a failure must leave nothing and say what it was */
  }
  free(bytes);
  return 0;
}
