/* Prints what a container holds and the mean of its first feature vector.
 *
 *     cc example.c $(pkg-config --cflags --libs hilum) -o example && ./example chest.hilum
 */
#include <hilum.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int fail(const char *path, const hilum_error *error) {
  if (error->system_error != 0) {
    fprintf(stderr, "%s: %s\n", path, strerror(error->system_error));
    return 1;
  }
  fprintf(stderr, "%s: %s: %s at byte %" PRIu64 ": found %" PRIu64 ", expected %" PRIu64 "\n",
          path, error->field, hilum_status_text(error->status), error->offset, error->found,
          error->expected);
  return 1;
}

/* IEEE 754 half to float; exact. */
static float half_to_float(uint16_t half) {
  const int exponent = half >> 10 & 31;
  const int mantissa = half & 1023;
  float value;
  if (exponent == 0) {
    value = (float)mantissa / 16777216.0f; /* 2^-24 */
  } else {                                 /* infinities do not occur: ALL_FINITE */
    value = (float)(mantissa + 1024) / 33554432.0f;
    for (int i = 0; i < exponent; i++) value *= 2.0f;
  }
  return (half & 0x8000) != 0 ? -value : value;
}

int main(int argc, char **argv) {
  if (argc != 2) {
    fprintf(stderr, "usage: example FILE.hilum\n");
    return 2;
  }
  hilum_container *container;
  hilum_error error;
  if (hilum_open(argv[1], HILUM_MODE_MMAP, &container, &error) != HILUM_OK) {
    return fail(argv[1], &error);
  }
  const hilum_header *header = hilum_get_header(container);
  printf("%" PRIu64 " rows of %" PRIu32 " features\n", header->n_rows, header->dim);
  for (uint32_t i = 0; i < header->n_columns; i++) printf("column %s\n", header->columns[i].name);

  /* Opening checked all but the features: 1024 rows at a time, so that it can be stopped. */
  int status = HILUM_OK;
  for (uint64_t chunk = 0; chunk < hilum_n_chunks(container) && status == HILUM_OK; chunk++) {
    status = hilum_verify_chunk(container, chunk, &error);
  }

  /* One row into our own memory. hilum_features gives all rows without a copy. */
  const uint64_t element_bytes = header->dtype == HILUM_DTYPE_F32   ? 4
                                 : header->dtype == HILUM_DTYPE_F16 ? 2
                                                                    : 1;
  const uint64_t row_bytes = header->dim * element_bytes;
  void *row = malloc((size_t)row_bytes);
  if (row == NULL) {
    hilum_close(container);
    return 1;
  }
  if (status == HILUM_OK) status = hilum_read_rows(container, 0, 1, row, row_bytes, &error);
  if (status == HILUM_OK) {
    double sum = 0.0;
    for (uint32_t i = 0; i < header->dim; i++) {
      if (header->dtype == HILUM_DTYPE_F32) {
        sum += ((const float *)row)[i];
      } else if (header->dtype == HILUM_DTYPE_F16) {
        sum += half_to_float(((const uint16_t *)row)[i]);
      } else {
        sum += ((const int8_t *)row)[i] * hilum_scales(container)[i];
      }
    }
    printf("mean of row 0: %.6f\n", sum / header->dim);
  }
  free(row);
  const int code = status == HILUM_OK ? 0 : fail(argv[1], &error);
  hilum_close(container); /* header, columns and notes end here */
  return code;
}
