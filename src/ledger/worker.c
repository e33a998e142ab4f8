/*-------------------------------------------------------------------------
 * worker.c
 *		The background worker that makes the ledger's partitions.
 *
 * ATTACH locks the ledger to the end of its transaction, and whoever else needs
 * a partition waits for that.  So a missing one is made in a transaction of its
 * own, by a dynamic background worker: the call that needs it starts one for
 * its month and the next, and waits until it has ended.
 *
 * No deadlock detector sees that wait, and the caller holds locks.  So the
 * worker waits for nobody: it takes the ledger's lock only where that is free,
 * and gives up on any other after LOCK_TIMEOUT.  A caller whose month is still
 * missing then, or who got no worker, makes the partition itself (partition.c).
 *
 * The worker's commit need not be durable by itself: the rows that the
 * partition is made for come later in the WAL.
 *-------------------------------------------------------------------------
 */
#include "ledger/worker.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"

#include "ledger/announce.h"
#include "ledger/partition.h"
#include "server/clock.h"

#define LOCK_TIMEOUT	"1s"

/* What a worker is started for; in bgw_extra. */
typedef struct WorkerOrder
{
	Oid			database;
	Oid			ledger;
	TimestampTz ts;
} WorkerOrder;

StaticAssertDecl(sizeof(WorkerOrder) <= BGW_EXTRALEN, "a worker's order fits its registration");

PGDLLEXPORT void kavach_worker_main(Datum arg);

/*
 * Has a worker make the partitions of a month and of the next, as far as they
 * are missing, and waits until it has ended.  Returns false if there is none to
 * be had; otherwise the caller looks whether they are there.
 */
bool
worker_make_partitions(Oid ledger, TimestampTz ts)
{
	WorkerOrder order = {
		.database = MyDatabaseId,
		.ledger = ledger,
		.ts = ts,
	};
	BackgroundWorker worker = {
		.bgw_name = "kavach partition worker",
		.bgw_type = "kavach partition worker",
		.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION,
		.bgw_start_time = BgWorkerStart_RecoveryFinished,
		.bgw_restart_time = BGW_NEVER_RESTART,
		.bgw_library_name = "kavach",
		.bgw_function_name = "kavach_worker_main",
		.bgw_notify_pid = MyProcPid,
	};
	BackgroundWorkerHandle *handle;

	memcpy(worker.bgw_extra, &order, sizeof(order));
	if (!RegisterDynamicBackgroundWorker(&worker, &handle))
		return false;
	if (WaitForBackgroundWorkerShutdown(handle) == BGWH_POSTMASTER_DIED)
		ereport(FATAL,
				(errcode(ERRCODE_ADMIN_SHUTDOWN),
				 errmsg("terminating connection due to unexpected postmaster exit")));
	pfree(handle);
	return true;
}

/* Whatever the database sets for its sessions, the worker goes by its own. */
static void
pin_settings(void)
{
	SetConfigOption("default_transaction_read_only", "off", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("lock_timeout", LOCK_TIMEOUT, PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("statement_timeout", "0", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("synchronous_commit", "off", PGC_SUSET, PGC_S_OVERRIDE);
}

static void
begin_step(const char *activity)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	pgstat_report_activity(STATE_RUNNING, activity);
}

static void
end_step(void)
{
	CommitTransactionCommand();
	pgstat_report_activity(STATE_IDLE, NULL);
}

/* The worker: one transaction for each partition, then one to announce them. */
void
kavach_worker_main(Datum arg)
{
	WorkerOrder order;
	TimestampTz month;

	memcpy(&order, MyBgworkerEntry->bgw_extra, sizeof(order));
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	pin_settings();				/* before the first lock is waited for */
	BackgroundWorkerInitializeConnectionByOid(order.database, InvalidOid, BGWORKER_BYPASS_ALLOWCONN);
	month = order.ts;
	for (int i = 0; i < 2 && month < CLOCK_END; i++)
	{
		begin_step("making a partition of the ledger");
		partition_make_if_free(order.ledger, month);
		end_step();
		month = period_end(PERIOD_MONTH, month);
	}
	begin_step("announcing partitions of the ledger");
	announce_ledger(order.ledger);
	end_step();
}
