/*-------------------------------------------------------------------------
 * batch.h
 *		Batches of the ledger: which one a row belongs to, and when it is closed.
 *-------------------------------------------------------------------------
 */
#ifndef BATCH_H
#define BATCH_H

#include "kavach.h"

#include "ledger/worker.h"

/* Which batches are not in the rollups: "open", and all beyond "high". */
typedef struct BatchTail
{
	int64		high;
	int			nopen;
	int64	   *open;			/* ascending */
} BatchTail;

typedef enum BatchOutlook
{
	BATCH_NONE,					/* nothing is open */
	BATCH_HELD,					/* all that is open is somebody's */
	BATCH_READY					/* something can be closed */
} BatchOutlook;

extern Size batch_shmem_size(void);
extern void batch_request_locks(void);
extern void batch_shmem_startup(void);

extern int64 batch_register(Oid ledger);
extern int64 batch_current(Oid ledger);
extern int64 batch_last_of_others(Oid ledger, const BatchTail *tail);
extern void batch_note_rows(Oid ledger);
extern BatchTail batch_tail(void);
extern int64 batch_close_ready(Oid ledger, BatchTail *left);
extern BatchOutlook batch_outlook(const BatchTail *left);

extern WorkerPost *batch_post(Oid ledger);
extern WorkerPost *batch_find_post(Oid database);
extern bool batch_take_post(WorkerPost *post);
extern bool batch_leave_post(WorkerPost *post);

#endif							/* BATCH_H */
