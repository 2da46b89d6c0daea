/* The rules of container.md, checked on copies: nothing here reads the file. */
#include <stdlib.h>
#include <string.h>

#include "internal.h"

_Static_assert(sizeof(hilum_section) == 16, "section");
_Static_assert(sizeof(hilum_column) == 64, "column descriptor");
_Static_assert(sizeof(hilum_header) == HILUM_HEADER_BYTES, "header");
_Static_assert(offsetof(hilum_header, features) == 56, "features");
_Static_assert(offsetof(hilum_header, table_crc32c) == 120, "table_crc32c");
_Static_assert(offsetof(hilum_header, backbone_sha256) == 128, "backbone_sha256");
_Static_assert(offsetof(hilum_header, uuid) == 224, "uuid");
_Static_assert(offsetof(hilum_header, columns) == 512, "columns");
_Static_assert(offsetof(hilum_header, zero1) == 2560, "zero1");
_Static_assert(offsetof(hilum_header, header_crc32c) == 4092, "header_crc32c");

static const unsigned char MAGIC[HILUM_MAGIC_BYTES] = {0x89, 'H', 'I', 'L', 'U', 'M', '\r', '\n'};
static const unsigned char PART_MAGIC[HILUM_MAGIC_BYTES] = {0x89, 'H', 'I', 'L',
                                                            'P',  'A', 'R', 'T'};

static const uint64_t KNOWN_INCOMPATIBLE = 0; /* version 1.0 has none */

/* What a known role demands of its column. Indexed by role; role 0 demands nothing. */
typedef struct role_rule {
  const char *name;
  uint32_t type;
  uint32_t width;
  uint32_t least_values; /* n_values lies in [least_values, most_values] */
  uint32_t most_values;
} role_rule;

static const role_rule RULES[] = {
    {"", 0, 0, 0, 0},
    {"label", HILUM_TYPE_U16, 1, 1, 65535}, /* or MULTI_LABEL */
    {"split", HILUM_TYPE_U8, 1, 4, 4},
    {"group", HILUM_TYPE_U32, 1, 1, UINT32_MAX}, /* and at most n_rows */
    {"sample_key", HILUM_TYPE_BYTES, 16, 0, 0},
    {"source", HILUM_TYPE_U8, 1, 1, 256},
    {"view", HILUM_TYPE_U8, 1, 0, 0},
    {"row_flags", HILUM_TYPE_U8, 1, 0, 0},
    {"sex", HILUM_TYPE_U8, 1, 4, 4},
    {"age", HILUM_TYPE_U8, 1, 0, 0},
    {"projection", HILUM_TYPE_U8, 1, 6, 6},
};
enum { N_RULES = sizeof RULES / sizeof RULES[0] };
_Static_assert(N_RULES == HILUM_ROLE_PROJECTION + 1, "a rule for every role");

uint64_t hilum_dtype_bytes(uint32_t dtype) {
  switch (dtype) {
    case HILUM_DTYPE_F32: return 4;
    case HILUM_DTYPE_F16: return 2;
    case HILUM_DTYPE_I8: return 1;
    default: return 0;
  }
}

uint64_t hilum_type_bytes(uint32_t type) {
  switch (type) {
    case HILUM_TYPE_U8: return 1;
    case HILUM_TYPE_U16: return 2;
    case HILUM_TYPE_U32: return 4;
    case HILUM_TYPE_I8: return 1;
    case HILUM_TYPE_BYTES: return 1;
    default: return 0;
  }
}

int hilum_check_magic(const unsigned char *first, uint64_t n_bytes, hilum_error *error) {
  size_t n = n_bytes < HILUM_MAGIC_BYTES ? (size_t)n_bytes : (size_t)HILUM_MAGIC_BYTES;
  uint64_t found = 0;
  uint64_t expected = 0;
  memcpy(&found, first, n);
  memcpy(&expected, MAGIC, sizeof MAGIC);
  /* Five bytes tell .part from the sealed magic. */
  if (n > 4 && memcmp(first, PART_MAGIC, n) == 0) {
    return hilum_fail(error, HILUM_ERR_UNSEALED, "magic", 0, found, expected);
  }
  if (n == 0 || memcmp(first, MAGIC, n) != 0) {
    return hilum_fail(error, HILUM_ERR_NOT_A_CONTAINER, "magic", 0, found, expected);
  }
  if (n_bytes < HILUM_HEADER_BYTES) {
    return hilum_fail(error, HILUM_ERR_TRUNCATED, "header", n_bytes, n_bytes, HILUM_HEADER_BYTES);
  }
  return HILUM_OK;
}

/* ---- fields ---------------------------------------------------------------------------- */

static int check_zero(const hilum_header *header, size_t offset, size_t n_bytes, const char *field,
                      hilum_error *error) {
  const unsigned char *bytes = (const unsigned char *)header;
  for (size_t i = offset; i < offset + n_bytes; i++) {
    if (bytes[i] != 0) return hilum_fail(error, HILUM_ERR_PADDING, field, i, bytes[i], 0);
  }
  return HILUM_OK;
}

/* found must lie in [least, most]; on failure the nearer limit is reported as expected. */
static int check_range(enum hilum_status status, const char *field, size_t offset, uint64_t found,
                       uint64_t least, uint64_t most, hilum_error *error) {
  if (found < least) return hilum_fail(error, status, field, offset, found, least);
  if (found > most) return hilum_fail(error, status, field, offset, found, most);
  return HILUM_OK;
}

#define FIELD_RANGE(name, least, most)                                                     \
  TRY(check_range(HILUM_ERR_HEADER, #name, offsetof(hilum_header, name), header->name, least, \
                  most, error))

static int check_fields(const hilum_header *header, hilum_error *error) {
  FIELD_RANGE(header_size, HILUM_HEADER_BYTES, HILUM_HEADER_BYTES);
  if (header->state != HILUM_STATE_SEALED) {
    return hilum_fail(error, HILUM_ERR_UNSEALED, "state", offsetof(hilum_header, state),
                      header->state, HILUM_STATE_SEALED);
  }
  if ((header->incompatible & ~KNOWN_INCOMPATIBLE) != 0) {
    return hilum_fail(error, HILUM_ERR_INCOMPATIBLE, "incompatible",
                      offsetof(hilum_header, incompatible), header->incompatible,
                      KNOWN_INCOMPATIBLE);
  }
  FIELD_RANGE(n_rows, 1, HILUM_MAX_ROWS);
  FIELD_RANGE(dim, 1, HILUM_MAX_DIM);
  FIELD_RANGE(dtype, HILUM_DTYPE_F32, HILUM_DTYPE_I8);
  FIELD_RANGE(n_columns, 0, HILUM_MAX_COLUMNS);
  FIELD_RANGE(chunk_log2, HILUM_CHUNK_LOG2, HILUM_CHUNK_LOG2);
  TRY(check_zero(header, offsetof(hilum_header, zero0), sizeof header->zero0, "zero0", error));
  TRY(check_zero(header, offsetof(hilum_header, zero1), sizeof header->zero1, "zero1", error));
  const size_t used = offsetof(hilum_header, columns) + header->n_columns * sizeof(hilum_column);
  TRY(check_zero(header, used, offsetof(hilum_header, zero1) - used, "columns", error));
  return HILUM_OK;
}

/* ---- column descriptors ---------------------------------------------------------------- */

static size_t column_offset(uint32_t index, size_t member) {
  return offsetof(hilum_header, columns) + index * sizeof(hilum_column) + member;
}

static int check_name(const hilum_header *header, uint32_t index, hilum_error *error) {
  const char *name = header->columns[index].name;
  const size_t size = HILUM_COLUMN_NAME_BYTES;
  size_t length = 0;
  while (length < size && name[length] != '\0') {
    const char c = name[length];
    const bool fine = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
    if (!fine) {
      return hilum_fail(error, HILUM_ERR_COLUMN, "name", column_offset(index, length),
                        (unsigned char)c, '_');
    }
    length++;
  }
  /* At least one NUL, so that C may print it; at least one letter. */
  if (length == 0 || length == size) {
    return hilum_fail(error, HILUM_ERR_COLUMN, "name", column_offset(index, 0), length,
                      length == 0 ? 1 : size - 1);
  }
  for (size_t i = length; i < size; i++) {
    if (name[i] != '\0') {
      return hilum_fail(error, HILUM_ERR_COLUMN, "name", column_offset(index, i),
                        (unsigned char)name[i], 0);
    }
  }
  return HILUM_OK;
}

#define COLUMN_FAIL(member, expected)                                                   \
  hilum_fail(error, HILUM_ERR_COLUMN, column->name,                                     \
             column_offset(index, offsetof(hilum_column, member)), column->member, expected)

#define COLUMN_RANGE(member, least, most)                                                  \
  TRY(check_range(HILUM_ERR_COLUMN, column->name,                                          \
                  column_offset(index, offsetof(hilum_column, member)), column->member, least, \
                  most, error))

/* What every column must obey, whatever it means. */
static int check_shape(const hilum_header *header, uint32_t index, hilum_error *error) {
  const hilum_column *column = &header->columns[index];
  COLUMN_RANGE(type, HILUM_TYPE_U8, HILUM_TYPE_BYTES);
  COLUMN_RANGE(flags, 0, HILUM_COLUMN_MUST_UNDERSTAND);
  COLUMN_RANGE(width, 1, HILUM_MAX_WIDTH);
  COLUMN_RANGE(reserved, 0, 0);
  const bool is_unsigned = column->type == HILUM_TYPE_U8 || column->type == HILUM_TYPE_U16 ||
                           column->type == HILUM_TYPE_U32;
  if (!is_unsigned) COLUMN_RANGE(n_values, 0, 0);
  return HILUM_OK;
}

/* A known role demands its own name, type, width and n_values; other roles must not borrow a known
 * name, or a reader by name and a reader by role would see different columns. */
static int check_role(const hilum_header *header, uint32_t index, hilum_error *error) {
  const hilum_column *column = &header->columns[index];
  const bool known = column->role != HILUM_ROLE_OTHER && column->role < N_RULES;
  for (uint32_t role = 1; role < N_RULES; role++) {
    const bool same_name = strcmp(column->name, RULES[role].name) == 0;
    if (same_name != (role == column->role)) {
      return COLUMN_FAIL(role, same_name ? role : HILUM_ROLE_OTHER);
    }
  }
  if (!known) {
    if ((column->flags & HILUM_COLUMN_MUST_UNDERSTAND) != 0) {
      return hilum_fail(error, HILUM_ERR_INCOMPATIBLE, column->name,
                        column_offset(index, offsetof(hilum_column, role)), column->role, 0);
    }
    return HILUM_OK;
  }
  const role_rule *rule = &RULES[column->role];
  if (column->role == HILUM_ROLE_LABEL && column->type == HILUM_TYPE_I8) {
    return HILUM_OK; /* multi-label: any width, values checked by role */
  }
  COLUMN_RANGE(type, rule->type, rule->type);
  COLUMN_RANGE(width, rule->width, rule->width);
  COLUMN_RANGE(n_values, rule->least_values, rule->most_values);
  /* Bounds the memory of the group check by the file. */
  if (column->role == HILUM_ROLE_GROUP) COLUMN_RANGE(n_values, 1, header->n_rows);
  return HILUM_OK;
}

static int check_columns(const hilum_header *header, hilum_error *error) {
  for (uint32_t index = 0; index < header->n_columns; index++) {
    TRY(check_name(header, index, error));
    const hilum_column *column = &header->columns[index];
    /* At most 32 columns: comparing all pairs costs nothing. A known role has its one name, so
     * unique names make known roles unique too. */
    for (uint32_t other = 0; other < index; other++) {
      if (strcmp(column->name, header->columns[other].name) == 0) {
        return hilum_fail(error, HILUM_ERR_COLUMN, column->name, column_offset(index, 0), index,
                          other);
      }
    }
    TRY(check_shape(header, index, error));
    TRY(check_role(header, index, error));
  }
  return HILUM_OK;
}

static const hilum_column *find_role(const hilum_header *header, uint32_t role, uint32_t *index) {
  for (uint32_t i = 0; i < header->n_columns; i++) {
    if (header->columns[i].role == role) {
      *index = i;
      return &header->columns[i];
    }
  }
  return NULL;
}

/* A promise about columns that are not there cannot be checked. */
static int check_group_flag(const hilum_header *header, hilum_error *error) {
  uint32_t index;
  if ((header->compatible & HILUM_COMPATIBLE_GROUP_CLEAN) != 0 &&
      (find_role(header, HILUM_ROLE_GROUP, &index) == NULL ||
       find_role(header, HILUM_ROLE_SPLIT, &index) == NULL)) {
    return hilum_fail(error, HILUM_ERR_HEADER, "compatible", offsetof(hilum_header, compatible),
                      header->compatible,
                      header->compatible & ~(uint64_t)HILUM_COMPATIBLE_GROUP_CLEAN);
  }
  return HILUM_OK;
}

/* ---- layout: derive, do not trust ------------------------------------------------------ */

/* Where the next section starts, given where the previous one ends. */
static bool next_section(uint64_t end, uint64_t *start) {
  if (!hilum_add(end, HILUM_ALIGNMENT_BYTES - 1, start)) return false;
  *start -= *start % HILUM_ALIGNMENT_BYTES;
  return true;
}

/* Compares one stored section with start and length, and moves end behind it. field names the
 * section, header_offset is where its offset is stored. */
static int check_section(const char *field, size_t header_offset, uint64_t stored_offset,
                         uint64_t stored_length, uint64_t length, uint64_t *end,
                         hilum_error *error) {
  uint64_t start;
  uint64_t stop;
  if (!next_section(*end, &start) || !hilum_add(start, length, &stop)) {
    return hilum_fail(error, HILUM_ERR_LAYOUT, field, header_offset, stored_offset, UINT64_MAX);
  }
  if (stored_offset != start) {
    return hilum_fail(error, HILUM_ERR_LAYOUT, field, header_offset, stored_offset, start);
  }
  if (stored_length != length) {
    return hilum_fail(error, HILUM_ERR_LAYOUT, field, header_offset + sizeof(uint64_t),
                      stored_length, length);
  }
  *end = stop;
  return HILUM_OK;
}

static bool row_section(uint64_t n_rows, uint64_t width, uint64_t element_bytes,
                        uint64_t *length) {
  return hilum_multiply(n_rows, width, length) && hilum_multiply(*length, element_bytes, length);
}

#define SECTION(section, n_bytes)                                                 \
  TRY(check_section(#section, offsetof(hilum_header, section), header->section.offset, \
                    header->section.length, n_bytes, &end, error))

static int check_layout(const hilum_header *header, hilum_error *error) {
  const bool is_i8 = header->dtype == HILUM_DTYPE_I8;
  uint64_t end = HILUM_HEADER_BYTES;
  uint64_t length;
  if (!row_section(header->n_rows, header->dim, hilum_dtype_bytes(header->dtype), &length)) {
    length = UINT64_MAX; /* cannot be stored: refused by check_section */
  }
  SECTION(features, length);
  if (is_i8) {
    SECTION(scales, header->dim * (uint64_t)sizeof(float));
  } else if (header->scales.offset != 0 || header->scales.length != 0) {
    return hilum_fail(error, HILUM_ERR_LAYOUT, "scales", offsetof(hilum_header, scales),
                      header->scales.offset | header->scales.length, 0);
  }
  for (uint32_t index = 0; index < header->n_columns; index++) {
    const hilum_column *column = &header->columns[index];
    if (!row_section(header->n_rows, column->width, hilum_type_bytes(column->type), &length)) {
      length = UINT64_MAX;
    }
    TRY(check_section(column->name, column_offset(index, offsetof(hilum_column, offset)),
                      column->offset, column->length, length, &end, error));
  }
  const uint64_t chunk_rows = (uint64_t)1 << HILUM_CHUNK_LOG2;
  const uint64_t n_chunks = (header->n_rows + chunk_rows - 1) / chunk_rows;
  SECTION(table, sizeof(uint32_t) * (n_chunks + (is_i8 ? 1 : 0)));
  /* The one length that cannot be derived: bounded instead, and tied to the file's end. */
  TRY(check_range(HILUM_ERR_HEADER, "notes",
                  offsetof(hilum_header, notes) + offsetof(hilum_section, length),
                  header->notes.length, 2, HILUM_MAX_NOTES_BYTES, error));
  SECTION(notes, header->notes.length);
  if (header->file_size != end) {
    return hilum_fail(error, HILUM_ERR_LAYOUT, "file_size", offsetof(hilum_header, file_size),
                      header->file_size, end);
  }
  return HILUM_OK;
}

int hilum_check_header(const hilum_header *header, uint64_t n_bytes, hilum_error *error) {
  TRY(hilum_check_magic(header->magic, n_bytes, error));
  /* Before the checksum: another major may keep it elsewhere. */
  if (header->major != HILUM_MAJOR) {
    return hilum_fail(error, HILUM_ERR_VERSION, "major", offsetof(hilum_header, major),
                      header->major, HILUM_MAJOR);
  }
  const uint32_t crc = hilum_crc32c(0, header, offsetof(hilum_header, header_crc32c));
  if (hilum_crc_differs(crc, header->header_crc32c)) {
    return hilum_fail(error, HILUM_ERR_HEADER_CRC, "header_crc32c",
                      offsetof(hilum_header, header_crc32c), crc, header->header_crc32c);
  }
  TRY(check_fields(header, error));
  TRY(check_columns(header, error));
  TRY(check_group_flag(header, error));
  TRY(check_layout(header, error));
  if (n_bytes < header->file_size) {
    return hilum_fail(error, HILUM_ERR_TRUNCATED, "file_size", n_bytes, n_bytes,
                      header->file_size);
  }
  if (n_bytes > header->file_size) {
    return hilum_fail(error, HILUM_ERR_TRAILING, "file_size", header->file_size, n_bytes,
                      header->file_size);
  }
  return HILUM_OK;
}

/* ---- values ---------------------------------------------------------------------------- */

/* One function for each element type. The largest value alone is sought first, in a loop without a
 * branch that compilers turn into vector instructions; only a column that breaks the rule is gone
 * through again, for the first value not below the limit. */
#define DEFINE_CHECK_BELOW(function, element)                                             \
  static int function(const hilum_column *column, const element *values, uint64_t n,      \
                      hilum_error *error) {                                               \
    element largest = 0;                                                                  \
    for (uint64_t i = 0; i < n; i++) largest = values[i] > largest ? values[i] : largest;  \
    if (largest < column->n_values) return HILUM_OK;                                      \
    for (uint64_t i = 0; i < n; i++) {                                                    \
      if (values[i] >= column->n_values) {                                                \
        return hilum_fail(error, HILUM_ERR_VALUE, column->name,                           \
                          column->offset + i * sizeof(element), values[i], column->n_values); \
      }                                                                                   \
    }                                                                                     \
    return HILUM_OK;                                                                      \
  }

DEFINE_CHECK_BELOW(check_below_u8, uint8_t)
DEFINE_CHECK_BELOW(check_below_u16, uint16_t)
DEFINE_CHECK_BELOW(check_below_u32, uint32_t)

static int check_multi_label(const hilum_column *column, const int8_t *values, uint64_t n,
                             hilum_error *error) {
  for (uint64_t i = 0; i < n; i++) {
    if (values[i] < HILUM_LABEL_NOT_ASSESSED || values[i] > 1) {
      return hilum_fail(error, HILUM_ERR_VALUE, column->name, column->offset + i,
                        (uint64_t)(int64_t)values[i], 1);
    }
  }
  return HILUM_OK;
}

int hilum_check_column_values(const hilum_header *header, uint32_t index, const void *values,
                              hilum_error *error) {
  const hilum_column *column = &header->columns[index];
  const uint64_t n = column->length / hilum_type_bytes(column->type);
  if (column->role == HILUM_ROLE_LABEL && column->type == HILUM_TYPE_I8) {
    return check_multi_label(column, values, n, error);
  }
  if (column->n_values == 0) return HILUM_OK;
  switch (column->type) {
    case HILUM_TYPE_U8: return check_below_u8(column, values, n, error);
    case HILUM_TYPE_U16: return check_below_u16(column, values, n, error);
    case HILUM_TYPE_U32: return check_below_u32(column, values, n, error);
    default: return HILUM_OK; /* check_shape left no n_values here */
  }
}

int hilum_check_groups(const hilum_header *header, void *const *columns, hilum_error *error) {
  if ((header->compatible & HILUM_COMPATIBLE_GROUP_CLEAN) == 0) return HILUM_OK;
  uint32_t group_index;
  uint32_t split_index;
  const hilum_column *group = find_role(header, HILUM_ROLE_GROUP, &group_index);
  const hilum_column *split = find_role(header, HILUM_ROLE_SPLIT, &split_index);
  if (group == NULL || split == NULL) return HILUM_OK; /* check_group_flag refused it before */
  const uint32_t *groups = columns[group_index];
  const uint8_t *splits = columns[split_index];
  /* A bit for each split the group has rows in; n_values <= n_rows <= bytes of features. */
  uint8_t *seen = calloc(group->n_values, 1);
  if (seen == NULL) {
    return hilum_fail(error, HILUM_ERR_MEMORY, group->name, 0, 0, group->n_values);
  }
  /* Rows come in random order, so a branch on what was seen would be guessed wrong half the time:
   * 3 times slower. Both columns were compared with their n_values before, 4 for splits. */
  for (uint64_t row = 0; row < header->n_rows; row++) {
    seen[groups[row]] |= (uint8_t)(1u << (splits[row] & 3u));
  }
  const uint8_t marked = 1u << HILUM_SPLIT_TRAIN | 1u << HILUM_SPLIT_VALID | 1u << HILUM_SPLIT_TEST;
  bool clean = true;
  for (uint32_t i = 0; i < group->n_values; i++) {
    const uint8_t in = seen[i] & marked;
    clean &= (in & (in - 1)) == 0;
  }
  int status = HILUM_OK;
  if (!clean) { /* once more, for the first row that breaks the promise */
    memset(seen, HILUM_SPLIT_NONE, group->n_values);
    for (uint64_t row = 0; row < header->n_rows; row++) {
      if (splits[row] == HILUM_SPLIT_NONE) continue;
      uint8_t *first = &seen[groups[row]];
      if (*first == HILUM_SPLIT_NONE) {
        *first = splits[row];
      } else if (*first != splits[row]) {
        status = hilum_fail(error, HILUM_ERR_GROUP_SPLIT, split->name, split->offset + row,
                            splits[row], *first);
        break;
      }
    }
  }
  free(seen);
  return status;
}
