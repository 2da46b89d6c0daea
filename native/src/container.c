/* Opening, viewing and closing a container. */
#include <stdlib.h>
#include <string.h>

#include "internal.h"

/* Exactly n_bytes at offset, from wherever the container lives. */
static int read_source(const hilum_source *source, uint64_t offset, void *out, uint64_t n_bytes,
                       hilum_error *error) {
  if (offset > source->n_bytes || n_bytes > source->n_bytes - offset) {
    return hilum_fail(error, HILUM_ERR_TRUNCATED, "file", offset, source->n_bytes, n_bytes);
  }
  if (source->memory != NULL) {
    memcpy(out, source->memory + offset, (size_t)n_bytes);
    return HILUM_OK;
  }
  return hilum_file_read(&source->file, offset, out, n_bytes, error);
}

/* Reads a section into the heap and compares its checksum. *out is freed by hilum_close. */
static int load_section(const hilum_container *container, const char *field, uint64_t offset,
                        uint64_t length, void **out, hilum_error *error) {
  *out = malloc((size_t)length); /* never 0, never more than the file: check_layout */
  if (*out == NULL) return hilum_fail(error, HILUM_ERR_MEMORY, field, offset, 0, length);
  return read_source(&container->source, offset, *out, length, error);
}

static int check_crc(enum hilum_status status, const char *field, uint64_t offset,
                     const void *bytes, uint64_t length, uint32_t expected, hilum_error *error) {
  const uint32_t found = hilum_crc32c(0, bytes, length);
  if (hilum_crc_differs(found, expected)) {
    return hilum_fail(error, status, field, offset, found, expected);
  }
  return HILUM_OK;
}

/* The bytes between the end of one section and the next multiple of 64 are zero. */
static int check_gap(const hilum_container *container, uint64_t end, hilum_error *error) {
  unsigned char gap[HILUM_ALIGNMENT_BYTES];
  const uint64_t n = (HILUM_ALIGNMENT_BYTES - end % HILUM_ALIGNMENT_BYTES) % HILUM_ALIGNMENT_BYTES;
  if (n == 0) return HILUM_OK;
  TRY(read_source(&container->source, end, gap, n, error));
  for (uint64_t i = 0; i < n; i++) {
    if (gap[i] != 0) return hilum_fail(error, HILUM_ERR_PADDING, "gap", end + i, gap[i], 0);
  }
  return HILUM_OK;
}

static bool float_is_finite(uint32_t bits) { return (bits & 0x7F800000u) != 0x7F800000u; }

static int load_table(hilum_container *container, hilum_error *error) {
  const hilum_header *header = &container->header;
  void *bytes = NULL;
  const int status = load_section(container, "table", header->table.offset, header->table.length,
                                  &bytes, error);
  container->table = bytes;
  TRY(status);
  return check_crc(HILUM_ERR_TABLE_CRC, "table", header->table.offset, bytes,
                   header->table.length, header->table_crc32c, error);
}

static int load_scales(hilum_container *container, hilum_error *error) {
  const hilum_header *header = &container->header;
  if (header->dtype != HILUM_DTYPE_I8) return HILUM_OK;
  void *bytes = NULL;
  const int status = load_section(container, "scales", header->scales.offset,
                                  header->scales.length, &bytes, error);
  container->scales = bytes;
  TRY(status);
  TRY(check_crc(HILUM_ERR_SCALES_CRC, "scales", header->scales.offset, bytes,
                header->scales.length, container->table[container->n_chunks], error));
  if ((header->compatible & HILUM_COMPATIBLE_ALL_FINITE) == 0) return HILUM_OK;
  for (uint32_t i = 0; i < header->dim; i++) {
    /* The largest element times its scale is a feature: it is to be finite too. */
    const float largest = container->scales[i] * 127.0f;
    uint32_t bits;
    memcpy(&bits, &largest, sizeof bits);
    if (!float_is_finite(bits)) {
      memcpy(&bits, &container->scales[i], sizeof bits);
      return hilum_fail(error, HILUM_ERR_NOT_FINITE, "scales",
                        header->scales.offset + i * sizeof bits, bits, 0);
    }
  }
  return HILUM_OK;
}

static int load_columns(hilum_container *container, hilum_error *error) {
  const hilum_header *header = &container->header;
  for (uint32_t i = 0; i < header->n_columns; i++) {
    const hilum_column *column = &header->columns[i];
    TRY(load_section(container, column->name, column->offset, column->length,
                     &container->columns[i], error));
    TRY(check_crc(HILUM_ERR_COLUMN_CRC, column->name, column->offset, container->columns[i],
                  column->length, column->crc32c, error));
    TRY(hilum_check_column_values(header, i, container->columns[i], error));
    TRY(check_gap(container, column->offset + column->length, error));
  }
  return hilum_check_groups(header, container->columns, error);
}

static int load_notes(hilum_container *container, hilum_error *error) {
  const hilum_header *header = &container->header;
  void *bytes = NULL;
  const int status = load_section(container, "notes", header->notes.offset, header->notes.length,
                                  &bytes, error);
  container->notes = bytes;
  TRY(status);
  return check_crc(HILUM_ERR_NOTES_CRC, "notes", header->notes.offset, bytes,
                   header->notes.length, header->notes_crc32c, error);
}

/* Everything but the features themselves, from container->source. */
static int load(hilum_container *container, hilum_error *error) {
  const hilum_source *source = &container->source;
  hilum_header *header = &container->header;
  if (source->n_bytes < HILUM_HEADER_BYTES) {
    unsigned char first[HILUM_MAGIC_BYTES] = {0};
    const uint64_t n = source->n_bytes < sizeof first ? source->n_bytes : sizeof first;
    TRY(read_source(source, 0, first, n, error));
    return hilum_check_magic(first, source->n_bytes, error); /* always fails */
  }
  TRY(read_source(source, 0, header, sizeof *header, error));
  TRY(hilum_check_header(header, source->n_bytes, error));

  const uint64_t chunk_rows = (uint64_t)1 << HILUM_CHUNK_LOG2;
  container->n_chunks = (header->n_rows + chunk_rows - 1) / chunk_rows;
  container->row_bytes = header->dim * hilum_dtype_bytes(header->dtype);
  TRY(check_gap(container, header->features.offset + header->features.length, error));
  TRY(load_table(container, error)); /* before the scales, whose checksum it holds */
  TRY(check_gap(container, header->table.offset + header->table.length, error));
  TRY(load_scales(container, error));
  TRY(check_gap(container, header->scales.offset + header->scales.length, error));
  TRY(load_columns(container, error));
  return load_notes(container, error);
}

static void map_features(hilum_container *container) {
  const hilum_section *features = &container->header.features;
  const uint64_t n_bytes = features->offset + features->length;
  container->mapping = hilum_file_map(&container->source.file, n_bytes);
  if (container->mapping == NULL) return; /* ENODEV and the like: stay in HILUM_MODE_READ */
  container->mapping_bytes = n_bytes;
  container->features = (const unsigned char *)container->mapping + features->offset;
}

int hilum_open(const char *path, uint32_t mode, hilum_container **out, hilum_error *error) {
  hilum_clear_error(error);
  if (out == NULL) return hilum_fail(error, HILUM_ERR_ARGUMENT, "out", 0, 0, 0);
  *out = NULL;
  if (path == NULL) return hilum_fail(error, HILUM_ERR_ARGUMENT, "path", 0, 0, 0);
  if (mode != HILUM_MODE_MMAP && mode != HILUM_MODE_READ) {
    return hilum_fail(error, HILUM_ERR_ARGUMENT, "mode", 0, mode, HILUM_MODE_READ);
  }
  hilum_container *container = calloc(1, sizeof *container);
  if (container == NULL) {
    return hilum_fail(error, HILUM_ERR_MEMORY, "container", 0, 0, sizeof *container);
  }
  int status =
      hilum_file_open(path, &container->source.file, &container->source.n_bytes, error);
  if (status == HILUM_OK) status = load(container, error);
  if (status != HILUM_OK) {
    hilum_close(container);
    return status;
  }
  if (mode == HILUM_MODE_MMAP) map_features(container);
  *out = container;
  return HILUM_OK;
}

int hilum_open_memory(const void *bytes, uint64_t n_bytes, hilum_container **out,
                      hilum_error *error) {
  hilum_clear_error(error);
  if (out == NULL) return hilum_fail(error, HILUM_ERR_ARGUMENT, "out", 0, 0, 0);
  *out = NULL;
  if (bytes == NULL) return hilum_fail(error, HILUM_ERR_ARGUMENT, "bytes", 0, 0, 0);
  /* hilum_features hands these bytes out as floats. */
  if ((uintptr_t)bytes % sizeof(float) != 0) {
    return hilum_fail(error, HILUM_ERR_ARGUMENT, "bytes", 0, (uintptr_t)bytes % sizeof(float), 0);
  }
  hilum_container *container = calloc(1, sizeof *container);
  if (container == NULL) {
    return hilum_fail(error, HILUM_ERR_MEMORY, "container", 0, 0, sizeof *container);
  }
  container->source.memory = bytes;
  container->source.n_bytes = n_bytes;
  const int status = load(container, error);
  if (status != HILUM_OK) {
    hilum_close(container);
    return status;
  }
  container->features = container->source.memory + container->header.features.offset;
  *out = container;
  return HILUM_OK;
}

void hilum_close(hilum_container *container) {
  if (container == NULL) return;
  if (container->mapping != NULL) {
    hilum_file_unmap(container->mapping, container->mapping_bytes);
  }
  hilum_file_close(&container->source.file);
  for (uint32_t i = 0; i < HILUM_MAX_COLUMNS; i++) free(container->columns[i]);
  free(container->scales);
  free(container->table);
  free(container->notes);
  free(container);
}

/* ---- views ----------------------------------------------------------------------------- */

const hilum_header *hilum_get_header(const hilum_container *container) {
  return container == NULL ? NULL : &container->header;
}

const void *hilum_features(const hilum_container *container) {
  return container == NULL ? NULL : container->features;
}

const float *hilum_scales(const hilum_container *container) {
  return container == NULL ? NULL : container->scales;
}

const void *hilum_column_data(const hilum_container *container, uint32_t index) {
  if (container == NULL || index >= container->header.n_columns) return NULL;
  return container->columns[index];
}

const char *hilum_notes(const hilum_container *container) {
  return container == NULL ? NULL : container->notes;
}

uint64_t hilum_n_chunks(const hilum_container *container) {
  return container == NULL ? 0 : container->n_chunks;
}

/* ---- reading --------------------------------------------------------------------------- */

int hilum_read_rows(const hilum_container *container, uint64_t first_row, uint64_t n_rows,
                    void *out, uint64_t out_bytes, hilum_error *error) {
  hilum_clear_error(error);
  if (container == NULL) return hilum_fail(error, HILUM_ERR_ARGUMENT, "container", 0, 0, 0);
  const hilum_header *header = &container->header;
  if (first_row > header->n_rows) {
    return hilum_fail(error, HILUM_ERR_ARGUMENT, "first_row", 0, first_row, header->n_rows);
  }
  if (n_rows > header->n_rows - first_row) {
    return hilum_fail(error, HILUM_ERR_ARGUMENT, "n_rows", 0, n_rows, header->n_rows - first_row);
  }
  const uint64_t n_bytes = n_rows * container->row_bytes; /* at most features.length */
  if (out_bytes != n_bytes) {
    return hilum_fail(error, HILUM_ERR_ARGUMENT, "out_bytes", 0, out_bytes, n_bytes);
  }
  if (n_bytes == 0) return HILUM_OK;
  if (out == NULL) return hilum_fail(error, HILUM_ERR_ARGUMENT, "out", 0, 0, 0);
  const uint64_t start = first_row * container->row_bytes;
  if (container->features != NULL) {
    memcpy(out, container->features + start, (size_t)n_bytes);
    return HILUM_OK;
  }
  return read_source(&container->source, header->features.offset + start, out, n_bytes, error);
}

/* ---- verifying ------------------------------------------------------------------------- */

enum { VERIFY_BYTES = 32768 }; /* on the stack, in the L1 or L2 cache of any CPU */

/* Index of the first value that is not finite, or n. */
static uint64_t first_not_finite_f32(const unsigned char *bytes, uint64_t n) {
  for (uint64_t i = 0; i < n; i++) {
    uint32_t bits;
    memcpy(&bits, bytes + i * sizeof bits, sizeof bits);
    if (!float_is_finite(bits)) return i;
  }
  return n;
}

static uint64_t first_not_finite_f16(const unsigned char *bytes, uint64_t n) {
  for (uint64_t i = 0; i < n; i++) {
    uint16_t bits;
    memcpy(&bits, bytes + i * sizeof bits, sizeof bits);
    if ((bits & 0x7C00u) == 0x7C00u) return i;
  }
  return n;
}

int hilum_verify_chunk(const hilum_container *container, uint64_t chunk, hilum_error *error) {
  hilum_clear_error(error);
  if (container == NULL) return hilum_fail(error, HILUM_ERR_ARGUMENT, "container", 0, 0, 0);
  if (chunk >= container->n_chunks) {
    return hilum_fail(error, HILUM_ERR_ARGUMENT, "chunk", 0, chunk, container->n_chunks);
  }
  const hilum_header *header = &container->header;
  const uint64_t element_bytes = hilum_dtype_bytes(header->dtype);
  const uint64_t chunk_bytes = container->row_bytes << HILUM_CHUNK_LOG2;
  const uint64_t start = chunk * chunk_bytes;
  const uint64_t left = header->features.length - start;
  const uint64_t length = left < chunk_bytes ? left : chunk_bytes;
  const uint64_t offset = header->features.offset + start;
  const bool look = (header->compatible & HILUM_COMPATIBLE_ALL_FINITE) != 0 &&
                    header->dtype != HILUM_DTYPE_I8; /* its scales were looked at when opened */

  _Alignas(16) unsigned char buffer[VERIFY_BYTES]; /* a multiple of every element */
  uint32_t crc = 0;
  bool finite = true;
  uint64_t bad_offset = 0;
  uint64_t bad_bits = 0;
  for (uint64_t done = 0; done < length;) {
    const uint64_t n = length - done < VERIFY_BYTES ? length - done : VERIFY_BYTES;
    TRY(read_source(&container->source, offset + done, buffer, n, error));
    crc = hilum_crc32c(crc, buffer, n);
    if (look && finite) {
      const uint64_t n_elements = n / element_bytes;
      const uint64_t bad = header->dtype == HILUM_DTYPE_F32
                               ? first_not_finite_f32(buffer, n_elements)
                               : first_not_finite_f16(buffer, n_elements);
      if (bad < n_elements) {
        finite = false;
        bad_offset = offset + done + bad * element_bytes;
        memcpy(&bad_bits, buffer + bad * element_bytes, (size_t)element_bytes);
      }
    }
    done += n;
  }
  if (hilum_crc_differs(crc, container->table[chunk])) {
    return hilum_fail(error, HILUM_ERR_CHUNK_CRC, "features", offset, crc,
                      container->table[chunk]);
  }
  if (!finite) {
    return hilum_fail(error, HILUM_ERR_NOT_FINITE, "features", bad_offset, bad_bits, 0);
  }
  return HILUM_OK;
}
