/*-------------------------------------------------------------------------
 * callgrind.c
 *		Has a server that runs under callgrind forget what it has counted.
 *
 * For bench/run.sh, which compiles and loads it: a session's first calls read
 * and plan much that later ones do not.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <valgrind/callgrind.h>

#include "fmgr.h"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(bench_forget_instructions);

Datum
bench_forget_instructions(PG_FUNCTION_ARGS)
{
	CALLGRIND_ZERO_STATS;
	PG_RETURN_BOOL(true);
}
