/*-------------------------------------------------------------------------
 * worker.c
 *		Background workers: how they are started, and that which makes partitions.
 *
 * Each database has one worker as long as batches of it are open; what it does
 * is in rounds.c.  It is started by whoever finds that there is none, at the first
 * row after a start of the server as after the worker's own end, however it came
 * (worker_start): the post in shared memory is held by who works, and by nobody
 * else.  It has a pid in it as long as that process runs; a crash, which the
 * worker's own may be, makes shared memory anew.  Two workers that are started at
 * once do no harm: the second finds the post taken, and ends.
 *
 * Where no worker can be had, everything still works; only that more is read from
 * raw rows.  The log says what to raise, once an hour, and it is tried again.
 *
 * Partitions: ATTACH locks the ledger to the end of its transaction, and whoever else needs
 * a partition waits for that.  So a missing one is made in a transaction of its
 * own, by a dynamic background worker: the call that needs it starts one for
 * its month and the next, and waits until it has ended.
 *
 * No deadlock detector sees that wait, and the caller holds locks.  So the
 * worker waits for nobody: it takes the ledger's lock only where that is free,
 * and gives up on any other after LOCK_TIMEOUT.  A caller whose month is still
 * missing then, or who got no worker, makes the partition itself (partition.c).
 *
 * That worker's commit need not be durable by itself: the rows that the
 * partition is made for come later in the WAL.
 *-------------------------------------------------------------------------
 */
#include "ledger/worker.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"

#include "ledger/announce.h"
#include "ledger/partition.h"
#include "server/clock.h"

#define LOCK_TIMEOUT	"1s"

/* How long a worker that is being started is waited for, and how long none is tried where there was no room. */
#define START_PATIENCE	(5 * USECS_PER_SEC)
#define ROOM_PATIENCE	(10 * USECS_PER_SEC)

/* What a worker is started for; in bgw_extra. */
typedef struct WorkerOrder
{
	Oid			ledger;
	TimestampTz ts;
} WorkerOrder;

PGDLLEXPORT void kavach_worker_main(Datum arg);

/* ---- what all workers have in common ---- */

/*
 * Has a worker of this database started, with a name and an order of its own (in
 * bgw_extra; NULL for none); returns false if there is none to be had.  handle:
 * NULL for who does not wait for it.
 */
bool
worker_register(const char *name, const char *function, const void *order, Size size, BackgroundWorkerHandle **handle)
{
	BackgroundWorker worker = {
		.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION,
		.bgw_start_time = BgWorkerStart_RecoveryFinished,
		.bgw_restart_time = BGW_NEVER_RESTART,
		.bgw_library_name = "kavach",
		.bgw_main_arg = ObjectIdGetDatum(MyDatabaseId),
		.bgw_notify_pid = handle != NULL ? MyProcPid : 0,
	};

	Assert(size <= BGW_EXTRALEN);
	strlcpy(worker.bgw_name, name, BGW_MAXLEN);
	strlcpy(worker.bgw_type, name, BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, function, BGW_MAXLEN);
	if (order != NULL)
		memcpy(worker.bgw_extra, order, size);
	return RegisterDynamicBackgroundWorker(&worker, handle);
}

/* Whatever the database sets for its sessions, a worker goes by its own. */
static void
pin_settings(void)
{
	static const struct
	{
		const char *name;
		const char *value;
	}			settings[] = {
		{"default_transaction_deferrable", "off"},
		{"default_transaction_isolation", "read committed"},
		{"default_transaction_read_only", "off"},
		{"idle_in_transaction_session_timeout", "0"},
		{"jit", "off"},
		{"lock_timeout", LOCK_TIMEOUT},
		{"max_parallel_workers_per_gather", "0"},
		{"search_path", "pg_catalog, pg_temp"},
		{"statement_timeout", "0"},
		{"transaction_timeout", "0"},
	};

	for (int i = 0; i < (int) lengthof(settings); i++)
		if (GetConfigOption(settings[i].name, true, false) != NULL)
			SetConfigOption(settings[i].name, settings[i].value, PGC_SUSET, PGC_S_OVERRIDE);
}

/* The beginning of a worker: it connects to the database that is its argument. */
void
worker_connect(Datum database)
{
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	pin_settings();				/* before the first lock is waited for */
	BackgroundWorkerInitializeConnectionByOid(DatumGetObjectId(database), InvalidOid, BGWORKER_BYPASS_ALLOWCONN);
}

/* ---- the worker of a database ---- */

void
worker_init_post(WorkerPost *post)
{
	pg_atomic_init_u32(&post->pid, 0);
	pg_atomic_init_u32(&post->coming, 0);
	pg_atomic_init_u32(&post->wishes, 0);
	pg_atomic_init_u64(&post->next_start, 0);
	pg_atomic_init_u64(&post->refused_at, 0);
	pg_atomic_init_u64(&post->closed_at, 0);
	pg_atomic_init_u64(&post->pruned_at, 0);
	pg_atomic_init_u64(&post->failed_at, 0);
	pg_atomic_init_u32(&post->sqlstate, 0);
}

/* Whether a time that is at most "ahead" away is over, be the clock put back or not. */
static bool
is_over(TimestampTz time, TimestampTz now, int64 ahead)
{
	return time <= now || time - now > ahead;
}

static void
report_no_room(WorkerPost *post, TimestampTz now)
{
	if (now - (TimestampTz) pg_atomic_read_u64(&post->refused_at) < USECS_PER_HOUR)
		return;
	pg_atomic_write_u64(&post->refused_at, now);
	ereport(LOG,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("could not start the kavach worker: too many background workers"),
			 errdetail("Until there is room, batches of the ledger stay open, which makes reports and loads of counters slower. It is tried again every few seconds."),
			 errhint("Raise max_worker_processes: kavach takes one for each database that it is used in, and one for a moment when a month begins.")));
}

/* Starts this database's worker, unless that was tried just now. */
void
worker_start(WorkerPost *post)
{
	TimestampTz now = GetCurrentTimestamp();
	uint64		next = pg_atomic_read_u64(&post->next_start);

	if (!is_over((TimestampTz) next, now, ROOM_PATIENCE) || !IsUnderPostmaster || IsBinaryUpgrade)
		return;
	if (!pg_atomic_compare_exchange_u64(&post->next_start, &next, now + START_PATIENCE))
		return;					/* somebody else does */
	pg_atomic_write_u32(&post->coming, 1);
	if (worker_register("kavach worker", "kavach_rounds_main", NULL, 0, NULL))
		return;
	pg_atomic_write_u32(&post->coming, 0);
	pg_atomic_write_u64(&post->next_start, now + ROOM_PATIENCE);
	report_no_room(post, now);
}

/* Tells the worker, if there is one, what is wanted of it. */
void
worker_wish(WorkerPost *post, uint32 wish)
{
	PGPROC	   *proc;

	pg_atomic_fetch_or_u32(&post->wishes, wish);
	proc = BackendPidGetProc((int) pg_atomic_read_u32(&post->pid));
	if (proc != NULL)
		SetLatch(&proc->procLatch);
}

/* ---- the worker that makes partitions ---- */

/*
 * Has a worker make the partitions of a month and of the next, as far as they
 * are missing, and waits until it has ended.  Returns false if there is none to
 * be had; otherwise the caller looks whether they are there.
 */
bool
worker_make_partitions(Oid ledger, TimestampTz ts)
{
	WorkerOrder order = {
		.ledger = ledger,
		.ts = ts,
	};
	BackgroundWorkerHandle *handle;

	if (!worker_register("kavach partition worker", "kavach_worker_main", &order, sizeof(order), &handle))
		return false;
	if (WaitForBackgroundWorkerShutdown(handle) == BGWH_POSTMASTER_DIED)
		ereport(FATAL,
				(errcode(ERRCODE_ADMIN_SHUTDOWN),
				 errmsg("terminating connection due to unexpected postmaster exit")));
	pfree(handle);
	return true;
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
	SetConfigOption("synchronous_commit", "off", PGC_SUSET, PGC_S_OVERRIDE);
	worker_connect(arg);
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
