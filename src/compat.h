/*-------------------------------------------------------------------------
 * compat.h
 *		What differs between PostgreSQL 15 and 18, and nothing else.
 *
 * No other file looks at PG_VERSION_NUM.
 *-------------------------------------------------------------------------
 */
#ifndef KAVACH_COMPAT_H
#define KAVACH_COMPAT_H

#include "executor/executor.h"
#include "utils/datetime.h"
#include "utils/guc.h"

/* DecodeDateTime reports details through one more argument since 16. */
static inline int
compat_decode_datetime(char **field, int *ftype, int nf, int *dtype,
					   struct pg_tm *tm, fsec_t *fsec, int *tz)
{
#if PG_VERSION_NUM >= 160000
	DateTimeErrorExtra extra;

	return DecodeDateTime(field, ftype, nf, dtype, tm, fsec, tz, &extra);
#else
	return DecodeDateTime(field, ftype, nf, dtype, tm, fsec, tz);
#endif
}

/* What a check hook hands on as "extra" is freed by guc_free since 16. */
static inline void *
compat_guc_malloc(size_t size)
{
#if PG_VERSION_NUM >= 160000
	return guc_malloc(LOG, size);
#else
	return malloc(size);
#endif
}

/* ExecInsertIndexTuples can be told of summarizing indexes alone since 16. */
static inline void
compat_insert_index_tuples(ResultRelInfo *result, TupleTableSlot *slot, EState *estate)
{
#if PG_VERSION_NUM >= 160000
	(void) ExecInsertIndexTuples(result, slot, estate, false, false, NULL, NIL, false);
#else
	(void) ExecInsertIndexTuples(result, slot, estate, false, false, NULL, NIL);
#endif
}

#endif							/* KAVACH_COMPAT_H */
