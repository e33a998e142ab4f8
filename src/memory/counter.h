/*-------------------------------------------------------------------------
 * counter.h
 *		Usage of every scope in its current windows, in shared memory.
 *-------------------------------------------------------------------------
 */
#ifndef COUNTER_H
#define COUNTER_H

#include "kavach.h"

typedef struct Counter Counter;

/* The windows of a permission with a rate per hour, in a CounterSet. */
typedef struct CounterRate
{
	int64		permission_id;
	char	   *id;				/* the same as text */
	int			first;			/* the oldest of RATE_WINDOWS counters */
} CounterRate;

/*
 * All the counters of a call: those of its subjects in the windows of ts, those
 * in earlier windows, where a refund goes there, then those of its rates.
 */
typedef struct CounterSet
{
	Oid			ledger;
	Subject		subject;
	TimestampTz ts;
	TimestampTz refund_ts;		/* whose windows a refund counts in */
	Counter    *counters;
	int			count;
	int			first[NUM_SCOPES];	/* of a scope's counters at ts, or -1 */
	int			nsubject;		/* all but those of rates */
	CounterRate *rates;
	int			nrates;
	uint64		partitions;		/* a bit for each that is locked */
} CounterSet;

extern void counter_define_settings(void);
extern Size counter_shmem_size(void);
extern void counter_request_locks(void);
extern void counter_shmem_startup(void);
extern void counter_require(void);
extern void counter_open(CounterSet *set, const Subject *subject, TimestampTz ts, TimestampTz refund_ts,
						 const int64 *rated, int nrated);
extern Usage counter_usage(const CounterSet *set, ScopeKind scope, PeriodKind period);
extern void counter_rate(const CounterSet *set, int index, int64 calls[RATE_WINDOWS]);
extern bool counter_charge(CounterSet *set, int64 tokens, int64 calls, int rate);
extern void counter_refuse_overflow(void);
extern void counter_close(CounterSet *set);
extern void counter_warn_if_small(void);
extern void counter_peek(const Subject *subject, TimestampTz ts, const int wanted[NUM_SCOPES],
						 Usage usage[NUM_SCOPES][NUM_PERIODS]);
extern void counter_peek_rate(const char *agent_id, int64 permission_id, TimestampTz ts,
							  int64 calls[RATE_WINDOWS]);
extern void counter_end_transaction(bool commit);
extern void counter_end_subtransaction(bool commit, int level);

#endif							/* COUNTER_H */
