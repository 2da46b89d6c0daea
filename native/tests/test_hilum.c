/* Tests of the library: containers are built as bytes in memory, spoilt, and opened.
 *
 *     test_hilum FOLDER      (files are written there; example.hilum is left for the example)
 */
#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#endif

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

/* ---- counting -------------------------------------------------------------------------- */

static unsigned long n_checks;
static unsigned long n_failures;

static void check(bool fine, const char *text, const char *file, int line) {
  n_checks++;
  if (fine) return;
  n_failures++;
  if (n_failures <= 50) fprintf(stderr, "%s:%d: failed: %s\n", file, line, text);
}

#define CHECK(condition) check((condition), #condition, __FILE__, __LINE__)

static void check_equal(uint64_t found, uint64_t expected, const char *text, const char *file,
                        int line) {
  n_checks++;
  if (found == expected) return;
  n_failures++;
  if (n_failures <= 50) {
    fprintf(stderr, "%s:%d: failed: %s is %llu, expected %llu\n", file, line, text,
            (unsigned long long)found, (unsigned long long)expected);
  }
}

#define CHECK_EQUAL(found, expected) \
  check_equal((uint64_t)(found), (uint64_t)(expected), #found, __FILE__, __LINE__)

static void *allocate(size_t n_bytes) {
  void *bytes = calloc(1, n_bytes);
  if (bytes == NULL) {
    fprintf(stderr, "out of memory\n");
    exit(3);
  }
  return bytes;
}

/* ---- a builder independent of the library's layout code -------------------------------- */

typedef struct image {
  unsigned char *bytes;
  uint64_t n_bytes;
} image;

typedef struct plan {
  uint64_t n_rows;
  uint32_t dim;
  uint8_t dtype;
  uint32_t n_columns;
  hilum_column columns[HILUM_MAX_COLUMNS + 1];
  uint64_t compatible;
  const char *notes;
} plan;

static hilum_header *header_of(image file) { return (hilum_header *)(void *)file.bytes; }

static uint64_t up(uint64_t n) { return (n + 63) / 64 * 64; }

static uint32_t element_size(uint32_t type) {
  const uint32_t sizes[] = {0, 1, 2, 4, 1, 1};
  return sizes[type];
}

/* The definition: bit by bit. */
static uint32_t crc_of(const void *bytes, uint64_t n_bytes) {
  const unsigned char *next = bytes;
  uint32_t crc = 0xFFFFFFFFu;
  for (uint64_t i = 0; i < n_bytes; i++) {
    crc ^= next[i];
    for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82F63B78u : 0u);
  }
  return ~crc;
}

static void add_column(plan *p, const char *name, uint16_t role, uint8_t type, uint32_t width,
                       uint32_t n_values) {
  hilum_column *column = &p->columns[p->n_columns++];
  memset(column, 0, sizeof *column);
  memcpy(column->name, name, strlen(name)); /* at most 23 bytes in these tests */
  column->role = role;
  column->type = type;
  column->width = width;
  column->n_values = n_values;
}

static void seal_header(image file) {
  header_of(file)->header_crc32c = crc_of(file.bytes, 4092);
}

/* Recomputes every checksum from what the bytes now are. */
static void seal(image file) {
  hilum_header *header = header_of(file);
  const uint64_t row = header->features.length / header->n_rows;
  uint32_t *table = (uint32_t *)(void *)(file.bytes + header->table.offset);
  uint64_t n_chunks = 0;
  for (uint64_t first = 0; first < header->n_rows; first += 1024) {
    const uint64_t n = header->n_rows - first < 1024 ? header->n_rows - first : 1024;
    table[n_chunks++] = crc_of(file.bytes + 4096 + first * row, n * row);
  }
  if (header->dtype == HILUM_DTYPE_I8) {
    table[n_chunks] = crc_of(file.bytes + header->scales.offset, header->scales.length);
  }
  for (uint32_t i = 0; i < header->n_columns; i++) {
    hilum_column *column = &header->columns[i];
    column->crc32c = crc_of(file.bytes + column->offset, column->length);
  }
  header->table_crc32c = crc_of(file.bytes + header->table.offset, header->table.length);
  header->notes_crc32c = crc_of(file.bytes + header->notes.offset, header->notes.length);
  seal_header(file);
}

static image build(const plan *p) {
  const uint64_t sizes[] = {0, 4, 2, 1};
  const bool is_i8 = p->dtype == HILUM_DTYPE_I8;
  hilum_header header;
  memset(&header, 0, sizeof header);
  memcpy(header.magic, "\x89HILUM\r\n", 8);
  header.major = 1;
  header.header_size = 4096;
  header.n_rows = p->n_rows;
  header.dim = p->dim;
  header.dtype = p->dtype;
  header.n_columns = (uint8_t)p->n_columns;
  header.chunk_log2 = 10;
  header.state = 1;
  header.compatible = p->compatible;
  memset(header.backbone_sha256, 0xB0, 32);
  memset(header.preprocessing_sha256, 0x99, 32);
  memset(header.body_sha256, 0x5A, 32);
  memset(header.uuid, 0x1D, 16);

  header.features.offset = 4096;
  header.features.length = p->n_rows * p->dim * sizes[p->dtype];
  uint64_t end = 4096 + header.features.length;
  if (is_i8) {
    header.scales.offset = up(end);
    header.scales.length = 4ull * p->dim;
    end = header.scales.offset + header.scales.length;
  }
  for (uint32_t i = 0; i < p->n_columns; i++) {
    header.columns[i] = p->columns[i];
    header.columns[i].offset = up(end);
    header.columns[i].length = p->n_rows * p->columns[i].width * element_size(p->columns[i].type);
    end = header.columns[i].offset + header.columns[i].length;
  }
  header.table.offset = up(end);
  header.table.length = 4 * ((p->n_rows + 1023) / 1024 + (is_i8 ? 1 : 0));
  header.notes.offset = up(header.table.offset + header.table.length);
  header.notes.length = strlen(p->notes);
  header.file_size = header.notes.offset + header.notes.length;

  image file = {allocate((size_t)header.file_size), header.file_size};
  memcpy(file.bytes, &header, sizeof header);
  for (uint64_t i = 0; i < p->n_rows * p->dim; i++) {
    unsigned char *at = file.bytes + 4096 + i * sizes[p->dtype];
    if (p->dtype == HILUM_DTYPE_F32) {
      const float value = (float)i * 0.5f;
      memcpy(at, &value, sizeof value);
    } else if (p->dtype == HILUM_DTYPE_F16) {
      const uint16_t half = (uint16_t)(0x3C00 + i % 512);
      memcpy(at, &half, sizeof half);
    } else {
      *at = (unsigned char)(i % 251);
    }
  }
  if (is_i8) {
    for (uint32_t i = 0; i < p->dim; i++) {
      const float scale = 0.25f * (float)(i + 1);
      memcpy(file.bytes + header.scales.offset + 4ull * i, &scale, sizeof scale);
    }
  }
  for (uint32_t i = 0; i < p->n_columns; i++) {
    const hilum_column *column = &header.columns[i];
    const uint32_t size = element_size(column->type);
    for (uint64_t row = 0; row < column->length / size; row++) {
      /* Group is row % 8 and split row % 4: a group stays in one split. */
      const uint32_t value = (uint32_t)(row % (column->n_values > 0 ? column->n_values : 2));
      memcpy(file.bytes + column->offset + row * size, &value, size);
    }
  }
  memcpy(file.bytes + header.notes.offset, p->notes, (size_t)header.notes.length);
  seal(file);
  return file;
}

static plan small_plan(uint8_t dtype) {
  plan p;
  memset(&p, 0, sizeof p);
  p.n_rows = 9;
  p.dim = 5;
  p.dtype = dtype;
  p.compatible = HILUM_COMPATIBLE_ALL_FINITE | HILUM_COMPATIBLE_GROUP_CLEAN;
  p.notes = "{\"format\": \"hilum-notes\"}";
  add_column(&p, "label", HILUM_ROLE_LABEL, HILUM_TYPE_U16, 1, 3);
  add_column(&p, "split", HILUM_ROLE_SPLIT, HILUM_TYPE_U8, 1, 4);
  add_column(&p, "group", HILUM_ROLE_GROUP, HILUM_TYPE_U32, 1, 8);
  return p;
}

static image small_file(void) {
  const plan p = small_plan(HILUM_DTYPE_F32);
  return build(&p);
}

static int open_image(image file, hilum_error *error) {
  hilum_container *container = NULL;
  const int status = hilum_open_memory(file.bytes, file.n_bytes, &container, error);
  if ((status == HILUM_OK) != (container != NULL)) return -1;
  if (status != HILUM_OK && error->status != status) return -2;
  hilum_close(container);
  return status;
}

/* Opens and frees file: the usual end of a test that spoilt one. */
static void expect(image file, int status, const char *field, uint64_t offset, int line) {
  hilum_error error;
  check_equal((uint64_t)(int64_t)open_image(file, &error), (uint64_t)status, "status", __FILE__,
              line);
  if (status == HILUM_OK) {
    hilum_error nothing;
    memset(&nothing, 0, sizeof nothing);
    check(memcmp(&error, &nothing, sizeof error) == 0, "error is all zero", __FILE__, line);
  } else {
    if (strcmp(error.field, field) != 0) {
      fprintf(stderr, "field is %s, expected %s\n", error.field, field);
    }
    check(strcmp(error.field, field) == 0, "field", __FILE__, line);
    check_equal(error.offset, offset, "offset", __FILE__, line);
  }
  free(file.bytes);
}

#define EXPECT(file, status, field, offset) expect(file, status, field, offset, __LINE__)

/* ---- checksums ------------------------------------------------------------------------- */

static void test_crc32c(void) {
  /* RFC 3720 appendix B.4, and the usual check value. */
  unsigned char bytes[32];
  memset(bytes, 0, sizeof bytes);
  CHECK_EQUAL(hilum_crc32c(0, bytes, 32), 0x8A9136AAu);
  memset(bytes, 0xFF, sizeof bytes);
  CHECK_EQUAL(hilum_crc32c(0, bytes, 32), 0x62A8AB43u);
  for (unsigned i = 0; i < 32; i++) bytes[i] = (unsigned char)i;
  CHECK_EQUAL(hilum_crc32c(0, bytes, 32), 0x46DD794Eu);
  for (unsigned i = 0; i < 32; i++) bytes[i] = (unsigned char)(31 - i);
  CHECK_EQUAL(hilum_crc32c(0, bytes, 32), 0x113FDB5Cu);
  const unsigned char command[48] = {0x01, 0xC0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,    0, 0, 0,
                                     0x14, 0,    0, 0, 0, 0, 4, 0, 0, 0, 0, 0x14, 0, 0, 0, 0x18,
                                     0x28, 0,    0, 0, 0, 0, 0, 0, 2, 0, 0, 0,    0, 0, 0, 0};
  CHECK_EQUAL(hilum_crc32c(0, command, 48), 0xD9963A56u);
  CHECK_EQUAL(hilum_crc32c(0, "123456789", 9), 0xE3069283u);
  CHECK_EQUAL(hilum_crc32c(0, "", 0), 0);
  CHECK_EQUAL(hilum_crc32c(7, NULL, 0), 7);

  /* Every length and every misalignment, by every path, against the definition. */
  unsigned char noise[300];
  uint32_t state = 1;
  for (size_t i = 0; i < sizeof noise; i++) {
    state = state * 1664525u + 1013904223u;
    noise[i] = (unsigned char)(state >> 24);
  }
  for (size_t start = 0; start < 9; start++) {
    for (size_t n = 0; n <= 280; n++) {
      const uint32_t expected = crc_of(noise + start, n);
      CHECK_EQUAL(hilum_crc32c_software(0, noise + start, n), expected);
      if (hilum_crc32c_has_hardware()) {
        CHECK_EQUAL(hilum_crc32c_hardware(0, noise + start, n), expected);
      }
      const size_t cut = n / 3;
      CHECK_EQUAL(hilum_crc32c(hilum_crc32c(0, noise + start, cut), noise + start + cut, n - cut),
                  expected);
    }
  }
}

/* ---- what is fine opens, and shows what was written ------------------------------------ */

static void check_views(const hilum_container *container, image file) {
  const hilum_header *header = hilum_get_header(container);
  CHECK(memcmp(header, file.bytes, sizeof *header) == 0);
  const unsigned char *features = file.bytes + 4096;
  const uint64_t row = header->features.length / header->n_rows;
  const void *view = hilum_features(container);
  if (view != NULL) CHECK(memcmp(view, features, (size_t)header->features.length) == 0);

  unsigned char *copy = allocate((size_t)header->features.length);
  hilum_error error;
  CHECK_EQUAL(hilum_read_rows(container, 0, header->n_rows, copy, header->features.length, &error),
              HILUM_OK);
  CHECK(memcmp(copy, features, (size_t)header->features.length) == 0);
  CHECK_EQUAL(hilum_read_rows(container, header->n_rows - 1, 1, copy, row, &error), HILUM_OK);
  CHECK(memcmp(copy, features + (header->n_rows - 1) * row, (size_t)row) == 0);
  CHECK_EQUAL(hilum_read_rows(container, header->n_rows, 0, NULL, 0, &error), HILUM_OK);
  free(copy);

  for (uint32_t i = 0; i < header->n_columns; i++) {
    const void *data = hilum_column_data(container, i);
    CHECK(data != NULL && memcmp(data, file.bytes + header->columns[i].offset,
                                 (size_t)header->columns[i].length) == 0);
  }
  CHECK(hilum_column_data(container, header->n_columns) == NULL);
  CHECK(hilum_column_data(container, UINT32_MAX) == NULL);
  CHECK(memcmp(hilum_notes(container), file.bytes + header->notes.offset,
               (size_t)header->notes.length) == 0);
  const float *scales = hilum_scales(container);
  CHECK((scales != NULL) == (header->dtype == HILUM_DTYPE_I8));
  if (scales != NULL) {
    CHECK(memcmp(scales, file.bytes + header->scales.offset, (size_t)header->scales.length) == 0);
  }
  CHECK_EQUAL(hilum_n_chunks(container), (header->n_rows + 1023) / 1024);
  for (uint64_t chunk = 0; chunk < hilum_n_chunks(container); chunk++) {
    CHECK_EQUAL(hilum_verify_chunk(container, chunk, &error), HILUM_OK);
  }
}

static plan every_column(uint8_t dtype, uint64_t n_rows) {
  plan p = small_plan(dtype);
  p.n_rows = n_rows;
  add_column(&p, "sample_key", HILUM_ROLE_SAMPLE_KEY, HILUM_TYPE_BYTES, 16, 0);
  add_column(&p, "source", HILUM_ROLE_SOURCE, HILUM_TYPE_U8, 1, 256);
  add_column(&p, "view", HILUM_ROLE_VIEW, HILUM_TYPE_U8, 1, 0);
  add_column(&p, "row_flags", HILUM_ROLE_ROW_FLAGS, HILUM_TYPE_U8, 1, 0);
  add_column(&p, "sex", HILUM_ROLE_SEX, HILUM_TYPE_U8, 1, 4);
  add_column(&p, "age", HILUM_ROLE_AGE, HILUM_TYPE_U8, 1, 0);
  add_column(&p, "projection", HILUM_ROLE_PROJECTION, HILUM_TYPE_U8, 1, 6);
  add_column(&p, "my_own", HILUM_ROLE_OTHER, HILUM_TYPE_U32, 3, 0);
  add_column(&p, "of_a_later_minor", 777, HILUM_TYPE_I8, 2, 0);
  return p;
}

static void test_valid(const char *folder) {
  char path[4096];
  const uint64_t row_counts[] = {8, 9, 1023, 1024, 1025, 2500};
  for (uint8_t dtype = HILUM_DTYPE_F32; dtype <= HILUM_DTYPE_I8; dtype++) {
    for (size_t i = 0; i < sizeof row_counts / sizeof row_counts[0]; i++) {
      const plan p = every_column(dtype, row_counts[i]);
      image file = build(&p);
      hilum_container *container = NULL;
      hilum_error error;
      CHECK_EQUAL(hilum_open_memory(file.bytes, file.n_bytes, &container, &error), HILUM_OK);
      if (container == NULL) {
        fprintf(stderr, "field %s offset %llu\n", error.field, (unsigned long long)error.offset);
        free(file.bytes);
        continue;
      }
      CHECK(hilum_features(container) == file.bytes + 4096);
      check_views(container, file);
      hilum_close(container);

      snprintf(path, sizeof path, "%s/valid.hilum", folder);
      FILE *stream = fopen(path, "wb");
      CHECK(stream != NULL);
      if (stream == NULL) exit(3);
      CHECK_EQUAL(fwrite(file.bytes, 1, (size_t)file.n_bytes, stream), file.n_bytes);
      fclose(stream);
      for (uint32_t mode = HILUM_MODE_MMAP; mode <= HILUM_MODE_READ; mode++) {
        CHECK_EQUAL(hilum_open(path, mode, &container, &error), HILUM_OK);
        CHECK((hilum_features(container) != NULL) == (mode == HILUM_MODE_MMAP));
        check_views(container, file);
        hilum_close(container);
      }
      free(file.bytes);
      remove(path);
    }
  }

  /* Nothing but features; notes of the least length. */
  plan bare = small_plan(HILUM_DTYPE_F16);
  bare.n_rows = 1;
  bare.dim = 1;
  bare.n_columns = 0;
  bare.compatible = 0;
  bare.notes = "{}";
  EXPECT(build(&bare), HILUM_OK, "", 0);

  /* Multi-label, every value. */
  plan multi = small_plan(HILUM_DTYPE_F32);
  multi.n_columns = 0;
  multi.compatible = 0;
  add_column(&multi, "label", HILUM_ROLE_LABEL, HILUM_TYPE_I8, 4, 0);
  image file = build(&multi);
  memcpy(file.bytes + header_of(file)->columns[0].offset, "\x01\x00\xFF\xFE", 4);
  seal(file);
  EXPECT(file, HILUM_OK, "", 0);

  /* A later minor: unknown compatible flags, columns and row flags are ignored. */
  file = small_file();
  header_of(file)->minor = 9;
  header_of(file)->compatible |= (uint64_t)1 << 63;
  seal_header(file);
  EXPECT(file, HILUM_OK, "", 0);

  /* A group that is in one split and in none is clean. */
  file = small_file();
  file.bytes[header_of(file)->columns[1].offset + 1] = HILUM_SPLIT_NONE;
  seal(file);
  EXPECT(file, HILUM_OK, "", 0);
}

/* ---- the header ------------------------------------------------------------------------ */

/* Spoil one field of a fresh small file, mend the header's checksum, expect. */
#define SPOIL(change, status, field, offset)        \
  do {                                              \
    image spoilt = small_file();                    \
    hilum_header *header = header_of(spoilt);       \
    change;                                         \
    seal_header(spoilt);                            \
    EXPECT(spoilt, status, field, offset);          \
  } while (0)

static void test_header(void) {
  SPOIL(header->magic[0] = 0, HILUM_ERR_NOT_A_CONTAINER, "magic", 0);
  SPOIL(memcpy(header->magic, "\x89HILUM\n\n", 8), HILUM_ERR_NOT_A_CONTAINER, "magic", 0);
  SPOIL(memcpy(header->magic, "\x89HILPART", 8), HILUM_ERR_UNSEALED, "magic", 0);
  SPOIL(header->major = 2, HILUM_ERR_VERSION, "major", 8);
  SPOIL(header->major = 0, HILUM_ERR_VERSION, "major", 8);
  SPOIL(header->header_size = 4160, HILUM_ERR_HEADER, "header_size", 12);
  SPOIL(header->file_size++, HILUM_ERR_LAYOUT, "file_size", 16);
  SPOIL(header->n_rows = 0, HILUM_ERR_HEADER, "n_rows", 24);
  SPOIL(header->n_rows = 1ull << 31, HILUM_ERR_HEADER, "n_rows", 24);
  SPOIL(header->n_rows = UINT64_MAX, HILUM_ERR_HEADER, "n_rows", 24);
  SPOIL(header->n_rows = 10, HILUM_ERR_LAYOUT, "features", 64);
  SPOIL(header->n_rows = HILUM_MAX_ROWS, HILUM_ERR_LAYOUT, "features", 64);
  SPOIL(header->dim = 0, HILUM_ERR_HEADER, "dim", 32);
  SPOIL(header->dim = 65537, HILUM_ERR_HEADER, "dim", 32);
  SPOIL(header->dim = 6, HILUM_ERR_LAYOUT, "features", 64);
  SPOIL(header->dtype = 0, HILUM_ERR_HEADER, "dtype", 36);
  SPOIL(header->dtype = 4, HILUM_ERR_HEADER, "dtype", 36);
  SPOIL(header->dtype = HILUM_DTYPE_F16, HILUM_ERR_LAYOUT, "features", 64);
  SPOIL(header->n_columns = 33, HILUM_ERR_HEADER, "n_columns", 37);
  SPOIL(header->n_columns = 2, HILUM_ERR_PADDING, "columns", 640);
  SPOIL(header->n_columns = 4, HILUM_ERR_COLUMN, "name", 704);
  SPOIL(header->chunk_log2 = 11, HILUM_ERR_HEADER, "chunk_log2", 38);
  SPOIL(header->state = 0, HILUM_ERR_UNSEALED, "state", 39);
  SPOIL(header->state = 2, HILUM_ERR_UNSEALED, "state", 39);
  SPOIL(header->incompatible = 1, HILUM_ERR_INCOMPATIBLE, "incompatible", 40);
  SPOIL(header->incompatible = 1ull << 63, HILUM_ERR_INCOMPATIBLE, "incompatible", 40);
  SPOIL(header->features.offset = 4160, HILUM_ERR_LAYOUT, "features", 56);
  SPOIL(header->features.length--, HILUM_ERR_LAYOUT, "features", 64);
  SPOIL(header->features.length = UINT64_MAX, HILUM_ERR_LAYOUT, "features", 64);
  SPOIL(header->scales.offset = 64, HILUM_ERR_LAYOUT, "scales", 72);
  SPOIL(header->scales.length = 64, HILUM_ERR_LAYOUT, "scales", 72);
  SPOIL(header->table.offset += 64, HILUM_ERR_LAYOUT, "table", 88);
  SPOIL(header->table.length += 4, HILUM_ERR_LAYOUT, "table", 96);
  SPOIL(header->notes.offset -= 64, HILUM_ERR_LAYOUT, "notes", 104);
  SPOIL(header->notes.length--, HILUM_ERR_LAYOUT, "file_size", 16);
  SPOIL(header->notes.length = 1, HILUM_ERR_HEADER, "notes", 112);
  SPOIL(header->notes.length = 1048577, HILUM_ERR_HEADER, "notes", 112);
  SPOIL(header->notes.length = UINT64_MAX, HILUM_ERR_HEADER, "notes", 112);
  SPOIL(header->table_crc32c ^= 1, HILUM_ERR_TABLE_CRC, "table", header->table.offset);
  SPOIL(header->notes_crc32c ^= 1, HILUM_ERR_NOTES_CRC, "notes", header->notes.offset);
  SPOIL(header->zero0[271] = 1, HILUM_ERR_PADDING, "zero0", 511);
  SPOIL(header->zero1[0] = 1, HILUM_ERR_PADDING, "zero1", 2560);
  SPOIL(header->zero1[1531] = 1, HILUM_ERR_PADDING, "zero1", 4091);

  /* Any single bit, the checksum not mended. */
  image file = small_file();
  hilum_error error;
  for (uint32_t bit = 0; bit < 4096 * 8; bit++) {
    file.bytes[bit / 8] ^= (unsigned char)(1u << bit % 8);
    const int status = open_image(file, &error);
    CHECK(status > HILUM_OK);
    if (bit >= 12 * 8) CHECK_EQUAL(status, HILUM_ERR_HEADER_CRC);
    file.bytes[bit / 8] ^= (unsigned char)(1u << bit % 8);
  }
  CHECK_EQUAL(open_image(file, &error), HILUM_OK);

  /* Any single bit behind the features, none mended: no byte there is unguarded. */
  for (uint64_t byte = 4096 + header_of(file)->features.length; byte < file.n_bytes; byte++) {
    for (unsigned bit = 0; bit < 8; bit++) {
      file.bytes[byte] ^= (unsigned char)(1u << bit);
      CHECK(open_image(file, &error) > HILUM_OK);
      file.bytes[byte] ^= (unsigned char)(1u << bit);
    }
  }
  free(file.bytes);
}

/* ---- the length ------------------------------------------------------------------------ */

static void test_length(void) {
  for (uint8_t dtype = HILUM_DTYPE_F32; dtype <= HILUM_DTYPE_I8; dtype++) {
    const plan p = small_plan(dtype);
    image file = build(&p);
    for (uint64_t n = 0; n < file.n_bytes; n++) {
      /* A copy of exactly n bytes, so that ASan sees a read behind the end. */
      image cut = {allocate((size_t)(n > 0 ? n : 1)), n};
      memcpy(cut.bytes, file.bytes, (size_t)n);
      hilum_error error;
      CHECK_EQUAL(open_image(cut, &error),
                  n == 0 ? HILUM_ERR_NOT_A_CONTAINER : HILUM_ERR_TRUNCATED);
      if (n > 0) {
        CHECK_EQUAL(error.found, n);
        CHECK_EQUAL(error.expected, n < 4096 ? 4096 : file.n_bytes);
      }
      free(cut.bytes);
    }
    image longer = {allocate((size_t)file.n_bytes + 1), file.n_bytes + 1};
    memcpy(longer.bytes, file.bytes, (size_t)file.n_bytes);
    EXPECT(longer, HILUM_ERR_TRAILING, "file_size", file.n_bytes);
    free(file.bytes);
  }
  hilum_error error;
  hilum_container *container;
  const uint32_t text[3] = {0x6C6C6568u, 0x6F77206Fu, 0x0A646C72u};
  CHECK_EQUAL(hilum_open_memory(text, 12, &container, &error), HILUM_ERR_NOT_A_CONTAINER);
  CHECK(container == NULL);
  uint32_t part[2];
  memcpy(part, "\x89HILPART", 8);
  CHECK_EQUAL(hilum_open_memory(part, 8, &container, &error), HILUM_ERR_UNSEALED);
  CHECK_EQUAL(hilum_open_memory(part, 5, &container, &error), HILUM_ERR_UNSEALED);
  CHECK_EQUAL(hilum_open_memory(part, 4, &container, &error), HILUM_ERR_TRUNCATED);
}

/* ---- gaps ------------------------------------------------------------------------------ */

static void test_gaps(void) {
  const plan p = small_plan(HILUM_DTYPE_I8);
  image file = build(&p);
  const hilum_header *header = header_of(file);
  uint64_t ends[6] = {header->features.offset + header->features.length,
                      header->scales.offset + header->scales.length};
  for (int i = 0; i < 3; i++) ends[2 + i] = header->columns[i].offset + header->columns[i].length;
  ends[5] = header->table.offset + header->table.length;
  unsigned long n_gap_bytes = 0;
  for (int i = 0; i < 6; i++) {
    for (uint64_t at = ends[i]; at % 64 != 0; at++) {
      hilum_error error;
      file.bytes[at] = 0x80;
      CHECK_EQUAL(open_image(file, &error), HILUM_ERR_PADDING);
      CHECK_EQUAL(error.offset, at);
      CHECK_EQUAL(error.found, 0x80);
      CHECK(strcmp(error.field, "gap") == 0);
      file.bytes[at] = 0;
      n_gap_bytes++;
    }
  }
  CHECK(n_gap_bytes > 100);
  free(file.bytes);
}

/* ---- columns --------------------------------------------------------------------------- */

/* One column more in a file of 9 rows, its data rows & 1 or below n_values. */
static image with_column(const char *name, uint16_t role, uint8_t type, uint32_t width,
                         uint32_t n_values, uint8_t flags) {
  plan p = small_plan(HILUM_DTYPE_F32);
  p.n_columns = 0;
  p.compatible = 0;
  add_column(&p, name, role, type, width, n_values);
  p.columns[0].flags = flags;
  return build(&p);
}

#define COLUMN(name, role, type, width, n_values, status, field, offset) \
  EXPECT(with_column(name, role, type, width, n_values, 0), status, field, 512 + (offset))

static void test_columns(void) {
  const uint64_t role_at = 24, type_at = 26, flags_at = 27, width_at = 28, n_values_at = 52;
  const int bad = HILUM_ERR_COLUMN;

  /* Names. */
  SPOIL(memset(header->columns[0].name, 0, 24), bad, "name", 512);
  SPOIL(memset(header->columns[0].name, 'a', 24), bad, "name", 512);
  SPOIL(header->columns[0].name[1] = 'A', bad, "name", 513);
  SPOIL(header->columns[0].name[1] = ' ', bad, "name", 513);
  SPOIL(header->columns[0].name[1] = '/', bad, "name", 513);
  SPOIL(header->columns[0].name[1] = '\x80', bad, "name", 513);
  SPOIL(header->columns[0].name[23] = 'x', bad, "name", 535);
  SPOIL(memcpy(header->columns[1].name, "label", 6), bad, "label", 576);
  SPOIL((memset(header->columns[2].name, 0, 24), memcpy(header->columns[2].name, "split", 5),
         header->columns[2].role = HILUM_ROLE_SPLIT),
        bad, "split", 640);
  COLUMN("abcdefghijklmnopqrstuvw", 0, HILUM_TYPE_U8, 1, 0, HILUM_OK, "", 0);
  COLUMN("0_9", 0, HILUM_TYPE_U8, 1, 0, HILUM_OK, "", 0);

  /* A known role has its name, and its name has that role. */
  COLUMN("labels", HILUM_ROLE_LABEL, HILUM_TYPE_U16, 1, 2, bad, "labels", role_at);
  COLUMN("label", HILUM_ROLE_OTHER, HILUM_TYPE_U16, 1, 2, bad, "label", role_at);
  COLUMN("label", HILUM_ROLE_SPLIT, HILUM_TYPE_U8, 1, 4, bad, "label", role_at);
  COLUMN("age", 777, HILUM_TYPE_U8, 1, 0, bad, "age", role_at);

  /* Descriptor fields whatever the role. */
  SPOIL(header->columns[0].type = 0, bad, "label", 512 + type_at);
  SPOIL(header->columns[0].type = 6, bad, "label", 512 + type_at);
  SPOIL(header->columns[0].flags = 2, bad, "label", 512 + flags_at);
  SPOIL(header->columns[0].width = 0, bad, "label", 512 + width_at);
  SPOIL(header->columns[0].reserved = 1, bad, "label", 512 + 56);
  SPOIL(header->columns[0].offset += 64, HILUM_ERR_LAYOUT, "label", 512 + 32);
  SPOIL(header->columns[0].offset = UINT64_MAX - 63, HILUM_ERR_LAYOUT, "label", 512 + 32);
  SPOIL(header->columns[0].length += 1, HILUM_ERR_LAYOUT, "label", 512 + 40);
  SPOIL(header->columns[0].crc32c ^= 1, HILUM_ERR_COLUMN_CRC, "label", header->columns[0].offset);
  COLUMN("wide", 0, HILUM_TYPE_U8, 65536, 0, HILUM_OK, "", 0);
  COLUMN("wide", 0, HILUM_TYPE_U8, 65537, 0, bad, "wide", width_at);
  COLUMN("own", 0, HILUM_TYPE_I8, 1, 1, bad, "own", n_values_at);
  COLUMN("own", 0, HILUM_TYPE_BYTES, 1, 1, bad, "own", n_values_at);
  COLUMN("own", 0, HILUM_TYPE_U32, 2, 5, HILUM_OK, "", 0);

  /* Must understand: fine where we do. */
  EXPECT(with_column("age", HILUM_ROLE_AGE, HILUM_TYPE_U8, 1, 0, 1), HILUM_OK, "", 0);
  EXPECT(with_column("new", 777, HILUM_TYPE_U8, 1, 0, 1), HILUM_ERR_INCOMPATIBLE, "new", 536);
  EXPECT(with_column("own", 0, HILUM_TYPE_U8, 1, 0, 1), HILUM_ERR_INCOMPATIBLE, "own", 536);

  /* Roles demand type, width and n_values. */
  COLUMN("label", HILUM_ROLE_LABEL, HILUM_TYPE_U8, 1, 2, bad, "label", type_at);
  COLUMN("label", HILUM_ROLE_LABEL, HILUM_TYPE_U16, 2, 2, bad, "label", width_at);
  COLUMN("label", HILUM_ROLE_LABEL, HILUM_TYPE_U16, 1, 0, bad, "label", n_values_at);
  COLUMN("label", HILUM_ROLE_LABEL, HILUM_TYPE_U16, 1, 65536, bad, "label", n_values_at);
  COLUMN("label", HILUM_ROLE_LABEL, HILUM_TYPE_U16, 1, 65535, HILUM_OK, "", 0);
  COLUMN("label", HILUM_ROLE_LABEL, HILUM_TYPE_I8, 3, 1, bad, "label", n_values_at);
  COLUMN("split", HILUM_ROLE_SPLIT, HILUM_TYPE_U16, 1, 4, bad, "split", type_at);
  COLUMN("split", HILUM_ROLE_SPLIT, HILUM_TYPE_U8, 2, 4, bad, "split", width_at);
  COLUMN("split", HILUM_ROLE_SPLIT, HILUM_TYPE_U8, 1, 5, bad, "split", n_values_at);
  COLUMN("split", HILUM_ROLE_SPLIT, HILUM_TYPE_U8, 1, 0, bad, "split", n_values_at);
  COLUMN("group", HILUM_ROLE_GROUP, HILUM_TYPE_U16, 1, 4, bad, "group", type_at);
  COLUMN("group", HILUM_ROLE_GROUP, HILUM_TYPE_U32, 1, 0, bad, "group", n_values_at);
  COLUMN("group", HILUM_ROLE_GROUP, HILUM_TYPE_U32, 1, 9, HILUM_OK, "", 0);
  COLUMN("group", HILUM_ROLE_GROUP, HILUM_TYPE_U32, 1, 10, bad, "group", n_values_at);
  COLUMN("sample_key", HILUM_ROLE_SAMPLE_KEY, HILUM_TYPE_BYTES, 32, 0, bad, "sample_key", width_at);
  COLUMN("sample_key", HILUM_ROLE_SAMPLE_KEY, HILUM_TYPE_U8, 16, 0, bad, "sample_key", type_at);
  COLUMN("source", HILUM_ROLE_SOURCE, HILUM_TYPE_U8, 1, 0, bad, "source", n_values_at);
  COLUMN("source", HILUM_ROLE_SOURCE, HILUM_TYPE_U8, 1, 257, bad, "source", n_values_at);
  COLUMN("source", HILUM_ROLE_SOURCE, HILUM_TYPE_U16, 1, 2, bad, "source", type_at);
  COLUMN("view", HILUM_ROLE_VIEW, HILUM_TYPE_U8, 1, 3, bad, "view", n_values_at);
  COLUMN("row_flags", HILUM_ROLE_ROW_FLAGS, HILUM_TYPE_U8, 1, 3, bad, "row_flags", n_values_at);
  COLUMN("sex", HILUM_ROLE_SEX, HILUM_TYPE_U8, 1, 5, bad, "sex", n_values_at);
  COLUMN("age", HILUM_ROLE_AGE, HILUM_TYPE_I8, 1, 0, bad, "age", type_at);
  COLUMN("age", HILUM_ROLE_AGE, HILUM_TYPE_U8, 1, 91, bad, "age", n_values_at);
  COLUMN("projection", HILUM_ROLE_PROJECTION, HILUM_TYPE_U8, 2, 6, bad, "projection", width_at);
  COLUMN("projection", HILUM_ROLE_PROJECTION, HILUM_TYPE_U8, 1, 7, bad, "projection", n_values_at);

  /* As many columns as there is room for. */
  plan p = small_plan(HILUM_DTYPE_F32);
  while (p.n_columns < HILUM_MAX_COLUMNS) {
    char name[24];
    snprintf(name, sizeof name, "own_%u", (unsigned)p.n_columns);
    add_column(&p, name, HILUM_ROLE_OTHER, HILUM_TYPE_U16, 1, 0);
  }
  EXPECT(build(&p), HILUM_OK, "", 0);
}

/* ---- values ---------------------------------------------------------------------------- */

static void test_values(void) {
  image file = small_file();
  uint64_t at = header_of(file)->columns[0].offset + 2 * 8;
  file.bytes[at] = 3; /* three classes: 0, 1, 2 */
  seal(file);
  hilum_error error;
  CHECK_EQUAL(open_image(file, &error), HILUM_ERR_VALUE);
  CHECK_EQUAL(error.found, 3);
  CHECK_EQUAL(error.expected, 3);
  EXPECT(file, HILUM_ERR_VALUE, "label", at);

  file = small_file();
  at = header_of(file)->columns[1].offset;
  file.bytes[at] = 4;
  seal(file);
  EXPECT(file, HILUM_ERR_VALUE, "split", at);

  file = small_file();
  at = header_of(file)->columns[2].offset + 4 * 3;
  file.bytes[at + 3] = 0xFF; /* would index far behind the group check's memory */
  seal(file);
  EXPECT(file, HILUM_ERR_VALUE, "group", at);

  const int8_t wrong[] = {2, -3, 127, -128};
  for (size_t i = 0; i < sizeof wrong; i++) {
    file = with_column("label", HILUM_ROLE_LABEL, HILUM_TYPE_I8, 4, 0, 0);
    at = header_of(file)->columns[0].offset + 35;
    file.bytes[at] = (unsigned char)wrong[i];
    seal(file);
    CHECK_EQUAL(open_image(file, &error), HILUM_ERR_VALUE);
    CHECK_EQUAL(error.found, (int64_t)wrong[i]);
    EXPECT(file, HILUM_ERR_VALUE, "label", at);
  }

  /* Rows 0 and 8 are of group 0; row 0 is in no split. */
  for (uint8_t first = 0; first < 4; first++) {
    for (uint8_t second = 0; second < 4; second++) {
      file = small_file();
      at = header_of(file)->columns[1].offset;
      file.bytes[at] = first;
      file.bytes[at + 8] = second;
      seal(file);
      const bool clean = first == 0 || second == 0 || first == second;
      if (!clean) {
        CHECK_EQUAL(open_image(file, &error), HILUM_ERR_GROUP_SPLIT);
        CHECK_EQUAL(error.found, second);
        CHECK_EQUAL(error.expected, first);
        /* Without the flag it is the file's own business. */
        header_of(file)->compatible = 0;
        seal_header(file);
        CHECK_EQUAL(open_image(file, &error), HILUM_OK);
        header_of(file)->compatible = HILUM_COMPATIBLE_GROUP_CLEAN;
        seal_header(file);
      }
      EXPECT(file, clean ? HILUM_OK : HILUM_ERR_GROUP_SPLIT, "split", at + 8);
    }
  }
  plan p = small_plan(HILUM_DTYPE_F32);
  p.n_columns = 2; /* group gone, the promise kept */
  EXPECT(build(&p), HILUM_ERR_HEADER, "compatible", 48);
}

/* ---- features -------------------------------------------------------------------------- */

static void test_chunks(void) {
  for (uint8_t dtype = HILUM_DTYPE_F32; dtype <= HILUM_DTYPE_I8; dtype++) {
    plan p = small_plan(dtype);
    p.n_rows = 1030;
    p.dim = 2;
    image file = build(&p);
    hilum_container *container = NULL;
    hilum_error error;
    CHECK_EQUAL(hilum_open_memory(file.bytes, file.n_bytes, &container, &error), HILUM_OK);
    const uint64_t row = hilum_get_header(container)->features.length / p.n_rows;
    /* Every byte of the second chunk, every 97th of the first. */
    for (uint64_t i = 0; i < p.n_rows * row; i += i < 1024 * row ? 97 : 1) {
      const uint64_t chunk = i / (1024 * row);
      file.bytes[4096 + i] ^= 0x10;
      CHECK_EQUAL(hilum_verify_chunk(container, chunk, &error), HILUM_ERR_CHUNK_CRC);
      CHECK(strcmp(error.field, "features") == 0);
      CHECK_EQUAL(error.offset, 4096 + chunk * 1024 * row);
      CHECK(error.found != error.expected);
      CHECK_EQUAL(hilum_verify_chunk(container, 1 - chunk, &error), HILUM_OK);
      CHECK_EQUAL(error.status, HILUM_OK);
      file.bytes[4096 + i] ^= 0x10;
    }
    CHECK_EQUAL(hilum_verify_chunk(container, 2, &error), HILUM_ERR_ARGUMENT);
    CHECK_EQUAL(hilum_verify_chunk(container, UINT64_MAX, NULL), HILUM_ERR_ARGUMENT);
    hilum_close(container);
    free(file.bytes);
  }
}

static void expect_finite(image file, uint64_t at, const void *value, size_t size, int status) {
  hilum_error error;
  memcpy(file.bytes + at, value, size);
  for (int flagged = 1; flagged >= 0; flagged--) {
    header_of(file)->compatible = flagged ? HILUM_COMPATIBLE_ALL_FINITE : 0;
    seal(file);
    hilum_container *container = NULL;
    CHECK_EQUAL(hilum_open_memory(file.bytes, file.n_bytes, &container, &error), HILUM_OK);
    CHECK_EQUAL(hilum_verify_chunk(container, 0, &error), flagged ? status : HILUM_OK);
    if (flagged && status != HILUM_OK) {
      uint64_t bits = 0;
      memcpy(&bits, value, size);
      CHECK_EQUAL(error.offset, at);
      CHECK_EQUAL(error.found, bits);
    }
    hilum_close(container);
  }
  free(file.bytes);
}

static void test_finite(void) {
  const uint32_t singles[] = {0x7F800000u, 0xFF800000u, 0x7FC00000u, 0x7F800001u, 0xFFFFFFFFu};
  for (size_t i = 0; i < sizeof singles / sizeof singles[0]; i++) {
    expect_finite(small_file(), 4096 + 4 * i, &singles[i], 4, HILUM_ERR_NOT_FINITE);
  }
  const uint32_t largest[] = {0x7F7FFFFFu, 0xFF7FFFFFu, 0x00000001u};
  for (size_t i = 0; i < 3; i++) expect_finite(small_file(), 4096 + 176, &largest[i], 4, HILUM_OK);

  const plan half = small_plan(HILUM_DTYPE_F16);
  const uint16_t halves[] = {0x7C00, 0xFC00, 0x7E00, 0x7C01};
  for (size_t i = 0; i < 4; i++) {
    expect_finite(build(&half), 4096 + 88, &halves[i], 2, HILUM_ERR_NOT_FINITE);
  }
  const uint16_t largest_half = 0x7BFF;
  expect_finite(build(&half), 4096 + 88, &largest_half, 2, HILUM_OK);

  /* Behind the first buffer of verify_chunk. */
  plan wide = small_plan(HILUM_DTYPE_F32);
  wide.dim = 5000;
  expect_finite(build(&wide), 4096 + 4ull * 9 * 5000 - 4, &singles[0], 4, HILUM_ERR_NOT_FINITE);

  const plan bytes = small_plan(HILUM_DTYPE_I8);
  for (size_t i = 0; i < sizeof singles / sizeof singles[0]; i++) {
    image file = build(&bytes);
    const uint64_t at = header_of(file)->scales.offset + 4 * i;
    memcpy(file.bytes + at, &singles[i], 4);
    hilum_error error;
    CHECK_EQUAL(open_image(file, &error), HILUM_ERR_SCALES_CRC);
    CHECK(strcmp(error.field, "scales") == 0);
    seal(file);
    EXPECT(file, HILUM_ERR_NOT_FINITE, "scales", at);
  }
}

/* ---- arguments ------------------------------------------------------------------------- */

static void test_arguments(void) {
  hilum_container *container = (hilum_container *)(void *)&n_checks;
  hilum_error error;
  image file = small_file();
  CHECK_EQUAL(hilum_open(NULL, HILUM_MODE_MMAP, &container, &error), HILUM_ERR_ARGUMENT);
  CHECK(container == NULL && strcmp(error.field, "path") == 0);
  CHECK_EQUAL(hilum_open("x", HILUM_MODE_MMAP, NULL, &error), HILUM_ERR_ARGUMENT);
  CHECK(strcmp(error.field, "out") == 0);
  CHECK_EQUAL(hilum_open("x", 2, &container, &error), HILUM_ERR_ARGUMENT);
  CHECK(strcmp(error.field, "mode") == 0);
  CHECK_EQUAL(hilum_open(NULL, 0, NULL, NULL), HILUM_ERR_ARGUMENT);
  CHECK_EQUAL(hilum_open_memory(NULL, 0, &container, &error), HILUM_ERR_ARGUMENT);
  CHECK_EQUAL(hilum_open_memory(file.bytes, file.n_bytes, NULL, &error), HILUM_ERR_ARGUMENT);
  CHECK_EQUAL(hilum_open_memory(file.bytes + 1, file.n_bytes - 1, &container, &error),
              HILUM_ERR_ARGUMENT);
  CHECK_EQUAL(hilum_open_memory("", 0, &container, NULL) != HILUM_OK, 1);
  CHECK(container == NULL);

  hilum_close(NULL);
  CHECK(hilum_get_header(NULL) == NULL);
  CHECK(hilum_features(NULL) == NULL);
  CHECK(hilum_scales(NULL) == NULL);
  CHECK(hilum_column_data(NULL, 0) == NULL);
  CHECK(hilum_notes(NULL) == NULL);
  CHECK_EQUAL(hilum_n_chunks(NULL), 0);
  CHECK_EQUAL(hilum_read_rows(NULL, 0, 0, NULL, 0, &error), HILUM_ERR_ARGUMENT);
  CHECK_EQUAL(hilum_verify_chunk(NULL, 0, NULL), HILUM_ERR_ARGUMENT);

  float rows[45];
  CHECK_EQUAL(hilum_open_memory(file.bytes, file.n_bytes, &container, NULL), HILUM_OK);
  CHECK_EQUAL(hilum_read_rows(container, 10, 0, rows, 0, &error), HILUM_ERR_ARGUMENT);
  CHECK(strcmp(error.field, "first_row") == 0);
  CHECK_EQUAL(hilum_read_rows(container, 5, 5, rows, 100, &error), HILUM_ERR_ARGUMENT);
  CHECK(strcmp(error.field, "n_rows") == 0);
  CHECK_EQUAL(hilum_read_rows(container, 1, UINT64_MAX, rows, 0, &error), HILUM_ERR_ARGUMENT);
  CHECK_EQUAL(hilum_read_rows(container, 0, 2, rows, 39, &error), HILUM_ERR_ARGUMENT);
  CHECK_EQUAL(error.expected, 40);
  CHECK_EQUAL(hilum_read_rows(container, 0, 2, rows, 41, NULL), HILUM_ERR_ARGUMENT);
  CHECK_EQUAL(hilum_read_rows(container, 0, 2, NULL, 40, NULL), HILUM_ERR_ARGUMENT);
  CHECK_EQUAL(hilum_read_rows(container, 8, 1, rows, 20, NULL), HILUM_OK);
  CHECK(rows[0] == 20.0f && rows[4] == 22.0f);
  hilum_close(container);
  free(file.bytes);

  CHECK_EQUAL(hilum_abi_version(), HILUM_ABI_VERSION);
  const char *unknown = hilum_status_text(-1);
  CHECK(strcmp(unknown, hilum_status_text(24)) == 0);
  for (int status = HILUM_OK; status <= HILUM_ERR_NOT_FINITE; status++) {
    CHECK(strcmp(hilum_status_text(status), unknown) != 0);
    for (int other = 0; other < status; other++) {
      CHECK(strcmp(hilum_status_text(status), hilum_status_text(other)) != 0);
    }
  }

  /* A field longer than its room is cut, and ends. */
  CHECK_EQUAL(hilum_fail(&error, HILUM_ERR_READ, "a_field_whose_name_is_longer_than_room", 1, 2, 3),
              HILUM_ERR_READ);
  CHECK_EQUAL(strlen(error.field), sizeof error.field - 1);
}

/* ---- arithmetic ------------------------------------------------------------------------ */

static void test_arithmetic(void) {
  uint64_t out = 0;
  CHECK(hilum_multiply(0, UINT64_MAX, &out) && out == 0);
  CHECK(hilum_multiply(UINT64_MAX, 1, &out) && out == UINT64_MAX);
  CHECK(hilum_multiply(1ull << 32, (1ull << 32) - 1, &out));
  CHECK(!hilum_multiply(1ull << 32, 1ull << 32, &out));
  CHECK(!hilum_multiply(UINT64_MAX, 2, &out));
  CHECK(hilum_add(UINT64_MAX - 1, 1, &out) && out == UINT64_MAX);
  CHECK(!hilum_add(UINT64_MAX, 1, &out));
}

/* ---- files ----------------------------------------------------------------------------- */

/* Paths are UTF-8 here as they are for hilum_open; fopen and remove know none on Windows. */
#ifdef _WIN32
static wchar_t *wide_path(const char *path) {
  static wchar_t wide[4096];
  if (MultiByteToWideChar(CP_UTF8, 0, path, -1, wide, 4096) == 0) exit(3);
  return wide;
}

static FILE *open_to_write(const char *path) { return _wfopen(wide_path(path), L"wb"); }
static bool remove_file(const char *path) { return DeleteFileW(wide_path(path)) != 0; }
static bool exists(const char *path) {
  return GetFileAttributesW(wide_path(path)) != INVALID_FILE_ATTRIBUTES;
}
#else
static FILE *open_to_write(const char *path) { return fopen(path, "wb"); }
static bool remove_file(const char *path) { return unlink(path) == 0; }
static bool exists(const char *path) { return access(path, F_OK) == 0; }
#endif

static void write_file(const char *path, const void *bytes, size_t n_bytes) {
  FILE *stream = open_to_write(path);
  if (stream == NULL || fwrite(bytes, 1, n_bytes, stream) != n_bytes || fclose(stream) != 0) {
    fprintf(stderr, "cannot write %s\n", path);
    exit(3);
  }
}

static void test_paths(const char *folder) {
  char path[4096];
  hilum_container *container;
  hilum_error error;

  snprintf(path, sizeof path, "%s/no_such_folder/x.hilum", folder);
  CHECK_EQUAL(hilum_open(path, HILUM_MODE_MMAP, &container, &error), HILUM_ERR_OPEN);
  CHECK(error.system_error != 0 && container == NULL);
  CHECK_EQUAL(hilum_open("", HILUM_MODE_MMAP, &container, &error), HILUM_ERR_OPEN);
  CHECK_EQUAL(hilum_open(folder, HILUM_MODE_MMAP, &container, &error), HILUM_ERR_OPEN);
  CHECK(error.system_error != 0 && container == NULL);

  snprintf(path, sizeof path, "%s/empty.hilum", folder);
  write_file(path, "", 0);
  for (uint32_t mode = 0; mode < 2; mode++) {
    CHECK_EQUAL(hilum_open(path, mode, &container, &error), HILUM_ERR_NOT_A_CONTAINER);
  }
  CHECK(remove_file(path));

  /* Names that are not ASCII, two of them beyond the 16 bits of one UTF-16 unit; and what is on
   * the disk is shorter, right and longer. Once closed, a file is let go of. */
  image file = small_file();
  const char *const names[] = {"Thorax \xC3\xBC\xE2\x82\xAC", "\xE8\x83\xB8\xE9\x83\xA8",
                               "\xF0\x9F\xAB\x81 \xF0\xA0\xAE\xB7"};
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
    snprintf(path, sizeof path, "%s/%s.hilum", folder, names[i]);
    for (int more = -1; more <= 1; more++) {
      unsigned char *bytes = allocate((size_t)file.n_bytes + 1);
      memcpy(bytes, file.bytes, (size_t)file.n_bytes);
      write_file(path, bytes, (size_t)((int64_t)file.n_bytes + more));
      free(bytes);
      const int expected[] = {HILUM_ERR_TRUNCATED, HILUM_OK, HILUM_ERR_TRAILING};
      for (uint32_t mode = HILUM_MODE_MMAP; mode <= HILUM_MODE_READ; mode++) {
        CHECK_EQUAL(hilum_open(path, mode, &container, &error), expected[more + 1]);
        if (more == 0) check_views(container, file);
        hilum_close(container);
      }
      CHECK(remove_file(path));
      CHECK(!exists(path));
    }
  }
  free(file.bytes);

#ifdef _WIN32
  CHECK_EQUAL(hilum_open("\xFF.hilum", HILUM_MODE_READ, &container, &error), HILUM_ERR_OPEN);
  CHECK_EQUAL(error.system_error, ERROR_NO_UNICODE_TRANSLATION);
  CHECK_EQUAL(hilum_open("NUL", HILUM_MODE_READ, &container, &error), HILUM_ERR_NOT_A_CONTAINER);
  CHECK(strcmp(error.field, "file_type") == 0);
#else
  CHECK_EQUAL(hilum_open(folder, HILUM_MODE_MMAP, &container, &error), HILUM_ERR_OPEN);
  CHECK_EQUAL(error.system_error, EISDIR);

  /* A FIFO nobody writes to must not make us wait. */
  snprintf(path, sizeof path, "%s/fifo.hilum", folder);
  unlink(path);
  if (mkfifo(path, 0600) == 0) {
    CHECK_EQUAL(hilum_open(path, HILUM_MODE_READ, &container, &error), HILUM_ERR_NOT_A_CONTAINER);
    CHECK(strcmp(error.field, "file_type") == 0);
    unlink(path);
  }
  const char *const devices[] = {"/dev/null", "/dev/zero"};
  for (size_t i = 0; i < 2; i++) {
    CHECK_EQUAL(hilum_open(devices[i], HILUM_MODE_READ, &container, &error),
                HILUM_ERR_NOT_A_CONTAINER);
  }
  /* Nobody can open a socket: the system says so. A path too long for one is left out. */
  struct sockaddr_un address;
  memset(&address, 0, sizeof address);
  address.sun_family = AF_UNIX;
  const int length = snprintf(address.sun_path, sizeof address.sun_path, "%s/s", folder);
  const int listener = socket(AF_UNIX, SOCK_STREAM, 0);
  if (listener >= 0 && length > 0 && (size_t)length < sizeof address.sun_path) {
    unlink(address.sun_path);
    if (bind(listener, (const struct sockaddr *)&address, sizeof address) == 0) {
      CHECK_EQUAL(hilum_open(address.sun_path, HILUM_MODE_MMAP, &container, &error),
                  HILUM_ERR_OPEN);
      CHECK(error.system_error != 0);
    }
    unlink(address.sun_path);
  }
  if (listener >= 0) close(listener);
#endif
}

/* What the platform layer says of a file that ends too early. */
static void test_short_reads(const char *folder) {
  char path[4096];
  unsigned char bytes[100];
  hilum_error error;
  memset(bytes, 7, sizeof bytes);
  snprintf(path, sizeof path, "%s/short.bin", folder);
  write_file(path, bytes, 60);
  hilum_file file;
  uint64_t n_bytes = 0;
  CHECK_EQUAL(hilum_file_open(path, &file, &n_bytes, &error), HILUM_OK);
  CHECK_EQUAL(n_bytes, 60);
  memset(bytes, 0, sizeof bytes);
  CHECK_EQUAL(hilum_file_read(&file, 10, bytes, 50, &error), HILUM_OK);
  CHECK(bytes[0] == 7 && bytes[49] == 7 && bytes[50] == 0);
  CHECK_EQUAL(hilum_file_read(&file, 10, bytes, 51, &error), HILUM_ERR_TRUNCATED);
  CHECK_EQUAL(error.found, 60);
  CHECK_EQUAL(error.expected, 61);
  CHECK_EQUAL(hilum_file_read(&file, 60, bytes, 1, &error), HILUM_ERR_TRUNCATED);
  CHECK_EQUAL(hilum_file_read(&file, 1ull << 40, bytes, 1, &error), HILUM_ERR_TRUNCATED);
  hilum_file_close(&file);
  CHECK(remove_file(path));
}

/* Somebody changes the file while it is open. */
static void test_changed_while_open(const char *folder) {
  char path[4096];
  hilum_container *container;
  hilum_error error;
  image file = small_file();
  snprintf(path, sizeof path, "%s/changed.hilum", folder);

#ifdef _WIN32
  /* The system keeps writers away from an open container, and us from a file being written. */
  for (uint32_t mode = HILUM_MODE_MMAP; mode <= HILUM_MODE_READ; mode++) {
    write_file(path, file.bytes, (size_t)file.n_bytes);
    CHECK_EQUAL(hilum_open(path, mode, &container, &error), HILUM_OK);
    CHECK(open_to_write(path) == NULL);
    check_views(container, file);
    hilum_close(container);
    FILE *writer = _wfopen(wide_path(path), L"r+b");
    CHECK(writer != NULL);
    CHECK_EQUAL(hilum_open(path, mode, &container, &error), HILUM_ERR_OPEN);
    CHECK_EQUAL(error.system_error, ERROR_SHARING_VIOLATION);
    if (writer != NULL) fclose(writer);
  }
#else
  /* Cut, also in the middle of a row, also to nothing: an error in READ mode, and from verify in
   * both. What opening took into the heap stays. */
  const off_t lengths[] = {0, 100, 4096, 4100, 4136, 4137, 4275};
  for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
    for (uint32_t mode = HILUM_MODE_MMAP; mode <= HILUM_MODE_READ; mode++) {
      write_file(path, file.bytes, (size_t)file.n_bytes);
      CHECK_EQUAL(hilum_open(path, mode, &container, &error), HILUM_OK);
      CHECK_EQUAL(truncate(path, lengths[i]), 0);
      CHECK_EQUAL(hilum_verify_chunk(container, 0, &error), HILUM_ERR_TRUNCATED);
      CHECK_EQUAL(error.found, lengths[i] < 4096 ? 4096 : lengths[i]);
      CHECK_EQUAL(error.expected, 4276);
      for (uint64_t row = 0; mode == HILUM_MODE_READ && row < 9; row++) {
        float values[5];
        const bool there = (off_t)(4096 + 20 * (row + 1)) <= lengths[i];
        CHECK_EQUAL(hilum_read_rows(container, row, 1, values, sizeof values, &error),
                    there ? HILUM_OK : HILUM_ERR_TRUNCATED);
        if (there) CHECK(values[4] == (float)(5 * row + 4) * 0.5f);
      }
      CHECK_EQUAL(((const uint16_t *)hilum_column_data(container, 0))[1], 1);
      CHECK(memcmp(hilum_notes(container), "{\"format", 8) == 0);
      hilum_close(container);
    }
  }
  /* Longer: what was opened is still there. */
  for (uint32_t mode = HILUM_MODE_MMAP; mode <= HILUM_MODE_READ; mode++) {
    write_file(path, file.bytes, (size_t)file.n_bytes);
    CHECK_EQUAL(hilum_open(path, mode, &container, &error), HILUM_OK);
    CHECK_EQUAL(truncate(path, 100000), 0);
    check_views(container, file);
    hilum_close(container);
  }
#endif

  /* Replaced by a file of the same name, as our writer does it, or removed: the old bytes stay.
   * (Windows refuses to remove a mapped file.) */
#ifdef _WIN32
  const uint32_t first_mode = HILUM_MODE_READ;
#else
  const uint32_t first_mode = HILUM_MODE_MMAP;
#endif
  for (uint32_t mode = first_mode; mode <= HILUM_MODE_READ; mode++) {
    write_file(path, file.bytes, (size_t)file.n_bytes);
    CHECK_EQUAL(hilum_open(path, mode, &container, &error), HILUM_OK);
    CHECK(remove_file(path));
    check_views(container, file);
    hilum_close(container);
    CHECK(!exists(path));
  }
  free(file.bytes);
}

/* Left for the example. */
static void write_example(const char *folder) {
  char path[4096];
  const plan p = every_column(HILUM_DTYPE_F16, 1500);
  image file = build(&p);
  snprintf(path, sizeof path, "%s/example.hilum", folder);
  write_file(path, file.bytes, (size_t)file.n_bytes);
  free(file.bytes);
}

int main(int argc, char **argv) {
  if (argc != 2) {
    fprintf(stderr, "usage: test_hilum FOLDER\n");
    return 2;
  }
  test_crc32c();
  test_arithmetic();
  test_valid(argv[1]);
  test_header();
  test_length();
  test_gaps();
  test_columns();
  test_values();
  test_chunks();
  test_finite();
  test_arguments();
  test_paths(argv[1]);
  test_short_reads(argv[1]);
  test_changed_while_open(argv[1]);
  write_example(argv[1]);
  printf("%lu checks, %lu failed; crc32c by %s\n", n_checks, n_failures,
         hilum_crc32c_has_hardware() ? "SSE4.2" : "table");
  return n_failures == 0 ? 0 : 1;
}
