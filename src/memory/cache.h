/*-------------------------------------------------------------------------
 * cache.h
 *		What has been looked up, once for all sessions.
 *-------------------------------------------------------------------------
 */
#ifndef CACHE_H
#define CACHE_H

#include "kavach.h"

#include "memory/flat.h"

/* Of what a value is: a subject in a ledger of this database. */
typedef struct CacheKey
{
	uint64		hash;			/* subject_hash(scope, id) */
	Oid			ledger;
	ScopeKind	scope;
	const char *id;				/* NULL for all */
} CacheKey;

/* Where a call puts what it copies out. */
typedef struct CacheRoom
{
	char	   *next;
	Size		left;
} CacheRoom;

extern void cache_define_settings(void);
extern Size cache_shmem_size(void);
extern void cache_request_locks(void);
extern void cache_shmem_startup(void);
extern bool cache_is_there(void);
extern CacheRoom cache_room(void);
extern void *cache_read(const CacheKey *key, CacheRoom *room, uint64 *stamp);
extern void cache_write(const CacheKey *key, uint64 stamp, const Flat *value);
extern void cache_count(uint64 hash, bool hit);

#endif							/* CACHE_H */
