/*-------------------------------------------------------------------------
 * retention.c
 *		Who has months taken out of the ledger, and put back.
 *
 * A background worker of its own takes them out (takeout.c): one for each order,
 * which is either a month that somebody names, kavach_drop_month and
 * kavach_archive_month, or whatever kavach.retention makes due and an earlier
 * worker has begun.  Nobody's transaction has a part in that, so that who calls
 * may not be in one: he waits, and tells what the worker has told him through
 * some shared memory.
 *
 * He waits with a snapshot, which a month that is detached half-way has to
 * outlive.  So he is answered before that, and the worker goes on without him.
 *
 * The worker that closes batches calls retention_tend between its rounds, which
 * waits for nothing: what that has started is looked at the next time.  What
 * fails is tried again later and later, and logged once.
 *
 * An archived month is put back in the transaction of who calls
 * kavach_attach_month, if it has the rows that it had.  Its batches are closed,
 * and in the rollups, all the time.
 *-------------------------------------------------------------------------
 */
#include "ledger/retention.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "storage/dsm.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "tcop/tcopprot.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/timeout.h"
#include "utils/wait_event.h"

#include "ledger/announce.h"
#include "ledger/guard.h"
#include "ledger/months.h"
#include "ledger/partition.h"
#include "ledger/takeout.h"
#include "ledger/worker.h"
#include "server/argument.h"
#include "server/clock.h"
#include "server/errors.h"
#include "server/lock.h"
#include "server/query.h"

static int	retention = 0;		/* minutes; 0: for ever */

ENTRY_POINT(kavach_drop_month, 1, 0);
ENTRY_POINT(kavach_archive_month, 2, 0);
ENTRY_POINT(kavach_apply_retention, 0, 0);

PGDLLEXPORT void kavach_retention_main(Datum arg);

void
retention_define_settings(void)
{
	DefineCustomIntVariable("kavach.retention",
							"Sets how long months of the ledger are kept after their end.",
							"Older ones are dropped, whole; bills, reports of whole days and total budgets stay as they are. 0: for ever.",
							&retention,
							0, 0, 1000 * 366 * 24 * 60,
							PGC_SUSET,
							GUC_UNIT_MIN,
							NULL, NULL, NULL);
}

/* ---- an order, and what has become of it ---- */

/* In bgw_extra. */
typedef struct RetentionOrder
{
	Oid			ledger;
	Oid			role;			/* who gives it */
	dsm_handle	answer;			/* a RetentionAnswer */
	TimestampTz month;			/* DT_NOBEGIN: whatever is due, or has been
								 * begun */
	bool		archive;
	char		schema[NAMEDATALEN];	/* where an archived month goes; or
										 * empty */
} RetentionOrder;

StaticAssertDecl(sizeof(RetentionOrder) <= BGW_EXTRALEN, "an order fits its registration");

typedef enum RetentionOutcome
{
	OUTCOME_NONE,				/* yet */
	OUTCOME_FAILED,				/* for the reason that is given */
	OUTCOME_BEGUN,				/* out of sight, but others still use the
								 * table */
	OUTCOME_DONE
} RetentionOutcome;

/* Written by the worker; who ordered reads it once the outcome is there. */
typedef struct RetentionAnswer
{
	pg_atomic_uint32 outcome;
	int			sqlerrcode;
	char		message[1024];
	char		detail[1024];
	char		hint[1024];
} RetentionAnswer;

/* ---- the worker ---- */

/* What the worker's steps share. */
typedef struct Work
{
	RetentionOrder order;
	TimestampTz month;			/* that is seen to now */
	TakeoutState state;			/* of that month */
	bool		patient;		/* whether older snapshots are waited for */
	char	   *blockers;
	List	   *due;			/* all that are to be seen to */
} Work;

/* A little longer than it takes until an autovacuum gives way. */
static void
pin_lock_timeout(void)
{
	SetConfigOption("lock_timeout", psprintf("%d", DeadlockTimeout + 1000), PGC_SUSET, PGC_S_OVERRIDE);
}

/* Takes in what has gone wrong, and ends the transaction that it has gone wrong in. */
static ErrorData *
recover(MemoryContext context)
{
	ErrorData  *error;

	HOLD_INTERRUPTS();
	disable_all_timeouts(false);
	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	guard_let_go(InvalidOid);
	AbortCurrentTransaction();
	FlushErrorState();
	MemoryContextSwitchTo(context);
	RESUME_INTERRUPTS();
	return error;
}

/* Runs a step; returns its error, or NULL. */
static ErrorData *
attempt(void (*step) (Work *work), Work *work)
{
	MemoryContext context = CurrentMemoryContext;
	ErrorData  *error;

	PG_TRY();
	{
		step(work);
		error = NULL;
	}
	PG_CATCH();
	{
		error = recover(context);
	}
	PG_END_TRY();
	return error;
}

static void
step_look(Work *work)
{
	work->state = takeout_state(work->order.ledger, work->month);
}

static void
step_begin(Work *work)
{
	Takeout		takeout = {
		.ledger = work->order.ledger,
		.month = work->month,
		.keep_minutes = work->order.month == DT_NOBEGIN ? retention : 0,
		.archive = work->order.archive,
		.schema = work->order.schema[0] != '\0' ? work->order.schema : NULL,
		.role = work->order.role,
	};

	takeout_begin(&takeout);
}

static void
step_finish(Work *work)
{
	if (takeout_finish(work->order.ledger, work->month, work->patient))
		work->state = TAKEOUT_DONE;
}

static void
step_blockers(Work *work)
{
	work->blockers = takeout_blockers(work->order.ledger);
}

static void
tell_failure(const ErrorData *error)
{
	ereport(LOG,
			(errcode(error->sqlerrcode),
			 errmsg("%s", error->message),
			 error->detail ? errdetail("%s", error->detail) : 0,
			 error->hint ? errhint("%s", error->hint) : 0));
}

static void
answer(RetentionAnswer *to, RetentionOutcome outcome, const ErrorData *error)
{
	if (to == NULL)
	{
		if (error != NULL)
			tell_failure(error);
		return;
	}
	if (error != NULL)
	{
		to->sqlerrcode = error->sqlerrcode;
		strlcpy(to->message, error->message ? error->message : "", sizeof(to->message));
		strlcpy(to->detail, error->detail ? error->detail : "", sizeof(to->detail));
		strlcpy(to->hint, error->hint ? error->hint : "", sizeof(to->hint));
	}
	pg_write_barrier();
	pg_atomic_write_u32(&to->outcome, outcome);
	if (MyBgworkerEntry->bgw_notify_pid != 0)
	{
		PGPROC	   *proc = BackendPidGetProc(MyBgworkerEntry->bgw_notify_pid);

		if (proc != NULL)
			SetLatch(&proc->procLatch);
	}
}

/* ---- months, one after the other ---- */

/* A timeout at a lock does not say whose. */
static char *
describe_blockers(Work *work)
{
	work->blockers = NULL;
	(void) attempt(step_blockers, work);
	return work->blockers ? psprintf("The ledger is in use by process %s.", work->blockers) : NULL;
}

/*
 * Takes a month out of the ledger.  Where that fails, it may have come half of
 * the way, and only the rest is to be tried again.
 */
static ErrorData *
begin_month(Work *work)
{
	ErrorData  *error = attempt(step_begin, work);

	if (error == NULL)
		return NULL;
	if (attempt(step_look, work) == NULL && work->state == TAKEOUT_BEGUN)
		return NULL;
	if (error->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE)
	{
		error->detail = describe_blockers(work);
		error->hint = pstrdup("Retry when their transactions have ended.");
	}
	return error;
}

static ErrorData *
make_error(int sqlerrcode, char *message, char *detail, const char *hint)
{
	ErrorData  *error = palloc0(sizeof(ErrorData));

	error->sqlerrcode = sqlerrcode;
	error->message = message;
	error->detail = detail;
	error->hint = hint ? pstrdup(hint) : NULL;
	return error;
}

/* A month that cannot be taken out; what a restore has brought back is for people to decide about. */
static ErrorData *
check_state(const Work *work)
{
	char	   *month = psprintf("%.7s", format_utc(work->month));

	if (work->state == TAKEOUT_NONE)
		return make_error(ERRCODE_UNDEFINED_OBJECT, psprintf("the ledger has no month %s", month), NULL, NULL);
	if (work->state == TAKEOUT_DONE)
		return make_error(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
						  psprintf("month %s is not in the ledger any more", month),
						  pstrdup("kavach.dropped_month tells since when, and where its table is if it was archived."), NULL);
	if (work->state == TAKEOUT_RESTORED && work->order.month == DT_NOBEGIN)
		return make_error(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
						  psprintf("month %s is in the ledger, and recorded as taken out of it", month),
						  NULL, "Drop or archive it once more; or keep it: kavach_attach_month().");
	return NULL;
}

/* One month, from wherever it stands, and as far as it goes without waiting for older snapshots. */
static ErrorData *
see_to_month(Work *work)
{
	ErrorData  *error = attempt(step_look, work);

	if (error == NULL)
		error = check_state(work);
	if (error == NULL && work->state != TAKEOUT_BEGUN)
		error = begin_month(work);
	if (error == NULL)
		error = attempt(step_finish, work);
	return error;
}

/* Those that others may still use, when they have ended.  Who comes to no end is waited for another time. */
static void
finish_months(Work *work, List *months)
{
	ListCell   *cell;

	work->patient = true;
	foreach(cell, months)
	{
		ErrorData  *error;

		work->month = *(TimestampTz *) lfirst(cell);
		error = attempt(step_finish, work);
		if (error != NULL)
			tell_failure(error);
	}
}

/*
 * Sees to all months; the answer is the first error, or else the last month that
 * others still use.  Who waits for it has a snapshot himself.
 */
static void
see_to_months(Work *work, List *months, ErrorData *first, RetentionAnswer *to)
{
	List	   *left = NIL;
	ListCell   *cell;

	foreach(cell, months)
	{
		ErrorData  *error;

		work->month = *(TimestampTz *) lfirst(cell);
		error = see_to_month(work);
		if (error == NULL && work->state == TAKEOUT_BEGUN)
			left = lappend(left, lfirst(cell));
		if (first == NULL)
			first = error;
	}
	if (first != NULL)
		answer(to, OUTCOME_FAILED, first);
	else if (left == NIL)
		answer(to, OUTCOME_DONE, NULL);
	else
		answer(to, OUTCOME_BEGUN,
			   make_error(ERRCODE_OBJECT_IN_USE,
						  psprintf("month %.7s is out of the ledger, but older transactions may still use its table",
								   format_utc(*(TimestampTz *) llast(left))), describe_blockers(work), NULL));
	finish_months(work, left);
}

static void
step_find(Work *work)
{
	work->due = list_concat(takeout_unfinished(work->order.ledger),
							retention > 0 ? takeout_older_than(work->order.ledger, retention) : NIL);
}

void
kavach_retention_main(Datum arg)
{
	Work		work = {0};
	dsm_segment *segment;
	RetentionAnswer *to;
	ErrorData  *error = NULL;

	memcpy(&work.order, MyBgworkerEntry->bgw_extra, sizeof(work.order));
	worker_connect(arg);
	pin_lock_timeout();
	(void) MemoryContextSwitchTo(AllocSetContextCreate(TopMemoryContext, "kavach retention", ALLOCSET_DEFAULT_SIZES));
	segment = dsm_attach(work.order.answer);	/* NULL: who has asked is gone */
	to = segment != NULL ? dsm_segment_address(segment) : NULL;
	if (work.order.month == DT_NOBEGIN)
		error = attempt(step_find, &work);
	else
		work.due = list_make1(&work.order.month);
	see_to_months(&work, work.due, error, to);
}

/* ---- who orders ---- */

/* A worker that has been started, and where it answers. */
typedef struct Ordered
{
	BackgroundWorkerHandle *worker;
	dsm_segment *segment;
	RetentionAnswer *answer;
} Ordered;

static void
open_answer(RetentionOrder *order, Ordered *ordered)
{
	ordered->segment = dsm_create(sizeof(RetentionAnswer), 0);
	ordered->answer = dsm_segment_address(ordered->segment);
	memset(ordered->answer, 0, sizeof(RetentionAnswer));
	pg_atomic_init_u32(&ordered->answer->outcome, OUTCOME_NONE);
	order->answer = dsm_segment_handle(ordered->segment);
}

/* Starts a worker; false where none is to be had. */
static bool
start_worker(RetentionOrder *order, Ordered *ordered)
{
	open_answer(order, ordered);
	if (worker_register("kavach retention worker", "kavach_retention_main", order, sizeof(*order), &ordered->worker))
		return true;
	dsm_detach(ordered->segment);
	return false;
}

static RetentionOutcome
outcome_of(const Ordered *ordered)
{
	RetentionOutcome outcome = pg_atomic_read_u32(&ordered->answer->outcome);

	pg_read_barrier();
	return outcome;
}

static void
wait_for_answer(const Ordered *ordered)
{
	while (outcome_of(ordered) == OUTCOME_NONE)
	{
		pid_t		pid;
		BgwHandleStatus status = GetBackgroundWorkerPid(ordered->worker, &pid);

		if (status == BGWH_STOPPED || status == BGWH_POSTMASTER_DIED)
			return;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_EXIT_ON_PM_DEATH, -1, WAIT_EVENT_BGWORKER_SHUTDOWN);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

static void
report_failure(const RetentionAnswer *failure)
{
	ereport(ERROR,
			(errcode(failure->sqlerrcode),
			 errmsg("%s", failure->message),
			 failure->detail[0] != '\0' ? errdetail("%s", failure->detail) : 0,
			 failure->hint[0] != '\0' ? errhint("%s", failure->hint) : 0));
}

/* Gives an order and waits for the answer: whether all of it is done. */
static bool
order_and_wait(RetentionOrder *order)
{
	Ordered		ordered;
	RetentionOutcome outcome;

	if (!start_worker(order, &ordered))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("could not start a background worker"),
				 errhint("Raise max_worker_processes.")));
	PG_TRY();
	{
		wait_for_answer(&ordered);
	}
	PG_CATCH();
	{
		TerminateBackgroundWorker(ordered.worker);
		PG_RE_THROW();
	}
	PG_END_TRY();
	outcome = outcome_of(&ordered);
	if (outcome == OUTCOME_FAILED)
		report_failure(ordered.answer);
	if (outcome == OUTCOME_NONE)
		ereport(ERROR,
				(errcode(ERRCODE_ADMIN_SHUTDOWN),
				 errmsg("the background worker ended before its time"),
				 errhint("The server's log says why. Retry.")));
	if (outcome == OUTCOME_BEGUN)
		ereport(NOTICE,
				(errmsg("%s", ordered.answer->message),
				 ordered.answer->detail[0] != '\0' ? errdetail("%s", ordered.answer->detail) : 0));
	dsm_detach(ordered.segment);
	return outcome == OUTCOME_DONE;
}

/* What a worker does is not undone with the caller's transaction; and would wait for it. */
static void
begin_order(const char *function)
{
	char	   *statement = psprintf("%s()", function);

	PreventCommandIfReadOnly(statement);
	PreventCommandIfParallelMode(statement);
	PreventInTransactionBlock(true, statement);
}

static bool
give_order(RetentionOrder *order)
{
	order->ledger = ledger_oid();
	order->role = GetUserId();
	return order_and_wait(order);
}

/* SQL: kavach_drop_month(month) */
static Datum
kavach_drop_month_checked(PG_FUNCTION_ARGS)
{
	RetentionOrder order = {.month = months_arg(fcinfo, 0, periods[PERIOD_MONTH].name)};

	begin_order("kavach_drop_month");
	PG_RETURN_BOOL(give_order(&order));
}

/* SQL: kavach_archive_month(month, schema) */
static Datum
kavach_archive_month_checked(PG_FUNCTION_ARGS)
{
	RetentionOrder order = {
		.month = months_arg(fcinfo, 0, periods[PERIOD_MONTH].name),
		.archive = true,
	};

	if (!PG_ARGISNULL(1))
	{
		char	   *schema = text_to_cstring(PG_GETARG_TEXT_PP(1));

		(void) get_namespace_oid(schema, false);
		strlcpy(order.schema, schema, NAMEDATALEN);
	}
	begin_order("kavach_archive_month");
	PG_RETURN_BOOL(give_order(&order));
}

/* SQL: kavach.apply_retention() */
static Datum
kavach_apply_retention_checked(PG_FUNCTION_ARGS)
{
	RetentionOrder order = {.month = DT_NOBEGIN};

	begin_order("kavach.apply_retention");
	order.ledger = ledger_oid();
	PG_RETURN_BOOL(order_and_wait(&order));
}

/* ---- the standing order ---- */

/* What the worker that closes batches has started last, and what has come of it. */
static struct
{
	Ordered		ordered;
	bool		running;
	TimestampTz next;			/* not to be tried before */
	int			minutes;		/* until the next try */
	char		told[1024];		/* what the log was told last */
}			standing;

/* Once, as long as it stays the same. */
static void
tell_log(const char *message, const char *detail, const char *hint)
{
	if (strcmp(standing.told, message) == 0)
		return;
	strlcpy(standing.told, message, sizeof(standing.told));
	if (message[0] != '\0')
		ereport(LOG,
				(errmsg("kavach.retention: %s", message),
				 detail[0] != '\0' ? errdetail("%s", detail) : 0,
				 hint[0] != '\0' ? errhint("%s", hint) : 0));
}

/* A failure is tried again after a minute, then after two, and so on to an hour. */
static void
put_off(bool failed)
{
	standing.minutes = failed ? Min(Max(2 * standing.minutes, 1), MINS_PER_HOUR) : 0;
	standing.next = GetCurrentTimestamp() + standing.minutes * USECS_PER_MINUTE;
}

/* Whether the last worker is still at it; what it has answered is looked at when it has ended. */
static bool
is_running(void)
{
	pid_t		pid;
	const RetentionAnswer *told;

	if (!standing.running)
		return false;
	if (GetBackgroundWorkerPid(standing.ordered.worker, &pid) != BGWH_STOPPED)
		return true;
	told = standing.ordered.answer;
	put_off(outcome_of(&standing.ordered) != OUTCOME_DONE);
	if (outcome_of(&standing.ordered) != OUTCOME_NONE)	/* else the log has it */
		tell_log(told->message, told->detail, told->hint);
	dsm_detach(standing.ordered.segment);
	pfree(standing.ordered.worker);
	standing.running = false;
	return false;
}

/* Of a worker that is started now, as this one may have been for long. */
static int
present_retention(void)
{
	char	   *value = takeout_database_setting();
	int			minutes;

	return value != NULL && parse_int(value, &minutes, GUC_UNIT_MIN, NULL) ? minutes : retention;
}

static bool
is_anything_due(Oid ledger)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "kavach retention", ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	int			minutes = present_retention();
	bool		due = takeout_unfinished(ledger) != NIL ||
	(minutes > 0 && takeout_older_than(ledger, minutes) != NIL);

	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	return due;
}

/*
 * Called outside of a transaction, once in a while, by the worker that is there
 * anyway: has months taken out that are due, and waits for nothing.
 */
void
retention_tend(Oid ledger)
{
	RetentionOrder order = {
		.ledger = ledger,
		.month = DT_NOBEGIN,
	};
	MemoryContext context;

	if (is_running() || GetCurrentTimestamp() < standing.next || !is_anything_due(ledger))
		return;
	context = MemoryContextSwitchTo(TopMemoryContext);
	standing.running = start_worker(&order, &standing.ordered);
	MemoryContextSwitchTo(context);
	if (!standing.running)
		tell_log("could not start a background worker", "", "Raise max_worker_processes.");
}
