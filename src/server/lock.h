/*-------------------------------------------------------------------------
 * lock.h
 *		Heavyweight locks of our own.
 *-------------------------------------------------------------------------
 */
#ifndef LOCK_H
#define LOCK_H

#include "kavach.h"

#include "storage/lockdefs.h"

typedef enum LockClass
{
	LOCK_REQUEST,
	LOCK_AUTHORIZATION,
	LOCK_REVOKE,
	LOCK_PARTITION,
	LOCK_MONTH,					/* of rows whose own locks are not kept */
	LOCK_BATCH,					/* + a number, as the next two */
	LOCK_DRAW,					/* who draws a number, and has not locked it */
	LOCK_CLOSE,					/* who closes batches */
	LOCK_LOAD					/* + ScopeKind; comes last */
} LockClass;

extern void lock_relation(Oid relid, LOCKMODE mode);
extern Oid	lock_ledger(LOCKMODE mode);
extern void unlock_relation(Oid relid, LOCKMODE mode);
extern void lock_acquire(int class, const char *id);
extern bool lock_try(int class, const char *id);
extern void lock_release(int class, const char *id);
extern bool lock_hold(int class, const char *id);
extern void lock_mark(int class, const char *id);
extern bool lock_is_marked(int class, const char *id);
extern void lock_wait(int class, const char *id);
extern void lock_number(int class, int64 number, LOCKMODE mode);
extern void unlock_number(int class, int64 number, LOCKMODE mode);
extern bool lock_is_held(int class, int64 number);
extern void lock_begin_call(void);
extern void lock_end_call(void);
extern void lock_end_transaction(void);

#endif							/* LOCK_H */
