/* The C interface of libhilum: include this file, link with -lhilum.
 *
 * The declarations themselves are in hilum_abi.h, which has no preprocessor line so that cffi
 * can read it verbatim. This file adds what only a compiler needs. */
#ifndef HILUM_H
#define HILUM_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The library is compiled with hidden visibility: what is declared here is what it exports.
 * (On Windows the list is native/src/hilum.def.) */
#if defined(__GNUC__) && !defined(_WIN32)
#pragma GCC visibility push(default)
#endif

#include "hilum_abi.h"

#if defined(__GNUC__) && !defined(_WIN32)
#pragma GCC visibility pop
#endif

#ifdef __cplusplus
}
#endif

#endif
