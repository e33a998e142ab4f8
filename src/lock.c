/*-------------------------------------------------------------------------
 * lock.c
 *		Heavyweight locks of our own, held to the end of the transaction.
 *
 * They are LOCKTAG_USERLOCK, so that they never meet the application's
 * advisory locks, and ordinary otherwise: cancel, lock_timeout and the deadlock
 * detector work, and pg_locks shows them (locktype userlock; database, hash
 * high, hash low, class).
 *
 * Order, within one call: request, authorization, then scopes from all to
 * agent, then revoke, then partition.  A single call cannot deadlock;
 * transactions of several calls that take them in opposite orders end in a
 * detected deadlock (40P01).
 *
 * Ids are hashed to 64 bits: two that collide wait for each other without
 * need, and nothing worse.
 *-------------------------------------------------------------------------
 */
#include "kavach.h"

#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/lock.h"

static LOCKTAG
lock_tag(int class, const char *id)
{
	LOCKTAG		tag;
	uint64		hash = hash_bytes_extended((const unsigned char *) id, strlen(id), 0);

	tag.locktag_field1 = MyDatabaseId;
	tag.locktag_field2 = (uint32) (hash >> 32);
	tag.locktag_field3 = (uint32) hash;
	tag.locktag_field4 = class;
	tag.locktag_type = LOCKTAG_USERLOCK;
	tag.locktag_lockmethodid = USER_LOCKMETHOD;
	return tag;
}

/*
 * Waits for the lock on (class, id).  "class" is a LockClass, or LOCK_SCOPE
 * plus a ScopeKind.
 */
void
lock_until_end(int class, const char *id, bool exclusive)
{
	LOCKTAG		tag = lock_tag(class, id);

	(void) LockAcquire(&tag, exclusive ? ExclusiveLock : ShareLock, false, false);
}

/*
 * Gives back what lock_until_end has just taken.  Only for a lock under which
 * nothing has been decided or written yet.
 */
void
lock_give_back(int class, const char *id, bool exclusive)
{
	LOCKTAG		tag = lock_tag(class, id);

	(void) LockRelease(&tag, exclusive ? ExclusiveLock : ShareLock, false);
}
