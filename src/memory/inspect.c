/*-------------------------------------------------------------------------
 * inspect.c
 *		What operators see of the counters, and can do about them.
 *-------------------------------------------------------------------------
 */
#include "kavach.h"

#include "access/htup_details.h"
#include "funcapi.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/tuplestore.h"

#include "ledger/batch.h"
#include "memory/charge.h"
#include "memory/counter.h"
#include "memory/peek.h"
#include "memory/rate.h"
#include "server/argument.h"
#include "server/clock.h"
#include "server/query.h"

ENTRY_POINT(kavach_current_usage, 4, 3);
ENTRY_POINT(kavach_counters, 0, 9);
ENTRY_POINT(kavach_counter_stats, 0, 3);
ENTRY_POINT(kavach_reload_counters, 0, 0);

/*
 * SQL: kavach_reload_counters().  The lock waits for every transaction that
 * holds a pin, and keeps others from pinning until this one ends.
 */
static Datum
kavach_reload_counters_checked(PG_FUNCTION_ARGS)
{
	Oid			ledger = ledger_oid();

	counter_require();
	if (charge_is_any())
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("kavach_reload_counters() cannot run in a transaction that has called kavach"),
				 errhint("Commit first.")));
	LockRelationOid(ledger, ShareRowExclusiveLock);
	batch_note_rows(ledger);
	PG_RETURN_INT64(counter_drop_all(ledger));
}

/* SQL: kavach.current_usage(scope, subject, period, committed) */
static Datum
kavach_current_usage_checked(PG_FUNCTION_ARGS)
{
	Subject		subject = {scope_named(required_id_arg(fcinfo, 0, "scope")), NULL};
	PeriodKind	period;
	bool		committed;
	TimestampTz ts;
	Usage		usage;
	Datum		values[3];
	bool		nulls[3] = {false};

	if (scopes[subject.scope].column != NULL)
		subject.id = required_id_arg(fcinfo, 1, "subject");
	period = period_named(required_id_arg(fcinfo, 2, "period"));
	committed = required_bool_arg(fcinfo, 3, "committed");
	ts = clock_now();
	usage = peek_current(&subject, period, ts, !committed);
	values[0] = TimestampTzGetDatum(period_start(period, ts));
	values[1] = Int64GetDatum(usage.used[MEASURE_TOKENS]);
	values[2] = Int64GetDatum(usage.used[MEASURE_CALLS]);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(answer_desc(fcinfo), values, nulls)));
}

/* Adds a row to kavach.counters. */
static void
put_counter(ReturnSetInfo *result, const CounterEntry *entry, PeriodKind period, const Window *window,
			bool loaded, int pins)
{
	Datum		values[9];
	bool		nulls[9] = {false};

	values[0] = CStringGetTextDatum(scopes[entry->key.scope].name);
	values[1] = CStringGetTextDatum(counter_id(&entry->key));
	nulls[1] = entry->key.scope == SCOPE_ALL;
	values[2] = CStringGetTextDatum(periods[period].name);
	values[3] = TimestampTzGetDatum(window->start);
	values[4] = Int64GetDatum(window->used[MEASURE_TOKENS]);
	values[5] = Int64GetDatum(window->pending[MEASURE_TOKENS]);
	values[6] = Int64GetDatum(window->used[MEASURE_CALLS]);
	values[7] = Int64GetDatum(window->pending[MEASURE_CALLS]);
	values[8] = Int32GetDatum(pins);
	nulls[4] = nulls[5] = nulls[6] = nulls[7] = !loaded;
	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
}

static void
put_windows(ReturnSetInfo *result, const CounterEntry *entry)
{
	for (int period = 0; period < NUM_PERIODS; period++)
		for (int slot = FIRST_SLOT(period); slot <= LAST_SLOT(period); slot++)
		{
			WindowPlace place = {unconstify(CounterEntry *, entry), slot};
			const Window *window = &entry->windows.slots[slot];

			if (window->start != NO_WINDOW)
				put_counter(result, entry, period, window, counter_is_loaded(place), entry->windows.users[slot]);
		}
}

/* The windows of a rate that have calls. */
static void
put_rate(ReturnSetInfo *result, const CounterEntry *entry)
{
	const RateRing *ring = &entry->rate;

	for (int64 at = ring->newest - RATE_RING + 1; ring->loaded && at <= ring->newest; at++)
	{
		int			slot = rate_slot(at);
		Window		window = {
			.start = at * RATE_WINDOW,
			.used = {[MEASURE_CALLS] = ring->used[slot]},
			.pending = {[MEASURE_CALLS] = ring->pending[slot]},
		};

		if (ring->used[slot] != 0 || ring->pending[slot] != 0)
			put_counter(result, entry, PERIOD_RATE, &window, true, entry->pins);
	}
}

/* SQL: kavach.counters */
static Datum
kavach_counters_checked(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	CounterEntry *copies;
	long		count;

	InitMaterializedSRF(fcinfo, 0);
	if (!counter_is_there())
		return (Datum) 0;

	copies = counter_copy_all(ledger_oid(), &count);
	for (long i = 0; i < count; i++)
	{
		if (counter_is_rate(&copies[i]))
			put_rate(result, &copies[i]);
		else
			put_windows(result, &copies[i]);
	}
	return (Datum) 0;
}

/* SQL: kavach.counter_stats */
static Datum
kavach_counter_stats_checked(PG_FUNCTION_ARGS)
{
	CounterStats stats;
	Datum		values[3];
	bool		nulls[3] = {false};

	counter_require();
	stats = counter_stats();
	values[0] = Int64GetDatum(stats.loads);
	values[1] = Int64GetDatum(stats.evictions);
	values[2] = Int64GetDatum(stats.refusals);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(answer_desc(fcinfo), values, nulls)));
}
