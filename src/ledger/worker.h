/*-------------------------------------------------------------------------
 * worker.h
 *		Background workers: how they are started, and which there is.
 *-------------------------------------------------------------------------
 */
#ifndef WORKER_H
#define WORKER_H

#include "kavach.h"

#include "port/atomics.h"
#include "postmaster/bgworker.h"

/* What others wish of a worker. */
#define WISH_ROUND	0x01		/* to look at once what there is to do */
#define WISH_LEAVE	0x02		/* to end: they want the database alone */

/*
 * The post of a database's worker (rounds.c), in shared memory; all zero where
 * there has been none.  Who holds it has taken it, and clears it when it ends,
 * however it ends.  Times are TimestampTz, 0: never.
 */
typedef struct WorkerPost
{
	pg_atomic_uint32 pid;		/* of who holds it; 0: nobody */
	pg_atomic_uint32 coming;	/* whether one has been started for it */
	pg_atomic_uint32 wishes;	/* of others: WISH_... */
	pg_atomic_uint64 next_start;	/* none is started before */
	pg_atomic_uint64 refused_at;	/* when the log was told of it */

	/* what the worker tells, beside what pg_stat_activity shows */
	pg_atomic_uint64 closed_at; /* when batches were closed last */
	pg_atomic_uint64 pruned_at; /* when rollups were last gone over */
	pg_atomic_uint64 failed_at; /* since when something fails; 0: nothing does */
	pg_atomic_uint32 sqlstate;	/* with what */
} WorkerPost;

extern bool worker_make_partitions(Oid ledger, TimestampTz ts);
extern bool worker_register(const char *name, const char *function, const void *order, Size size,
							BackgroundWorkerHandle **handle);
extern void worker_connect(Datum database);

extern void worker_init_post(WorkerPost *post);
extern void worker_start(WorkerPost *post);
extern void worker_wish(WorkerPost *post, uint32 wish);

/* Has a database's worker started, unless it is there. */
static inline void
worker_ensure(WorkerPost *post)
{
	if (unlikely(pg_atomic_read_u32(&post->pid) == 0))
		worker_start(post);
}

#endif							/* WORKER_H */
