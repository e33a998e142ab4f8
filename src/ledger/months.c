/*-------------------------------------------------------------------------
 * months.c
 *		Has the partition of a month there when it is needed.
 *
 * A missing one is made by a worker, in a transaction of its own, and by
 * the call that needs it only where there is no worker (worker.c): then a
 * second caller waits for the first one's transaction, on a lock of ours.  Next
 * month's is made ahead, by a worker alone.  Whoever needs others, because rows
 * are to come there by another way than calls, has them made with
 * kavach_create_months.
 *-------------------------------------------------------------------------
 */
#include "ledger/months.h"

#include "miscadmin.h"
#include "utils/date.h"
#include "utils/inval.h"

#include "ledger/announce.h"
#include "ledger/dropped.h"
#include "ledger/partition.h"
#include "ledger/worker.h"
#include "server/argument.h"
#include "server/clock.h"
#include "server/lock.h"

#define MAX_MONTHS	240			/* made at a time; each takes some ten locks */

ENTRY_POINT(kavach_create_months, 2, 0);

/*
 * In the caller's transaction.  The lock is one that ATTACH takes anyway; here
 * it waits for a worker that a cancelled caller may have left behind.
 */
static void
make_partition_here(Oid ledger_id, TimestampTz ts)
{
	lock_relation(ledger_id, ShareUpdateExclusiveLock);
	announce_refresh(ledger_id);
	if (!partition_exists(ledger_id, ts))
		partition_make(ts);
}

/* The start of the UTC month of a date. */
TimestampTz
months_arg(FunctionCallInfo fcinfo, int argno, const char *name)
{
	TimestampTz ts;

	if (PG_ARGISNULL(argno))
		refuse_null(name);
	ts = PG_GETARG_DATEADT(argno) * USECS_PER_DAY;	/* wherever the session is */
	if (DATE_NOT_FINITE(PG_GETARG_DATEADT(argno)) || ts < CLOCK_START || ts >= CLOCK_END)
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				 errmsg("%s is out of range", name),
				 errdetail("The ledger's months are those from 1970 to 9999.")));
	return period_start(PERIOD_MONTH, ts);
}

static void
check_months(TimestampTz first, TimestampTz last)
{
	int			count = 0;

	if (first > last)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("first must not be after last")));
	for (TimestampTz month = first; month <= last; month = period_end(PERIOD_MONTH, month))
		if (++count > MAX_MONTHS)
			ereport(ERROR,
					(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
					 errmsg("too many months"),
					 errdetail("At most %d can be made at a time.", MAX_MONTHS),
					 errhint("Make them in several transactions.")));
}

/* What stands in a part of the month only is an error of ATTACH's. */
static bool
has_month(Oid ledger_id, TimestampTz month)
{
	return partition_exists(ledger_id, month) && partition_exists(ledger_id, period_end(PERIOD_MONTH, month) - 1);
}

/*
 * SQL: kavach_create_months(first, last)
 *
 * In the caller's transaction, which keeps others from making any; they wait
 * for nothing else.
 */
static Datum
kavach_create_months_checked(PG_FUNCTION_ARGS)
{
	TimestampTz month = months_arg(fcinfo, 0, "first");
	TimestampTz last = months_arg(fcinfo, 1, "last");
	int			made = 0;
	Oid			ledger_id;

	check_months(month, last);
	PreventCommandIfReadOnly("kavach_create_months()");
	PreventCommandIfParallelMode("kavach_create_months()");
	lock_begin_call();
	ledger_id = lock_ledger(ShareUpdateExclusiveLock);
	announce_refresh(ledger_id);
	for (; month <= last; month = period_end(PERIOD_MONTH, month))
	{
		CHECK_FOR_INTERRUPTS();
		if (has_month(ledger_id, month))
			continue;
		dropped_refuse(month, "Make the months before and after it.");
		partition_make(month);
		made++;
	}
	PG_RETURN_INT32(made);
}

/* Has the worker make a month's partition and the next; LOCK_PARTITION is held. */
static void
have_partitions_made(Oid ledger_id, TimestampTz ts)
{
	if (!worker_make_partitions(ledger_id, ts))
		return;
	announce_again_later();
	AcceptInvalidationMessages();
	announce_refresh(ledger_id);
}

/*
 * The partition of a month, made if it is missing; not of one that was dropped,
 * or its rows would seem to be all of it.  One lock for all months, as ATTACH
 * serializes those who make one anyway; kept by who makes it himself.
 */
PartitionRange
months_ensure(Oid ledger_id, TimestampTz ts)
{
	PartitionRange range;

	if (partition_find(ledger_id, ts, &range))
		return range;
	dropped_refuse(ts, "Calls are recorded at the time of the server's clock, or of kavach.clock.");
	lock_acquire(LOCK_PARTITION, NULL);
	AcceptInvalidationMessages();
	announce_refresh(ledger_id);
	if (!partition_exists(ledger_id, ts))
		have_partitions_made(ledger_id, ts);
	if (partition_exists(ledger_id, ts))
		lock_release(LOCK_PARTITION, NULL);
	else
		make_partition_here(ledger_id, ts);
	if (!partition_find(ledger_id, ts, &range))
		elog(ERROR, "the ledger has no partition for %s", format_utc(ts));
	return range;
}

/*
 * In the database's worker, in a transaction under way that has locked the ledger:
 * makes next month's partition, unless it is there, or somebody makes one just
 * now.  Returns whether it is there; made, whether it has been made here.
 */
bool
months_make_ahead(Oid ledger_id, bool *made)
{
	TimestampTz next = period_end(PERIOD_MONTH, clock_now());

	announce_refresh(ledger_id);
	if (next >= CLOCK_END || partition_exists(ledger_id, next) || dropped_is(next))
		return true;
	if (!lock_try(LOCK_PARTITION, NULL))
		return false;
	partition_make_if_free(ledger_id, next);
	*made = partition_exists(ledger_id, next);
	return *made;
}
