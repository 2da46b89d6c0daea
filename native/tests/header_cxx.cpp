// hilum.h as a C++ program sees it. Only its syntax is checked.
#include <hilum.h>

static_assert(sizeof(hilum_header) == HILUM_HEADER_BYTES, "header");

bool opens(const char *path);

bool opens(const char *path) {
  hilum_container *container = nullptr;
  hilum_error error;
  const int status = hilum_open(path, HILUM_MODE_READ, &container, &error);
  hilum_close(container);
  return status == HILUM_OK;
}
