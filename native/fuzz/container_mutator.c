/* How the fuzzer changes a container: bytes anywhere, fields to values that mean something, and
 * then, mostly, the mending of what depends on them, so that the next check is reached and not the
 * first one only. libFuzzer finds LLVMFuzzerCustomMutator by its name. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "internal.h"
#include "splitmix64.h"

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed);

static bool one_in(uint64_t *state, uint64_t n) { return draw(state) % n == 0; }

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

/* libFuzzer's own changes, inside [offset, offset + n_bytes) of the bytes there are. */
static void mutate_range(uint8_t *data, size_t size, size_t offset, size_t n_bytes) {
  if (offset >= size) return;
  n_bytes = smaller(n_bytes, size - offset);
  if (n_bytes > 0) (void)LLVMFuzzerMutate(data + offset, n_bytes, n_bytes);
}

/* ---- fields ---------------------------------------------------------------------------- */

/* What the format says of each role, at the edges and beyond them. */
static const struct {
  const char *name;
  uint8_t type;
  uint8_t width;
  uint16_t n_values;
} ROLES[] = {
    {"own", HILUM_TYPE_U16, 3, 9},          {"label", HILUM_TYPE_U16, 1, 3},
    {"split", HILUM_TYPE_U8, 1, 4},         {"group", HILUM_TYPE_U32, 1, 2},
    {"sample_key", HILUM_TYPE_BYTES, 16, 0}, {"source", HILUM_TYPE_U8, 1, 256},
    {"view", HILUM_TYPE_U8, 1, 0},          {"row_flags", HILUM_TYPE_U8, 1, 0},
    {"sex", HILUM_TYPE_U8, 1, 4},           {"age", HILUM_TYPE_U8, 1, 0},
    {"projection", HILUM_TYPE_U8, 1, 6},    {"label", HILUM_TYPE_I8, 3, 0},
    {"later", HILUM_TYPE_I8, 1, 0},         {"wide", HILUM_TYPE_U8, 200, 0},
};
enum { N_ROLES = sizeof ROLES / sizeof ROLES[0] };

static const uint64_t EDGES[] = {0,          1,          2,           3,          4,
                                 5,          16,         63,          64,         65,
                                 255,        256,        257,         1023,       1024,
                                 1025,       4096,       65535,       65536,      65537,
                                 1048576,    1048577,    0x7FFFFFFF,  0x80000000, 0xFFFFFFFF,
                                 1ull << 32, 1ull << 40, 1ull << 63,  UINT64_MAX, UINT64_MAX - 63};

static uint64_t edge(uint64_t *state) {
  return EDGES[draw(state) % (sizeof EDGES / sizeof EDGES[0])];
}

/* Describes a role in one descriptor; its offset and length are mended later. */
static void describe(hilum_column *column, uint64_t *state) {
  const size_t kind = (size_t)(draw(state) % N_ROLES);
  memset(column, 0, sizeof *column);
  memcpy(column->name, ROLES[kind].name, strlen(ROLES[kind].name));
  column->role = (uint16_t)(kind <= HILUM_ROLE_PROJECTION ? kind
                            : kind == 11                  ? HILUM_ROLE_LABEL
                            : kind == 12                  ? 777
                                                          : HILUM_ROLE_OTHER);
  column->type = ROLES[kind].type;
  column->width = ROLES[kind].width;
  column->n_values = ROLES[kind].n_values;
  if (column->role == HILUM_ROLE_OTHER) column->name[3] = (char)('a' + draw(state) % 26);
}

static void change_column(hilum_header *header, uint64_t *state) {
  hilum_column *column = &header->columns[draw(state) % HILUM_MAX_COLUMNS];
  if (header->n_columns > 0 && !one_in(state, 8)) {
    column = &header->columns[draw(state) % smaller(header->n_columns, HILUM_MAX_COLUMNS)];
  }
  switch (draw(state) % 8) {
    case 0: describe(column, state); break;
    case 1: column->name[draw(state) % sizeof column->name] = (char)draw(state); break;
    case 2: column->role = (uint16_t)(draw(state) % 12); break;
    case 3: column->type = (uint8_t)(draw(state) % 7); break;
    case 4: column->flags ^= (uint8_t)(1u << draw(state) % 2); break;
    case 5: column->width = (uint32_t)(one_in(state, 4) ? edge(state) : 1 + draw(state) % 5); break;
    case 6: column->n_values = (uint32_t)edge(state); break;
    default: column->crc32c ^= (uint32_t)draw(state); break;
  }
}

static void change_field(hilum_header *header, uint64_t *state) {
  switch (draw(state) % 16) {
    case 0: header->n_rows = 1 + draw(state) % 40; break;
    case 1: header->n_rows = edge(state); break;
    case 2: header->dim = (uint32_t)(1 + draw(state) % 9); break;
    case 3: header->dim = (uint32_t)edge(state); break;
    case 4: header->dtype = (uint8_t)(draw(state) % 5); break;
    case 5: header->compatible = draw(state) % 4; break;
    case 6: /* one column more, described */
      if (header->n_columns < HILUM_MAX_COLUMNS) {
        describe(&header->columns[header->n_columns++], state);
      }
      break;
    case 7: /* one column less, and its descriptor wiped */
      if (header->n_columns > 0 && header->n_columns <= HILUM_MAX_COLUMNS) {
        memset(&header->columns[--header->n_columns], 0, sizeof(hilum_column));
      }
      break;
    case 8: header->n_columns = (uint8_t)(draw(state) % 35); break;
    case 9: header->notes.length = 2 + draw(state) % 70; break;
    case 10: { /* any of offset and length of features, scales, table, notes */
      uint64_t *words = &header->features.offset;
      words[draw(state) % 8] = one_in(state, 2) ? edge(state) : words[draw(state) % 8] + 64;
      break;
    }
    case 11: header->file_size = edge(state); break;
    default: change_column(header, state); break;
  }
}

/* ---- mending --------------------------------------------------------------------------- */

/* Makes what is above the layout obey, most of the time; each rule is left broken now and then. */
static void mend_fields(hilum_header *header, uint64_t *state) {
  const uint64_t skip = draw(state) % 24; /* the one rule that is not mended, if any */
  if (skip != 0) memcpy(header->magic, "\x89HILUM\r\n", sizeof header->magic);
  if (skip != 1) header->major = HILUM_MAJOR;
  if (skip != 2) header->header_size = HILUM_HEADER_BYTES;
  if (skip != 3) header->state = HILUM_STATE_SEALED;
  if (skip != 4) header->incompatible = 0;
  if (skip != 5) header->chunk_log2 = HILUM_CHUNK_LOG2;
  if (skip != 6 && hilum_dtype_bytes(header->dtype) == 0) {
    header->dtype = (uint8_t)(HILUM_DTYPE_F32 + header->dtype % 3);
  }
  if (skip != 7 && header->n_columns > HILUM_MAX_COLUMNS) header->n_columns %= 33;
  if (skip != 8) memset(header->zero0, 0, sizeof header->zero0);
  if (skip != 9) memset(header->zero1, 0, sizeof header->zero1);
  const size_t n_columns = smaller(header->n_columns, HILUM_MAX_COLUMNS);
  if (skip != 10) {
    memset(&header->columns[n_columns], 0, (HILUM_MAX_COLUMNS - n_columns) * sizeof(hilum_column));
  }
  for (size_t i = 0; i < n_columns; i++) {
    hilum_column *column = &header->columns[i];
    if (skip != 11) column->reserved = 0;
    if (skip != 12 && hilum_type_bytes(column->type) == 0) column->type = HILUM_TYPE_U8;
    if (skip != 13 && column->role == HILUM_ROLE_GROUP && column->n_values > header->n_rows) {
      column->n_values = (uint32_t)header->n_rows;
    }
    if (skip != 14 && one_in(state, 2)) { /* a name that no other column has */
      for (size_t other = 0; other < i; other++) {
        if (strncmp(column->name, header->columns[other].name, sizeof column->name) == 0) {
          memset(column, 0, sizeof *column);
          memcpy(column->name, "again_", 6);
          column->name[6] = (char)('a' + i % 26);
          column->name[7] = (char)('a' + i / 26);
          column->type = HILUM_TYPE_U8;
          column->width = 1;
        }
      }
    }
  }
}

/* Puts every section where it belongs. false: the numbers are too large for max_size. */
static bool mend_layout(hilum_header *header, uint64_t max_size) {
  const uint64_t most = max_size; /* of any length; keeps the products below 2^64 */
  uint64_t end = HILUM_HEADER_BYTES;
  if (header->n_rows == 0 || header->n_rows > most || header->dim == 0 || header->dim > most) {
    return false;
  }
  header->features.offset = end;
  header->features.length = header->n_rows * header->dim * hilum_dtype_bytes(header->dtype);
  end += header->features.length;
  header->scales.offset = 0;
  header->scales.length = 0;
  const bool is_i8 = header->dtype == HILUM_DTYPE_I8;
  if (is_i8) {
    header->scales.offset = (end + 63) / 64 * 64;
    header->scales.length = header->dim * (uint64_t)sizeof(float);
    end = header->scales.offset + header->scales.length;
  }
  for (size_t i = 0; i < smaller(header->n_columns, HILUM_MAX_COLUMNS); i++) {
    hilum_column *column = &header->columns[i];
    if (column->width > most || end > most) return false;
    column->offset = (end + 63) / 64 * 64;
    column->length = header->n_rows * column->width * hilum_type_bytes(column->type);
    end = column->offset + column->length;
  }
  header->table.offset = (end + 63) / 64 * 64;
  header->table.length = sizeof(uint32_t) * ((header->n_rows + 1023) / 1024 + (is_i8 ? 1 : 0));
  header->notes.offset = (header->table.offset + header->table.length + 63) / 64 * 64;
  if (header->notes.length < 2 || header->notes.length > 1024) header->notes.length = 2;
  header->file_size = header->notes.offset + header->notes.length;
  return header->file_size <= max_size;
}

static void zero_gap(uint8_t *data, uint64_t end) {
  while (end % HILUM_ALIGNMENT_BYTES != 0) data[end++] = 0;
}

/* Zeros between the sections, and values their columns allow. */
static void mend_body(uint8_t *data, const hilum_header *header, uint64_t *state) {
  const bool mend_values = !one_in(state, 8);
  zero_gap(data, header->features.offset + header->features.length);
  zero_gap(data, header->scales.offset + header->scales.length);
  zero_gap(data, header->table.offset + header->table.length);
  for (size_t i = 0; i < smaller(header->n_columns, HILUM_MAX_COLUMNS); i++) {
    const hilum_column *column = &header->columns[i];
    zero_gap(data, column->offset + column->length);
    if (!mend_values) continue;
    const uint64_t element = hilum_type_bytes(column->type);
    for (uint64_t at = column->offset; at < column->offset + column->length; at += element) {
      if (column->n_values != 0) {
        uint32_t value = 0;
        memcpy(&value, data + at, (size_t)element);
        value %= column->n_values;
        memcpy(data + at, &value, (size_t)element);
      } else if (column->role == HILUM_ROLE_LABEL) {
        data[at] = (uint8_t)(data[at] % 4 - 2); /* -2 to 1 */
      }
    }
  }
}

/* The size of the mended container, or the old one where it does not fit. */
static size_t mend(uint8_t *data, size_t size, size_t max_size, uint64_t *state) {
  hilum_header header;
  memcpy(&header, data, sizeof header);
  mend_fields(&header, state);
  if (!mend_layout(&header, max_size)) {
    /* Too large to be true: sometimes that is the point, mostly not. */
    if (!one_in(state, 4)) {
      header.n_rows = 1 + header.n_rows % 16;
      header.dim = 1 + header.dim % 8;
      for (size_t i = 0; i < HILUM_MAX_COLUMNS; i++) {
        if (header.columns[i].width > 16) header.columns[i].width = 1;
      }
    }
    if (!mend_layout(&header, max_size)) {
      memcpy(data, &header, sizeof header);
      return size;
    }
  }
  memcpy(data, &header, sizeof header);
  if (header.file_size > size) memset(data + size, 0, (size_t)header.file_size - size);
  mend_body(data, &header, state);
  return (size_t)header.file_size;
}

/* ---- the mutator ----------------------------------------------------------------------- */

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed) {
  uint64_t state = seed;
  if (one_in(&state, 64)) return LLVMFuzzerMutate(data, size, max_size); /* anything at all */
  if (size < HILUM_HEADER_BYTES) {
    if (max_size < HILUM_HEADER_BYTES) return LLVMFuzzerMutate(data, size, max_size);
    memset(data + size, 0, HILUM_HEADER_BYTES - size);
    size = HILUM_HEADER_BYTES;
  }
  for (uint64_t n = 1 + draw(&state) % 3; n > 0; n--) {
    const uint64_t kind = draw(&state) % 16;
    if (kind < 9) {
      hilum_header header; /* a copy: data is not aligned by promise */
      memcpy(&header, data, sizeof header);
      change_field(&header, &state);
      memcpy(data, &header, sizeof header);
    } else if (kind < 10) {
      mutate_range(data, size, 0, 240);
    } else if (kind < 12) {
      const size_t index = (size_t)(draw(&state) % 8);
      mutate_range(data, size, offsetof(hilum_header, columns) + index * sizeof(hilum_column),
                   sizeof(hilum_column));
    } else {
      mutate_range(data, size, HILUM_HEADER_BYTES, size);
    }
  }
  if (!one_in(&state, 6)) size = mend(data, size, max_size, &state);
  if (one_in(&state, 16)) { /* a break after everything was mended */
    mutate_range(data, size, (size_t)(draw(&state) % size), 8);
  }
  if (one_in(&state, 24)) {
    size = 1 + (size_t)(draw(&state) % size); /* cut */
  } else if (one_in(&state, 32) && size < max_size) {
    const size_t more = 1 + (size_t)(draw(&state) % smaller(max_size - size, 70)); /* longer */
    memset(data + size, (int)(draw(&state) % 2), more);
    size += more;
  }
  return size;
}
