/*-------------------------------------------------------------------------
 * compat.h
 *		What differs between PostgreSQL 15 and 19, and nothing else.
 *
 * No other file looks at PG_VERSION_NUM.
 *-------------------------------------------------------------------------
 */
#ifndef KAVACH_COMPAT_H
#define KAVACH_COMPAT_H

#include "access/genam.h"
#include "access/tableam.h"
#include "access/tupdesc.h"
#include "storage/shmem.h"
#include "tcop/pquery.h"
#include "utils/datetime.h"
#include "utils/guc.h"
#include "utils/wait_event.h"

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

/* What a check hook hands on, as value or "extra", is freed by guc_free since 16. */
static inline void *
compat_guc_malloc(size_t size)
{
#if PG_VERSION_NUM >= 160000
	return guc_malloc(LOG, size);
#else
	return malloc(size);
#endif
}

static inline void
compat_guc_free(void *pointer)
{
#if PG_VERSION_NUM >= 160000
	guc_free(pointer);
#else
	free(pointer);
#endif
}

/* Generated columns can be virtual, too, since 18. */
static inline bool
compat_has_generated_columns(TupleDesc desc)
{
	return desc->constr != NULL &&
#if PG_VERSION_NUM >= 180000
		(desc->constr->has_generated_stored || desc->constr->has_generated_virtual);
#else
		desc->constr->has_generated_stored;
#endif
}

/* A CHECK may be NOT ENFORCED since 18. */
static inline bool
compat_is_enforced(const ConstrCheck *check)
{
#if PG_VERSION_NUM >= 180000
	return check->ccenforced;
#else
	return true;
#endif
}

/* A hash table in shared memory has one size only since 19. */
static inline HTAB *
compat_shmem_init_hash(const char *name, long size, HASHCTL *info, int flags)
{
#if PG_VERSION_NUM >= 190000
	return ShmemInitHash(name, size, info, flags);
#else
	return ShmemInitHash(name, size, size, info, flags);
#endif
}

/* A scan takes flags since 19. */
static inline TableScanDesc
compat_table_beginscan(Relation table, Snapshot snapshot)
{
#if PG_VERSION_NUM >= 190000
	return table_beginscan(table, snapshot, 0, NULL, SO_NONE);
#else
	return table_beginscan(table, snapshot, 0, NULL);
#endif
}

/* A scan of an index tells what it did since 18, and takes flags since 19. */
static inline IndexScanDesc
compat_index_beginscan(Relation table, Relation index, Snapshot snapshot, int nkeys)
{
#if PG_VERSION_NUM >= 190000
	return index_beginscan(table, index, snapshot, NULL, nkeys, 0, SO_NONE);
#elif PG_VERSION_NUM >= 180000
	return index_beginscan(table, index, snapshot, NULL, nkeys, 0);
#else
	return index_beginscan(table, index, snapshot, nkeys, 0);
#endif
}

/* An extension's wait events have names of their own since 17. */
static inline uint32
compat_wait_event(const char *name)
{
#if PG_VERSION_NUM >= 170000
	return WaitEventExtensionNew(name);
#else
	return PG_WAIT_EXTENSION;
#endif
}

/* A portal runs once, and need not be told so, since 18. */
static inline void
compat_portal_run(Portal portal)
{
#if PG_VERSION_NUM >= 180000
	(void) PortalRun(portal, FETCH_ALL, true, None_Receiver, None_Receiver, NULL);
#else
	(void) PortalRun(portal, FETCH_ALL, true, true, None_Receiver, None_Receiver, NULL);
#endif
}

#endif							/* KAVACH_COMPAT_H */
