/* Errors: filling them, and their sentences. */
#include <string.h>

#include "internal.h"

void hilum_clear_error(hilum_error *error) {
  if (error != NULL) memset(error, 0, sizeof *error);
}

int hilum_fail(hilum_error *error, enum hilum_status status, const char *field, uint64_t offset,
               uint64_t found, uint64_t expected) {
  if (error != NULL) {
    memset(error, 0, sizeof *error);
    error->status = (int32_t)status;
    error->offset = offset;
    error->found = found;
    error->expected = expected;
    size_t n = strlen(field);
    if (n > sizeof error->field - 1) n = sizeof error->field - 1;
    memcpy(error->field, field, n); /* the rest is zero already */
  }
  return (int)status;
}

int hilum_fail_system(hilum_error *error, enum hilum_status status, const char *field,
                      uint64_t offset, int32_t system_error) {
  hilum_fail(error, status, field, offset, 0, 0);
  if (error != NULL) error->system_error = system_error;
  return (int)status;
}

const char *hilum_status_text(int status) {
  switch (status) {
    case HILUM_OK: return "success";
    case HILUM_ERR_ARGUMENT: return "an argument breaks the rules of the call";
    case HILUM_ERR_OPEN: return "the system refused to open the file";
    case HILUM_ERR_READ: return "the system failed to read the file";
    case HILUM_ERR_MEMORY: return "not enough memory";
    case HILUM_ERR_NOT_A_CONTAINER: return "not a hilum container";
    case HILUM_ERR_UNSEALED: return "the container was never finished";
    case HILUM_ERR_VERSION: return "the format has another major version";
    case HILUM_ERR_INCOMPATIBLE: return "the file needs a later version of this library";
    case HILUM_ERR_TRUNCATED: return "the file is shorter than its header says";
    case HILUM_ERR_TRAILING: return "the file is longer than its header says";
    case HILUM_ERR_HEADER_CRC: return "the header's checksum differs";
    case HILUM_ERR_HEADER: return "a header field is outside its range";
    case HILUM_ERR_LAYOUT: return "a stored offset or length is not the derived one";
    case HILUM_ERR_PADDING: return "a byte that must be zero is not";
    case HILUM_ERR_COLUMN: return "a column descriptor breaks a rule";
    case HILUM_ERR_COLUMN_CRC: return "a column's checksum differs";
    case HILUM_ERR_VALUE: return "a column holds a value outside its range";
    case HILUM_ERR_GROUP_SPLIT: return "a group lies in two splits of a file flagged group-clean";
    case HILUM_ERR_TABLE_CRC: return "the checksum of the chunk table differs";
    case HILUM_ERR_NOTES_CRC: return "the checksum of the notes differs";
    case HILUM_ERR_SCALES_CRC: return "the checksum of the scales differs";
    case HILUM_ERR_CHUNK_CRC: return "the checksum of a chunk of features differs";
    case HILUM_ERR_NOT_FINITE: return "a value is not finite in a file flagged all-finite";
    default: return "unknown status";
  }
}

uint32_t hilum_abi_version(void) { return HILUM_ABI_VERSION; }
