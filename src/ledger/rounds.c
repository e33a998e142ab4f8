/*-------------------------------------------------------------------------
 * rounds.c
 *		What the worker of a database does, round after round.
 *
 * Its tasks (tasks[]) are due at times of their own: it closes the batches that
 * are ready, every kavach.batch_interval; has next month's partition there; takes
 * out of the rollups what nobody reads any more; and retires old months.  It
 * makes things faster, never right: without it (worker.c) everything still works,
 * and kavach.close_batches() is what closes by hand.
 *
 * Each task begins and ends its own transactions, so that between them there is
 * no snapshot and no lock.  Whether there is something to close is looked up
 * without any (batch_outlook): a session that stays idle in a transaction holds
 * up its own batch, and costs a look at a lock now and then.  As a task takes a
 * tenth of the worker's time at most, the interval stretches under load.
 *
 * A task that fails is logged once, with what it was about, and tried again after
 * a second, two, four, up to a minute; the others go on.  Nothing is half done, as
 * a closing is one transaction.  It waits for nobody for longer than lock_timeout
 * (worker_pin_settings), and not at all for who has locked the ledger, closes
 * batches himself, or makes a partition.
 *
 * Closing commits durably: who exports goes by seal_no, which after a crash must
 * not be another batch's.  Triggers and the like that run in it have the rights of
 * the ledger's owner; nothing of it is left for the commit, where they would have
 * the worker's, who is a superuser.
 *
 * The worker ends when nothing has been open for some rounds; so the database is
 * nobody's who drops it, or copies it by TEMPLATE.  Who does that while it is
 * there asks it to leave, and waits for a moment (give_way).  It ends with the
 * extension, too.  Times are those of a clock that is never put back.
 *-------------------------------------------------------------------------
 */
#include "ledger/rounds.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "pgstat.h"
#include "portability/instr_time.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/procarray.h"
#include "tcop/tcopprot.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "ledger/announce.h"
#include "ledger/batch.h"
#include "ledger/months.h"
#include "ledger/retention.h"
#include "ledger/rollup.h"
#include "ledger/worker.h"
#include "server/argument.h"
#include "server/compat.h"
#include "server/lock.h"
#include "server/query.h"

#define MS_PER_SECOND	1000
#define MS_PER_MINUTE	(60 * 1000)
#define MS_PER_HOUR		(60 * 60 * 1000)

#define IDLE_ROUNDS		3		/* with nothing open, and the worker ends */
#define HELD_PATIENCE	MS_PER_SECOND	/* between looks at what others hold */
#define MONTH_PATIENCE	(5 * MS_PER_SECOND) /* while somebody else is at it */
#define RETIRE_INTERVAL	(10 * MS_PER_MINUTE)
#define PRUNE_INTERVAL	(6 * MS_PER_HOUR)
#define PRUNE_SUBJECTS	1000	/* at a time */
#define LEAVE_PATIENCE	2000	/* of who wants the database for himself */

/* What the worker does; returns in how many milliseconds it is to be done again. */
typedef struct Task
{
	const char *activity;		/* in pg_stat_activity and in the log */
	int64		(*run) (void);
	int64		due;
	int			failures;		/* in a row */
	int			sqlstate;		/* of the last one */
} Task;

static int64 close_batches(void);
static int64 make_month_ahead(void);
static int64 prune_rollups(void);
static int64 retire_months(void);

static Task tasks[] = {
	{"closing batches of the ledger", close_batches, 0, 0, 0},
	{"making a partition of the ledger", make_month_ahead, 0, 0, 0},
	{"pruning the ledger's rollups", prune_rollups, 0, 0, 0},
	{"retiring months of the ledger", retire_months, 0, 0, 0},
};

#define CLOSING (&tasks[0])

static int	batch_interval = 5 * MS_PER_SECOND;

static WorkerPost *post = NULL; /* that this process holds */
static Oid	ledger = InvalidOid;	/* as of the last transaction */
static bool taken = false;		/* whether it is what the last task was about */
static MemoryContext task_context = NULL;

/* What the last closing has left open, if that has committed. */
static BatchTail left;
static bool left_known = false;
static MemoryContext left_context = NULL;
static int	idle_rounds = 0;	/* in a row, in which nothing was */
static int64 held_wait = 0;		/* how long to wait for others' */

/* Whose rollups were gone over last; NULL: nobody's, or all. */
static char *pruned_to = NULL;

static uint32 wait_event = 0;

static ProcessUtility_hook_type previous_utility = NULL;

PGDLLEXPORT void kavach_rounds_main(Datum arg);

ENTRY_POINT(kavach_wake_worker, 0, 0);
ENTRY_POINT(kavach_worker_status, 0, 5);

void
rounds_define_settings(void)
{
	DefineCustomIntVariable("kavach.batch_interval",
							"Sets how often batches of the ledger are closed.",
							"What is not closed is read from raw rows by reports and loads of counters. Under load it is stretched, so that closing takes a tenth of the worker's time at most.",
							&batch_interval,
							5 * MS_PER_SECOND, 10, MS_PER_HOUR,
							PGC_SIGHUP,
							GUC_UNIT_MS,
							NULL, NULL, NULL);
}

/* Milliseconds of a clock that is never put back. */
static int64
clock_ms(void)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	return (int64) INSTR_TIME_GET_MILLISEC(now);
}

/* ---- transactions ---- */

/*
 * Begins a transaction about this database's ledger; it is taken if it is there
 * and nobody has locked it.  What runs in it cannot leave anything for the commit.
 */
static bool
begin_work(const char *activity)
{
	Oid			user;
	int			sec_context;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	pgstat_report_activity(STATE_RUNNING, activity);
	GetUserIdAndSecContext(&user, &sec_context);
	SetUserIdAndSecContext(user, sec_context | SECURITY_RESTRICTED_OPERATION);
	PushActiveSnapshot(GetTransactionSnapshot());
	MemoryContextSwitchTo(task_context);
	ledger = find_ledger();
	taken = OidIsValid(ledger) && ConditionalLockRelationOid(ledger, RowExclusiveLock) &&
		find_ledger() == ledger;
	return taken;
}

static void
end_work(void)
{
	Oid			user;
	int			sec_context;

	PopActiveSnapshot();
	GetUserIdAndSecContext(&user, &sec_context);
	SetUserIdAndSecContext(user, sec_context & ~SECURITY_RESTRICTED_OPERATION);
	CommitTransactionCommand();
	MemoryContextSwitchTo(task_context);
	pgstat_report_stat(true);
	pgstat_report_activity(STATE_IDLE, NULL);
}

/* ---- closing ---- */

/* Remembers what a closing that has committed has left open. */
static void
remember_left(const BatchTail *tail)
{
	MemoryContextReset(left_context);
	left = *tail;
	left.open = MemoryContextAllocHuge(left_context, sizeof(int64) * Max(tail->nopen, 1));
	memcpy(left.open, tail->open, sizeof(int64) * tail->nopen);
	left_known = true;
}

static void
close_ready(void)
{
	BatchTail	tail;
	bool		closed;

	left_known = false;
	closed = begin_work(CLOSING->activity) && lock_try(LOCK_CLOSE, NULL);
	if (closed)
		(void) batch_close_ready(ledger, &tail);
	end_work();
	if (!closed)
		return;
	remember_left(&tail);
	pg_atomic_write_u64(&post->closed_at, GetCurrentTimestamp());
}

static int64
close_batches(void)
{
	switch (left_known ? batch_outlook(&left) : BATCH_READY)
	{
		case BATCH_NONE:
			idle_rounds++;
			return batch_interval;
		case BATCH_HELD:
			idle_rounds = 0;
			held_wait = Min(Max(2 * held_wait, batch_interval), HELD_PATIENCE);
			return Max(held_wait, batch_interval);
		default:
			idle_rounds = 0;
			held_wait = 0;
			close_ready();
			return batch_interval;
	}
}

/* ---- the other tasks ---- */

static int64
make_month_ahead(void)
{
	bool		made = false;
	bool		there = begin_work("making a partition of the ledger") && months_make_ahead(ledger, &made);

	end_work();
	if (made)
	{
		(void) begin_work("announcing partitions of the ledger");
		announce_ledger(ledger);
		end_work();
	}
	return there ? MS_PER_HOUR : MONTH_PATIENCE;
}

/* Some subjects at a time; all of them once in a while, by whichever worker. */
static int64
prune_rollups(void)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz last = (TimestampTz) pg_atomic_read_u64(&post->pruned_at);
	char	   *next = NULL;

	if (pruned_to == NULL && last <= now && now - last < PRUNE_INTERVAL * INT64CONST(1000))
		return MS_PER_MINUTE;
	if (begin_work("pruning the ledger's rollups"))
		next = rollup_prune(pruned_to ? pruned_to : "", PRUNE_SUBJECTS);
	end_work();
	if (pruned_to != NULL)
		pfree(pruned_to);
	pruned_to = next ? MemoryContextStrdup(TopMemoryContext, next) : NULL;
	if (next != NULL)
		return 1;
	pg_atomic_write_u64(&post->pruned_at, now);
	return MS_PER_MINUTE;
}

/* Outside of a transaction: a partition is detached concurrently, in several. */
static int64
retire_months(void)
{
	Oid			of;

	(void) begin_work("retiring months of the ledger");
	of = taken ? ledger : InvalidOid;
	end_work();
	if (OidIsValid(of))
		retention_tend(of);
	return RETIRE_INTERVAL;
}

/* ---- errors ---- */

static void
describe_task(void *arg)
{
	errcontext("%s, in the kavach worker of database %u", ((Task *) arg)->activity, MyDatabaseId);
}

static void
note_failure(Task *task)
{
	int			sqlstate = geterrcode();

	if (task->failures == 0 || task->sqlstate != sqlstate)
		EmitErrorReport();
	task->failures++;
	task->sqlstate = sqlstate;
	pg_atomic_write_u32(&post->sqlstate, sqlstate);
	if (pg_atomic_read_u64(&post->failed_at) == 0)
		pg_atomic_write_u64(&post->failed_at, GetCurrentTimestamp());
}

static bool
any_fails(void)
{
	for (int i = 0; i < (int) lengthof(tasks); i++)
		if (tasks[i].failures > 0)
			return true;
	return false;
}

static void
note_success(Task *task)
{
	if (task->failures == 0)
		return;
	ereport(LOG,
			(errmsg("%s works again, in the kavach worker of database %u", task->activity, MyDatabaseId)));
	task->failures = 0;
	if (!any_fails())
		pg_atomic_write_u64(&post->failed_at, 0);
}

/* How long to wait after so many failures: a second, two, four, up to a minute. */
static int64
failure_wait(int failures)
{
	return Max(Min(MS_PER_SECOND << Min(failures - 1, 6), MS_PER_MINUTE), batch_interval);
}

/* ---- rounds ---- */

static void
run_task(Task *task)
{
	ErrorContextCallback callback = {error_context_stack, describe_task, task};
	volatile int64 wait = 0;
	int64		start = clock_ms();

	PG_TRY();
	{
		error_context_stack = &callback;
		wait = task->run();
		error_context_stack = callback.previous;
		note_success(task);
	}
	PG_CATCH();
	{
		HOLD_INTERRUPTS();
		note_failure(task);
		AbortOutOfAnyTransaction();
		FlushErrorState();
		pgstat_report_activity(STATE_IDLE, NULL);
		wait = failure_wait(task->failures);
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(task_context);
	MemoryContextReset(task_context);
	task->due = clock_ms() + Max(wait, Min(10 * (clock_ms() - start), MS_PER_MINUTE));
}

static void
run_due_tasks(void)
{
	for (int i = 0; i < (int) lengthof(tasks); i++)
	{
		CHECK_FOR_INTERRUPTS();
		if (tasks[i].due <= clock_ms())
			run_task(&tasks[i]);
	}
}

static int64
next_due(void)
{
	int64		due = tasks[0].due;

	for (int i = 1; i < (int) lengthof(tasks); i++)
		due = Min(due, tasks[i].due);
	return due;
}

/* Does what others wish; all tasks are due at once then, what has failed as well. */
static void
heed_wishes(void)
{
	uint32		wishes = pg_atomic_exchange_u32(&post->wishes, 0);

	if (wishes & WISH_LEAVE)
		proc_exit(0);
	for (int i = 0; (wishes & WISH_ROUND) && i < (int) lengthof(tasks); i++)
		tasks[i].due = 0;
}

static void
heed_signals(void)
{
	if (ProcDiePending)
		proc_exit(0);			/* nothing is under way to tell of */
	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
		CLOSING->due = Min(CLOSING->due, clock_ms() + batch_interval);
	}
}

/* Waits until some task is due. */
static void
wait_for_next(void)
{
	int64		wait;

	heed_wishes();
	while ((wait = next_due() - clock_ms()) > 0)
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 Min(wait, MS_PER_HOUR), wait_event);
		ResetLatch(MyLatch);
		heed_signals();
		heed_wishes();
	}
}

/* Whether nothing is left to be done, and nobody is about to leave something. */
static bool
is_at_rest(void)
{
	if (OidIsValid(ledger))
		return idle_rounds >= IDLE_ROUNDS && pruned_to == NULL && batch_leave_post(post);

	/* the extension is gone; unless it is there anew, and being used */
	pg_atomic_write_u32(&post->pid, 0);
	pg_memory_barrier();
	(void) begin_work("looking for the ledger");
	end_work();
	return !OidIsValid(ledger) || !batch_take_post(post);
}

static void
give_post_up(int code, Datum arg)
{
	uint32		me = MyProcPid;

	(void) pg_atomic_compare_exchange_u32(&post->pid, &me, 0);
	pg_atomic_write_u32(&post->coming, 0);
}

/* Takes the post of this database, if there is a ledger, and nobody has it. */
static bool
take_post(void)
{
	(void) begin_work("looking for the ledger");
	post = OidIsValid(ledger) ? batch_post(ledger) : NULL;
	end_work();
	if (post == NULL)
		return false;
	before_shmem_exit(give_post_up, (Datum) 0);
	if (!batch_take_post(post))
		return false;
	pg_atomic_write_u32(&post->coming, 0);
	pg_atomic_write_u64(&post->next_start, 0);	/* of who comes after */
	pg_atomic_write_u64(&post->failed_at, 0);
	return true;
}

void
kavach_rounds_main(Datum arg)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	SetConfigOption("synchronous_commit", "on", PGC_SUSET, PGC_S_OVERRIDE);
	worker_connect(arg);
	SetConfigOption("application_name", MyBgworkerEntry->bgw_name, PGC_USERSET, PGC_S_SESSION);

	wait_event = compat_wait_event("KavachWorker");
	task_context = AllocSetContextCreate(TopMemoryContext, "kavach task", ALLOCSET_DEFAULT_SIZES);
	left_context = AllocSetContextCreate(TopMemoryContext, "kavach tail", ALLOCSET_SMALL_SIZES);
	MemoryContextSwitchTo(task_context);
	if (!take_post())
		proc_exit(0);
	for (;;)
	{
		heed_wishes();
		run_due_tasks();
		if (is_at_rest())
			proc_exit(0);
		wait_for_next();
	}
}

/* ---- what others wish ---- */

/* The name of a database that a statement wants for itself, or NULL. */
static const char *
wanted_database(Node *statement)
{
	ListCell   *cell;

	switch (nodeTag(statement))
	{
		case T_DropdbStmt:
			return ((DropdbStmt *) statement)->dbname;
		case T_AlterDatabaseStmt:
			return ((AlterDatabaseStmt *) statement)->dbname;
		case T_RenameStmt:
			return ((RenameStmt *) statement)->renameType == OBJECT_DATABASE ? ((RenameStmt *) statement)->subname : NULL;
		case T_CreatedbStmt:
			foreach(cell, ((CreatedbStmt *) statement)->options)
			{
				DefElem    *option = lfirst_node(DefElem, cell);

				if (strcmp(option->defname, "template") == 0 && option->arg != NULL)
					return defGetString(option);
			}
			return NULL;
		default:
			return NULL;
	}
}

/* Whether a database's worker is there, or about to be; pid is whose process that is, as far as known. */
static bool
is_there(WorkerPost *other, int *pid)
{
	if (pg_atomic_read_u32(&other->pid) != 0)
		*pid = (int) pg_atomic_read_u32(&other->pid);
	return pg_atomic_read_u32(&other->coming) != 0 || (*pid != 0 && BackendPidGetProc(*pid) != NULL);
}

/* Has the worker of a database leave, and waits for that, though not for ever. */
static void
send_away(Oid database)
{
	WorkerPost *other = OidIsValid(database) ? batch_find_post(database) : NULL;
	int64		until = clock_ms() + LEAVE_PATIENCE;
	int			pid = 0;

	if (other == NULL)
		return;
	while (is_there(other, &pid) && clock_ms() < until)
	{
		worker_wish(other, WISH_LEAVE);
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 10, compat_wait_event("KavachWorkerEnd"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	pg_atomic_fetch_and_u32(&other->wishes, ~WISH_LEAVE);
}

static void
give_way(PlannedStmt *pstmt, const char *query, bool read_only_tree, ProcessUtilityContext context,
		 ParamListInfo params, QueryEnvironment *environment, DestReceiver *dest, QueryCompletion *completion)
{
	const char *name = wanted_database(pstmt->utilityStmt);

	if (name != NULL && IsTransactionState())
		send_away(get_database_oid(name, true));
	if (previous_utility)
		previous_utility(pstmt, query, read_only_tree, context, params, environment, dest, completion);
	else
		standard_ProcessUtility(pstmt, query, read_only_tree, context, params, environment, dest, completion);
}

void
rounds_install(void)
{
	previous_utility = ProcessUtility_hook;
	ProcessUtility_hook = give_way;
}

/* SQL: kavach.wake_worker() */
static Datum
kavach_wake_worker_checked(PG_FUNCTION_ARGS)
{
	WorkerPost *own;

	PreventCommandIfReadOnly("kavach.wake_worker()");
	PreventCommandIfParallelMode("kavach.wake_worker()");
	own = batch_post(ledger_oid());
	if (own == NULL)
		PG_RETURN_BOOL(false);
	worker_ensure(own);
	worker_wish(own, WISH_ROUND);
	PG_RETURN_BOOL(pg_atomic_read_u32(&own->pid) != 0);
}

static Datum
time_or_null(pg_atomic_uint64 *time, bool *isnull)
{
	*isnull = pg_atomic_read_u64(time) == 0;
	return TimestampTzGetDatum((TimestampTz) pg_atomic_read_u64(time));
}

/* SQL: kavach.worker_status */
static Datum
kavach_worker_status_checked(PG_FUNCTION_ARGS)
{
	WorkerPost *own = batch_find_post(MyDatabaseId);
	Datum		values[5] = {0};
	bool		nulls[5] = {true, true, true, true, true};

	if (own != NULL)
	{
		values[0] = Int32GetDatum((int32) pg_atomic_read_u32(&own->pid));
		nulls[0] = pg_atomic_read_u32(&own->pid) == 0;
		values[1] = time_or_null(&own->closed_at, &nulls[1]);
		values[2] = time_or_null(&own->failed_at, &nulls[2]);
		values[3] = CStringGetTextDatum(unpack_sql_state((int) pg_atomic_read_u32(&own->sqlstate)));
		nulls[3] = nulls[2];
		values[4] = time_or_null(&own->refused_at, &nulls[4]);
	}
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(answer_desc(fcinfo), values, nulls)));
}
