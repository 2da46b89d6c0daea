/* Hilum container v1: the one definition of its bytes and of the C interface.
 *
 * Declarations only, no preprocessor line: C and C++ read this file through
 * native/include/hilum.h (which adds the include guard, <stdint.h> and export marks), cffi
 * reads it verbatim, and the NumPy dtypes are derived from the structures below.
 * formats/container.md says what every field means and why it is there.
 */

/* ---- Sizes and limits ------------------------------------------------------------------ */

enum {
  HILUM_ABI_VERSION = 1,       /* changes when a structure or prototype below changes */
  HILUM_MAJOR = 1,             /* of the file format; another major is refused */
  HILUM_MINOR = 0,
  HILUM_HEADER_BYTES = 4096,
  HILUM_ALIGNMENT_BYTES = 64,  /* every section starts at a multiple of this */
  HILUM_MAGIC_BYTES = 8,
  HILUM_MAX_COLUMNS = 32,
  HILUM_MAX_DIM = 65536,
  HILUM_MAX_ROWS = 2147483647,
  HILUM_MAX_NOTES_BYTES = 1048576,
  HILUM_MAX_WIDTH = 65536,     /* elements of one column in one row */
  HILUM_CHUNK_LOG2 = 10,       /* a checksum covers 1024 rows */
  HILUM_STATE_SEALED = 1,
  HILUM_COLUMN_NAME_BYTES = 24
};

/* Feature element types (header field dtype). */
enum {
  HILUM_DTYPE_F32 = 1,
  HILUM_DTYPE_F16 = 2,
  HILUM_DTYPE_I8 = 3           /* value = element * scale of its feature dimension */
};

/* Element types of a column. */
enum {
  HILUM_TYPE_U8 = 1,
  HILUM_TYPE_U16 = 2,
  HILUM_TYPE_U32 = 3,
  HILUM_TYPE_I8 = 4,
  HILUM_TYPE_BYTES = 5         /* width opaque bytes a row */
};

/* What a column means. 0 is a column this version knows nothing about. */
enum {
  HILUM_ROLE_OTHER = 0,
  HILUM_ROLE_LABEL = 1,
  HILUM_ROLE_SPLIT = 2,
  HILUM_ROLE_GROUP = 3,
  HILUM_ROLE_SAMPLE_KEY = 4,
  HILUM_ROLE_SOURCE = 5,
  HILUM_ROLE_VIEW = 6,
  HILUM_ROLE_ROW_FLAGS = 7,
  HILUM_ROLE_SEX = 8,
  HILUM_ROLE_AGE = 9,
  HILUM_ROLE_PROJECTION = 10
};

enum { HILUM_COLUMN_MUST_UNDERSTAND = 1 };   /* column flags */
enum { HILUM_ROW_WITHDRAWN = 1 };            /* row_flags */
enum { HILUM_COMPATIBLE_ALL_FINITE = 1, HILUM_COMPATIBLE_GROUP_CLEAN = 2 };
enum { HILUM_SPLIT_NONE = 0, HILUM_SPLIT_TRAIN = 1, HILUM_SPLIT_VALID = 2, HILUM_SPLIT_TEST = 3 };
enum { HILUM_LABEL_UNCERTAIN = -1, HILUM_LABEL_NOT_ASSESSED = -2 };

/* How features are reached (hilum_open, argument mode). */
enum {
  HILUM_MODE_MMAP = 0,         /* memory-mapped; falls back to READ where mapping is refused */
  HILUM_MODE_READ = 1          /* pread on demand: a file cut later gives an error, never SIGBUS */
};

/* ---- What a call answers --------------------------------------------------------------- */

enum hilum_status {
  HILUM_OK = 0,
  HILUM_ERR_ARGUMENT = 1,      /* the caller broke the prototype's rules */
  HILUM_ERR_OPEN = 2,          /* the system refused; system_error holds errno */
  HILUM_ERR_READ = 3,
  HILUM_ERR_MEMORY = 4,
  HILUM_ERR_NOT_A_CONTAINER = 5,
  HILUM_ERR_UNSEALED = 6,      /* an unfinished .part, or state is not sealed */
  HILUM_ERR_VERSION = 7,
  HILUM_ERR_INCOMPATIBLE = 8,  /* a flag or a must-understand column of a later version */
  HILUM_ERR_TRUNCATED = 9,     /* shorter than its header says */
  HILUM_ERR_TRAILING = 10,     /* longer than its header says */
  HILUM_ERR_HEADER_CRC = 11,
  HILUM_ERR_HEADER = 12,       /* a field outside its range */
  HILUM_ERR_LAYOUT = 13,       /* a stored offset or length is not the derived one */
  HILUM_ERR_PADDING = 14,      /* a gap holds a byte that is not zero */
  HILUM_ERR_COLUMN = 15,       /* a column descriptor breaks a rule */
  HILUM_ERR_COLUMN_CRC = 16,
  HILUM_ERR_VALUE = 17,        /* a column holds a value outside its range */
  HILUM_ERR_GROUP_SPLIT = 18,  /* flagged GROUP_CLEAN, yet a group lies in two splits */
  HILUM_ERR_TABLE_CRC = 19,
  HILUM_ERR_NOTES_CRC = 20,
  HILUM_ERR_SCALES_CRC = 21,
  HILUM_ERR_CHUNK_CRC = 22,
  HILUM_ERR_NOT_FINITE = 23    /* flagged ALL_FINITE, yet a feature or scale is not */
};

/* Filled by every call that can fail; all zero after success. */
typedef struct hilum_error {
  int32_t status;              /* enum hilum_status */
  int32_t system_error;        /* errno or GetLastError(), 0 when the system is not to blame */
  uint64_t offset;             /* byte of the file where it was seen */
  uint64_t found;
  uint64_t expected;
  char field[32];              /* header field, or column name; NUL-terminated */
} hilum_error;

/* ---- The bytes ------------------------------------------------------------------------- */

typedef struct hilum_section {
  uint64_t offset;
  uint64_t length;
} hilum_section;

typedef struct hilum_column {
  char name[24];               /* [a-z0-9_], NUL-padded, unique */
  uint16_t role;
  uint8_t type;
  uint8_t flags;
  uint32_t width;              /* elements a row */
  uint64_t offset;
  uint64_t length;
  uint32_t crc32c;
  uint32_t n_values;           /* every value is below it; 0 = not checked */
  uint64_t reserved;
} hilum_column;

typedef struct hilum_header {
  uint8_t magic[8];
  uint16_t major;
  uint16_t minor;
  uint32_t header_size;
  uint64_t file_size;
  uint64_t n_rows;
  uint32_t dim;
  uint8_t dtype;
  uint8_t n_columns;
  uint8_t chunk_log2;
  uint8_t state;
  uint64_t incompatible;
  uint64_t compatible;
  hilum_section features;
  hilum_section scales;
  hilum_section table;         /* one CRC32C a chunk; for i8 one more, of the scales */
  hilum_section notes;
  uint32_t table_crc32c;
  uint32_t notes_crc32c;
  uint8_t backbone_sha256[32];
  uint8_t preprocessing_sha256[32];
  uint8_t body_sha256[32];
  uint8_t uuid[16];
  uint8_t zero0[272];
  hilum_column columns[32];
  uint8_t zero1[1532];
  uint32_t header_crc32c;
} hilum_header;

/* ---- The calls ------------------------------------------------------------------------- */

typedef struct hilum_container hilum_container;

/* Open and validate everything but the features' own checksums.
 * path: UTF-8, not NULL. mode: HILUM_MODE_*. *out: owned by the caller, freed with hilum_close;
 * NULL after failure. error: may be NULL. A container never changes after hilum_open returned,
 * so any number of threads may read from it. */
int hilum_open(const char *path, uint32_t mode, hilum_container **out, hilum_error *error);

/* The same over bytes in memory, which start at a multiple of 4 (else HILUM_ERR_ARGUMENT), must
 * outlive the container and must not change. */
int hilum_open_memory(const void *bytes, uint64_t n_bytes, hilum_container **out,
                      hilum_error *error);

/* Unmap and free. Every pointer got from the container ends here. NULL is allowed. */
void hilum_close(hilum_container *container);

/* The validated copy of the header. Lives as long as the container. NULL only for NULL, as with
 * the views below. */
const hilum_header *hilum_get_header(const hilum_container *container);

/* Rows x dim elements, row-major, or NULL when the container was opened with HILUM_MODE_READ
 * (or fell back to it): then use hilum_read_rows. Lives as long as the container. */
const void *hilum_features(const hilum_container *container);

/* Copy n_rows rows from first_row on, in the stored dtype, into out.
 * out_bytes must be exactly n_rows * dim * element size. */
int hilum_read_rows(const hilum_container *container, uint64_t first_row, uint64_t n_rows,
                    void *out, uint64_t out_bytes, hilum_error *error);

/* dim floats, or NULL unless dtype is HILUM_DTYPE_I8. Lives as long as the container. */
const float *hilum_scales(const hilum_container *container);

/* The column's n_rows * width elements; NULL when index >= n_columns. Lives as long as the
 * container. */
const void *hilum_column_data(const hilum_container *container, uint32_t index);

/* UTF-8 JSON, notes.length bytes, not NUL-terminated. Lives as long as the container. */
const char *hilum_notes(const hilum_container *container);

/* Number of checksum chunks: ceil(n_rows / 1024). */
uint64_t hilum_n_chunks(const hilum_container *container);

/* Compare one chunk of features with its checksum, and, where the file is flagged ALL_FINITE,
 * look at every value. Reads the file, not the mapping. */
int hilum_verify_chunk(const hilum_container *container, uint64_t chunk, hilum_error *error);

/* CRC-32C (Castagnoli, RFC 3720 appendix B.4) of bytes, continuing from crc (0 to start). */
uint32_t hilum_crc32c(uint32_t crc, const void *bytes, uint64_t n_bytes);

/* A static English sentence for a status; never NULL. */
const char *hilum_status_text(int status);

/* HILUM_ABI_VERSION the library was built with: a binding compares it before anything else. */
uint32_t hilum_abi_version(void);
