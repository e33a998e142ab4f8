/*-------------------------------------------------------------------------
 * memcheck.h
 *		What PostgreSQL tells valgrind about its memory, told to AddressSanitizer.
 *
 * A server compiled with -DUSE_VALGRIND says of each chunk whether it may be
 * touched.  With this folder in front of the include path, -fsanitize=address
 * hears that, and so sees an overrun of what palloc gave, or a use after pfree,
 * which would otherwise stay within one block of malloc's (CONTRIBUTING.md).
 * Caveat: AddressSanitizer knows no "not initialized"; valgrind does.
 *-------------------------------------------------------------------------
 */
#ifndef MEMCHECK_H
#define MEMCHECK_H

#include <sanitizer/asan_interface.h>

#define VALGRIND_MAKE_MEM_NOACCESS(addr, size)	ASAN_POISON_MEMORY_REGION(addr, size)
#define VALGRIND_MAKE_MEM_UNDEFINED(addr, size) ASAN_UNPOISON_MEMORY_REGION(addr, size)
#define VALGRIND_MAKE_MEM_DEFINED(addr, size)	ASAN_UNPOISON_MEMORY_REGION(addr, size)
#define VALGRIND_CHECK_MEM_IS_DEFINED(addr, size) ((void) 0)

/* A chunk is handed out; PostgreSQL itself has closed it again before it is freed. */
#define VALGRIND_MEMPOOL_ALLOC(pool, addr, size) ASAN_UNPOISON_MEMORY_REGION(addr, size)
#define VALGRIND_MEMPOOL_FREE(pool, addr)		((void) 0)
#define VALGRIND_MEMPOOL_CHANGE(pool, old, new, size) ASAN_UNPOISON_MEMORY_REGION(new, size)
#define VALGRIND_CREATE_MEMPOOL(pool, redzone, zeroed) ((void) 0)
#define VALGRIND_DESTROY_MEMPOOL(pool)			((void) 0)

#endif							/* MEMCHECK_H */
