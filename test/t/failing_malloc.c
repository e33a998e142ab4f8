/*
 * failing_malloc.c
 *		A malloc that fails when it is told to, for memory.pl.
 *
 * Preloaded into the server (LD_PRELOAD), and loaded once more by the SQL
 * function that sets it: both are the same library.  fail_malloc(n, size) makes the
 * n-th allocation of that size or more of this backend return NULL, once.
 */
#define _GNU_SOURCE
#include "postgres.h"

#include <dlfcn.h>

#include "fmgr.h"

static Size counted = 0;		/* smaller ones are not counted */
static int64 left = 0;			/* until one fails; 0: none does */
static int64 seen = 0;			/* since fail_malloc was called */

PG_MODULE_MAGIC;
PG_FUNCTION_INFO_V1(fail_malloc);
PG_FUNCTION_INFO_V1(mallocs_seen);

static bool
fails(size_t size)
{
	if (size < counted)
		return false;
	seen++;
	return left > 0 && --left == 0;
}

void *
malloc(size_t size)
{
	static void *(*real) (size_t) = NULL;

	if (real == NULL)
		real = (void *(*) (size_t)) dlsym(RTLD_NEXT, "malloc");
	return fails(size) ? NULL : real(size);
}

void *
realloc(void *pointer, size_t size)
{
	static void *(*real) (void *, size_t) = NULL;

	if (real == NULL)
		real = (void *(*) (void *, size_t)) dlsym(RTLD_NEXT, "realloc");
	return fails(size) ? NULL : real(pointer, size);
}

Datum
fail_malloc(PG_FUNCTION_ARGS)
{
	left = PG_GETARG_INT64(0);
	counted = PG_GETARG_INT64(1);
	seen = 0;
	PG_RETURN_INT64(left);
}

Datum
mallocs_seen(PG_FUNCTION_ARGS)
{
	left = 0;
	PG_RETURN_INT64(seen);
}
